"""A state as a device: a snapshot of the device as it was before the recording, and what a crash left of the writes."""

from __future__ import annotations

from typing import Protocol

from cowfs.crashes.disk import DiskHistory
from cowfs.crashes.files import FileHistory
from cowfs.crashes.history import State
from cowfs.home.api.home import Home


class Maker(Protocol):
    """Makes states as devices of a home."""

    def make(self, state: State, name: str) -> None:
        """Raises CowfsError, and leaves no device."""
        ...

    def close(self) -> None:
        """Remove what was made beside the states."""
        ...


class DiskMaker:
    """Of disks. What is durable at a position is written once, to a device that states of later positions begin with.

    Args:
        origin: the device as it was before.
    """

    def __init__(self, home: Home, history: DiskHistory, origin: str) -> None:
        self._home = home
        self._history = history
        self._origin = origin
        self._flushed = origin
        self._items = 0  # that `_flushed` has
        self._count = 0

    def make(self, state: State, name: str) -> None:
        history = self._history
        durable = history.durable_items(state.position)
        if durable != self._items:
            self._advance(durable)
        writes = history.writes(durable, history.issued_until(state.position), state.lost)
        self._home.recordings.make_disk_state(name, self._flushed, writes)

    def _advance(self, items: int) -> None:
        begin, parent = (self._items, self._flushed) if items > self._items else (0, self._origin)
        self._count += 1
        name = f"{self._origin}.{self._count}"
        self._home.recordings.make_disk_state(name, parent, self._history.writes(begin, items))
        former, self._flushed, self._items = self._flushed, name, items
        if former != self._origin:
            self._home.remove(former)

    def close(self) -> None:
        if self._flushed != self._origin:
            self._home.remove(self._flushed)
        self._flushed, self._items = self._origin, 0


class FileMaker:
    """Of files: each state is one change of the files as they were before."""

    def __init__(self, home: Home, history: FileHistory, origin: str) -> None:
        self._home = home
        self._history = history
        self._origin = origin

    def make(self, state: State, name: str) -> None:
        self._home.recordings.make_file_state(name, self._origin, self._history.change(state))

    def close(self) -> None:
        """Nothing was made."""
