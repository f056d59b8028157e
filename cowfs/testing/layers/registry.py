"""The list of cases, filled by the decorator `case` in the order of definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cowfs.errors import MissingRequirement
from cowfs.testing.cases import Case, Cases
from cowfs.testing.layers.lab import HomeFactory, LayerLab


@dataclass(frozen=True, slots=True)
class LayerCase(Case[LayerLab]):
    """One thing every driver does.

    Args:
        needs_paths: it is about files at a path, which homes in process show only where the kernel mounts.
    """

    needs_paths: bool = False


CASES: Cases[LayerCase] = Cases()


def case(
    number: str, *originals: str, needs_paths: bool = False
) -> Callable[[Callable[[LayerLab], None]], Callable[[LayerLab], None]]:
    """Register a function from LayerLab as a case; its name says what is so."""

    def register(run: Callable[[LayerLab], None]) -> Callable[[LayerLab], None]:
        CASES.add(LayerCase(number, run, originals, needs_paths))
        return run

    return register


def check(case: LayerCase, factory: HomeFactory, directory: str) -> None:
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
