"""A pool whose metadata count blocks as free that are not."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cowfs.errors import PoolIoError
from cowfs.pool import PoolMode
from cowfs.thinmeta import Superblock
from tests.emulated.conftest import BLOCK, Bench


def test_a_full_pool_that_counts_free_blocks_does_not_wait_for_them() -> None:
    """Each commit would find space for the writes that wait, and each write none: they would wait for ever."""
    bench = Bench(data_blocks=8)
    bench.thin().pwrite(0, b"x" * (8 * BLOCK))
    bench.pool.close()
    superblock = Superblock.unpack(bench.metadata_store.pread(0, 4096))
    assert superblock.data_space_map.nr_allocated == 8
    wrong = replace(superblock, data_space_map=replace(superblock.data_space_map, nr_allocated=6))
    bench.metadata_store.pwrite(0, wrong.pack())
    bench.reopen()
    thin = bench.thin()
    with pytest.raises(PoolIoError, match="2 data blocks are counted as free, and none is"):
        thin.pwrite(8 * BLOCK, b"x")
    assert (bench.status().mode, bench.status().needs_check) == (PoolMode.READ_ONLY, True)
    assert thin.pread(0, 1) == b"x"
    bench.pool.close()
