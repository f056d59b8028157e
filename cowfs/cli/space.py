"""The commands about the space of devices: trim, resize."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cowfs.cli import output
from cowfs.cli.settings import DEVICE, SIZE, Settings
from cowfs.errors import CowfsError
from cowfs.units import format_size

if TYPE_CHECKING:
    from cowfs.home.requests.space import TrimmedDevice


@click.command("trim")
@click.argument("names", nargs=-1, metavar="[NAME]...", type=DEVICE)
@click.pass_obj
def trim_command(settings: Settings, names: tuple[str, ...]) -> int:
    """Return blocks that the file systems do not use to the pool: of the devices named, or of all.

    Devices may be mounted. A block that several devices share is freed when none of them maps it any more.

    When a device cannot be trimmed, the others still are; the exit status is then that of the first error.
    """
    status = 0
    done: list[TrimmedDevice] = []
    with settings.open_home() as home, output.progress("trimming") as progress:
        names = names or tuple(row.name for row in home.devices() if not row.deleted)
        for number, name in enumerate(names):
            if progress is not None:
                progress(number, len(names))
            try:
                done.append(home.trim(name))
            except CowfsError as error:
                failed = output.print_error(error, as_json=settings.as_json)
                status = status or failed
    if settings.as_json:
        output.print_json({"trimmed": done, "freed_bytes": sum(device.freed_bytes for device in done)})
        return status
    if not done:
        return status
    header = ("NAME", "UNMAPPED", "FREED")
    rows = [(device.name, format_size(device.unmapped_bytes), format_size(device.freed_bytes)) for device in done]
    output.print_table(header, rows, right=frozenset({1, 2}))
    print(f"{format_size(sum(device.freed_bytes for device in done))} freed")
    return status


@click.command("resize")
@click.argument("name", type=DEVICE)
@click.argument("size", type=SIZE)
@click.pass_obj
def resize_command(settings: Settings, name: str, size: int) -> None:
    """Enlarge the device NAME, which must not be mounted, and the file system in it to SIZE.

    After an interruption the device has either the old size or the new one. Devices cannot shrink. Enlarging base
    affects only devices that are created later. The thin id of the device changes.
    """
    with settings.open_home_from_outside() as home:
        resized = home.resize(name, size)
    line = f"{name}: {output.size_change(resized.old_size_bytes, resized.size_bytes)}"
    output.answer(resized, line, as_json=settings.as_json)
