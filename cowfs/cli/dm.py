"""The commands of the group dm, in the formats of dmsetup: message, table, status."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cowfs.cli import output
from cowfs.cli.settings import Settings

if TYPE_CHECKING:
    from cowfs.home.requests.devices import TargetLine


@click.command("message")
@click.argument("words", nargs=-1, required=True, metavar="MESSAGE")
@click.pass_obj
def message_command(settings: Settings, words: tuple[str, ...]) -> None:
    """Send the pool a message, as 'dmsetup message POOL 0 MESSAGE' does, with the same syntax and errors.

    \b
      create_thin ID                 set_transaction_id OLD NEW
      create_snap ID ORIGIN_ID       reserve_metadata_snap
      delete ID                      release_metadata_snap

    Messages bypass the home's device records: a thin created here is an orphan ('status' lists it), and a device whose
    thin is deleted here loses its data. For devices, use create, snapshot and remove.
    """
    text = " ".join(words)
    with settings.open_home() as home:
        home.message(text)
    output.answer({"message": text}, as_json=settings.as_json)


@click.command("table")
@click.pass_obj
def table_command(settings: Settings) -> None:
    """Print the table lines of the pool and of every device, as 'dmsetup table' does."""
    with settings.open_home() as home:
        _print_lines(settings, home.table())


@click.command("status")
@click.pass_obj
def status_command(settings: Settings) -> None:
    """Print the status lines of the pool and of every device, as 'dmsetup status' does."""
    with settings.open_home() as home:
        _print_lines(settings, home.target_status())


def _print_lines(settings: Settings, lines: list[TargetLine]) -> None:
    output.answer(lines, *(line.format() for line in lines), as_json=settings.as_json)
