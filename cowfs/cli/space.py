"""The commands about space: usage, trim, resize, pool-resize."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from cowfs.cli import output
from cowfs.cli.settings import DEVICE, SIZE, Settings
from cowfs.cli.tables import Column, Table, refuse_for_json
from cowfs.errors import CowfsError
from cowfs.units import format_size

if TYPE_CHECKING:
    from cowfs.home.requests.space import TrimmedDevice, UsageRow, UsageTotals


_THINS: Final[Table[UsageRow]] = Table(
    (
        Column("NAME", lambda thin: f"(thin {thin.id})" if thin.name is None else thin.name),
        Column("MAPPED", lambda thin: format_size(thin.mapped_bytes), lambda thin: thin.mapped_bytes),
        Column("SHARED", lambda thin: format_size(thin.shared_bytes), lambda thin: thin.shared_bytes),
        Column("EXCLUSIVE", lambda thin: format_size(thin.exclusive_bytes), lambda thin: thin.exclusive_bytes),
        Column("METADATA", lambda thin: format_size(thin.metadata_bytes), lambda thin: thin.metadata_bytes),
    ),
    lambda thin: thin.name,
)


@click.command("usage")
@_THINS.options
@click.pass_obj
def usage_command(
    settings: Settings, patterns: tuple[str, ...], columns: str | None, sort: str | None, reverse: bool
) -> None:
    """Show where the space of the pool is, the largest first.

    With PATTERN, as in 'snap-*', only devices whose names match one of them; the totals are always those of the pool.

    EXCLUSIVE is what removing a device gives back, with so much METADATA; SHARED it has in common with others. Thins in
    brackets belong to no device; 'recover' gives them a name, or deletes them.
    """
    from cowfs.home.requests.space import UsageReport

    refuse_for_json(settings.as_json, columns)
    with settings.open_home() as home:
        report = home.usage()
    thins = _THINS.chosen(report.thins, patterns)
    if settings.as_json:
        output.print_json(UsageReport(_THINS.ordered(thins, sort, reverse=reverse), report.totals))
        return
    thins.sort(key=lambda thin: (-thin.exclusive_bytes, -thin.mapped_bytes, thin.name or "", thin.id))
    _THINS.print(_THINS.ordered(thins, sort, reverse=reverse), columns)
    _print_totals(report.totals)


def _print_totals(totals: UsageTotals) -> None:
    print(
        f"data: {format_size(totals.data_used_bytes)} of {format_size(totals.data_total_bytes)} used, "
        f"{format_size(totals.exclusive_bytes)} exclusive and {format_size(totals.shared_bytes)} shared; "
        f"sharing saves {format_size(totals.saved_bytes)}"
    )
    print(f"metadata: {format_size(totals.metadata_used_bytes)} of {format_size(totals.metadata_total_bytes)} used")


@click.command("trim")
@click.argument("names", nargs=-1, metavar="[NAME]...", type=DEVICE)
@click.pass_obj
def trim_command(settings: Settings, names: tuple[str, ...]) -> int:
    """Give back to the pool what the file systems in devices do not use: in those named, or in all.

    Devices may be mounted. What a device shares with others comes back when none of them has it any more.

    A device that cannot be trimmed does not keep the others from it; the exit status is then the first error's.
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
    header = ("NAME", "UNMAPPED", "CAME BACK")
    rows = [(device.name, format_size(device.unmapped_bytes), format_size(device.freed_bytes)) for device in done]
    output.print_table(header, rows, right=frozenset({1, 2}))
    print(f"{format_size(sum(device.freed_bytes for device in done))} came back")
    return status


@click.command("resize")
@click.argument("name", type=DEVICE)
@click.argument("size", type=SIZE)
@click.pass_obj
def resize_command(settings: Settings, name: str, size: int) -> None:
    """Grow the device NAME, which is not mounted, and the file system in it to SIZE.

    It has the old size or the new one, whatever happens meanwhile. Devices do not shrink. Growing base makes the
    devices larger that are made from it later.
    """
    with settings.open_home() as home:
        resized = home.resize(name, size)
    if settings.as_json:
        output.print_json(resized)
    else:
        print(f"{output.printable(name)}: {_change(resized.old_size_bytes, resized.size_bytes)}")


@click.command("pool-resize")
@click.option("--data-size", type=SIZE, help="Size of the data. [default: what its file or device has]")
@click.option("--metadata-size", type=SIZE, help="Size of the metadata. [default: what its file or device has]")
@click.pass_obj
def pool_resize_command(settings: Settings, data_size: int | None, metadata_size: int | None) -> None:
    """Make the pool larger, while its devices are in use or not. Pools do not shrink.

    On block devices, enlarge these first, then run this without a size.
    """
    with settings.open_home() as home:
        resized = home.resize_pool(data_size_bytes=data_size, metadata_size_bytes=metadata_size)
    if settings.as_json:
        output.print_json(resized)
    else:
        print(f"data: {_change(resized.old_data_bytes, resized.data_bytes)}")
        print(f"metadata: {_change(resized.old_metadata_bytes, resized.metadata_bytes)}")


def _change(old_bytes: int, new_bytes: int) -> str:
    if old_bytes == new_bytes:
        return f"{format_size(new_bytes)}, as before"
    return f"{format_size(new_bytes)}, was {format_size(old_bytes)}"
