"""A home on a fake pool."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.devices.home_fakes import FakeBackend, make_home


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def home(tmp_path: Path, backend: FakeBackend) -> Path:
    """A home with the devices base (thin 1) and a (thin 2), closed."""
    with make_home(tmp_path / "home", backend) as devices:
        devices.create("a")
    return tmp_path / "home"
