"""What a workload measures with. A line is a block of work: its time, and what was counted while it ran."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from cowfs.benchmarks import accounting
from cowfs.benchmarks.engines.interface import Contender
from cowfs.benchmarks.results import Figure, Latency, Question, Sample
from cowfs.pool.counters import PoolCounters

_MIB: Final = 1 << 20


@dataclass
class Work:
    """What a block of work has done, which the workload fills in.

    Attributes:
        asks_unseen: the workload does not know what it writes: what the contender was asked to write counts.
        seconds: the time of the block; of a workload that measures its time, what the workload says.
        latencies: of single requests, in seconds, where the workload takes them.
        latency: where another program has taken them.
        value: the line's figure, where the figure cannot be reckoned from the rest.
    """

    requests: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    asks_unseen: bool = False
    seconds: float = 0.0
    latencies: array[float] = field(default_factory=lambda: array("d"))
    latency: Latency | None = None
    value: float | None = None
    fio: Any = None


@dataclass(frozen=True)
class Kind:
    """A figure, and how it is reckoned from the work and from what was counted."""

    figure: Figure
    value: Callable[[Work, PoolCounters | None], float]


def _copied_per_written(work: Work, counters: PoolCounters | None) -> float:
    copied = None if counters is None else counters.requests.copied_bytes
    if copied is None or not work.written_bytes:
        return float("nan")
    return copied / work.written_bytes


RATE: Final = Kind(Figure("requests", "1/s", lower_is_better=False), lambda work, _: work.requests / work.seconds)
THROUGHPUT: Final = Kind(
    Figure("throughput", "MiB/s", lower_is_better=False),
    lambda work, _: (work.read_bytes + work.written_bytes) / _MIB / work.seconds,
)
TIME: Final = Kind(Figure("time", "s", lower_is_better=True), lambda work, _: work.seconds)
TIME_EACH: Final = Kind(
    Figure("time of one", "ms", lower_is_better=True), lambda work, _: 1000 * work.seconds / max(work.requests, 1)
)
MICROSECONDS_EACH: Final = Kind(
    Figure("time of one", "us", lower_is_better=True), lambda work, _: 1e6 * work.seconds / max(work.requests, 1)
)


def given(name: str, unit: str, *, lower_is_better: bool) -> Kind:
    """A figure that the workload sets as `work.value`."""
    return Kind(Figure(name, unit, lower_is_better), lambda work, _: float("nan") if work.value is None else work.value)


@dataclass(frozen=True)
class Measured:
    """A line of one round."""

    name: str
    figure: Figure
    sample: Sample
    x: float | None = None
    series: str = ""


class Meter:
    """Of one contender and one round; `lines` are those that have ended, in order."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        self.lines: list[Measured] = []

    def add_to(self, question: Question) -> None:
        """Add the figures of this round to the question."""
        for one in self.lines:
            question.add(self._contender.name, one.name, one.figure, one.sample, one.x, one.series)

    @contextmanager
    def line(
        self,
        name: str,
        kind: Kind,
        *,
        x: float | None = None,
        series: str = "",
        is_counted: bool = True,
        in_process: bool = False,
    ) -> Iterator[Work]:
        """A block of work.

        Args:
            x: the place on a growth line, such as a size.
            series: the name of that growth line.
            is_counted: False for work in which the contender's pool is opened or closed, so that its counters begin
                anew.
            in_process: no server begins or ends in it, so that its processor time is known even if nothing is counted.
        """
        contender, work = self._contender, Work()
        if is_counted:
            contender.settle()
        pids = contender.processes()
        counters = contender.counters() if is_counted else None
        written = contender.written_bytes() if is_counted else None
        host = contender.host_bytes()
        accounting.forget_peaks(pids)
        cpu_before = accounting.cpu_seconds(pids)
        begin = time.perf_counter()
        yield work
        took = time.perf_counter() - begin
        cpu = accounting.cpu_seconds(pids) - cpu_before if is_counted or in_process else None
        work.seconds = work.seconds or took
        if is_counted:
            contender.settle()
        done = _difference(contender.counters(), counters) if counters is not None else None
        written_after = contender.written_bytes() if written is not None else None
        host_after = contender.host_bytes()
        self.lines.append(
            Measured(
                name,
                kind.figure,
                Sample(
                    value=kind.value(work, done),
                    seconds=work.seconds,
                    requests=work.requests,
                    read_bytes=work.read_bytes,
                    written_bytes=_asked(work, done),
                    latency_us=work.latency or latency_of(work.latencies),
                    cpu_seconds=cpu,
                    peak_memory_bytes=accounting.peak_memory_bytes(pids),
                    engine_written_bytes=None if written is None or written_after is None else written_after - written,
                    host_bytes=None if host is None or host_after is None else (host, host_after),
                    counters=done,
                    fio=work.fio,
                ),
                x,
                series,
            )
        )

    def add(self, name: str, kind: Kind, work: Work) -> None:
        """A line with figures that another program measured; nothing is counted."""
        sample = Sample(
            value=kind.value(work, None),
            seconds=work.seconds,
            requests=work.requests,
            read_bytes=work.read_bytes,
            written_bytes=work.written_bytes,
            latency_us=work.latency,
        )
        self.lines.append(Measured(name, kind.figure, sample))


def latency_of(seconds: Sequence[float]) -> Latency | None:
    """The percentiles of single requests (nearest rank); None without any."""
    if not seconds:
        return None
    ordered = sorted(seconds)

    def at(percent: int) -> float:
        return 1e6 * ordered[max(0, -(-len(ordered) * percent // 100) - 1)]

    return Latency(at(0), at(25), at(50), at(75), at(90), at(95), at(99), at(100))


def _asked(work: Work, counters: PoolCounters | None) -> int:
    if work.asks_unseen and counters is not None:
        return counters.requests.written_bytes or 0
    return work.written_bytes


def _difference(after: PoolCounters | None, before: PoolCounters) -> PoolCounters | None:
    """What was counted between two moments; what one of them does not know is not known."""
    if after is None:
        return None

    def minus(later: Any, earlier: Any) -> Any:
        if later is None or earlier is None:
            return None
        if isinstance(later, msgspec.Struct):
            fields = type(later).__struct_fields__
            return type(later)(**{name: minus(getattr(later, name), getattr(earlier, name)) for name in fields})
        return later - earlier

    found = minus(after, before)
    assert isinstance(found, PoolCounters)
    return found
