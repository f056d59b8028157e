"""The end of the metadata, from every side: the pool stops in time, and nothing acknowledged is lost."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest

from cowfs.pool import PoolMode
from cowfs.testing.model import PoolModel
from tests.emulated.conftest import BLOCK, Bench

THIN_BLOCKS = 300


@pytest.mark.parametrize("metadata_blocks", [24, 40, 72])
@pytest.mark.parametrize("seed", range(2))
def test_random_work_until_the_metadata_is_full_loses_nothing(
    make_bench: Callable[..., Bench], metadata_blocks: int, seed: int
) -> None:
    print(f"seed {seed}")
    rng = random.Random(f"{seed} {metadata_blocks}")
    bench = make_bench(data_blocks=640, metadata_blocks=metadata_blocks)
    model = PoolModel(640, BLOCK)
    pool = bench.pool
    thins = {0: bench.thin(0, THIN_BLOCKS)}
    model.create_thin(0)
    for number in range(3000):
        thin_id = rng.choice(sorted(thins))
        error = 0
        try:
            if rng.random() < 0.1:
                new_id = max(thins) + 1
                pool.create_snap(new_id, thin_id)
                model.create_snap(new_id, thin_id)
                thins[new_id] = bench.thin(new_id, THIN_BLOCKS)
            elif rng.random() < 0.1:
                begin, length = rng.randrange(THIN_BLOCKS - 20), rng.randrange(1, 20)
                thins[thin_id].discard(begin * BLOCK, length * BLOCK)
                if bench.status(flush=False).mode is PoolMode.WRITE:
                    model.discard(thin_id, begin * BLOCK, length * BLOCK)
            else:
                offset, data = rng.randrange(THIN_BLOCKS) * BLOCK, number.to_bytes(4, "big")
                thins[thin_id].pwrite(offset, data)
                model.write(thin_id, offset, data)
        except OSError as failure:
            error = failure.errno or -1
        if bench.status(flush=False).mode is not PoolMode.WRITE or error:
            break
    status = bench.status()
    if error != errno.ENOSPC:
        assert (status.mode, status.needs_check) == (PoolMode.OUT_OF_METADATA_SPACE, False)
        assert error in (0, errno.EIO, errno.EOPNOTSUPP)
    for thin_id, thin in thins.items():
        for vblock in {*model.thin(thin_id).mappings, 0, THIN_BLOCKS - 1}:
            assert thin.pread(vblock * BLOCK, 8) == model.read(thin_id, vblock * BLOCK, 8), f"thin {thin_id} {vblock}"
    pool.close()
    bench.metadata_store.resize(4 * metadata_blocks * 4096)
    pool = bench.reopen()
    pool.create_thin(1000)
    assert bench.status().format().split()[4] in ("rw", "out_of_data_space")
