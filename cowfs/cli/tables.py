"""Tables of things by name, of which a command line chooses rows (a pattern), columns and order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Generic, NamedTuple, TypeVar

import click

from cowfs.cli import output
from cowfs.errors import UnknownDevice, UsageError

R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


class Column(NamedTuple, Generic[R]):
    """`figure` is what a column of figures is sorted by, the largest first; None where there is none. Text sorts by
    itself. A column whose every row is `usual` is shown only where it is named."""

    header: str
    text: Callable[[R], str]
    figure: Callable[[R], int | None] | None = None
    usual: tuple[str, ...] = ()


class Table(NamedTuple, Generic[R]):
    """What a command can show. `name_of` is what a pattern is compared with, None for a row without a name."""

    columns: tuple[Column[R], ...]
    name_of: Callable[[R], str | None]

    def options(self, command: F) -> F:
        """The arguments PATTERN, --columns, --sort and --reverse of a command."""
        names = ", ".join(column.header.lower() for column in self.columns)
        add = click.option("--reverse", is_flag=True, help="Reverse the order.")(command)
        add = click.option(
            "--sort", metavar="COLUMN", help="Sort by COLUMN: numbers with the largest first, text alphabetically."
        )(add)
        add = click.option("--columns", metavar="LIST", help=f"Show these, with commas between: {names}.")(add)
        return click.argument("patterns", nargs=-1, metavar="[PATTERN]...")(add)

    def chosen(self, rows: Sequence[R], patterns: Sequence[str]) -> list[R]:
        """The rows whose names match a pattern (`*`, `?`, `[a-z]`); all without a pattern.

        Raises:
            UnknownDevice: a pattern that matches nothing.
        """
        if not patterns:
            return list(rows)
        names = [self.name_of(row) for row in rows]
        for pattern in patterns:
            if not any(name is not None and fnmatchcase(name, pattern) for name in names):
                raise UnknownDevice(f"no device of the home matches '{pattern}'; 'cowfs list' shows all")
        return [
            row
            for row, name in zip(rows, names, strict=True)
            if name is not None and any(fnmatchcase(name, pattern) for pattern in patterns)
        ]

    def ordered(self, rows: Sequence[R], sort: str | None, *, reverse: bool) -> list[R]:
        """The rows in the order of a column, as they are without one. Raises UsageError for an unknown column."""
        if sort is None:
            return list(reversed(rows)) if reverse else list(rows)
        column = self._column("--sort", sort)
        if column.figure is None:
            return sorted(rows, key=column.text, reverse=reverse)
        figure = column.figure
        return sorted(rows, key=lambda row: -1 if (n := figure(row)) is None else n, reverse=not reverse)

    def print(self, rows: Sequence[R], columns: str | None) -> None:
        """Print the rows, with all columns or those named. Raises UsageError for an unknown column."""
        if columns is None:
            shown = tuple(c for c in self.columns if not c.usual or any(c.text(row) not in c.usual for row in rows))
        else:
            shown = tuple(self._column("--columns", name.strip()) for name in columns.split(","))
        output.print_table(
            [column.header for column in shown],
            [[column.text(row) for column in shown] for row in rows],
            right=frozenset(i for i, column in enumerate(shown) if column.figure is not None),
        )

    def _column(self, option: str, name: str) -> Column[R]:
        for column in self.columns:
            if column.header == name.upper():
                return column
        names = ", ".join(column.header.lower() for column in self.columns)
        raise UsageError(f"{option}: there is no column '{name}'; the columns are {names}")


def refuse_for_json(as_json: bool, columns: str | None) -> None:
    """Raises UsageError for --columns where everything is printed."""
    if as_json and columns is not None:
        raise UsageError("--columns is about the table, and JSON has every field; leave out one of them")
