"""What an engine offers, and what a workload uses of it.

An engine is set up in a separate directory and is a contender from then on, until the end of the run. What it makes
are devices by name: a device is used as a disk (the path of a file or a node), or as a tree (a directory), one way at a
time, and a snapshot of it is a device, too.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cowfs.benchmarks import accounting
from cowfs.errors import UsageError
from cowfs.pool.counters import PoolCounters
from cowfs.pool.interface import ProbeResult

WORKS = ProbeResult(usable=True)


class Offer(enum.Flag):
    """What an engine can do; a workload says what it needs."""

    DISK = enum.auto()  # a device as a disk
    TREE = enum.auto()  # a device as a directory
    SNAPSHOTS = enum.auto()  # a snapshot of a device, also while it is in use, that can be written
    MANY = enum.auto()  # thousands of snapshots
    HOME = enum.auto()  # a home of cowfs
    BLOCK_SIZE = enum.auto()  # the unit of copying can be chosen

    @property
    def words(self) -> str:
        return " and ".join(_WORDS.get(part, str(part.name).lower()) for part in self)


_WORDS: Final = {Offer.MANY: "room for thousands of them", Offer.BLOCK_SIZE: "block size to choose"}


class Contender:
    """An engine that is set up. What it does not offer raises UsageError."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory

    # --- devices

    def create(self, name: str, size_bytes: int) -> None:
        """A new device, of zeros or with an empty file system."""
        raise self._cannot("create devices")

    def snapshot(self, origin: str, name: str) -> None:
        """A device with the contents of another one, which may be in use here; durable when this returns."""
        raise self._cannot("take snapshots")

    def snapshot_many(self, origin: str, names: Sequence[str]) -> None:
        for name in names:
            self.snapshot(origin, name)

    def remove(self, name: str) -> None:
        """Remove a device that is not in use; durable as `snapshot` is, where the engine takes snapshots."""
        raise self._cannot("remove devices")

    def disk(self, name: str) -> AbstractContextManager[Path]:
        """The device as a disk, for a block: the path of a regular file or of a block device's node."""
        raise self._cannot("show disks")

    def tree(self, name: str) -> AbstractContextManager[Path]:
        """The device's files, for a block: the path of a directory that can be written."""
        raise self._cannot("show trees")

    @property
    def backend(self) -> str:
        """The backend of its homes."""
        raise self._cannot("have a backend")

    def home(self) -> AbstractContextManager[Path]:
        """A home that no process holds, for a block."""
        raise self._cannot("give a home")

    def _cannot(self, what: str) -> UsageError:
        return UsageError(f"the engine '{self.name}' does not {what}")

    # --- what is counted

    def settle(self) -> None:
        """Bring what was written and is on its way to where it is counted."""

    def processes(self) -> list[int]:
        """The processes that serve it now."""
        return []

    def counters(self) -> PoolCounters | None:
        """Of its pool, since that was opened; None where there is none that counts."""
        return None

    def written_bytes(self) -> int | None:
        """What it has written to its files, or to the device below it, so far; None where that is not counted."""
        return None

    def host_bytes(self) -> int | None:
        """The space of its files on the host."""
        return accounting.allocated_bytes(os.fspath(self.directory))

    def details(self) -> dict[str, str]:
        """Versions, mount options, whatever a reader has to know."""
        return {}


@dataclass(frozen=True)
class Setting:
    """How a contender is set up. `block_bytes` is the unit of copying; None for the engine's own choice."""

    name: str
    directory: Path
    block_bytes: int | None = None


@dataclass(frozen=True)
class Engine:
    """A kind of contender.

    Attributes:
        look: whether it works here, found by trying; changes nothing.
        set_up: makes a contender in an empty directory, for the length of a block.
    """

    name: str
    title: str
    offers: Offer
    look: Callable[[], ProbeResult]
    set_up: Callable[[Setting], AbstractContextManager[Contender]]


@contextmanager
def only(contender: Contender) -> Iterator[Contender]:
    """A contender that needs no end."""
    yield contender
