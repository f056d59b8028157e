"""The list of behaviours, filled by the decorator `behaviour` in the order of definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cowfs.blockdev import BlockDevice
from cowfs.errors import MissingRequirement
from cowfs.pool import Backend, Capability
from cowfs.testing.cases import Case, Cases, NotApplicableError
from cowfs.testing.conformance.lab import Lab, LabFeature, features_of
from cowfs.testing.judges import require_clean

_NONE = Capability(0)
_NO_FEATURES = LabFeature(0)


@dataclass(frozen=True, slots=True)
class Behaviour(Case[Lab]):
    """One thing every backend does.

    `number`: `20` is of the general list, `1.3-2` the second of section 1.3 of the thin-pool's semantics, `suite-...`
    named after its original in the kernel's suites.

    Args:
        needs, unless: capabilities that make it applicable, or not.
        lab_features: what the lab must be able to do to the backend's pools.
    """

    needs: Capability = _NONE
    unless: Capability = _NONE
    lab_features: LabFeature = _NO_FEATURES

    def why_not(self, backend: Backend) -> str:
        """Why it is, by declaration, not for a backend; empty when it is."""
        if missing := self.needs & ~backend.capabilities:
            return f"backend '{backend.name}' does not declare {missing.name}"
        if present := self.unless & backend.capabilities:
            return f"backend '{backend.name}' declares {present.name}"
        for feature in self.lab_features & ~features_of(backend):
            return f"backend '{backend.name}': {WITHOUT_FEATURE[feature]}"
        return ""


SUITE = "suite-"
BEHAVIOURS: Cases[Behaviour] = Cases()

WITHOUT_FEATURE = {
    LabFeature.CLOCK: "its clock is the machine's, which no test can move",
    LabFeature.NTH_FAULT: "its devices fail as a whole, not at one request of the caller's choice",
    LabFeature.FAULTS: "its devices cannot be made to fail",
    LabFeature.TIMEOUT: "its timeout of full pools cannot be changed",
}


def behaviour(
    number: str,
    *originals: str,
    needs: Capability = _NONE,
    unless: Capability = _NONE,
    lab_features: LabFeature = _NO_FEATURES,
) -> Callable[[Callable[[Lab], None]], Callable[[Lab], None]]:
    """Register a function from Lab as a behaviour; its name says what is so. Arguments are those of `Behaviour`."""
    if number.startswith(SUITE):
        originals = (number.removeprefix(SUITE), *originals)

    def register(run: Callable[[Lab], None]) -> Callable[[Lab], None]:
        BEHAVIOURS.add(Behaviour(number, run, originals, needs, unless, lab_features))
        return run

    return register


def check(
    behaviour: Behaviour, backend: Backend, directory: str, *, judge: Callable[[BlockDevice], None] = require_clean
) -> None:
    """Try one behaviour on one backend, in an empty directory.

    Args:
        judge: looks at the metadata of each pool when it is closed, and raises AssertionError when it is not clean.

    Raises:
        AssertionError: the backend does something else; or its metadata is not clean afterwards.
        NotApplicableError: it is not for this backend, and why.
        MissingRequirement: a tool that judges is not installed; the behaviour itself was as it should be.
    """
    if reason := behaviour.why_not(backend):
        raise NotApplicableError(reason)
    lab = Lab(backend, directory, judge)
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
