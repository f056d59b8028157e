"""What a home's pool and devices have done: as figures, and as OpenMetrics text for programs that gather such."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cowfs.devices.reports import HomeReport, IoReport
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.requests.request import Request
from cowfs.pool import PoolCounters, ThinCounters


class Io(Request[IoReport], frozen=True, tag="io"):
    """What the pool and the devices have done since the pool was opened, by the process that holds the home."""

    only_reads = True

    def run(self, home: OpenHome) -> IoReport:
        return home.devices.reports.io()


class Metrics(Request[str], frozen=True, tag="metrics"):
    """Space and counters of the home, as OpenMetrics text.

    Source: the OpenMetrics specification, version 1.0.
    """

    only_reads = True

    def run(self, home: OpenHome) -> str:
        return "".join(f"{line}\n" for line in _lines(home.devices.reports.status(), home.devices.reports.io()))


_HELP: Final = {
    "reads": "read requests",
    "read_bytes": "bytes of read requests",
    "writes": "write requests",
    "written_bytes": "bytes of write requests",
    "discards": "discard requests",
    "discarded_bytes": "bytes of discard requests",
    "flushes": "flush requests",
    "provisioned_blocks": "data blocks given to virtual blocks that had none",
    "copied_blocks": "data blocks given to virtual blocks that were shared",
    "copied_bytes": "bytes copied around writes to shared blocks",
    "zeroed_bytes": "bytes made zeros around writes to new blocks",
    "unmapped_blocks": "virtual blocks unmapped by discards",
    "freed_blocks": "data blocks that lost their last owner",
    "commits": "commits of the metadata",
    "data_written_bytes": "bytes written to the data device",
    "data_flushes": "flushes of the data device",
    "metadata_written_blocks": "metadata blocks written",
    "metadata_written_bytes": "bytes written to the metadata device",
}


def _lines(home: HomeReport, io: IoReport) -> Iterator[str]:
    where = f'home="{_escape(home.home)}"'
    for name, help_text, used, total in (
        ("data", "space of the pool's data", home.data_used_bytes, home.data_total_bytes),
        ("metadata", "space of the pool's metadata", home.metadata_used_bytes, home.metadata_total_bytes),
    ):
        yield f"# TYPE cowfs_pool_{name}_bytes gauge"
        yield f"# UNIT cowfs_pool_{name}_bytes bytes"
        yield f"# HELP cowfs_pool_{name}_bytes {help_text}, by use"
        yield f'cowfs_pool_{name}_bytes{{{where},use="used"}} {used}'
        yield f'cowfs_pool_{name}_bytes{{{where},use="free"}} {total - used}'
    yield "# TYPE cowfs_devices gauge"
    yield "# HELP cowfs_devices devices of the home, without the base device"
    yield f"cowfs_devices{{{where}}} {home.devices}"
    for field in PoolCounters.__struct_fields__[1:]:
        yield from _counter(f"cowfs_pool_{field}", field, [(where, getattr(io.pool, field))])
    for field in ThinCounters.__struct_fields__:
        values = [
            (f'{where},device="{_escape(device.name)}"', getattr(device.counters, field)) for device in io.devices
        ]
        yield from _counter(f"cowfs_device_{field}", field, values)
        yield from _counter(f"cowfs_pool_{field}", field, [(where, getattr(io.pool.requests, field))])
    yield "# EOF"


def _counter(metric: str, field: str, values: list[tuple[str, int | None]]) -> Iterator[str]:
    known = [(labels, value) for labels, value in values if value is not None]
    if not known:
        return
    yield f"# TYPE {metric} counter"
    if field.endswith("_bytes"):
        yield f"# UNIT {metric} bytes"
    yield f"# HELP {metric} {_HELP[field]}, since the pool was opened"
    for labels, value in known:
        yield f"{metric}_total{{{labels}}} {value}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
