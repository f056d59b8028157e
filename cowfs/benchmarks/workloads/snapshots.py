"""Snapshots: what it takes to take, show and remove one, by what is mapped and by how many there are; long chains."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from cowfs.benchmarks.engines.interface import Contender, Offer
from cowfs.benchmarks.meter import MICROSECONDS_EACH, TIME, TIME_EACH, Meter, Work
from cowfs.benchmarks.workloads.disks import forget, opened, page_offsets, read_at, write_all
from cowfs.benchmarks.workloads.interface import Measure
from cowfs.units import format_size

_MIB: Final = 1 << 20
_PAGE: Final = 4096
_AT_ONCE: Final = 5
_READS_AT_ONCE: Final = 50
_READ_SECONDS: Final = 20.0
_SHOW: Final = "show the disk"
_READ: Final = "random read of 4 KiB"


class SnapshotsBySize:
    """Args: sizes: of what is mapped, in bytes, ascending."""

    name = "snapshot-size"
    title = "Does a snapshot take longer when more is mapped?"
    expectation = (
        "No, where a snapshot copies the root of a tree, whatever hangs below it: some metadata and a commit. "
        "Copies by reference, of files, take time with the number of their extents. It counts when it is durable."
    )
    needs = Offer.DISK | Offer.SNAPSHOTS
    x_unit = "bytes mapped"
    warms_up = True

    def __init__(self, *, sizes: Sequence[int], seed: int) -> None:
        self._sizes = tuple(sizes)
        self._seed = seed

    @property
    def parameters(self) -> dict[str, Any]:
        return {"sizes": list(self._sizes), "snapshots": _AT_ONCE, "seed": self._seed}

    @contextmanager
    def prepared(self, contender: Contender) -> Iterator[Measure]:
        devices = {size: f"mapped-{size}" for size in self._sizes}
        for size, name in devices.items():
            contender.create(name, size)
            with contender.disk(name) as path, opened(path) as fd:
                write_all(fd, size, self._seed)
                os.fsync(fd)

        def measure(meter: Meter) -> None:
            for size, name in devices.items():
                _take_and_remove(contender, meter, name, format_size(size), x=size)

        yield measure
        for name in devices.values():
            contender.remove(name)


class SnapshotsByNumber:
    """Args: numbers: of the snapshots that there are, ascending."""

    name = "snapshot-number"
    title = "Does a snapshot take longer when there are many?"
    expectation = "Next to nothing: one more entry in a tree that is a level deeper for each hundred times as many."
    needs = Offer.DISK | Offer.SNAPSHOTS | Offer.MANY
    x_unit = "snapshots"
    warms_up = False

    def __init__(self, *, numbers: Sequence[int], seed: int) -> None:
        self._numbers = tuple(numbers)
        self._seed = seed

    @property
    def parameters(self) -> dict[str, Any]:
        return {"numbers": list(self._numbers), "snapshots": _AT_ONCE, "size_bytes": _MIB, "seed": self._seed}

    @contextmanager
    def prepared(self, contender: Contender) -> Iterator[Measure]:
        contender.create("origin", _MIB)
        with contender.disk("origin") as path, opened(path) as fd:
            write_all(fd, _MIB, self._seed)
            os.fsync(fd)

        def measure(meter: Meter) -> None:
            there: list[str] = []
            for number in self._numbers:
                more = [f"kept-{at}" for at in range(len(there), number)]
                contender.snapshot_many("origin", more)
                there += more
                _take_and_remove(contender, meter, "origin", f"{number} snapshots", x=number)
            for name in there:
                contender.remove(name)

        yield measure
        contender.remove("origin")


def _take_and_remove(contender: Contender, meter: Meter, origin: str, what: str, x: float) -> None:
    names = [f"taken-{number}" for number in range(_AT_ONCE)]
    with meter.line(f"take one, {what}", TIME_EACH, x=x, series="take one") as work:
        for name in names:
            contender.snapshot(origin, name)
        work.requests = len(names)
    with meter.line(f"remove one, {what}", TIME_EACH, x=x, series="remove one") as work:
        for name in names:
            contender.remove(name)
        work.requests = len(names)


class Chains:
    """Args: lengths: of the chains, ascending; size_bytes: of what the first device maps; requests: of a round at most,
    fewer where they take long.
    """

    name = "chain"
    title = "Does reading get slower through a chain of snapshots of snapshots?"
    expectation = (
        "No, where every device has a separate map. Where each has the map of what it changed alone, a read asks one "
        "after the other: time and memory grow with the length."
    )
    needs = Offer.DISK | Offer.SNAPSHOTS
    x_unit = "length"
    warms_up = False

    def __init__(self, *, lengths: Sequence[int], size_bytes: int, requests: int, seed: int) -> None:
        self._lengths = tuple(lengths)
        self._size_bytes = size_bytes
        self._requests = requests
        self._seed = seed

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "lengths": list(self._lengths),
            "size_bytes": self._size_bytes,
            "requests": self._requests,
            "seed": self._seed,
        }

    @contextmanager
    def prepared(self, contender: Contender) -> Iterator[Measure]:
        names = [f"link-{number}" for number in range(max(self._lengths) + 1)]
        contender.create(names[0], self._size_bytes)
        with contender.disk(names[0]) as path, opened(path) as fd:
            write_all(fd, self._size_bytes, self._seed)
            os.fsync(fd)
        for origin, name in itertools.pairwise(names):
            contender.snapshot(origin, name)
        offsets = page_offsets(self._size_bytes, self._requests, self._seed)

        def measure(meter: Meter) -> None:
            for length in self._lengths:
                name = names[length]
                with ExitStack() as shown:
                    with meter.line(f"show the disk at {length}", TIME, x=length, series=_SHOW, is_counted=False):
                        path = shown.enter_context(contender.disk(name))
                    fd = shown.enter_context(opened(path))
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
                    forget(fd)
                    what = f"random read of 4 KiB at {length}"
                    with meter.line(what, MICROSECONDS_EACH, x=length, series=_READ) as work:
                        _read_for_a_while(fd, offsets, work)

        yield measure
        for name in reversed(names):
            contender.remove(name)


def _read_for_a_while(fd: int, offsets: Sequence[int], work: Work) -> None:
    """As many of these reads as fit into some seconds: at the end of a long chain one may take a tenth of a second."""
    deadline = time.monotonic() + _READ_SECONDS
    for begin in range(0, len(offsets), _READS_AT_ONCE):
        read_at(fd, offsets[begin : begin + _READS_AT_ONCE], _PAGE, work)
        if time.monotonic() >= deadline:
            return
