"""The list of cases, filled by the decorator `case` in the order of definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cowfs.errors import MissingRequirement
from cowfs.testing.layers.lab import HomeFactory, LayerLab


@dataclass(frozen=True, slots=True)
class Case:
    """One thing every driver does.

    Args:
        number: cited by tests, prose and reports; it does not change. The word before the dash is the section.
        original: of the same case in the suite that it comes from; empty for one of our own.
        needs_paths: it is about files at a path, which homes in process show only where the kernel mounts.
    """

    number: str
    title: str
    run: Callable[[LayerLab], None]
    original: str = ""
    needs_paths: bool = False

    @property
    def id(self) -> str:
        return f"{self.number}-{self.run.__name__}"


CASES: list[Case] = []


def case(
    number: str, original: str = "", *, needs_paths: bool = False
) -> Callable[[Callable[[LayerLab], None]], Callable[[LayerLab], None]]:
    """Register a function from LayerLab as a case; its name says what is so."""

    def register(run: Callable[[LayerLab], None]) -> Callable[[LayerLab], None]:
        assert all(known.number != number for known in CASES), f"case {number} is there twice"
        CASES.append(Case(number, run.__name__.replace("_", " "), run, original, needs_paths))
        return run

    return register


def check(case: Case, factory: HomeFactory, directory: str) -> None:
    """Try one case with one kind of home, in an empty directory.

    Raises:
        AssertionError: the driver does something else; or what it left is not clean.
        NotApplicableError: it cannot be tried, and why.
        MissingRequirement: a tool that judges is not installed; the case itself was as it should be.
    """
    lab = LayerLab(factory, directory)
    try:
        case.run(lab)
        lab.judge()
    except MissingRequirement:
        lab.close()
        raise
    except BaseException:
        lab.abandon()
        raise
    lab.close()
