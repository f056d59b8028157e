"""A snapshotter on the kernel's dm-thin, killed at a step of a call, leaves the snapshot as before or after it."""

from __future__ import annotations

import os
import sys

import pytest

from cowfs.uml import UmlKernel, run_captured
from tests.conftest import REPOSITORY, session_seed

# A guest for each piece, which takes a minute or two; together they kill at every step.
PIECES = 12
EVERY = PIECES if os.environ.get("COWFS_TEST_LONG") else 48


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("piece", range(1, PIECES + 1) if EVERY == PIECES else ["one of the seed"])
def test_kills_leave_each_snapshot_there_or_not(uml_kernel: UmlKernel, piece: int | str) -> None:
    first = piece if isinstance(piece, int) else 1 + session_seed() % EVERY
    print(f"every {EVERY}th step from step {first} on")
    words = [sys.executable, "-m", "tests.containerd.killed_snapshotter", str(first), str(EVERY), "dmthin"]
    done = run_captured(words, kernel=uml_kernel, cwd=REPOSITORY, timeout_seconds=500)
    assert done.returncode == 0, done.stderr
    killed = int(done.stdout.split()[0])
    assert killed >= 5, done.stdout
