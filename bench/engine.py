"""How much of plain file speed does the emulated pool give?

Expected: a 1 MiB overwrite is one lookup in cached mappings (some 10 us of Python) and the same pwrite (some 300 us of
copying into the page cache), so 0.9 or more. Provisioning adds 16 new mappings and their allocation (some 50 us): 0.7.
A 4 KiB overwrite costs some 5 us as a plain os.pwrite from Python, and one lookup more here: 0.4. These are without
flush, which shows the engine; what a program that syncs sees is measured beside them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.rig.harness import Bench, timed
from bench.rig.pools import BLOCK_SECTORS, make_files, open_pool, random_order
from cowfs.pool import Pool, ThinDevice

MIB = 1 << 20
PAGE = 4096
DATA = os.urandom(MIB)


def run(bench: Bench) -> None:
    size_bytes = bench.size(512 * MIB, 32 * MIB)
    with open_peers(bench.directory, size_bytes) as (plain, pool, thin):
        sequential_overwrite(bench, plain, thin, size_bytes)
        random_overwrite(bench, plain, thin, bench.size(1 << 16, 1 << 12))
        provisioning(bench, pool, size_bytes, flush=False)
        provisioning(bench, pool, size_bytes, flush=True)


@contextmanager
def open_peers(directory: Path, size_bytes: int) -> Iterator[tuple[int, Pool, ThinDevice]]:
    """A plain file and a thin device, both fully written, and room in the pool for as much again."""
    table = make_files(directory, data_blocks=2 * size_bytes // (BLOCK_SECTORS * 512) + 64, metadata_bytes=64 * MIB)
    plain = os.open(directory / "plain", os.O_RDWR | os.O_CREAT, 0o600)
    pool = open_pool(table)
    try:
        pool.create_thin(1)
        thin = pool.activate("thin", 1, size_bytes // 512)
        write_plain(plain, size_bytes)
        write_thin(thin, size_bytes)
        yield plain, pool, thin
    finally:
        pool.close()
        os.close(plain)


def write_plain(fd: int, size_bytes: int, *, flush: bool = False) -> None:
    for offset in range(0, size_bytes, MIB):
        os.pwrite(fd, DATA, offset)
    if flush:
        os.fsync(fd)


def write_thin(thin: ThinDevice, size_bytes: int, *, flush: bool = False) -> None:
    for offset in range(0, size_bytes, MIB):
        thin.pwrite(offset, DATA)
    if flush:
        thin.flush()


def sequential_overwrite(bench: Bench, plain: int, thin: ThinDevice, size_bytes: int) -> None:
    found = bench.compare(
        "sequential overwrite, 1 MiB each",
        {
            "plain pwrite": rate(lambda: write_plain(plain, size_bytes), size_bytes / MIB, lambda: os.fsync(plain)),
            "thin device": rate(lambda: write_thin(thin, size_bytes), size_bytes / MIB, thin.flush),
        },
        unit="MiB/s",
    )
    bench.goal_ratio("sequential overwrite, thin / plain", found["thin device"], found["plain pwrite"], at_least=0.8)


def random_overwrite(bench: Bench, plain: int, thin: ThinDevice, count: int) -> None:
    data = DATA[:PAGE]
    offsets = [page * PAGE for page in random_order(count)]

    def write_plain_pages() -> None:
        for offset in offsets:
            os.pwrite(plain, data, offset)

    def write_thin_pages() -> None:
        for offset in offsets:
            thin.pwrite(offset, data)

    found = bench.compare(
        "random overwrite, 4 KiB each",
        {
            "plain pwrite": rate(write_plain_pages, count, lambda: os.fsync(plain)),
            "thin device": rate(write_thin_pages, count, thin.flush),
        },
        unit="writes/s",
    )
    bench.goal_ratio("random overwrite, thin / plain", found["thin device"], found["plain pwrite"], at_least=0.25)


def provisioning(bench: Bench, pool: Pool, size_bytes: int, *, flush: bool) -> None:
    """First writes: a new sparse file, and a new thin device."""
    path = bench.directory / "new"

    def new_file() -> float:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(fd, size_bytes)
            return timed(lambda: write_plain(fd, size_bytes, flush=flush))
        finally:
            os.close(fd)
            path.unlink()

    def new_thin() -> float:
        pool.create_thin(2)
        thin = pool.activate("new", 2, size_bytes // 512)
        try:
            return timed(lambda: write_thin(thin, size_bytes, flush=flush))
        finally:
            thin.close()
            pool.delete(2)

    found = bench.compare(
        f"first writes, 1 MiB each{', and a flush at the end' if flush else ''}",
        {
            "plain sparse file": lambda: size_bytes / MIB / new_file(),
            "thin device": lambda: size_bytes / MIB / new_thin(),
        },
        unit="MiB/s",
    )
    if not flush:
        bench.goal_ratio("provisioning, thin / plain", found["thin device"], found["plain sparse file"], at_least=0.5)


def rate(action: Callable[[], None], amount: float, settle: Callable[[], None]) -> Callable[[], float]:
    """A contender: amount per second, after what earlier rounds left dirty has been written out."""

    def once() -> float:
        settle()
        return amount / timed(action)

    return once
