"""The list of behaviours, filled by the decorator `behaviour` in the order of definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cowfs.errors import MissingRequirement
from cowfs.pool import Backend, Capability
from cowfs.testing.conformance.lab import Lab, NotApplicableError

_NONE = Capability(0)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One thing every backend does.

    Args:
        number: cited by tests, prose and reports; it does not change. `20` is of the general list, `1.3-2` the second
            of section 1.3 of the thin-pool's semantics, `suite-...` named after its original in the kernel's suites.
        title: the function's name, as words.
        needs, unless: capabilities that make it applicable, or not.
    """

    number: str
    title: str
    run: Callable[[Lab], None]
    needs: Capability = _NONE
    unless: Capability = _NONE

    @property
    def id(self) -> str:
        return f"{self.number}-{self.run.__name__}"


BEHAVIOURS: list[Behaviour] = []


def behaviour(
    number: str, *, needs: Capability = _NONE, unless: Capability = _NONE
) -> Callable[[Callable[[Lab], None]], Callable[[Lab], None]]:
    """Register a function from Lab as a behaviour; its name says what is so."""

    def register(run: Callable[[Lab], None]) -> Callable[[Lab], None]:
        assert all(known.number != number for known in BEHAVIOURS), f"behaviour {number} is there twice"
        BEHAVIOURS.append(Behaviour(number, run.__name__.replace("_", " "), run, needs, unless))
        return run

    return register


def check(behaviour: Behaviour, backend: Backend, directory: str) -> None:
    """Try one behaviour on one backend, in an empty directory.

    Raises:
        AssertionError: the backend does something else; or its metadata is not clean afterwards.
        NotApplicableError: it cannot be tried, and why.
        MissingRequirement: a tool that judges is not installed; the behaviour itself was as it should be.
    """
    missing = behaviour.needs & ~backend.capabilities
    if missing:
        raise NotApplicableError(f"backend '{backend.name}' does not declare {missing.name}")
    if behaviour.unless & backend.capabilities:
        raise NotApplicableError(f"backend '{backend.name}' declares {(behaviour.unless & backend.capabilities).name}")
    lab = Lab(backend, directory)
    try:
        behaviour.run(lab)
    except BaseException:
        lab.close(judge=False)
        raise
    try:
        lab.close()
    except MissingRequirement:
        lab.close(judge=False)
        raise
