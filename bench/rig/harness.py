"""What a program declares its questions with. Rounds, figures, goals and reports are those of `cowfs bench`.

A program is a module with a docstring (the question, and what arithmetic expects) and `run(bench)`. It becomes a
question of one result (`cowfs.benchmarks.results`), with a line for each comparison. Contenders of a line are measured
side by side, round by round, so that a noisy machine is noisy to all of them:

    found = bench.compare("overwrite", {"plain file": run_plain, "thin device": run_thin}, unit="MiB/s")
    bench.goal_ratio("thin device / plain file", found["thin device"], found["plain file"], at_least=0.8)

Goals are judged only where nothing else used the machine, and not with the small sizes of `--quick`.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from cowfs.benchmarks import accounting
from cowfs.benchmarks.engines.catalogue import Wanted, usable
from cowfs.benchmarks.engines.interface import Engine
from cowfs.benchmarks.figures import median_of, ratios_of, spread_of, turns
from cowfs.benchmarks.results import Absent, Figure, Goal, Line, Question, Result, Sample
from cowfs.benchmarks.runner import Run, Watcher, look_around
from cowfs.benchmarks.workloads.interface import Workload

ROUNDS = 5
QUICK_ROUNDS = 2


class Rounds(NamedTuple):
    """What one contender has shown on one line. `spread` is how far the median of others may lie by chance."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        return median_of(self.values)

    @property
    def spread(self) -> float:
        return spread_of(self.values)


@dataclass
class Bench:
    """One program's surroundings, and the question that it fills.

    Args:
        directory: scratch space, removed afterwards; everything that is compared lies on this one file system.
        quick: small sizes and few rounds, to see that the program runs.
        part: of the lines; 0: all of them.
    """

    directory: Path
    question: Question
    result: Result
    watcher: Watcher
    quick: bool
    part: int = 0

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def compare(
        self,
        line: str,
        contenders: Mapping[str, Callable[[], float]],
        *,
        unit: str,
        rounds: int = ROUNDS,
        warm_up: bool = True,
    ) -> dict[str, Rounds]:
        """Ask each contender for one figure a round, in turns; one round more comes first where it warms up.

        Processor time is of the whole call, in this process and in children that have ended.
        """
        total = self.size(rounds, QUICK_ROUNDS) + warm_up
        look_around(self.result)
        samples: dict[str, list[Sample]] = {name: [] for name in contenders}
        for number, name in turns(list(contenders), range(total)):
            self.watcher.progress(f"{self.question.name}: {line}", name, number, total)
            before = accounting.cpu_seconds([])
            value = contenders[name]()
            samples[name].append(Sample(value, cpu_seconds=accounting.cpu_seconds([]) - before))
        return {name: self._add(line, name, unit, found[warm_up:]) for name, found in samples.items()}

    def ask(
        self, workload: Workload, engines: Sequence[Engine], *, rounds: int = ROUNDS
    ) -> dict[str, dict[str, Rounds]]:
        """Put a workload of `cowfs bench` to engines; the rounds by line and engine."""
        wanted, missing = usable([Wanted(engine.name, engine, None) for engine in engines])
        rounds = self.size(rounds, QUICK_ROUNDS)
        run = Run(wanted, [workload], self.directory, rounds, self.result.seed, _Progress(self), prepares_once=True)
        found = run()
        self.result.others_processors = max(self.result.others_processors, found.others_processors)
        (asked,) = found.questions
        self.question.lines += asked.lines
        self.question.absent += asked.absent
        for absent in [*missing, *found.missing]:
            self.without(absent.name, absent.problem, absent.remedy)
        self.question.failed += asked.failed
        self.question.parameters |= asked.parameters
        return rounds_of(asked.lines)

    def without(self, name: str, problem: str, remedy: str = "") -> None:
        """A contender does not take part."""
        self.question.absent.append(Absent(name, f"{problem}; try: {remedy}" if remedy else problem))

    def record(self, line: str, contender: str, unit: str, values: Sequence[float]) -> Rounds:
        """The rounds of one contender that were measured elsewhere."""
        return self._add(line, contender, unit, [Sample(value) for value in values])

    def _add(self, line: str, contender: str, unit: str, samples: Sequence[Sample]) -> Rounds:
        for sample in samples:
            self.question.add(contender, line, figure_in(unit), sample)
        return Rounds([sample.value for sample in samples])

    def figure(self, line: str, value: float, unit: str) -> float:
        """A figure that has no rounds, such as a peak of memory."""
        return self.record(line, "cowfs", unit, [value]).median

    def goal_ratio(
        self,
        name: str,
        above: Rounds,
        below: Rounds,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Compare a ratio with its bound: round by round, so that what slows both of them down cancels out."""
        ratios = Rounds(ratios_of(above.values, below.values))
        self.goal(name, ratios.median, at_least=at_least, at_most=at_most, spread=ratios.spread)

    def goal(
        self,
        name: str,
        value: float,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        spread: float | None = None,
    ) -> None:
        """Compare a figure with its bound."""
        goal = Goal(name, value, at_least, at_most, spread)
        is_judged = self.result.is_quiet and not self.quick
        goal.is_met = goal.holds if is_judged else None
        self.question.goals.append(goal)


class _Progress(Watcher):
    """Of a run inside of a program, whose question has the lines."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def progress(self, question: str, contender: str, done: int, total: int) -> None:
        self._bench.watcher.progress(question, contender, done, total)

    def failed(self, _: str, contender: str, error: BaseException) -> None:
        self._bench.watcher.failed(self._bench.question.name, contender, error)


def rounds_of(lines: Sequence[Line]) -> dict[str, dict[str, Rounds]]:
    """By line and contender."""
    return {line.name: {name: Rounds(values) for name, values in line.values().items()} for line in lines}


def question_of(name: str, module: ModuleType, *, quick: bool, part: int) -> Question:
    """A program's question: the first paragraph of its docstring asks, the others say what is expected."""
    title, _, expectation = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
    return Question(
        name=name,
        title=" ".join(title.split()),
        expectation=" ".join(expectation.removeprefix("Expected:").split()),
        parameters={"quick": quick, "part": part},
        lines=[],
    )


def figure_in(unit: str) -> Figure:
    """Of rates more is better, of everything else less."""
    if unit.endswith("/s"):
        return Figure("rate", unit, lower_is_better=False)
    return Figure("memory" if unit == "MiB" else "time", unit, lower_is_better=True)


def timed(action: Callable[[], object]) -> float:
    """Seconds that an action takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin
