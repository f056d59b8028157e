"""The manual pages, written from what the commands declare: python -m cowfs.cli.manual DIR

`cowfs.1`, and `cowfs-COMMAND.1` for each command, `cowfs-layer-diff.1` for one in a group. Their form is man(7).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from cowfs.cli import app
from cowfs.cli.lazy_group import LazyGroup
from cowfs.version import VERSION

_PREFORMATTED: Final = "\b"  # how click marks a paragraph whose lines stay as they are
_WIDTH: Final = 1000  # of a line of help, which is not cut


def write_pages(directory: str | os.PathLike[str]) -> list[Path]:
    """Write all pages into a directory, which is made; returns their paths."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    root = click.Context(app.cli, info_name="cowfs", **app.cli.context_settings)
    written = []
    for context in _commands(root):
        path = folder / f"{_page(context)}.1"
        path.write_text(_format(context), encoding="utf-8")
        written.append(path)
    return written


def _commands(context: click.Context) -> Iterator[click.Context]:
    """A command and all below it."""
    yield context
    for below in _below(context):
        yield from _commands(below)


def _below(context: click.Context) -> list[click.Context]:
    group = context.command
    if not isinstance(group, click.Group):
        return []
    named = [(name, group.get_command(context, name)) for name in group.list_commands(context)]
    return [
        click.Context(command, info_name=name, parent=context, **command.context_settings)
        for name, command in named
        if command is not None
    ]


def _page(context: click.Context) -> str:
    return context.command_path.replace(" ", "-")


def _format(context: click.Context) -> str:
    command, page = context.command, _page(context)
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [
        f'.TH "{_text(page.upper())}" 1 "" "cowfs {VERSION}" "cowfs"',
        ".SH NAME",
        f"{_text(page)} \\- {_text(command.get_short_help_str(_WIDTH).rstrip('.'))}",
        ".SH SYNOPSIS",
        f".B {_text(context.command_path)}",
        _text(usage),
        ".SH DESCRIPTION",
        *_paragraphs(command.help or ""),
    ]
    options = [one for one in command.get_params(context) if isinstance(one, click.Option)]
    records = [record for option in options if (record := option.get_help_record(context))]
    lines += [".SH OPTIONS", *_entries(records)]
    if isinstance(command, LazyGroup):
        lines += [".SH COMMANDS", *_commands_by_section(command, page)]
    if context.parent is None:
        lines += [".SH EXIT STATUS", *_paragraphs(_exit_status())]
    else:
        lines += [".SH SEE ALSO", f".BR {_text(_page(context.parent))} (1)"]
    return "\n".join(lines) + "\n"


def _commands_by_section(group: LazyGroup, page: str) -> Iterator[str]:
    for title, section in group.sections.items():
        if len(group.sections) > 1:
            yield f".SS {_text(title)}"
        yield from _entries([(f"{page}-{name}(1)", entry.summary) for name, entry in section.items()])


def _exit_status() -> str:
    """The paragraph about it in the description of the program."""
    (found,) = (part for part in (app.__doc__ or "").split("\n\n") if part.startswith("Exit status:"))
    return found.removeprefix("Exit status:").strip()


def _paragraphs(text: str) -> Iterator[str]:
    for part in text.strip().split("\n\n"):
        lines = part.strip("\n").split("\n")
        if lines[0].strip() == _PREFORMATTED:
            yield from (".PP", ".nf", *map(_text, lines[1:]), ".fi")
        else:
            yield from (".PP", _text(" ".join(line.strip() for line in lines)))


def _entries(records: list[tuple[str, str]]) -> Iterator[str]:
    for name, text in records:
        yield from (".TP", f".B {_text(name)}", _text(text) or "\\&")


def _text(text: str) -> str:
    """Text that roff prints as it is: its escape character, dashes that stay dashes, no request at a line's start."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq").replace("'", "\\(aq")
    return f"\\&{escaped}" if escaped.startswith((".", " ")) else escaped


if __name__ == "__main__":
    write_pages(sys.argv[1])
