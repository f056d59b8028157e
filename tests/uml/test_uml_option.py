"""The global option --uml: any command on a home, in a guest, while this machine keeps others off the home."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cowfs.cli.app import run
from cowfs.uml import UmlKernel
from tests.conftest import Account
from tests.kit.guests import require_reachable

SMALL = ("--data-size", "64M", "--metadata-size", "4M", "--base-size", "16M")


def test_a_home_is_made_and_used(uml_kernel: UmlKernel, account: Account) -> None:
    require_reachable(account, uml_kernel)
    cowfs = ["cowfs", "--uml", "--home", "home"]
    assert account.run([*cowfs, "init", *SMALL]).stdout.startswith("made ")
    account.run(["cowfs", "--home", "home", "create", "web"])
    status = json.loads(account.run([*cowfs, "--json", "status"]).stdout)
    assert (status["backend"], status["devices"]) == ("dmthin", 1)
    failed = account.run([*cowfs, "remove", "nix"], check=False)
    assert (failed.returncode, failed.stdout) == (5, "")
    assert failed.stderr.startswith("cowfs: there is no device 'nix'")
    late = account.run(["cowfs", "--uml", "--time-limit", "0.5", "--home=home", "list"], check=False)
    assert late.returncode == 8
    assert "'cowfs list' in User-Mode Linux was ended after 0.5 seconds" in late.stderr


@pytest.fixture
def home(tmp_path: Path) -> Path:
    assert run(["--home", str(tmp_path / "home"), "init", *SMALL]) == 0
    return tmp_path / "home"


def test_the_home_is_held_meanwhile(uml_kernel: UmlKernel, home: Path) -> None:
    """And Ctrl-C ends the command and frees the home."""
    words = [sys.executable, "-m", "cowfs", "--uml", "--home", str(home), "restore", "-"]  # waits for its input
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (home / "cowfs.lock").read_text().startswith(f"{process.pid}\n"):
            assert process.poll() is None
            os.sched_yield()
        refused = subprocess.run(
            [sys.executable, "-m", "cowfs", "--home", home, "list"], capture_output=True, text=True, check=False
        )
        assert refused.returncode == 5
        assert f"held by process {process.pid}" in refused.stderr
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "cowfs: interrupted" in process.stderr.read()
    assert process.returncode == 130
    assert run(["--home", str(home), "list"]) == 0


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["--uml", "mount", "web", "/mnt"], 2, "a mount there ends with its command"),
        (["--uml", "umount", "/mnt"], 2, "a mount there ends with its command"),
        (["--uml", "uml", "--", "true"], 2, "leave it out"),
        (["--time-limit", "3", "list"], 2, "--time-limit is for --uml"),
        (["--uml", "init"], 5, "is a home already"),
    ],
)
def test_what_makes_no_sense_is_refused_before_a_boot(
    home: Path, words: list[str], status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--home", str(home), *words]) == status
    assert text in capsys.readouterr().err
