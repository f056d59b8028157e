"""Where messages are shown: lines of a command, a server's log, a file; and the explanations of commands."""

from __future__ import annotations

import logging
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from cowfs.cli import log
from cowfs.cli.app import cli
from tests.cli.conftest import Run

if TYPE_CHECKING:
    from tests.cli.mounted_home import MountedHome


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level
    yield
    while log._ours:
        root.removeHandler(log._ours.pop())
    root.setLevel(before)


@pytest.fixture
def noisy(home: Path) -> Path:
    """A home whose opening warns: a record in it cannot be understood."""
    (home / "metadata" / "web").write_text("{")
    return home


def test_a_warning_is_one_line_and_dash_q_leaves_it_out(noisy: Path, cowfs_anywhere: Run) -> None:
    loud = cowfs_anywhere("--home", noisy, "list")
    assert "damaged" in loud.error
    (noisy / "metadata" / "web-1").write_text("{")
    quiet = cowfs_anywhere("-q", "--home", noisy, "list")
    assert (quiet.status, quiet.err) == (0, "")
    assert "web-1" not in quiet.out


def test_errors_are_shown_in_spite_of_dash_q(cowfs_anywhere: Run, home: Path) -> None:
    outcome = cowfs_anywhere("--quiet", "--home", home, "inspect", "nope")
    assert "no device 'nope'" in outcome.error
    assert outcome.status == 5


def test_a_file_takes_the_log_and_the_lines_stay(noisy: Path, cowfs_anywhere: Run, tmp_path: Path) -> None:
    file = tmp_path / "log"
    for _ in range(2):
        (noisy / "metadata" / "web").write_text("{")
        outcome = cowfs_anywhere("--log", file, "--home", noisy, "list")
        assert "damaged" in outcome.error
    lines = file.read_text().splitlines()
    assert [" WARNING cowfs" in line for line in lines].count(True) == 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_dash_v_shows_what_is_logged_at_its_level(
    cowfs_anywhere: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def devices(_self: object) -> list[object]:
        logger = logging.getLogger("cowfs.test")
        logger.info("a step")
        logger.debug("a detail")
        logger.info("a step")
        return []

    monkeypatch.setattr("cowfs.home.api.home.Home.devices", devices)
    said = [cowfs_anywhere(*words, "--home", home, "list").err for words in ([], ["-v"], ["-vv"], ["-v", "-v", "-v"])]
    assert said[:3] == ["", "cowfs: a step\n", "cowfs: a step\ncowfs: a detail\n"]
    assert said[3] == said[2]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["-q", "-v", "doctor"], "-q shows less and -v more; leave one of them out"),
        (["--log", "/nowhere/log", "doctor"], "--log: cannot write to /nowhere/log: No such file or directory"),
        (["list", "-q"], "no such option '-q' of this command; -q must come before it: cowfs -q ... COMMAND"),
        (["help", "nope"], "no such command 'nope'; see 'cowfs --help'"),
        (["help", "layer", "nope"], "no such command 'nope'; see 'cowfs layer --help'"),
        (["help", "list", "nope"], "no such command 'nope'; see 'cowfs list --help'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_line(cowfs_anywhere: Run, words: list[str], error: str) -> None:
    outcome = cowfs_anywhere(*words)
    assert outcome.error == error
    assert outcome.status == 2


@pytest.mark.fuse
def test_the_log_of_a_server_is_written_where_it_is_wanted(mounted: MountedHome) -> None:
    file = mounted.account.directory / "server.log"
    mounted.run("--log", file, "-vv", "mount", "web", mounted.target)
    mounted.run("umount", mounted.target)
    assert " INFO " in file.read_text() or " DEBUG " in file.read_text()
    assert (mounted.home / "cowfs.log").read_text() == ""


def all_commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    waiting: list[tuple[tuple[str, ...], click.Command]] = [((), cli)]
    while waiting:
        words, command = waiting.pop()
        found.append(words)
        if isinstance(command, click.Group):
            context = click.Context(command)
            names = command.list_commands(context)
            below = [(name, command.get_command(context, name)) for name in names]
            waiting += [((*words, name), one) for name, one in below if one is not None]
    return sorted(found)


@pytest.mark.parametrize("words", all_commands(), ids=lambda words: " ".join(words) or "cowfs")
def test_help_is_what_dash_dash_help_prints(cowfs_anywhere: Run, words: tuple[str, ...]) -> None:
    explained = cowfs_anywhere("help", *words)
    assert explained.status == 0
    assert explained.out == cowfs_anywhere(*words, "--help").out
    assert "..." not in explained.out.partition("Commands:")[2], "a line of help is cut"


def test_help_starts_without_what_only_commands_need() -> None:
    code = (
        "import sys; from cowfs.cli.app import run; run(['--help']); print('logging' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == "False\n"
