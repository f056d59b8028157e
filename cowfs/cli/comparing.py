"""The commands about what differs between two devices, or two layers: changes, diff."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from cowfs.cli import output
from cowfs.cli.settings import DEVICE, Settings
from cowfs.errors import UsageError

if TYPE_CHECKING:
    from cowfs.home.api.comparing import FileChange, FileDifference


@click.command("changes")
@click.argument("device", metavar="A", type=DEVICE)
@click.argument("other", metavar="[B]", type=DEVICE, required=False)
@click.pass_obj
def changes_command(settings: Settings, device: str, other: str | None) -> None:
    """List the paths that differ in the device or layer A from B, by default from the origin of A.

    Each line is a letter and a path: A added, M modified (content, owner, mode or extended attributes), D deleted,
    R renamed, with the old path before the new one (RM: and modified). A deleted or renamed directory is one line,
    and so is one that is a file now.
    Devices may be mounted.

    The time depends on the number of differences, not on the size of A, where A and B have a common origin and the same
    size.
    """
    with settings.open_home() as home:
        changes = list(home.changes(device, other))
    if settings.as_json:
        output.print_json([_as_json(change) for change in changes])
        return
    for change in changes:
        renamed = f"{change.old_path} -> " if change.kind == "R" else ""
        letters = "RM" if change.kind == "R" and change.modified else change.kind
        print(f"{letters:2} {output.printable(renamed + change.path)}")


def _as_json(change: FileChange) -> dict[str, object]:
    import msgspec

    from cowfs.error_record import plain_text

    old_path = None if change.old_path is None else plain_text(change.old_path)
    return {**msgspec.structs.asdict(change), "path": plain_text(change.path), "old_path": old_path}


@click.command("diff")
@click.argument("old", metavar="A", type=DEVICE)
@click.argument("new", metavar="B", type=DEVICE, required=False)
@click.argument("path", metavar="[PATH]", required=False)
@click.pass_obj
def diff_command(settings: Settings, old: str, new: str | None, path: str | None) -> None:
    """Show what differs between the devices or layers A and B, below PATH or everywhere, as 'diff -u A B' does.

    Lines that only A has begin with -, those that only B has with +: so A is the older one, as in 'diff web-1 web'.
    Other differences are a line each: binary files (with a zero byte near the start) and those of more than 1 MiB,
    whose lines are not compared; owners, modes, extended attributes; what is renamed; special files. Devices may
    be mounted.

    The archive of what a layer changed is 'layer diff'.
    """
    if new is None:
        raise UsageError(
            f"diff compares two devices, so name another one, as in 'cowfs diff {old} OTHER'; "
            f"the archive of a layer is 'cowfs layer diff {old}', and 'cowfs changes {old}' lists what it changed"
        )
    found: list[dict[str, object]] = []
    with settings.open_home() as home:
        if settings.as_json:
            home.diff(old, new, lambda difference: found.append(_difference_as_json(difference)), path=path or "/")
        else:
            home.diff(old, new, _print_difference, path=path or "/")
    if settings.as_json:
        output.print_json(found)


def _difference_as_json(difference: FileDifference) -> dict[str, object]:
    from cowfs.error_record import plain_text

    text = "".join(difference.lines)
    notes = [plain_text(note) for note in difference.notes]
    return {**_as_json(difference.change), "text": plain_text(text), "notes": notes}


def _print_difference(difference: FileDifference) -> None:
    for note in difference.notes:
        print(output.printable(note))
    names, lines = difference.lines[:2], difference.lines[2:]
    for name in names:
        print(output.printable(name.rstrip("\n")))
    sys.stdout.flush()
    sys.stdout.buffer.writelines(line.encode(errors="surrogateescape") for line in lines)
    sys.stdout.buffer.flush()
