"""A snapshotter that is killed at a step of a call leaves the snapshot as before it or as after it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import session_seed
from tests.containerd.killed_snapshotter import kill

EVERY = 1 if os.environ.get("COWFS_TEST_LONG") else 16


@pytest.mark.slow
def test_kills_leave_each_snapshot_there_or_not(tmp_path: Path) -> None:
    first = 1 + session_seed() % EVERY
    assert kill(tmp_path / "home", first, EVERY) >= 10
