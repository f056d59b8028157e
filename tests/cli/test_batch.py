"""Command lines from a file: stopping, going on, JSON lines, and what is no line."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run

LINES = """
# comments and empty lines are passed over

create shop   # as here
snapshot web 'before the update'
create --count 2 'n{}'
remove nope
inspect shop
create "unfinished
remove shop
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script"
    path.write_text(LINES)
    return path


def names(cowfs: Run) -> list[str]:
    return [row["name"] for row in cowfs("--json", "list").json]


def test_it_stops_at_the_first_line_that_fails(cowfs: Run, script: Path) -> None:
    outcome = cowfs("batch", script)
    assert outcome.out.splitlines() == [
        "made shop: id 4, 16 MiB, snapshot of base",
        "made before the update: id 5, 16 MiB, snapshot of web",
        "made n1: id 6, 16 MiB, snapshot of base",
        "made n2: id 7, 16 MiB, snapshot of base",
    ]
    assert outcome.error.startswith("line 7: there is no device 'nope' in the home")
    assert outcome.status == 5
    assert "shop" in names(cowfs)


def test_it_goes_on_where_that_is_asked(cowfs: Run, script: Path) -> None:
    outcome = cowfs("batch", "--keep-going", script)
    first, second = outcome.err.splitlines()
    assert first.startswith("cowfs: line 7: there is no device 'nope'")
    assert second == "cowfs: line 9: the line cannot be split into words: no closing quotation"
    assert outcome.out.splitlines()[-1] == "removed shop"
    assert outcome.status == 5  # the first error's


def test_json_has_a_line_for_each(cowfs: Run, script: Path) -> None:
    outcome = cowfs("--json", "batch", "--keep-going", script)
    assert outcome.err == ""
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    assert [(line["line"], line["command"], line["exit_status"]) for line in lines] == [
        (4, "create shop   # as here", 0),
        (5, "snapshot web 'before the update'", 0),
        (6, "create --count 2 'n{}'", 0),
        (7, "remove nope", 5),
        (8, "inspect shop", 0),
        (9, 'create "unfinished', 2),
        (10, "remove shop", 0),
    ]
    assert lines[0]["result"]["name"] == "shop"
    assert [made["name"] for made in lines[2]["result"]] == ["n1", "n2"]
    assert lines[3]["error"]["class"] == "UnknownDevice"
    assert lines[5]["error"]["exit_code"] == 2
    assert all(("error" in line) == bool(line["exit_status"]) for line in lines)


def test_text_and_bytes_are_results_too(cowfs: Run, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("help trim\nlayer create box\nlayer diff box\n")
    outcome = cowfs("--json", "batch", script)
    assert outcome.status == 0
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    assert lines[0]["result"].startswith("Usage: cowfs trim")
    assert set(lines[2]["result"]) == {"\0"}  # the end of an archive


def test_the_lines_after_a_help_are_run(cowfs: Run, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("create --help\npool check --help\ncreate shop\n")
    outcome = cowfs("--json", "batch", script)
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    assert [(line["line"], line["exit_status"]) for line in lines] == [(1, 0), (2, 0), (3, 0)]
    assert "Usage: cowfs pool check" in lines[1]["result"]
    assert "shop" in names(cowfs)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--json list", "a line begins with a command, and --json must come before 'batch', for all lines"),
        ("batch other", "'batch other' cannot be a line of a batch; run it outside of the batch"),
        ("uml true", "'uml true' cannot be a line of a batch"),
        ("mount --foreground web /mnt", "'mount --foreground' cannot be a line of a batch"),
        ("mount --as-server 7 {}", "'mount --as-server' cannot be a line of a batch"),
        ("docker plugin", "'docker plugin' cannot be a line of a batch"),
        ("promote web", "snapshots are peers here"),
        ("creat web", "no such command 'creat'; did you mean 'cowfs create'?"),
        ("create", "missing argument 'NAME...'; see 'cowfs create --help'"),
        ("create a\udcff", "it contains a character that cannot be printed"),
    ],
)
def test_what_is_no_line(cowfs: Run, tmp_path: Path, line: str, said: str) -> None:
    script = tmp_path / "script"
    script.write_bytes(os.fsencode(line))
    before = names(cowfs)
    outcome = cowfs("batch", script)
    assert f"line 1: {said}" in outcome.error or said in outcome.error
    assert (outcome.status, outcome.out) == (2, "")
    assert names(cowfs) == before


def test_a_warning_names_its_line(cowfs: Run, tmp_path: Path) -> None:
    (tmp_path / "batch").write_text("create a\ncreate b\nrollback a b\n")
    outcome = cowfs("batch", str(tmp_path / "batch"))
    assert outcome.status == 0
    assert outcome.err.startswith("cowfs: line 3: warning: ")
    assert outcome.err.count("\n") == 1


def test_a_file_that_is_not_there(cowfs: Run, tmp_path: Path) -> None:
    outcome = cowfs("batch", tmp_path / "nowhere")
    assert outcome.error == f"{tmp_path}/nowhere: No such file or directory"
    assert outcome.status == 1


def test_lines_come_from_standard_input_as_they_are_written(home: Path) -> None:
    """So another program can ask and read the answers, in one process; a command finds no input there."""
    command = [sys.executable, "-m", "cowfs", "--home", home, "--json", "batch", "--keep-going"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, bufsize=1, **pipes) as process:  # type: ignore[call-overload]
        for line, status in (("create a", 0), ("layer create l", 0), ("layer apply l", 2), ("remove a", 0)):
            process.stdin.write(f"{line}\n")
            answer = json.loads(process.stdout.readline())
            assert (answer["command"], answer["exit_status"]) == (line, status), answer
        process.stdin.close()
        assert process.wait(60) == 2


def test_signals_are_as_before_after_each_line(cowfs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ignore(*_arguments: object, **_options: object) -> int:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as `mount` does when its mount can be used
        return 0

    monkeypatch.setattr("cowfs.cli.devices.list_command.callback", ignore)
    monkeypatch.setattr("sys.stdin", io.StringIO("list\n"))
    before = signal.getsignal(signal.SIGINT)
    assert cowfs("batch").status == 0
    assert signal.getsignal(signal.SIGINT) is before
