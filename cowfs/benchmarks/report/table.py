"""A result as CSV, a row for each round of each contender on each line, for those who draw for themselves."""

from __future__ import annotations

import csv
import io

import msgspec

from cowfs.benchmarks.results import Latency, Result, Sample

_PLAIN = (
    "seconds",
    "requests",
    "read_bytes",
    "written_bytes",
    "cpu_seconds",
    "peak_memory_bytes",
    "engine_written_bytes",
)
_COUNTED = ("provisioned_blocks", "copied_blocks", "copied_bytes", "zeroed_bytes", "unmapped_blocks", "flushes")
_POOL = ("metadata_written_bytes", "data_written_bytes", "data_flushes", "commits", "freed_blocks")


def as_csv(result: Result) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["question", "line", "x", "x_unit", "contender", "round", "figure", "unit", "value", *_PLAIN]
    head += ["host_bytes_before", "host_bytes_after", *(f"latency_us_{name}" for name in Latency.__struct_fields__)]
    writer.writerow([*head, *_COUNTED, *_POOL])
    for question in result.questions:
        for line in question.lines:
            for contender, samples in line.samples.items():
                for number, sample in enumerate(samples, 1):
                    about = [question.name, line.name, line.x, question.x_unit, contender, number]
                    writer.writerow([*about, line.figure.name, line.figure.unit, *_cells(sample)])
    return out.getvalue()


def _cells(sample: Sample) -> list[object]:
    """An empty cell where a figure is not known."""
    latency = [None] * len(Latency.__struct_fields__)
    if sample.latency_us is not None:
        latency = list(msgspec.structs.astuple(sample.latency_us))
    counters = sample.counters
    return [
        sample.value,
        *(getattr(sample, name) for name in _PLAIN),
        *(sample.host_bytes or (None, None)),
        *latency,
        *(None if counters is None else getattr(counters.requests, name) for name in _COUNTED),
        *(None if counters is None else getattr(counters, name) for name in _POOL),
    ]
