"""The names of the commands: their lines in the help, the former names, and what a mistyped name is answered."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import pytest

from cowfs.cli.app import cli
from cowfs.cli.commands import FORMER_NAMES, GROUPS
from cowfs.cli.lazy_group import LazyGroup
from cowfs.cli.suggestions import WORDS_OF_OTHERS
from tests.cli.conftest import Run

# Former name -> the words behind it, and what it is called now. Each runs on a home that has web and web-1.
FORMER: Final = {
    "usage": ("web*", "pool usage"),
    "pool-resize": ("--data-size 512M", "pool resize"),
    "check": ("", "pool check"),
    "dump": ("", "pool dump"),
    "restore": ("{dump}", "pool restore"),
    "delta": ("web web-1", "pool delta"),
    "info": ("", "docker info"),
    "docker-plugin": ("--socket {taken}", "docker plugin"),
    "message": ("create_thin 900", "dm message"),
    "table": ("", "dm table"),
    "dmstatus": ("", "dm status"),
}


def contexts(context: click.Context | None = None) -> Iterator[click.Context]:
    """The program, and all groups and commands in it."""
    context = context or click.Context(cli, info_name="cowfs", **cli.context_settings)
    yield context
    group = context.command
    if isinstance(group, click.Group):
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None, name
            yield from contexts(click.Context(command, info_name=name, parent=context, **command.context_settings))


COMMANDS: Final = {one.command_path: one for one in contexts() if one.parent is not None}


@pytest.mark.parametrize("path", COMMANDS)
def test_the_line_of_a_command_is_a_whole_sentence(path: str, cowfs_anywhere: Run) -> None:
    context = COMMANDS[path]
    line = context.command.short_help
    assert line is not None
    assert line[0].isupper()
    assert line.endswith(".")
    assert "..." not in line
    assert len(line) <= 80
    assert context.command.get_short_help_str() == line
    assert context.parent is not None
    shown = cowfs_anywhere(*context.parent.command_path.split()[1:], "--help")
    assert shown.status == 0
    assert f"{context.info_name} {line}" in " ".join(shown.out.split())  # wrapped, not cut


@pytest.mark.parametrize("path", COMMANDS)
def test_help_is_the_same_by_both_ways(path: str, cowfs_anywhere: Run) -> None:
    words = path.split()[1:]
    asked = cowfs_anywhere(*words, "--help")
    assert (asked.status, asked.err) == (0, "")
    assert asked.out.startswith(f"Usage: {path} ")
    assert cowfs_anywhere("help", *words) == asked


def test_completion_offers_whole_sentences_and_no_former_name() -> None:
    for context in contexts():
        group = context.command
        if isinstance(group, LazyGroup):
            offered = {item.value: item.help for item in group.shell_complete(context, "")}
            assert list(offered) == group.list_commands(context)
            for name, line in offered.items():
                command = group.get_command(context, name)
                assert command is not None
                assert line == command.short_help
    root = next(contexts())
    assert [item.value for item in cli.shell_complete(root, "do")] == ["doctor", "docker"]
    assert not {item.value for item in cli.shell_complete(root, "")} & set(FORMER_NAMES)


def test_completion_of_a_group_in_a_shell(tmp_path: Path) -> None:
    environment = {"_COWFS_COMPLETE": "bash_complete", "COMP_WORDS": "cowfs pool re", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", "from cowfs.cli import main; main()"],
        env={**os.environ, **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    offered = [line.split(",", 1)[1] for line in done.stdout.split()]
    assert offered == ["resize", "restore"], done.stderr


# ------------------------------------------------------------------------------------ former names


def test_every_former_name_is_in_the_table() -> None:
    assert {name: " ".join(now) for name, now in FORMER_NAMES.items()} == {
        name: now for name, (_, now) in FORMER.items()
    }


@pytest.mark.parametrize("former", FORMER)
def test_a_former_name_does_and_prints_what_the_command_does(
    former: str, tmp_path: Path, cowfs_anywhere: Run, home: Path
) -> None:
    """Each in the same state of the home, in the same directory, whose inode number is in the pool's name."""
    behind, now = FORMER[former]
    dump = tmp_path / "dump.xml"
    dump.write_text(cowfs_anywhere("--home", home, "pool", "dump").out)
    taken = tmp_path / "a file that is not a socket"
    taken.touch()
    original = tmp_path / "original"
    subprocess.run(["cp", "-a", "--sparse=always", home, original], check=True, timeout=60)
    arguments = [word.format(dump=dump, taken=taken) for word in behind.split()]
    for options in ((), ("--json",)):
        outcomes = []
        for words in (now.split(), [former]):
            subprocess.run(["find", home, "-mindepth", "1", "-delete"], check=True, timeout=60)
            subprocess.run(["cp", "-a", "--sparse=always", f"{original}/.", home], check=True, timeout=60)
            outcomes.append(cowfs_anywhere("--home", home, *options, *words, *arguments))
        assert outcomes[0] == outcomes[1]
        if former == "docker-plugin":
            assert str(taken) in outcomes[0].err
            continue
        assert (outcomes[0].status, outcomes[0].err) == (0, "")
        assert outcomes[0].out or former == "message"


