"""Every behaviour, on every registered backend that can work here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cowfs.errors import MissingRequirement
from cowfs.pool import Backend, backend_names, load_backend
from cowfs.testing.conformance import BEHAVIOURS, Behaviour, NotApplicableError, check


@pytest.fixture(scope="module", params=backend_names())
def backend(request: pytest.FixtureRequest) -> Backend:
    loaded = load_backend(request.param)
    probe = loaded.probe()
    if not probe.usable:
        pytest.skip(f"backend '{loaded.name}' cannot work here: {probe.problem}; try: {probe.remedy}")
    return loaded


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.id)
def test_behaviour(backend: Backend, behaviour: Behaviour, tmp_path: Path) -> None:
    try:
        check(behaviour, backend, os.fspath(tmp_path))
    except (NotApplicableError, MissingRequirement) as reason:
        pytest.skip(str(reason))
