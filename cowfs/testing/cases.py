"""Numbered cases: what everything of a kind does, each tried in a lab of that kind.

A case is a function from its lab; its name says what is so, and tests, prose and reports cite its number.
A room of cases derives its own `Case` with what decides whether it applies, and a decorator that adds to its `Cases`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

_Lab = TypeVar("_Lab")


class NotApplicableError(Exception):
    """A case cannot be tried here; the text says why."""


@dataclass(frozen=True, slots=True)
class Case(Generic[_Lab]):
    """One thing that everything of a kind does.

    Args:
        number: does not change. The part before the dash is the section.
        run: tries it; raises AssertionError when it is not so.
        originals: names of the same case in the suites that it comes from; none for one of our own.
    """

    number: str
    run: Callable[[_Lab], None]
    originals: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return self.run.__name__.replace("_", " ")

    @property
    def id(self) -> str:
        return f"{self.number}-{self.run.__name__}"


_Case = TypeVar("_Case", bound=Case)  # type: ignore[type-arg]  # of any lab


class Cases(list[_Case]):
    """Cases in the order of their definition."""

    def add(self, case: _Case) -> None:
        assert all(known.number != case.number for known in self), f"case {case.number} is registered twice"
        self.append(case)
