"""A process that is killed in a rollback, in many creations or in a rename leaves the state before or after."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import session_seed
from tests.home.killed_requests import kill

ROUNDS = int(os.environ.get("COWFS_TEST_KILLS", "8"))


@pytest.mark.slow
def test_kills_leave_the_state_before_or_after(tmp_path: Path) -> None:
    outcomes = kill(tmp_path / "home", ROUNDS, session_seed() * 1000)
    assert outcomes["rounds"] == ROUNDS
    print(dict(outcomes))
