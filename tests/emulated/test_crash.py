"""Whatever moment a crash picks, the pool comes back at a commit not older than the last flush."""

from __future__ import annotations

import os

import pytest

from cowfs.blockdev import BlockDevice
from cowfs.pool import Pool, PoolTable
from cowfs.testing.clock import ManualClock
from cowfs.testing.crash import CrashRun
from cowfs_emulated import EmulatedPool, engine

SEED = int(os.environ.get("COWFS_TEST_SEED", "1"))


def open_pool(metadata: BlockDevice, data: BlockDevice, table: PoolTable) -> Pool:
    return EmulatedPool(metadata, data, table, name="pool", clock=ManualClock())


def explore(seed: int, steps: int, *, subsets: int) -> None:
    run = CrashRun(open_pool, seed=seed)
    run.random_steps(steps)
    print(f"seed {seed}: {run.explore(subsets=subsets)}")


@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
def test_every_prefix_and_a_torn_subset_at_each_point(seed: int) -> None:
    explore(seed, 40, subsets=1)


def test_a_pool_that_punches_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "RECLAIM_BYTES", 0)
    explore(SEED, 40, subsets=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000 + SEED, 1000 + SEED + int(os.environ.get("COWFS_CRASH_SCRIPTS", "2"))))
def test_longer_scripts_with_more_subsets(seed: int) -> None:
    explore(seed, 120, subsets=3)


def test_the_explorer_notices_a_pool_that_does_not_flush_its_data_before_a_commit() -> None:
    def open_careless(metadata: BlockDevice, data: BlockDevice, table: PoolTable) -> Pool:
        pool = EmulatedPool(metadata, data, table, name="pool", clock=ManualClock())
        pool._engine.flush_data = lambda: None  # type: ignore[method-assign]
        return pool

    run = CrashRun(open_careless, seed=SEED)
    run.random_steps(40)
    with pytest.raises(AssertionError, match="never written there"):
        run.explore(subsets=2)


def test_the_explorer_notices_a_pool_that_punches_before_the_commit() -> None:
    def open_hasty(metadata: BlockDevice, data: BlockDevice, table: PoolTable) -> Pool:
        pool = EmulatedPool(metadata, data, table, name="pool", clock=ManualClock())
        engine = pool._engine
        commit = engine.metadata.commit

        def punch_first() -> list[tuple[int, int]]:
            engine._to_reclaim.add(engine.metadata._maps.data.freed_runs())
            engine.reclaim()
            return commit()

        engine.metadata.commit = punch_first  # type: ignore[method-assign]
        return pool

    run = CrashRun(open_hasty, seed=SEED)
    run.random_steps(40)
    with pytest.raises(AssertionError, match="never written there"):
        run.explore()
