"""A run: contenders are set up once, and a round of all questions follows the other.

What slows a machine down for seconds would be in all rounds of a question that were taken one after the other, and in
no round of the next question. So each round asks all of them, with contenders in turns, which are prepared anew.
"""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cowfs.benchmarks.engines.catalogue import Wanted
from cowfs.benchmarks.engines.interface import Contender, Setting
from cowfs.benchmarks.figures import turns
from cowfs.benchmarks.machine import busy_processors, describe_machine, switch_seconds
from cowfs.benchmarks.meter import Meter
from cowfs.benchmarks.results import FORMAT, VERSION, Absent, ContenderNote, Question, Result
from cowfs.benchmarks.unanswered import described
from cowfs.benchmarks.workloads.interface import Measure, Workload
from cowfs.errors import CowfsError, MissingRequirement
from cowfs.version import VERSION as COWFS_VERSION

LOOK_SECONDS: Final = 0.3
FEWEST_ROUNDS: Final = 3  # with fewer, nothing is judged
FAILURES: Final = (OSError, subprocess.SubprocessError)  # CowfsError is an OSError


def begin_result(directory: Path, *, rounds: int, seed: int, others_processors: float = 0.0) -> Result:
    """A result in which nothing is yet: when, and what this machine is like.

    Args:
        directory: where everything that is compared lies.
        others_processors: what is known to be used by others before the run.
    """
    return Result(
        format=FORMAT,
        version=VERSION,
        cowfs=COWFS_VERSION,
        begun=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        seconds=0.0,
        machine=describe_machine(os.fspath(directory)),
        place=os.fspath(directory.parent),
        rounds=rounds,
        seed=seed,
        others_processors=others_processors,
        switch_us=1e6 * switch_seconds(),
        contenders=[],
        missing=[],
        questions=[],
    )


def look_around(result: Result, seconds: float = LOOK_SECONDS) -> float:
    """The processors that others use now. The most that was seen counts for the whole result."""
    found = busy_processors(seconds)
    result.others_processors = max(result.others_processors, found)
    return found


class Watcher:
    """Receives the progress of a run; this one does nothing."""

    def begins(self, result: Result) -> None:
        """Contenders are set up; the machine was looked at."""

    def progress(self, question: str, contender: str, done: int, total: int) -> None:
        """A contender has its turn; `done` of `total` rounds of all contenders and questions are over."""

    def answered(self, question: Question) -> None:
        """All rounds of a question are over."""

    def failed(self, question: str, contender: str, error: BaseException) -> None:
        """A contender is out of a question."""

    def ends(self) -> None:
        """All questions are answered."""


