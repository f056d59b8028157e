"""Every behaviour, on every registered backend that can work here. On the kernel's, tests/uml runs them where not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cowfs.errors import MissingRequirement
from cowfs.pool import Backend, backend_names, load_backend
from cowfs.testing.conformance import BEHAVIOURS, Behaviour, check
from cowfs.uml import find_kernel

ALL = [load_backend(name) for name in backend_names()]
HERE = [backend for backend in ALL if backend.probe().usable]


def _has_guests() -> bool:
    try:
        find_kernel()
    except MissingRequirement:
        return False
    return True


NOWHERE = [] if _has_guests() else [backend for backend in ALL if backend not in HERE]


@pytest.mark.parametrize(
    ("backend", "behaviour"),
    [
        pytest.param(backend, behaviour, id=f"{backend.name}-{behaviour.id}")
        for backend in HERE
        for behaviour in BEHAVIOURS
        if not behaviour.why_not(backend)
    ],
)
def test_behaviour(backend: Backend, behaviour: Behaviour, tmp_path: Path, counted: Callable[[str, str], None]) -> None:
    counted(backend.name, backend.name)
    try:
        check(behaviour, backend, os.fspath(tmp_path))
    except MissingRequirement as reason:
        pytest.skip(str(reason))


if NOWHERE:

    @pytest.mark.parametrize("backend", NOWHERE, ids=lambda backend: backend.name)
    def test_backend_that_can_work_nowhere(backend: Backend) -> None:
        probe = backend.probe()
        pytest.skip(
            f"backend '{backend.name}' cannot work here ({probe.problem}; try: {probe.remedy}), nor in a guest: "
            "User-Mode Linux is missing; try: cowfs uml install"
        )


def test_every_behaviour_is_for_some_backend() -> None:
    nobodys = [behaviour.id for behaviour in BEHAVIOURS if all(behaviour.why_not(backend) for backend in ALL)]
    assert nobodys == []
