"""What to say about a command that does not exist: its spelling, its group, or our word for another tool's."""

from __future__ import annotations

import difflib
from typing import Final

import click

from cowfs.cli.commands import FORMER_NAMES, GROUPS, SECTIONS
from cowfs.errors import UsageError

# What other tools (and the shell) call it -> what it is called here.
WORDS_OF_OTHERS: Final = {
    **dict.fromkeys(("rm", "del", "delete", "destroy", "erase", "lvremove", "rmi"), "remove"),
    **dict.fromkeys(("lvs", "devices", "volumes"), "list"),
    **dict.fromkeys(("df", "du", "space"), "pool usage"),
    **dict.fromkeys(("clone", "fork", "branch", "snap", "commit"), "snapshot"),
    **dict.fromkeys(("copy", "copy-in", "copy-out", "virt-copy-in", "virt-copy-out"), "cp"),
    **dict.fromkeys(("dir", "find"), "ls"),
    **dict.fromkeys(("new", "make", "mk", "mkfs", "lvcreate"), "create"),
    **dict.fromkeys(("verify", "fsck", "scrub", "thin_check"), "pool check"),
    **dict.fromkeys(("repair", "fix", "rescue", "thin_repair"), "recover"),
    **dict.fromkeys(("show", "stat", "describe"), "inspect"),
    **dict.fromkeys(("extend", "grow", "expand", "lvextend", "truncate"), "resize"),
    **dict.fromkeys(("unmount", "eject"), "umount"),
    **dict.fromkeys(("fstrim", "discard", "gc", "prune"), "trim"),
    **dict.fromkeys(("save", "tar", "dump-image"), "export"),
    **dict.fromkeys(("load", "untar", "convert"), "import"),
    **dict.fromkeys(("clonehome", "copy-home"), "clone-home"),
    **dict.fromkeys(("iostat", "stats", "prometheus"), "metrics"),
    **dict.fromkeys(("format", "setup"), "init"),
    **dict.fromkeys(("revert", "reset", "undo", "merge", "lvconvert"), "rollback"),
    "dmsetup": "dm",
    "man": "help",
    "thin_dump": "pool dump",
    "thin_restore": "pool restore",
    "thin_delta": "pool delta",
    "probe": "doctor",
    "version": "--version",
}


# What needs no command here, and why.
_NEEDLESS: Final = {
    "promote": "snapshots are peers here, so none needs promoting; either one can be removed or rolled back",
}


def no_such_command(ctx: click.Context, word: str) -> UsageError:
    """The error for a word that names no command of the group of `ctx`: one line, with a suggestion if there is one."""
    path = ctx.command_path
    if word in _NEEDLESS:
        return UsageError(f"no such command '{word}': {_NEEDLESS[word]}")
    suggestion = _suggest(ctx.info_name if ctx.parent is not None else None, word)
    if suggestion is None:
        return UsageError(f"no such command '{word}'; see '{path} --help'")
    of_group = f" of '{path}'" if ctx.parent is not None else ""
    return UsageError(f"no such command '{word}'{of_group}; did you mean 'cowfs {suggestion}'?")


def _suggest(group: str | None, word: str) -> str | None:
    """The command that is meant, without the word cowfs; None if no command is similar."""
    top = [name for section in SECTIONS.values() for name in section]
    inside = [(name, command) for name, entry in GROUPS.items() for command in entry.commands]
    own = [command for name, command in inside if name == group]
    if group is not None and (near := _nearest(word, own)):
        return f"{group} {near}"
    if group is not None and (translated := WORDS_OF_OTHERS.get(word)) in own:
        return f"{group} {translated}"
    if word in top:
        return word
    if word in WORDS_OF_OTHERS:
        return WORDS_OF_OTHERS[word]
    for name, command in inside:
        if command == word:
            return f"{name} {command}"
    if word in FORMER_NAMES:
        return " ".join(FORMER_NAMES[word])
    if near := _nearest(word, top):
        return near
    near = _nearest(word, [command for _, command in inside])
    return next((f"{name} {command}" for name, command in inside if command == near), None)


def _nearest(word: str, names: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, names, n=1)), None)
