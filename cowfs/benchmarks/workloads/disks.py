"""Requests to a disk: sequential and random, one at a time and sixteen; the first write after a snapshot."""

from __future__ import annotations

import os
import random
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from cowfs.benchmarks.engines.interface import Contender, Offer
from cowfs.benchmarks.meter import RATE, THROUGHPUT, Meter, Work
from cowfs.benchmarks.workloads.interface import Measure

_MIB: Final = 1 << 20
_PAGE: Final = 4096
_DEPTHS: Final = (1, 16)
_DISK: Final = "disk"
_SERIES: Final = "first writes"


class DiskRequests:
    """Args: size_bytes: of the part of the disk that is used; requests: small ones of a round at depth 1."""

    name = "disk"
    title = "How many requests a second does a disk take that has been written before?"
    expectation = (
        "Nothing is allocated or copied, so each request costs its way to the data: two switches between processes "
        "where a server answers it, none where the kernel does. Large requests cost the copying of their bytes."
    )
    needs = Offer.DISK
    x_unit = ""
    warms_up = True

    def __init__(self, *, size_bytes: int, requests: int, seed: int) -> None:
        self._size_bytes = size_bytes
        self._requests = requests
        self._seed = seed

    @property
    def parameters(self) -> dict[str, Any]:
        return {"size_bytes": self._size_bytes, "requests": self._requests, "seed": self._seed}

    @contextmanager
    def prepared(self, contender: Contender) -> Iterator[Measure]:
        contender.create(_DISK, self._size_bytes)
        with contender.disk(_DISK) as path, opened(path) as fd:
            write_all(fd, self._size_bytes, self._seed)
            os.fsync(fd)
            yield lambda meter: self._measure(meter, fd)
        contender.remove(_DISK)

    def _measure(self, meter: Meter, fd: int) -> None:
        large, page = random_bytes(_MIB, self._seed), random_bytes(_PAGE, self._seed)
        large_offsets = range(0, self._size_bytes, _MIB)
        offsets = page_offsets(self._size_bytes, self._requests, self._seed)
        with meter.line("sequential write of 1 MiB, then fsync", THROUGHPUT) as work:
            write_at(fd, large_offsets, large, work)
            os.fsync(fd)
        forget(fd)
        with meter.line("sequential read of 1 MiB", THROUGHPUT) as work:
            read_at(fd, large_offsets, _MIB, work)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for depth in _DEPTHS:
            with meter.line(f"random write of 4 KiB, depth {depth}, then fsync", RATE) as work:
                _side_by_side(depth, offsets, lambda part, own: write_at(fd, part, page, own), work)
                os.fsync(fd)
        for depth in _DEPTHS:
            forget(fd)
            with meter.line(f"random read of 4 KiB, depth {depth}", RATE) as work:
                _side_by_side(depth, offsets, lambda part, own: read_at(fd, part, _PAGE, own), work)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_NORMAL)


class FirstWrites:
    """Args: size_bytes: of the part of the disk that is mapped; writes: of one size, each in a separate block."""

    name = "first-write"
    title = "What does the first write after a snapshot cost?"
    expectation = (
        "A block that a snapshot shares is copied before a part of it is written: a write of 4 KiB into blocks of "
        "64 KiB copies 16 bytes for each byte written, and one of a whole block none. A smaller block copies less, and "
        "its map is larger."
    )
    needs = Offer.DISK | Offer.SNAPSHOTS
    x_unit = "bytes a write"
    warms_up = True

    def __init__(self, *, size_bytes: int, writes: int, sizes: Sequence[int], seed: int) -> None:
        self._size_bytes = size_bytes
        self._writes = writes
        self._sizes = tuple(sizes)
        self._seed = seed

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "size_bytes": self._size_bytes,
            "writes": self._writes,
            "write_sizes": list(self._sizes),
            "seed": self._seed,
        }

    @contextmanager
    def prepared(self, contender: Contender) -> Iterator[Measure]:
        """Each line begins with a new snapshot, and its writes are a mebibyte apart: none meets what another copied."""
        contender.create(_DISK, self._size_bytes)
        snapshots: list[str] = []
        with contender.disk(_DISK) as path:
            with opened(path) as fd:
                write_all(fd, self._size_bytes, self._seed)
                os.fsync(fd)

            def measure(meter: Meter) -> None:
                for size in self._sizes:
                    name = f"snapshot-{len(snapshots)}"
                    contender.snapshot(_DISK, name)
                    snapshots.append(name)
                    places = [at * _MIB for at in range(min(self._writes, self._size_bytes // _MIB))]
                    random.Random(self._seed).shuffle(places)
                    data = random_bytes(size, self._seed)
                    with opened(path) as fd, meter.line(_first_write(size), RATE, x=size, series=_SERIES) as work:
                        write_at(fd, places, data, work, synced=True)

            yield measure
        for name in snapshots:
            contender.remove(name)
        contender.remove(_DISK)


def _first_write(size: int) -> str:
    return f"first write of {size >> 10} KiB and fdatasync"


# --- requests


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def random_bytes(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def page_offsets(size_bytes: int, count: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(size_bytes // _PAGE) * _PAGE for _ in range(count)]


def write_all(fd: int, size_bytes: int, seed: int) -> None:
    data = random_bytes(_MIB, seed)
    for offset in range(0, size_bytes, _MIB):
        os.pwrite(fd, data[: size_bytes - offset], offset)


def forget(fd: int) -> None:
    """Have the kernel drop the pages that it has cached of a file: reads go to its server, or to the disk."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def write_at(fd: int, offsets: Sequence[int], data: bytes, work: Work, *, synced: bool = False) -> None:
    now, latencies = time.perf_counter, work.latencies
    for offset in offsets:
        begin = now()
        os.pwrite(fd, data, offset)
        if synced:
            os.fdatasync(fd)
        latencies.append(now() - begin)
    work.requests += len(offsets)
    work.written_bytes += len(offsets) * len(data)


def read_at(fd: int, offsets: Sequence[int], size: int, work: Work) -> None:
    now, latencies = time.perf_counter, work.latencies
    for offset in offsets:
        begin = now()
        os.pread(fd, size, offset)
        latencies.append(now() - begin)
    work.requests += len(offsets)
    work.read_bytes += len(offsets) * size


def _side_by_side(depth: int, offsets: Sequence[int], run: Callable[[Sequence[int], Work], None], work: Work) -> None:
    """The same requests by so many threads, each of which waits for its own; Python lets them wait side by side."""
    if depth == 1:
        run(offsets, work)
        return
    parts = [Work() for _ in range(depth)]
    with ThreadPoolExecutor(depth) as threads:
        list(threads.map(run, [offsets[number::depth] for number in range(depth)], parts))
    work.latencies = array("d", (latency for part in parts for latency in part.latencies))
    work.requests += sum(part.requests for part in parts)
    work.read_bytes += sum(part.read_bytes for part in parts)
    work.written_bytes += sum(part.written_bytes for part in parts)
