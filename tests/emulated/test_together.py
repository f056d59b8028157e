"""Messages of a group are committed at its end, all of them or none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cowfs.blockdev import MemoryDevice
from cowfs.errors import PoolIoError, ThinExists
from cowfs.pool import GroupingPool
from cowfs_emulated import EmulatedPool
from tests.emulated.conftest import Bench


def on_disk(bench: Bench) -> tuple[list[int], int]:
    """Thins and transaction id, as they would be after a crash now."""
    metadata = MemoryDevice(bench.metadata_store.size_bytes)
    metadata.pwrite(0, bench.metadata_store.pread(0, metadata.size_bytes))
    pool = EmulatedPool(metadata, bench.data_store, bench.table, name="crashed")
    return pool.thin_ids(), pool._engine.metadata.transaction_id


def test_a_group_is_one_commit(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    pool = bench.pool
    assert isinstance(pool, GroupingPool)
    pool.create_thin(1)

    def group() -> None:
        with pool.together():
            pool.create_snap(2, 1)
            bench.clock.advance(5)  # no periodic commit in between
            pool.delete(1)
            assert pool.thin_ids() == [2]
            assert on_disk(bench) == ([1], 0)
            pool.set_transaction_id(0, 1)

    operations = bench.during(group)
    assert sum(offset == 0 and what == "write" for device, what, offset, _ in operations if device == "metadata") == 1
    assert on_disk(bench) == ([2], 1)


def test_what_was_done_before_an_error_is_committed(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()

    def group() -> None:
        with bench.pool.together():
            bench.pool.create_thin(1)
            bench.pool.create_thin(1)

    with pytest.raises(ThinExists):
        group()
    assert on_disk(bench) == ([1], 0)


def test_a_group_whose_commit_fails_has_done_nothing() -> None:
    bench = Bench()
    bench.pool.create_thin(1)

    def group() -> None:
        with bench.pool.together():
            bench.pool.create_thin(2)
            bench.pool.set_transaction_id(0, 1)
            bench.metadata.fail("write")

    with pytest.raises(PoolIoError):
        group()
    assert on_disk(bench) == ([1], 0)
    assert bench.pool.thin_ids() == [1]
    bench.pool.close()
