"""All that was measured and counted in a line, as rows: medians of the rounds, each left out where it is not known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from cowfs.benchmarks.figures import median_of
from cowfs.benchmarks.results import Latency, Line, Sample
from cowfs.pool.counters import PoolCounters, ThinCounters, WriteAmplification

_MIB: Final = 1 << 20


class Detail(NamedTuple):
    """A row: its name, its unit, and the median of each contender that knows it."""

    name: str
    unit: str
    medians: Mapping[str, float]

    @property
    def label(self) -> str:
        return f"{self.name} [{self.unit}]" if self.unit else self.name


class _Kind(NamedTuple):
    name: str
    unit: str
    value: Callable[[Sample], float | None]


def details_of(line: Line) -> Iterator[Detail]:
    """Rows in which a contender has another figure than 0, without the line's own figure."""
    for kind in _KINDS:
        if (kind.name, kind.unit) == (line.figure.name, line.figure.unit):
            continue
        medians = {}
        for name, samples in line.samples.items():
            known = [value for sample in samples if (value := kind.value(sample)) is not None]
            if known:
                medians[name] = median_of(known)
        if any(medians.values()):
            yield Detail(kind.name, kind.unit, medians)


def _throughput(sample: Sample) -> float | None:
    moved = sample.read_bytes + sample.written_bytes
    return moved / _MIB / sample.seconds if moved and sample.seconds else None


def _rate(sample: Sample) -> float | None:
    return sample.requests / sample.seconds if sample.requests and sample.seconds else None


def _latency(field: str) -> _Kind:
    assert field in Latency.__struct_fields__

    def value(sample: Sample) -> float | None:
        return None if sample.latency_us is None else float(getattr(sample.latency_us, field))

    return _Kind(f"latency, {field}", "us", value)


def _amplification(name: str, field: str) -> _Kind:
    assert field in WriteAmplification.__struct_fields__
    return _Kind(name, "", lambda sample: getattr(sample.write_amplification(), field))


def _counted(name: str, field: str, unit: str = "", scale: int = 1) -> _Kind:
    """What a pool counted: of its requests, or of itself."""
    of_requests = field in ThinCounters.__struct_fields__
    assert of_requests or field in PoolCounters.__struct_fields__

    def value(sample: Sample) -> float | None:
        if sample.counters is None:
            return None
        found = getattr(sample.counters.requests if of_requests else sample.counters, field)
        return None if found is None else found / scale

    return _Kind(name, unit, value)


def _known(value: float | None, scale: float) -> float | None:
    return None if value is None else value / scale


_KINDS: Final = (
    _Kind("throughput", "MiB/s", _throughput),
    _Kind("requests", "1/s", _rate),
    *map(_latency, ("p50", "p95", "p99", "max")),
    _Kind("CPU", "ms", lambda sample: _known(sample.cpu_seconds, 0.001)),
    _Kind("peak memory", "MiB", lambda sample: _known(sample.peak_memory_bytes, _MIB)),
    _Kind("space on the host before", "MiB", lambda sample: sample.host_bytes and sample.host_bytes[0] / _MIB),
    _Kind("space on the host after", "MiB", lambda sample: sample.host_bytes and sample.host_bytes[1] / _MIB),
    _amplification("written for each byte asked", "total"),
    _amplification("of it copied", "copied"),
    _amplification("of it zeroed", "zeroed"),
    _amplification("of it metadata", "metadata"),
    _counted("blocks provisioned", "provisioned_blocks"),
    _counted("blocks copied", "copied_blocks"),
    _counted("blocks unmapped", "unmapped_blocks"),
    _counted("blocks freed", "freed_blocks"),
    _counted("copied", "copied_bytes", "KiB", 1024),
    _counted("zeroed", "zeroed_bytes", "KiB", 1024),
    _counted("data written", "data_written_bytes", "KiB", 1024),
    _counted("metadata written", "metadata_written_bytes", "KiB", 1024),
    _counted("metadata blocks written", "metadata_written_blocks"),
    _counted("flushes asked", "flushes"),
    _counted("flushes of the data device", "data_flushes"),
    _counted("commits", "commits"),
)
