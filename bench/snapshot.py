"""Does a snapshot take longer when the device is larger?

Expected: no. A snapshot copies the root of a tree and adds an entry to two small ones, then commits: some ten metadata
blocks and three fsyncs whatever is mapped. A tree of 16 M mappings is one level deeper than one of 16 k.
"""

from __future__ import annotations

import itertools
from functools import partial

from bench.rig.harness import Bench, timed
from bench.rig.pools import build_pool, open_pool
from cowfs.pool import Pool

SNAPSHOTS_PER_ROUND = 20


def run(bench: Bench) -> None:
    sizes = {"16 k": 1 << 14, "16 M": bench.size(1 << 24, 1 << 16)}
    pools = {}
    try:
        for name, mapped in sizes.items():
            table = build_pool(bench.directory / name.replace(" ", ""), mapped, spare_blocks=1024)
            pools[f"{name} mapped blocks"] = open_pool(table)
        ids = itertools.count(2)

        def take_snapshots(pool: Pool) -> None:
            for thin_id in itertools.islice(ids, SNAPSHOTS_PER_ROUND):
                pool.create_snap(thin_id, 1)

        def milliseconds(pool: Pool) -> float:
            return 1000 * timed(partial(take_snapshots, pool)) / SNAPSHOTS_PER_ROUND

        found = bench.compare(
            "one snapshot, with its commit",
            {name: partial(milliseconds, pool) for name, pool in pools.items()},
            unit="ms",
        )
        small, large = found.values()
        bench.goal_ratio("snapshot time, 16 M / 16 k", large, small, at_most=1.5)
    finally:
        for pool in pools.values():
            pool.close()
