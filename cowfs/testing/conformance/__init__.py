"""What every backend does, as a library: a backend in, numbered behaviours out. No test framework is needed.

    for behaviour in BEHAVIOURS:
        check(behaviour, backend, an_empty_directory)

`check` raises AssertionError where the backend behaves differently, and NotApplicableError where the behaviour depends
on a capability that the backend does not declare. After each behaviour the judges look at the metadata it left.

Modules: `general` (the list every backend starts with), then the sections of the thin-pool's semantics: `tables`,
`messages`, `status`, `data`, `discard`, `space`, `lifecycle`, `counting`; `faults` (failing devices, damaged metadata);
`suites` (cases of the kernel's own test suites, under their names; others name theirs as `originals`).
"""

from cowfs.testing.cases import NotApplicableError
from cowfs.testing.conformance import (
    counting,
    data,
    discard,
    faults,
    general,
    lifecycle,
    messages,
    space,
    status,
    suites,
    tables,
)
from cowfs.testing.conformance.lab import DependencyInjectable, Lab
from cowfs.testing.conformance.registry import BEHAVIOURS, Behaviour, check

__all__ = [
    "BEHAVIOURS",
    "Behaviour",
    "DependencyInjectable",
    "Lab",
    "NotApplicableError",
    "check",
    "counting",
    "data",
    "discard",
    "faults",
    "general",
    "lifecycle",
    "messages",
    "space",
    "status",
    "suites",
    "tables",
]
