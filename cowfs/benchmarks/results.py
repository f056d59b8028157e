"""What a run has found: a JSON document whose `format` and `version` say how to read it (docs/bench-format.md).

A figure that was not counted is left out; it is never 0. Sizes are in bytes, times in seconds unless a name says more.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from cowfs.benchmarks.figures import Ranking, median_of, rank, spread_of
from cowfs.benchmarks.machine import QUIET_PROCESSORS, Machine
from cowfs.errors import CowfsError, UsageError
from cowfs.pool.counters import PoolCounters, WriteAmplification

FORMAT: Final = "cowfs-bench"
VERSION: Final = 1


class Figure(msgspec.Struct, frozen=True):
    """What a line is judged by. `x` of a question's lines is in `x_unit`."""

    name: str
    unit: str
    lower_is_better: bool


class Latency(msgspec.Struct, frozen=True):
    """Of single requests, in microseconds: the least, percentiles, the most."""

    min: float
    p25: float
    p50: float
    p75: float
    p90: float
    p95: float
    p99: float
    max: float


class Sample(msgspec.Struct, frozen=True, omit_defaults=True):
    """One round of one contender on one line.

    `value` is the line's figure. `cpu_seconds` is of all processes of the contender and of the workload, in user and
    system; `peak_memory_bytes` of the processes that serve the contender. `engine_written_bytes` is what the contender
    wrote to its files or its device below. `host_bytes` is the space of its files before and after. `counters` are
    those of a pool, their difference over the line. `fio` is fio's own report, whole.
    """

    value: float
    seconds: float = 0.0
    requests: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    latency_us: Latency | None = None
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    engine_written_bytes: int | None = None
    host_bytes: tuple[int, int] | None = None
    counters: PoolCounters | None = None
    fio: Any = None

    def write_amplification(self) -> WriteAmplification:
        """Bytes written by the contender for each byte that the workload wrote, by cause where it counts causes. What
        the causes leave of it is what the pool was asked to write: the workload's bytes, and those of a file system.
        """
        if not self.written_bytes:
            return WriteAmplification()
        total = None if self.engine_written_bytes is None else self.engine_written_bytes / self.written_bytes
        if self.counters is None:
            return WriteAmplification(total)
        return msgspec.structs.replace(self.counters.write_amplification(self.written_bytes), total=total)


class Line(msgspec.Struct, omit_defaults=True):
    """One figure of a question, of every contender: its rounds in order.

    `x` is its place on the growth line `series`, which is empty where it is on none.
    """

    name: str
    figure: Figure
    samples: dict[str, list[Sample]]
    x: float | None = None
    series: str = ""

    def values(self) -> dict[str, list[float]]:
        return {name: [sample.value for sample in samples] for name, samples in self.samples.items()}

    def median(self, contender: str) -> float:
        return median_of([sample.value for sample in self.samples[contender]])

    def spread(self, contender: str) -> float:
        return spread_of([sample.value for sample in self.samples[contender]])

    def written_for_each_byte(self, contender: str) -> float | None:
        """The median of the write amplification; None where nothing was written, or it was not counted."""
        found = [sample.write_amplification().total for sample in self.samples[contender]]
        known = [total for total in found if total is not None]
        return median_of(known) if known else None

    def ranking(self) -> Ranking | None:
        return rank(self.values(), lower_is_better=self.figure.lower_is_better)


class Absent(msgspec.Struct, frozen=True, omit_defaults=True):
    """A contender, or one of a question, that did not take part, and why; `remedy` is a command that would help."""

    name: str
    problem: str
    remedy: str = ""


class Goal(msgspec.Struct, omit_defaults=True):
    """A bound on a figure, or on the ratio of two.

    A ratio is the median of those of the rounds, and `spread` theirs. `is_met` is None where it was not judged: with
    small sizes, which prove nothing, and on a machine that others used.
    """

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None
    spread: float | None = None
    is_met: bool | None = None

    @property
    def holds(self) -> bool:
        """Whether the figure is within the bound, judged or not."""
        low, high = self.at_least, self.at_most
        return (low is None or self.value >= low) and (high is None or self.value <= high)

    @property
    def bound(self) -> str:
        """Such as `>= 0.8`."""
        limits = ((">=", self.at_least), ("<=", self.at_most))
        return " and ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None)

    @property
    def verdict(self) -> str:
        return "not judged" if self.is_met is None else "met" if self.is_met else "MISSED"


class Question(msgspec.Struct, omit_defaults=True):
    """One workload: what it asks, what arithmetic expects, and its lines. `x_unit` is empty without a growth line."""

    name: str
    title: str
    expectation: str
    parameters: dict[str, Any]
    lines: list[Line]
    absent: list[Absent] = []
    failed: list[Absent] = []
    x_unit: str = ""
    others_processors: float = 0.0
    goals: list[Goal] = []

    def add(
        self, contender: str, name: str, figure: Figure, sample: Sample, x: float | None = None, series: str = ""
    ) -> None:
        """One round more of a contender on a line."""
        line = next((line for line in self.lines if line.name == name), None)
        if line is None:
            line = Line(name, figure, {}, x, series)
            self.lines.append(line)
        line.samples.setdefault(contender, []).append(sample)


class ContenderNote(msgspec.Struct, frozen=True):
    """Who took part: what it is, and versions, mount options, where its files were."""

    name: str
    title: str
    details: dict[str, str]


class Result(msgspec.Struct):
    """A run. `others_processors` is the most that others used, seen before its questions."""

    format: Literal["cowfs-bench"]
    version: int
    cowfs: str
    begun: str
    seconds: float
    machine: Machine
    place: str
    rounds: int
    seed: int
    others_processors: float
    switch_us: float
    contenders: list[ContenderNote]
    missing: list[Absent]
    questions: list[Question]

    @property
    def is_quiet(self) -> bool:
        """Whether its figures may be judged."""
        return self.others_processors <= QUIET_PROCESSORS

    def load_line(self) -> str:
        used = f"others used up to {self.others_processors:.1f} processors"
        return used if self.is_quiet else f"{used}: the waits are longer than on a quiet machine, so nothing is judged"


def encode_result(result: Result) -> bytes:
    """A result as a JSON document."""
    return msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n"


def read_result(path: str) -> Result:
    """Raises UsageError for what is not a result of this version; CowfsError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise CowfsError(f"{path} cannot be read: {error.strerror}", errno=error.errno) from error
    try:
        head = msgspec.json.decode(data, type=_Head)
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is not a result of 'cowfs bench --json': {error}") from error
    if head.format != FORMAT:
        raise UsageError(f"{path} is not a result of 'cowfs bench --json': its format is '{head.format}'")
    if head.version != VERSION:
        raise UsageError(
            f"{path} is a result of version {head.version}, and this cowfs reads version {VERSION}; "
            "run 'cowfs bench' again"
        )
    try:
        found = msgspec.json.decode(data, type=Result)
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is damaged: {error}") from error
    for question in found.questions:
        for line in question.lines:
            if not line.samples or not all(line.samples.values()):
                raise UsageError(f"{path} is damaged: the line '{line.name}' of '{question.name}' has no round")
    return found


class _Head(msgspec.Struct):
    format: str
    version: int
