"""A trace in figures."""

from __future__ import annotations

import msgspec

from cowfs.traces.requests import FLUSH, KIND_NAMES, Trace


class KindSummary(msgspec.Struct):
    """The requests of one kind. `sequential`: how many began where the one before of their kind ended."""

    requests: int = 0
    size_bytes: int = 0
    smallest_bytes: int = 0
    largest_bytes: int = 0
    sequential: int = 0
    sync: int = 0


class TraceSummary(msgspec.Struct, frozen=True):
    """What a trace has.

    Attributes:
        device_size_bytes, began: of `TraceHeader`.
        seconds: from the begin of the trace to its last request.
        furthest_bytes: how large a device must be to take all of it.
        is_whole, lost: of `TraceEnd`.
        kinds: of the kinds that there are.
    """

    path: str
    format: str
    device: str
    device_size_bytes: int | None
    began: float | None
    requests: int
    seconds: float
    furthest_bytes: int
    is_whole: bool
    lost: int
    kinds: dict[str, KindSummary]


def summarize(trace: Trace) -> TraceSummary:
    """Read a trace to its end. Raises UsageError: it cannot be read so far."""
    kinds = [KindSummary() for _ in KIND_NAMES]
    ends = [-1] * len(KIND_NAMES)
    furthest = last_ns = count = 0
    for time_ns, kind, offset, length, sync in trace.requests():
        count += 1
        last_ns = time_ns
        found = kinds[kind]
        found.requests += 1
        found.sync += sync
        if kind == FLUSH:
            continue
        end = offset + length
        found.size_bytes += length
        found.smallest_bytes = min(found.smallest_bytes, length) if found.requests > 1 else length
        found.largest_bytes = max(found.largest_bytes, length)
        found.sequential += offset == ends[kind]
        ends[kind] = end
        furthest = max(furthest, end)
    return TraceSummary(
        path=trace.path,
        format=trace.kind,
        device=trace.header.device,
        device_size_bytes=trace.header.size_bytes,
        began=trace.header.began,
        requests=count,
        seconds=last_ns / 1e9,
        furthest_bytes=furthest,
        is_whole=trace.end.is_whole,
        lost=trace.end.lost,
        kinds={name: found for name, found in zip(KIND_NAMES, kinds, strict=True) if found.requests},
    )
