"""The commands of the group pool: usage, resize, set; and of its metadata as a whole: check, dump, restore, delta."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Final, TextIO

import click

from cowfs.cli import output
from cowfs.cli.settings import DEVICE, SIZE, WAIT, Settings
from cowfs.cli.tables import Column, Table, refuse_for_json
from cowfs.errors import CowfsError, UsageError
from cowfs.units import format_size

if TYPE_CHECKING:
    from cowfs.devices.reports import UsageRow, UsageTotals
    from cowfs.home.api.comparing import BlockRange
    from cowfs.home.requests.space import NoSpaceChoice
    from cowfs.thinmeta.findings import CheckReport
    from cowfs.thinmeta.xml import TextSink

_BUFFER_CHARACTERS: Final = 64 << 10
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
    """Show which devices use the space of the pool, the largest first.

    With PATTERN, as in 'snap-*', only devices whose names match one of them; the totals are always those of the pool.

    EXCLUSIVE is the data space that removing a device frees, METADATA the metadata space; SHARED is mapped by other
    devices too. Thins in brackets are orphans, which no device record names; 'recover' names or deletes them.
    """
    from cowfs.devices.reports import UsageReport

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


@click.command("resize")
@click.option("--data-size", type=SIZE, help="New size of the data. [default: the size of its file or device]")
@click.option("--metadata-size", type=SIZE, help="New size of the metadata. [default: the size of its file or device]")
@click.pass_obj
def resize_command(settings: Settings, data_size: int | None, metadata_size: int | None) -> None:
    """Enlarge the pool; its devices may be in use. Pools cannot shrink.

    When the pool is on block devices, enlarge those first, then run this without a size.
    """
    with settings.open_home() as home:
        resized = home.resize_pool(data_size_bytes=data_size, metadata_size_bytes=metadata_size)
    output.answer(
        resized,
        f"data: {output.size_change(resized.old_data_bytes, resized.data_bytes)}",
        f"metadata: {output.size_change(resized.old_metadata_bytes, resized.metadata_bytes)}",
        as_json=settings.as_json,
    )


@click.command("set")
@click.option("--no-space", "policy", type=click.Choice(["queue", "error"]), help="Writes wait for space, or fail.")
@click.option(
    "--no-space-timeout",
    "timeout_seconds",
    type=WAIT,
    metavar="SECONDS",
    help="How long writes wait for space; 0: without limit.",
)
@click.pass_obj
def set_command(settings: Settings, policy: NoSpaceChoice | None, timeout_seconds: float | None) -> None:
    """Set what writes do when the pool is full; its devices may be in use. The home remembers it.

    The setting also applies to writes that already wait. The kernel (with --backend dmthin) has one time-out for all of
    its pools, the parameter no_space_timeout of its module dm_thin_pool.
    """
    if policy is None and timeout_seconds is None:
        raise UsageError("nothing to set; give --no-space, --no-space-timeout or both")
    with settings.open_home() as home:
        setting = home.set_no_space(policy, timeout_seconds=timeout_seconds)
    when_full = output.when_full(setting.no_space, setting.timeout_seconds)
    output.answer(setting, f"when full: {when_full}", as_json=settings.as_json)


@click.command("check")
@click.option("--repair", is_flag=True, help="Repair: rebuild what is wrong from the mapping trees. Not while mounted.")
@click.option("--block-size", type=SIZE, help="Data block size of the pool, for a repair after its superblock is lost.")
@click.pass_obj
def check_command(settings: Settings, repair: bool, block_size: int | None) -> int:
    """Check the pool's metadata by a full recount; report errors with the path from the root to each damaged block.

    Works on a mounted home (on its last commit), and on metadata that is too damaged to open. Exit status 4 when leaks
    or errors are left.

    --repair clears the needs-check flag, or writes new metadata from the mappings that can be read and keeps the old
    file beside it as devicemapper/metadata.replaced. What was lost is reported, with exit status 1. If the metadata
    need not be rewritten, the space of lost changes in the data file is returned to the file system below the home.
    """
    from cowfs.home.maintenance import check_home, repair_home

    home = settings.home_path
    with output.progress("checking") as progress:
        if repair:
            result = repair_home(home, block_bytes=block_size, progress=progress)
        else:
            result = check_home(home, settings.backend, progress=progress)
    if settings.as_json:
        output.print_json(result)
    else:
        _print_check(result)
    return CowfsError.exit_code if result.clean and result.losses else result.exit_code


def _print_check(result: CheckReport) -> None:
    for finding in result.findings:
        print(output.printable(str(finding)))
    if result.hidden_findings:
        print(f"... and {result.hidden_findings} more")
    for loss in result.losses:
        print(output.printable(f"lost: {loss}"))
    print(f"{result.summary}{'; repaired' if result.repaired else ''}")
    if result.given_back_bytes:
        print(f"{format_size(result.given_back_bytes)} of lost changes given back to the disk")
    if result.clean:
        print(
            f"{result.thins} thins map {result.mapped_blocks} blocks; data {result.data_used_blocks}/"
            f"{result.data_blocks}, metadata {result.metadata_used_blocks}/{result.metadata_blocks} blocks used"
        )


@click.command("dump")
@click.pass_obj
def dump_command(settings: Settings) -> None:
    """Write the pool's metadata to standard output as XML, as thin_dump does.

    Works on a mounted home, on its last commit. With --json, a JSON object with the XML in its field xml.
    """
    from cowfs.home.maintenance import dump_home

    with output.progress("dumping") as progress, _xml_output(settings) as out:
        dump_home(settings.home_path, settings.backend, out, progress=progress)


@click.command("restore")
@click.argument("file", type=click.File("rb"))
@click.pass_obj
def restore_command(settings: Settings, file: BinaryIO) -> None:
    """Replace the pool's metadata by the contents of FILE, XML from 'pool dump' or thin_dump; - is standard input.

    Not while mounted. The new metadata is written beside the old one, checked, and takes its place last; the old file
    is kept as devicemapper/metadata.replaced. The data file and the home's records stay as they are.
    """
    from cowfs.home.maintenance import restore_home

    with output.progress("restoring") as progress:
        result = restore_home(settings.home_path, file, progress=progress)
    line = f"restored {result.thins} thins that map {result.mapped_blocks} blocks"
    output.answer(result, line, as_json=settings.as_json)


@click.command("delta")
@click.argument("left", type=DEVICE, metavar="A")
@click.argument("right", type=DEVICE, metavar="[B]", required=False)
@click.option("--ranges", is_flag=True, help="Write ranges of bytes: what differs in B from A, or all that A maps.")
@click.option("--starting-offset", type=click.IntRange(min=0), metavar="BYTES", help="With --ranges: begin here.")
@click.option("--max-results", type=click.IntRange(min=1), metavar="N", help="With --ranges: end after N ranges.")
@click.pass_obj
def delta_command(
    settings: Settings,
    left: str,
    right: str | None,
    ranges: bool,
    starting_offset: int | None,
    max_results: int | None,
) -> None:
    """Write the differences between the mappings of devices A and B to standard output as XML, as thin_delta does.

    With --json, a JSON object with the XML in its field xml.

    With --ranges, for incremental backup: a line for each range of B that differs from A, an earlier snapshot; without
    B, for each range of A that is mapped. It has the offset and the size in bytes, and what is there: data, or a hole,
    which reads as zeros. With --json each line is an object with byte_offset, size_bytes and hole. To go on after a
    range, give its end as --starting-offset. A and B should be snapshots that are not written to.
    """
    if ranges:
        base, device = (None, left) if right is None else (left, right)
        with settings.open_home() as home:
            offset, count = starting_offset or 0, max_results or 0
            _print_ranges(settings, home.block_ranges(device, base, starting_offset_bytes=offset, max_results=count))
        return
    if right is None:
        raise UsageError(f"name the device to compare '{left}' with, or give --ranges to list what '{left}' maps")
    if starting_offset is not None or max_results is not None:
        raise UsageError("--starting-offset and --max-results are for --ranges; add that, or leave them out")
    with settings.open_home() as home, _xml_output(settings) as out:
        home.delta(left, right, out)


def _print_ranges(settings: Settings, ranges: Iterable[BlockRange]) -> None:
    import msgspec

    for found in ranges:
        if settings.as_json:
            print(msgspec.json.encode(found).decode())
        else:
            print(f"{found.byte_offset} {found.size_bytes} {'hole' if found.hole else 'data'}")


@contextmanager
def _xml_output(settings: Settings) -> Iterator[TextSink]:
    """Standard output, for a document of any length; nothing is kept of it."""
    out = _Buffered(sys.stdout, as_json=settings.as_json)
    yield out
    out.finish()


class _Buffered:
    """Collects text into large writes; as JSON, the text is the value of `xml`. Silent when nothing came."""

    def __init__(self, stream: TextIO, *, as_json: bool) -> None:
        self._stream = stream
        self._as_json = as_json
        self._parts: list[str] = []
        self._length = 0
        self._begun = False

    def write(self, text: str) -> None:
        self._parts.append(text)
        self._length += len(text)
        if self._length >= _BUFFER_CHARACTERS:
            self._write_out()

    def finish(self) -> None:
        self._write_out()
        if self._as_json:
            self._stream.write('"}\n')

    def _write_out(self) -> None:
        text = "".join(self._parts)
        self._parts.clear()
        self._length = 0
        if self._as_json:
            begin = "" if self._begun else '{"xml": "'
            text = begin + json.dumps(text)[1:-1]
        self._begun = True
        self._stream.write(text)