@dataclass
class Run:
    """What is to be done.

    Args:
        directory: an empty one; everything that is compared lies in it.
        missing: contenders that were asked for and cannot run here, for the report.
        others_processors: what is known to be used by others before the run.
        rounds: how many to take; with `limit_seconds` fewer, from three on, where as many would take longer.
        prepares_once: take all rounds of a question before the next question, where to prepare it takes longer; without
            `limit_seconds`.
    """

    wanted: Sequence[Wanted]
    workloads: Sequence[Workload]
    directory: Path
    rounds: int
    seed: int
    watcher: Watcher = field(default_factory=Watcher)
    missing: Sequence[Absent] = ()
    look_seconds: float = LOOK_SECONDS
    others_processors: float = 0.0
    limit_seconds: float = math.inf
    prepares_once: bool = False
    clock: Callable[[], float] = time.monotonic
    _done: int = 0

    def __call__(self) -> Result:
        """Raises MissingRequirement where no contender is left; KeyboardInterrupt after everything was taken down."""
        begin = self.clock()
        result = begin_result(
            self.directory, rounds=self.rounds, seed=self.seed, others_processors=self.others_processors
        )
        result.missing += self.missing
        look_around(result, self.look_seconds)
        with ExitStack() as stack:
            contenders = self._set_up(stack, result)
            if not contenders:
                raise MissingRequirement("; ".join(map(described, result.missing)))
            self.watcher.begins(result)
            inquiries = [self._inquiry(workload, contenders) for workload in self.workloads]
            result.questions += [inquiry.question for inquiry in inquiries]
            first = self.clock()
            looks = min(self.rounds, FEWEST_ROUNDS)
            for rounds in self._passes():
                result.rounds = rounds.stop - 1
                is_last = self._ends_with(result.rounds, first - begin, self.clock() - first)
                for place, inquiry in enumerate(inquiries):
                    if 1 + place % looks in rounds:  # once for each question, all over the run
                        inquiry.question.others_processors = look_around(result, self.look_seconds)
                    self._take(inquiry, rounds)
                    if is_last:
                        inquiry.leave_out_the_failed()
                        self.watcher.answered(inquiry.question)
                if is_last:
                    break
        result.seconds = self.clock() - begin
        self.watcher.ends()
        return result

    def _set_up(self, stack: ExitStack, result: Result) -> list[Contender]:
        contenders = []
        for wanted in self.wanted:
            directory = self.directory / wanted.name.replace(":", "-")
            directory.mkdir()
            setting = Setting(wanted.name, directory, wanted.block_bytes)
            self.watcher.progress("setting up", wanted.name, 0, self._total)
            try:
                contender = stack.enter_context(wanted.engine.set_up(setting))
            except FAILURES as error:
                result.missing.append(Absent(wanted.name, describe(error)))
                continue
            contenders.append(contender)
            result.contenders.append(ContenderNote(wanted.name, wanted.engine.title, contender.details()))
        return contenders

    @property
    def _total(self) -> int:
        return sum(
            (self.rounds + (workload.warms_up and self.prepares_once))
            * sum(workload.needs in wanted.engine.offers for wanted in self.wanted)
            for workload in self.workloads
        )

    def _inquiry(self, workload: Workload, contenders: Sequence[Contender]) -> _Inquiry:
        question = Question(
            name=workload.name,
            title=workload.title,
            expectation=workload.expectation,
            parameters=workload.parameters,
            lines=[],
            x_unit=workload.x_unit,
        )
        offers = {wanted.name: wanted.engine.offers for wanted in self.wanted}
        able = []
        for contender in contenders:
            lacking = workload.needs & ~offers[contender.name]
            if lacking:
                question.absent.append(Absent(contender.name, f"it has no {lacking.words}"))
            else:
                able.append(contender)
        return _Inquiry(workload, able, question, self.watcher)

    def _passes(self) -> list[range]:
        """The rounds between which questions stay prepared. Round 0 warms up: rounds that begin alike need none."""
        if self.prepares_once:
            return [range(self.rounds + 1)]
        return [range(number, number + 1) for number in range(1, self.rounds + 1)]

    def _ends_with(self, number: int, setup_seconds: float, seconds: float) -> bool:
        """Whether a round is the last; `seconds` were taken by those before it."""
        if number == self.rounds:
            return True
        if number < FEWEST_ROUNDS:
            return False
        return setup_seconds + seconds * (number + 1) / (number - 1) > self.limit_seconds

    def _take(self, inquiry: _Inquiry, rounds: range) -> None:
        """Prepare its contenders, and have them take their turns."""
        workload = inquiry.workload
        if not workload.warms_up:
            rounds = range(max(rounds.start, 1), rounds.stop)
        with ExitStack() as stack:
            measures: dict[str, Measure] = {}
            for contender in inquiry.able:
                own = ExitStack()
                stack.callback(inquiry.end, contender.name, own)
                with inquiry.out_of_it(contender.name):
                    if not inquiry.has_failed(contender.name):
                        measures[contender.name] = own.enter_context(workload.prepared(contender))
            for number, contender in turns(inquiry.able, rounds):
                shown = f"round {number} of {self.rounds}, {workload.name}" if number else f"warm-up, {workload.name}"
                self.watcher.progress(shown, contender.name, self._done, self._total)
                self._done += 1
                if inquiry.has_failed(contender.name):
                    continue
                meter = Meter(contender)
                with inquiry.out_of_it(contender.name):
                    measures[contender.name](meter)
                    if number:
                        meter.add_to(inquiry.question)


@dataclass
class _Inquiry:
    """A question in the course of a run. `able` are the contenders that offer what it needs."""

    workload: Workload
    able: Sequence[Contender]
    question: Question
    watcher: Watcher

    def has_failed(self, contender: str) -> bool:
        return any(absent.name == contender for absent in self.question.failed)

    def end(self, contender: str, prepared: ExitStack) -> None:
        with self.out_of_it(contender):
            prepared.close()

    @contextmanager
    def out_of_it(self, contender: str) -> Iterator[None]:
        """A failure in the block takes the contender out of the question."""
        try:
            yield
        except FAILURES as error:
            self.question.failed.append(Absent(contender, describe(error)))
            self.watcher.failed(self.question.name, contender, error)

    def leave_out_the_failed(self) -> None:
        """What they had measured before is no answer; those who are left are in the order of all contenders."""
        names = [contender.name for contender in self.able if not self.has_failed(contender.name)]
        for line in self.question.lines:
            line.samples = {name: line.samples[name] for name in names if name in line.samples}
        self.question.lines = [line for line in self.question.lines if line.samples]


def describe(error: BaseException) -> str:
    """An error as a few words."""
    if isinstance(error, CowfsError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
