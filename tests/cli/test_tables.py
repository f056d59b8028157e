"""Tables: rows by pattern, columns, order, and how they stand in a terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.cli.conftest import Run


def first_words(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines()]


def test_a_pattern_chooses_devices(cowfs: Run) -> None:
    for name in ("snap-2", "snap-1"):
        cowfs("snapshot", "web", name)
    assert first_words(cowfs("list", "snap-*").out) == ["NAME", "snap-1", "snap-2"]
    assert first_words(cowfs("list", "web", "snap-[1]").out) == ["NAME", "snap-1", "web"]
    assert [row["name"] for row in cowfs("--json", "list", "web?1").json] == ["web-1"]
    assert cowfs("list", "--tree", "snap-?").out.count("\n") == 2
    usage = cowfs("usage", "snap-*").out.splitlines()
    assert {line.split()[0] for line in usage[1:3]} == {"snap-1", "snap-2"}
    assert usage[3].startswith("data: ")
    assert usage[3:] == cowfs("usage").out.splitlines()[-2:]
    assert [thin["name"] for thin in cowfs("--json", "usage", "web").json["thins"]] == ["web"]


@pytest.mark.parametrize("command", ["list", "usage"])
def test_a_pattern_without_a_device_is_an_error(cowfs: Run, command: str) -> None:
    outcome = cowfs(command, "web", "nope-*")
    assert (outcome.status, outcome.out) == (5, "")
    assert outcome.error == "no device of the home matches 'nope-*'; 'cowfs list' shows all"


def test_columns_are_those_named_in_their_order(cowfs: Run) -> None:
    lines = [line.split() for line in cowfs("list", "--columns", "parent, Name").out.splitlines()]
    assert lines == [["PARENT", "NAME"], ["-", "base"], ["base", "web"], ["web", "web-1"]]


def test_contents_are_a_column_where_a_disk_is_not_ext4(cowfs: Run, tmp_path: Path) -> None:
    assert "CONTENTS" not in cowfs("list").out
    (tmp_path / "empty.img").touch()
    os.truncate(tmp_path / "empty.img", 1 << 20)
    assert cowfs("import", str(tmp_path / "empty.img"), "disk").status == 0
    table = [line.split() for line in cowfs("list", "--columns", "name,contents").out.splitlines()]
    assert table == [["NAME", "CONTENTS"], ["base", "ext4"], ["disk", "empty"], ["web", "ext4"], ["web-1", "ext4"]]
    assert " CONTENTS " in cowfs("list").out
    assert "CONTENTS" not in cowfs("list", "web*").out
    rows = {row["name"]: row.get("contents", "ext4") for row in cowfs("--json", "list").json}
    assert rows == {"base": "ext4", "disk": "empty", "web": "ext4", "web-1": "ext4"}


def test_order_is_by_figures_the_largest_first_and_by_text(cowfs: Run) -> None:
    assert cowfs("create", "big", "--size", "32M").status == 0
    by_size = first_words(cowfs("list", "--sort", "size").out)
    assert by_size[:2] == ["NAME", "big"]
    assert first_words(cowfs("list", "--sort", "SIZE", "--reverse").out)[-1] == "big"
    assert first_words(cowfs("list", "--sort", "id").out)[1:] == ["big", "web-1", "web", "base"]
    assert first_words(cowfs("list", "--sort", "name", "--reverse").out)[1:] == ["web-1", "web", "big", "base"]
    assert first_words(cowfs("list", "--reverse").out)[1:] == ["web-1", "web", "big", "base"]
    assert cowfs("--json", "list", "--sort", "size").json[0]["name"] == "big"
    assert first_words(cowfs("usage", "--sort", "name").out)[1:5] == ["base", "big", "web", "web-1"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["list", "--sort", "age"], "--sort: there is no column 'age'; the columns are name, id, size, mapped,"),
        (["usage", "--columns", "name,"], "--columns: there is no column ''; the columns are name, mapped, shared,"),
        (["list", "--tree", "--sort", "id"], "a tree has neither columns nor another order"),
        (["--json", "list", "--columns", "id"], "--columns is about the table, and JSON has every field"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_chosen(cowfs: Run, words: list[str], error: str) -> None:
    outcome = cowfs(*words)
    assert outcome.status == 2
    assert error in outcome.err


def test_wide_characters_are_aligned(cowfs: Run) -> None:
    for name in ("東京", "x\u0308y", "ascii"):
        assert cowfs("create", name).status == 0
    lines = cowfs("list", "--columns", "name,id,parent").out.splitlines()
    ends = {cell_len(line[: line.index(" base")]) for line in lines if line.endswith(" base")}
    assert len(ends) == 1


def test_a_terminal_that_is_too_narrow_gets_the_needed_width(cowfs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_any, **_named: os.terminal_size((40, 20)))
    narrow = cowfs("list")
    width = max(map(len, narrow.out.splitlines()))
    assert narrow.error == f"the table is {width} columns wide and this terminal 40; --columns chooses some"
    assert cowfs("list", "--columns", "name,size").err == ""
