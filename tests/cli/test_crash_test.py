"""`cowfs crash-test`: what it finds and prints, as root and as an ordinary user, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Account

WRITER = """
import os, sys, subprocess
for number in "12":
    with open(sys.argv[1] + "/a.tmp", "w") as file:
        file.write(number * 700)
        file.flush()
        os.fsync(file.fileno())
    os.rename(sys.argv[1] + "/a.tmp", sys.argv[1] + "/a")
    if len(sys.argv) > 2:
        directory = os.open(sys.argv[1], os.O_RDONLY)
        os.fsync(directory)
    subprocess.run(["cowfs", "crash-mark", number], check=True)
"""
CHECKER = """#!/bin/sh
directory="$1"; shift
for promised; do :; done
[ -z "$promised" ] || grep -sq "[$promised-9]" "$directory/a" || { echo "lost <$promised>"; exit 3; }
"""


@pytest.fixture
def programs(account: Account, needs_fuse: None) -> Account:
    (account.directory / "writer.py").write_text(WRITER)
    (account.directory / "checker").write_text(CHECKER)
    (account.directory / "checker").chmod(0o755)
    for name in ("writer.py", "checker"):
        os.chown(account.directory / name, account.uid, account.gid)
    return account


@pytest.mark.fuse
def test_a_promise_that_is_not_kept_is_found_named_kept_and_reported(programs: Account) -> None:
    programs.run(
        ["cowfs", "--home", "H", "init", "--data-size", "256M", "--metadata-size", "4M", "--base-size", "16M"],
    )
    words = ["crash-test", "--work", "python3 writer.py {}", "--check", "./checker {} {marks}", "--states", "12"]
    words += ["--seed", "5", "--model", "posix", "--keep-failing", "bad", "--report", "crash.html"]
    found = programs.run(["cowfs", "--home", "H", "--json", *words], check=False)
    assert found.returncode == 1, found.stderr
    outcome = json.loads(found.stdout)
    assert outcome["marks"] == ["1", "2"]
    assert outcome["states"] == 12
    failure = outcome["failures"][0]
    assert failure["description"] == "rename of a.tmp to a was lost although '1' was promised"
    assert failure["status"] == 3
    assert failure["output"] == "lost <1>\nthe check ended with exit status 3\n"
    assert failure["device"] == "bad"
    listed = json.loads(programs.run(["cowfs", "--home", "H", "--json", "list"]).stdout)
    assert [row["name"] for row in listed] == ["bad", "base"]
    page = (programs.directory / "crash.html").read_text()
    assert "rename of a.tmp to a was lost although" in page
    assert "lost &lt;1&gt;" in page
    assert "http" not in page
    assert '<meta name="viewport"' in page, "a phone would show it as wide as a desk"
    assert "<title>1 failures at position" in page


@pytest.mark.fuse
def test_a_program_that_syncs_all_passes_without_a_home(programs: Account) -> None:
    words = ["crash-test", "--work", "python3 writer.py {} sync", "--check", "./checker {} {marks}", "--states", "8"]
    said = programs.run(["cowfs", *words, "--model", "posix", "--seed", "5"]).stdout
    assert said == "no failure: 8 states tried, model posix, seed 5\n"
    assert not list(Path("/tmp").glob(f"cowfs-crash-test-*/{programs.uid}"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--work", "true", "--check", "true {}"], "--work 'true' has no {}: put {} where the directory"),
        (["--work", "'", "--check", "true {}"], "--work ''' cannot be split into words: No closing quotation"),
        (["--work", "true {}", "--check", ""], "--check is empty"),
        (["--work", "nope {}", "--check", "true {}"], "--work: there is no program 'nope'"),
        (
            ["--work", "true {}", "--check", "true {}", "--keep-failing", "x"],
            "--keep-failing is about a device of a home",
        ),
        (
            ["--work", "true {}", "--check", "true {}", "--states", "1", "--all"],
            "--states and --all exclude each other",
        ),
    ],
)
def test_what_is_refused_is_said_in_one_line(ordinary_user: Account, words: list[str], message: str) -> None:
    refused = ordinary_user.run(["cowfs", "crash-test", *words], check=False)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.fuse
def test_work_that_fails_tests_nothing(ordinary_user: Account, needs_fuse: None) -> None:
    refused = ordinary_user.run(["cowfs", "crash-test", "--work", "false {}", "--check", "true {}"], check=False)
    assert refused.returncode == 2
    assert "ended with exit status 1; nothing was tested" in refused.stderr


@pytest.mark.fuse
def test_what_takes_too_long_is_killed_with_all_that_it_has_started(ordinary_user: Account, needs_fuse: None) -> None:
    hanging = ordinary_user.directory / "hanging"
    hanging.write_text("#!/bin/sh\necho looking\nsleep 1000 &\necho $! >> started\nwait\n")
    hanging.chmod(0o755)

    def crash_test(work: str, check: str) -> subprocess.CompletedProcess[str]:
        words = ["--json", "crash-test", "--work", work, "--check", check, "--timeout", "0.5", "--states", "1"]
        return ordinary_user.run(["cowfs", *words], check=False)

    found = crash_test("touch {}/a", "./hanging {}")
    assert found.returncode == 1, found.stderr
    (failure,) = json.loads(found.stdout)["failures"]
    assert failure["status"] == -signal.SIGKILL
    assert failure["output"] == "looking\nthe check took more than 0.5 s\n"

    refused = crash_test("./hanging {}", "true {}")
    assert refused.returncode == 2
    assert (
        "took more than 0.5 s and was killed; nothing was tested; give it more time" in refused.stderr.splitlines()[-1]
    )
    for pid in (ordinary_user.directory / "started").read_text().split():
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]


@pytest.mark.fuse
def test_checks_see_the_files_of_the_device_and_as_many_run_as_jobs_say(programs: Account) -> None:
    checkers = {
        "alone": "mkdir lock || exit 1; sleep 0.01; rmdir lock",
        "together": 'touch "seen/$$"; until [ "$(ls seen | wc -l)" -ge 2 ]; do sleep 0.01; done',
    }
    programs.mkdir("seen")
    for name, line in checkers.items():
        (programs.directory / name).write_text(f'#!/bin/sh\ngrep -q before "$1/kept" || exit 1\n{line}\n')
        (programs.directory / name).chmod(0o755)
    home = ["cowfs", "--home", "H"]
    programs.run([*home, "init", "--data-size", "256M", "--metadata-size", "4M", "--base-size", "16M"])
    programs.run([*home, "create", "web"])
    (programs.directory / "kept").write_text("before")
    programs.run([*home, "cp", "kept", "web:/kept"])
    for jobs, name in (("1", "alone"), ("2", "together")):
        words = [
            "crash-test",
            "--device",
            "web",
            "--jobs",
            jobs,
            "--work",
            "touch {}/a {}/b",
            "--check",
            f"./{name} {{}}",
        ]
        said = programs.run([*home, *words, "--model", "posix", "--states", "4", "--seed", "5"]).stdout
        assert said == "no failure: 4 states tried, model posix, seed 5\n"
    listed = json.loads(programs.run([*home, "--json", "list"]).stdout)
    assert [row["name"] for row in listed] == ["base", "web"]


def test_a_mark_without_a_crash_test_is_refused(ordinary_user: Account) -> None:
    refused = ordinary_user.run(["cowfs", "crash-mark", "1"], check=False)
    assert refused.returncode == 2
    assert "there is no crash test to set a mark for" in refused.stderr
