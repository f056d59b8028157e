"""The life of devices: first writes to a new one, from nothing to the files of a snapshot, and churn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from cowfs.benchmarks.engines.interface import Contender, Offer
from cowfs.benchmarks.meter import RATE, THROUGHPUT, TIME, Meter, given
from cowfs.benchmarks.workloads.disks import opened, random_bytes, write_at
from cowfs.benchmarks.workloads.interface import Measure

_MIB: Final = 1 << 20
_PAGE: Final = 4096
_KEPT: Final = given("space not returned", "MiB", lower_is_better=True)


class Provisioning:
    """Args: size_bytes: of the device; writes: small ones of a round."""

    name = "provision"
    title = "What does the first write to a new device cost?"
    expectation = (
        "A block is allocated, and what a small write leaves of it reads as zeros: written, or only noted. Large "
        "writes cover their blocks and cost nothing more than their bytes, and the metadata of a commit."
    )
    needs = Offer.DISK
    x_unit = ""
    warms_up = False

    def __init__(self, *, size_bytes: int, writes: int, seed: int) -> None:
        self._size_bytes = size_bytes
        self._writes = min(writes, size_bytes // _MIB)
        self._seed = seed

    @property
    def parameters(self) -> dict[str, Any]:
        return {"size_bytes": self._size_bytes, "writes": self._writes, "seed": self._seed}

    @contextmanager
    def prepared(self, contender: Contender) -> Iterator[Measure]:
        """Each round has a new device: its second half is written in large pieces, its first one in small ones."""
        large, page = random_bytes(_MIB, self._seed), random_bytes(_PAGE, self._seed)

        def measure(meter: Meter) -> None:
            contender.create("new", 2 * self._size_bytes)
            try:
                with contender.disk("new") as path, opened(path) as fd:
                    with meter.line("write of 1 MiB to new space, then fsync", THROUGHPUT) as work:
                        write_at(fd, range(self._size_bytes, 2 * self._size_bytes, _MIB), large, work)
                        os.fsync(fd)
                    places = [at * _MIB + _MIB // 2 for at in range(self._writes)]
                    with meter.line("write of 4 KiB to new space and fdatasync", RATE) as work:
                        write_at(fd, places, page, work, synced=True)
            finally:
                contender.remove("new")

        yield measure


class FromNothing:
    """From nothing to the files of a snapshot."""

    name = "from-nothing"
    title = "How long does it take from nothing to the files of a snapshot?"
    expectation = (
        "A device with an empty file system is a snapshot of a prepared one, or a mkfs; a snapshot is some blocks of "
        "metadata. A mount through FUSE starts a server, in Python some 0.3 s."
    )
    needs = Offer.TREE | Offer.SNAPSHOTS
    x_unit = ""
    warms_up = True

    def __init__(self, *, size_bytes: int) -> None:
        self._size_bytes = size_bytes

    @property
    def parameters(self) -> dict[str, Any]:
        return {"size_bytes": self._size_bytes}

    @contextmanager
    def prepared(self, contender: Contender) -> Iterator[Measure]:
        def measure(meter: Meter) -> None:
            with meter.line("a device and its snapshot", TIME):
                contender.create("origin", self._size_bytes)
                contender.snapshot("origin", "snapshot")
            with ExitStack() as shown, meter.line("and its files", TIME, is_counted=False):
                os.listdir(shown.enter_context(contender.tree("snapshot")))
            contender.remove("snapshot")
            contender.remove("origin")

        yield measure


class Churn:
    """Args: cycles: of a round; size_bytes: of what a device holds."""

    name = "churn"
    title = "What do devices cost that come and go, as containers do, and is their space returned?"
    expectation = (
        "A cycle is a snapshot of an image, writes to a part of it, and its removal. At the end the host has all of "
        "the space back, but for metadata."
    )
    needs = Offer.DISK | Offer.SNAPSHOTS
    x_unit = ""
    warms_up = True

    def __init__(self, *, cycles: int, size_bytes: int, seed: int) -> None:
        self._cycles = cycles
        self._size_bytes = size_bytes
        self._seed = seed

    @property
    def parameters(self) -> dict[str, Any]:
        return {"cycles": self._cycles, "size_bytes": self._size_bytes, "seed": self._seed}

    @contextmanager
    def prepared(self, contender: Contender) -> Iterator[Measure]:
        data = random_bytes(_MIB, self._seed)
        places = range(0, self._size_bytes, _MIB)
        contender.create("image", self._size_bytes)
        with contender.disk("image") as path, opened(path) as fd:
            for place in places:
                os.pwrite(fd, data, place)
            os.fsync(fd)

        def measure(meter: Meter) -> None:
            before = contender.host_bytes()
            with meter.line(f"{self._cycles} devices come and go", TIME, is_counted=False) as work:
                for _ in range(self._cycles):
                    contender.snapshot("image", "container")
                    with contender.disk("container") as path, opened(path) as fd:
                        write_at(fd, places[::2], data, work)
                        os.fsync(fd)
                    contender.remove("container")
            after = contender.host_bytes()
            if before is not None and after is not None:
                with meter.line("space not returned", _KEPT) as work:
                    work.value = (after - before) / _MIB

        yield measure
        contender.remove("image")
