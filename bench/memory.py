"""How much memory does a pool take that maps 1 TiB (16 M blocks of 64 KiB), while all of it is used at random?

Expected: the mappings are 16 bytes each in the nodes' arrays, so all of them would be 256 MiB; the cache is bounded
below that. Counts of 16 M data blocks take 4 MiB packed, some 64 MiB at four bytes each. Python and the packages take
some 30 MiB: below 400 MiB in all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.rig.harness import Bench
from bench.rig.pools import BLOCK_BYTES, BLOCK_SECTORS, build_pool, open_pool, random_order
from cowfs.benchmarks import accounting
from cowfs.pool import PoolTable

LIMIT_MIB = 512
PAGE = 4096


def run(bench: Bench) -> None:
    mapped = bench.size(1 << 24, 1 << 16)
    requests = bench.size(1 << 19, 1 << 12)
    table = build_pool(bench.directory, mapped, spare_blocks=requests)
    # A separate process: this one has just built the pool, and its peak would hide the answer.
    command = [sys.executable, "-m", "bench.memory", table.format(), str(mapped), str(requests)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent.parent)
    opened_mib, peak_mib = map(float, result.stdout.split())
    bench.figure("peak resident memory, pool opened", opened_mib, "MiB")
    peak_mib = bench.figure(f"peak resident memory after {requests} random reads and as many writes", peak_mib, "MiB")
    bench.goal("peak resident memory", peak_mib, at_most=LIMIT_MIB)


def use(table: PoolTable, mapped: int, requests: int) -> None:
    """Open the pool, read all over it, and write all over a snapshot, breaking sharing each time; print peaks."""
    pool = open_pool(table)
    try:
        opened_mib = peak_mib()
        origin = pool.activate("origin", 1, mapped * BLOCK_SECTORS)
        pool.create_snap(2, 1)
        snapshot = pool.activate("snapshot", 2, mapped * BLOCK_SECTORS)
        data = os.urandom(PAGE)
        step = mapped // requests
        for index in random_order(requests):
            offset = index * step * BLOCK_BYTES
            origin.pread(offset, PAGE)
            snapshot.pwrite(offset, data)
        pool.commit()
        print(opened_mib, peak_mib())
    finally:
        pool.close()


def peak_mib() -> float:
    """From the process's own address space; getrusage would count the parent's before exec."""
    return (accounting.peak_memory_bytes([os.getpid()]) or 0) / (1 << 20)


if __name__ == "__main__":
    use(PoolTable.parse(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
