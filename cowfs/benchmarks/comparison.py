"""Two results, line by line: what became better or worse by more than a threshold and more than the spread."""

from __future__ import annotations

from typing import Literal

import msgspec

from cowfs.benchmarks.figures import are_level, median_of, rounds_text
from cowfs.benchmarks.results import Figure, Line, Question, Result
from cowfs.errors import UsageError


class Change(msgspec.Struct, frozen=True):
    """A line of one contender in both results. `ratio` is new by old; `verdict` is `unjudged` where one was loaded."""

    question: str
    line: str
    contender: str
    figure: Figure
    old: float
    new: float
    ratio: float
    verdict: Literal["better", "worse", "tie", "unjudged"]


class Comparison(msgspec.Struct, frozen=True):
    """`notes` say what makes the two hard to compare: another machine, kernel, load. `failed` are contenders that
    failed in a question of the new run, and have figures in the old one.
    """

    threshold: float
    changes: list[Change]
    notes: list[str]
    only_in_old: list[str]
    only_in_new: list[str]
    failed: list[str]

    @property
    def is_judged(self) -> bool:
        return any(change.verdict != "unjudged" for change in self.changes)

    @property
    def worse(self) -> list[Change]:
        return [change for change in self.changes if change.verdict == "worse"]


def compare(old: Result, new: Result, *, threshold: float, judges_loaded: bool = False) -> Comparison:
    """Compare what both have.

    Args:
        threshold: a change of less than this part of the old median is a tie, as one within the spread is.
        judges_loaded: judge figures that were measured while others used the machine, too.

    Raises:
        UsageError: they have no line in common, or the same question with other parameters.
    """
    for question in new.questions:
        other = _named(old, question.name)
        if other is not None and other.parameters != question.parameters:
            keys = [key for key in question.parameters if other.parameters.get(key) != question.parameters[key]]
            raise UsageError(
                f"'{question.name}' was asked with other sizes ({', '.join(keys) or 'fewer parameters'}), so the two "
                "results cannot be compared; run both with the same options"
            )
    olds, news = _lines(old), _lines(new)
    common = [key for key in news if key in olds]
    if not common and not any(question.failed for question in new.questions):
        raise UsageError("the two results have no line in common: they asked other questions, or other engines")
    is_judged = judges_loaded or (old.is_quiet and new.is_quiet)
    return Comparison(
        threshold=threshold,
        changes=[_change(key, olds[key], news[key], threshold, is_judged=is_judged) for key in common],
        notes=list(_notes(old, new)),
        only_in_old=[" / ".join(key) for key in olds if key not in news],
        only_in_new=[" / ".join(key) for key in news if key not in olds],
        failed=[
            f"{question.name} / {one.name}: {one.problem}"
            for question in new.questions
            for one in question.failed
            if any((name, contender) == (question.name, one.name) for name, _, contender in olds)
        ],
    )


def _named(result: Result, name: str) -> Question | None:
    return next((question for question in result.questions if question.name == name), None)


def _lines(result: Result) -> dict[tuple[str, str, str], Line]:
    return {
        (question.name, line.name, contender): line
        for question in result.questions
        for line in question.lines
        for contender in line.samples
    }


def _change(key: tuple[str, str, str], old: Line, new: Line, threshold: float, *, is_judged: bool) -> Change:
    question, name, contender = key
    before, after = old.values()[contender], new.values()[contender]
    left, right = median_of(before), median_of(after)
    ratio = right / left if left else (1.0 if not right else float("inf"))
    verdict: Literal["better", "worse", "tie", "unjudged"]
    if not is_judged:
        verdict = "unjudged"
    elif are_level(before, after) or abs(right - left) <= threshold * abs(left):
        verdict = "tie"
    else:
        verdict = "worse" if (right > left) == new.figure.lower_is_better else "better"
    return Change(question, name, contender, new.figure, left, right, ratio, verdict)


def _notes(old: Result, new: Result) -> list[str]:
    notes = []
    for name, result in (("old", old), ("new", new)):
        if not result.is_quiet:
            notes.append(f"{name}: {result.load_line()}")
        if result.rounds < 3:
            notes.append(f"{name}: {rounds_text(result.rounds)}, which says little about the spread")
    for what in ("processor", "processors", "memory_bytes", "kernel", "directory_filesystem", "python"):
        before, after = getattr(old.machine, what), getattr(new.machine, what)
        if before != after:
            notes.append(f"another {what.replace('_', ' ')}: {before} and {after}")
    if old.cowfs != new.cowfs:
        notes.append(f"cowfs {old.cowfs} and {new.cowfs}")
    return notes
