"""The command metrics, and how counters are printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from cowfs.cli import output
from cowfs.cli.settings import Settings
from cowfs.units import format_size

if TYPE_CHECKING:
    from cowfs.devices.reports import IoReport
    from cowfs.pool import ThinCounters

_UNKNOWN: Final = "-"


@click.command("metrics")
@click.pass_obj
def metrics_command(settings: Settings) -> None:
    """Print space and counters of the home as OpenMetrics text, for Prometheus and similar programs.

    While the home is mounted these are the figures of the process that serves the mount; counters begin when the pool
    is opened. The same text is the answer to the line {"op":"metrics"} on the control socket, cowfs.sock in the home.
    """
    with settings.open_home() as home:
        text = home.metrics()
    if settings.as_json:
        output.print_json({"metrics": text})
    else:
        print(text, end="")


def print_io(report: IoReport) -> None:
    """Counters of the pool and of the devices; what the backend cannot tell is `-`."""
    pool, block_bytes = report.pool, report.block_bytes
    print()
    header = ["DEVICE", "READS", "READ", "WRITES", "WRITTEN", "DISCARDS", "DISCARDED", "FLUSHES"]
    header += ["PROVISIONED", "COPIED", "ZEROED", "UNMAPPED"]
    rows = [[device.name, *_cells(device.counters, block_bytes)] for device in report.devices]
    rows.append(["all of the pool", *_cells(pool.requests, block_bytes)])
    output.print_table(header, rows, right=frozenset(range(1, len(header))))
    print()
    amplification = report.write_amplification
    ratios = [
        f"{value:.2f} {cause}"
        for cause, value in (
            ("in all", amplification.total),
            ("copied", amplification.copied),
            ("zeroed", amplification.zeroed),
            ("metadata", amplification.metadata),
        )
        if value is not None
    ]
    output.print_fields(
        [
            ("Commits", _count(pool.commits)),
            ("Freed", _size(pool.freed_blocks, block_bytes)),
            ("Data written", f"{_size(pool.data_written_bytes)}, {_count(pool.data_flushes)} flushes"),
            (
                "Metadata written",
                f"{_size(pool.metadata_written_bytes)}, {_count(pool.metadata_written_blocks)} blocks",
            ),
            ("Write amplification", ", ".join(ratios)),
        ]
    )


def io_fields(counters: ThinCounters, block_bytes: int) -> list[tuple[str, str]]:
    """Counters of one device as fields; those that are not known are left out."""

    def both(requests: int | None, size_bytes: int | None) -> str:
        return "" if requests is None else f"{requests}, {format_size(size_bytes or 0)}"

    def size(amount: int | None, unit: int = 1) -> str:
        return "" if amount is None else format_size(amount * unit)

    return [
        ("Reads", both(counters.reads, counters.read_bytes)),
        ("Writes", both(counters.writes, counters.written_bytes)),
        ("Discards", both(counters.discards, counters.discarded_bytes)),
        ("Flushes", "" if counters.flushes is None else str(counters.flushes)),
        ("Provisioned", size(counters.provisioned_blocks, block_bytes)),
        ("Shared blocks copied", size(counters.copied_blocks, block_bytes)),
        ("Unmapped", size(counters.unmapped_blocks, block_bytes)),
    ]


def _cells(counters: ThinCounters, block_bytes: int) -> list[str]:
    return [
        *(_count(counters.reads), _size(counters.read_bytes)),
        *(_count(counters.writes), _size(counters.written_bytes)),
        *(_count(counters.discards), _size(counters.discarded_bytes), _count(counters.flushes)),
        *(_size(counters.provisioned_blocks, block_bytes), _size(counters.copied_blocks, block_bytes)),
        *(_size(counters.zeroed_bytes), _size(counters.unmapped_blocks, block_bytes)),
    ]


def _count(value: int | None) -> str:
    return _UNKNOWN if value is None else str(value)


def _size(value: int | None, unit: int = 1) -> str:
    return _UNKNOWN if value is None else format_size(value * unit)