@pytest.mark.parametrize("former", FORMER)
def test_a_former_name_is_hidden_and_explained(former: str, cowfs_anywhere: Run) -> None:
    now = FORMER[former][1]
    helped = cowfs_anywhere("help", former)
    assert helped.out.startswith(f"Usage: cowfs {former} ")
    assert helped.out.split("\n", 1)[1].split() == cowfs_anywhere("help", *now.split()).out.split("\n", 1)[1].split()
    names = [line.split()[0] for line in cowfs_anywhere("--help").out.splitlines() if line.startswith("  ")]
    assert former not in names


# ------------------------------------------------------------------------------------- suggestions


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        *(("rm web", "remove"), ("delete web", "remove"), ("lvs", "list"), ("copy a b:", "cp"), ("df", "pool usage")),
        *(("verify", "pool check"), ("clone a b", "snapshot"), ("fsck", "pool check"), ("unmount mnt", "umount")),
        *(("grow web 2G", "resize"), ("puol", "pool"), ("stauts", "status")),
        *(("chekc", "pool check"), ("snapshto a b", "snapshot"), ("lst", "list"), ("get web", "layer get")),
        *(("pool chekc", "pool check"), ("pool list", "list"), ("pool info", "docker info"), ("pool df", "pool usage")),
        *(("layer rm x", "layer remove"), ("layer ls", "layer list"), ("dm tabel", "dm table")),
        *(("dm dmstatus", "dm status"), ("help rm", "remove"), ("help pool chekc", "pool check")),
    ],
)  # fmt: skip
def test_a_mistyped_command_gets_a_suggestion(cowfs_anywhere: Run, words: str, suggestion: str) -> None:
    outcome = cowfs_anywhere(*words.split())
    assert (outcome.status, outcome.out) == (2, "")
    typed = words.removeprefix("help ").split()
    word, group = (typed[1], f" of 'cowfs {typed[0]}'") if typed[0] in GROUPS else (typed[0], "")
    assert outcome.error == f"no such command '{word}'{group}; did you mean 'cowfs {suggestion}'?"
    assert cowfs_anywhere("help", *suggestion.split()).status == 0  # it exists


def test_a_word_like_no_command_gets_the_way_to_the_list(cowfs_anywhere: Run) -> None:
    assert cowfs_anywhere("xyzzy").error == "no such command 'xyzzy'; see 'cowfs --help'"
    assert cowfs_anywhere("pool", "xyzzy").error == "no such command 'xyzzy'; see 'cowfs pool --help'"


def test_every_suggestion_for_words_of_other_tools_exists(cowfs_anywhere: Run) -> None:
    for word, suggestion in WORDS_OF_OTHERS.items():
        assert cowfs_anywhere(word).error.endswith(f"did you mean 'cowfs {suggestion}'?"), word
        assert f"cowfs {suggestion}" in COMMANDS or suggestion == "--version"
