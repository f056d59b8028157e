"""A run: every contender is set up and prepared once for each question, and rounds are taken in turns."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
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
from cowfs.benchmarks.workloads.interface import Measure, Workload
from cowfs.errors import CowfsError
from cowfs.version import VERSION as COWFS_VERSION

LOOK_SECONDS: Final = 0.3
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
    _done: int = 0

    def __call__(self) -> Result:
        """Raises CowfsError where no contender is left; KeyboardInterrupt after everything was taken down."""
        begin = time.monotonic()
        result = begin_result(
            self.directory, rounds=self.rounds, seed=self.seed, others_processors=self.others_processors
        )
        result.missing += self.missing
        look_around(result, self.look_seconds)
        with ExitStack() as stack:
            contenders = self._set_up(stack, result)
            if not contenders:
                named = "; ".join(f"{absent.name}: {absent.problem}" for absent in result.missing)
                raise CowfsError(f"no engine can run here: {named}", errno=errno.ENOSYS)
            self.watcher.begins(result)
            for workload in self.workloads:
                question = self._ask(workload, contenders, result)
                result.questions.append(question)
                self.watcher.answered(question)
        result.seconds = time.monotonic() - begin
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
            (self.rounds + workload.warms_up) * sum(workload.needs in wanted.engine.offers for wanted in self.wanted)
            for workload in self.workloads
        )

    def _ask(self, workload: Workload, contenders: Sequence[Contender], result: Result) -> Question:
        question = Question(
            name=workload.name,
            title=workload.title,
            expectation=workload.expectation,
            parameters=workload.parameters,
            lines=[],
            x_unit=workload.x_unit,
            others_processors=look_around(result, self.look_seconds),
        )
        offers = {wanted.name: wanted.engine.offers for wanted in self.wanted}
        able = [contender for contender in contenders if workload.needs in offers[contender.name]]
        for contender in contenders:
            if contender not in able:
                lacking = workload.needs & ~offers[contender.name]
                question.absent.append(Absent(contender.name, f"it has no {lacking.words}"))
        with ExitStack() as stack:
            measures: dict[str, Measure] = {}
            for contender in able:
                own = ExitStack()
                stack.callback(self._end, question, contender.name, own)
                with self._out_of(question, contender.name):
                    measures[contender.name] = own.enter_context(workload.prepared(contender))
            rounds = self.rounds + workload.warms_up
            for number, contender in turns(able, rounds):
                self.watcher.progress(workload.name, contender.name, self._done, self._total)
                self._done += 1
                if contender.name not in measures:
                    continue
                meter = Meter(contender)
                with self._out_of(question, contender.name, measures):
                    measures[contender.name](meter)
                    if number >= workload.warms_up:
                        meter.add_to(question)
        out = {absent.name for absent in question.failed}
        for line in question.lines:
            line.samples = {
                contender.name: line.samples[contender.name]
                for contender in able
                if contender.name in line.samples and contender.name not in out
            }
        question.lines = [line for line in question.lines if line.samples]
        return question

    def _end(self, question: Question, contender: str, prepared: ExitStack) -> None:
        with self._out_of(question, contender):
            prepared.close()

    @contextmanager
    def _out_of(self, question: Question, contender: str, measures: dict[str, Measure] | None = None) -> Iterator[None]:
        """A failure in the block takes the contender out of the question."""
        try:
            yield
        except FAILURES as error:
            question.failed.append(Absent(contender, describe(error)))
            if measures is not None:
                measures.pop(contender, None)
            self.watcher.failed(question.name, contender, error)


def describe(error: BaseException) -> str:
    """An error as a few words."""
    if isinstance(error, CowfsError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
