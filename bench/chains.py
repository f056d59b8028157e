"""Does reading get slower along a chain of snapshots of snapshots?

Expected: no. Every device has a separate tree with shared subtrees, and looking a block up walks that tree only; the
chain's length appears nowhere. First and last differ by noise.
"""

from __future__ import annotations

import os

from bench.rig.harness import Bench, timed
from bench.rig.pools import BLOCK_BYTES, BLOCK_SECTORS, make_files, open_pool
from cowfs.pool import Pool, ThinDevice

PAGE = 4096
BLOCKS = 2048


def run(bench: Bench) -> None:
    length = bench.size(1000, 50)
    table = make_files(bench.directory, data_blocks=2 * BLOCKS + length, metadata_bytes=256 << 20)
    pool = open_pool(table)
    try:
        first = pool.activate("first", pool_with_chain(pool, length), BLOCKS * BLOCK_SECTORS)
        last = pool.activate("last", length, BLOCKS * BLOCK_SECTORS)
        assert first.pread(0, PAGE) == last.pread(0, PAGE)
        reads = bench.size(20000, 500)

        def read_first_block(device: ThinDevice) -> float:
            return 1e6 * timed(lambda: [device.pread(0, PAGE) for _ in range(reads)]) / reads

        found = bench.compare(
            "read block 0, 4 KiB",
            {"the first device": lambda: read_first_block(first), f"snapshot {length}": lambda: read_first_block(last)},
            unit="us",
        )
        before, after = found.values()
        bench.goal_ratio(
            f"read time through {length} snapshots, last / first", after, before, at_least=0.9, at_most=1.1
        )
    finally:
        pool.close()


def pool_with_chain(pool: Pool, length: int) -> int:
    """Thins 0..length, each a snapshot of the one before that then differs from it in one block; returns the first."""
    pool.create_thin(0)
    device = pool.activate("origin", 0, BLOCKS * BLOCK_SECTORS)
    for vblock in range(BLOCKS):
        device.pwrite(vblock * BLOCK_BYTES, os.urandom(PAGE))
    device.close()
    for thin_id in range(1, length + 1):
        pool.create_snap(thin_id, thin_id - 1)
        device = pool.activate("link", thin_id, BLOCKS * BLOCK_SECTORS)
        device.pwrite((1 + thin_id % (BLOCKS - 1)) * BLOCK_BYTES, b"link")
        device.close()
    return 0
