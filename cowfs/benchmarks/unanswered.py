"""What was asked for by name and has no answer: engines that took no part, questions that no engine answered."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from cowfs.benchmarks.results import Absent, Question, Result
from cowfs.errors import CowfsError, MissingRequirement


def unanswered(result: Result, *, engines: Collection[str] = (), questions: Collection[str] = ()) -> CowfsError | None:
    """One error for everything that has no answer; None where everything has one.

    Args:
        engines: those that were named; each has to have taken part in a question.
        questions: those that were named; an engine has to have answered each.

    Returns:
        MissingRequirement where nothing is wrong but that engines cannot run on this machine, else CowfsError.
    """
    missing = [described(one) for one in result.missing if one.name in engines]
    wrong = [
        *(
            f"the engine '{one.name}' failed in '{question.name}': {one.problem}"
            for question in result.questions
            for one in question.failed
        ),
        *(
            f"the engine '{note.name}' was asked nothing: {_reasons(result, note.name)}"
            for note in result.contenders
            if note.name in engines and all(note.name in _absent_in(question) for question in result.questions)
        ),
        *(
            f"no engine answered '{question.name}'"
            for question in result.questions
            if question.name in questions and not question.lines and not question.failed
        ),
    ]
    if wrong:
        return CowfsError("; ".join([*missing, *wrong]))
    if missing:
        return MissingRequirement(f"{'; '.join(missing)}; --skip-missing does without engines that cannot run here")
    return None


def described(engine: Absent) -> str:
    """Why an engine took no part, and what would help."""
    remedy = f" (try: {engine.remedy})" if engine.remedy else ""
    return f"the engine '{engine.name}' cannot run here: {engine.problem}{remedy}"


def _absent_in(question: Question) -> Sequence[str]:
    return [one.name for one in question.absent]


def _reasons(result: Result, engine: str) -> str:
    return ", and ".join(dict.fromkeys(_problems(result, engine)))


def _problems(result: Result, engine: str) -> Iterator[str]:
    for question in result.questions:
        for one in question.absent:
            if one.name == engine:
                yield f"{one.problem}, which '{question.name}' needs"
