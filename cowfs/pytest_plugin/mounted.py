"""A device that is mounted for a test."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cowfs.errors import UnknownDevice

if TYPE_CHECKING:
    from cowfs.home.api.comparing import FileChange
    from cowfs.home.api.home import Home


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot of a test's device.

    Attributes:
        name: of the snapshot in the home, a device like any other.
        path: its files, which may be read and written too.
    """

    name: str
    path: Path


class MountedDevice:
    """What the fixture `cow_mount` gives.

    Attributes:
        home: the home that the device is in, which other tests have had devices in. Use its methods with `name`.
        name: of the device in the home.
        path: its files.
    """

    def __init__(self, home: Home, name: str, tree: Path) -> None:
        self.home = home
        self.name = name
        self.path = tree / name
        self._tree = tree
        self._snapshots: list[str] = []
        self._count = 0

    def snapshot(self) -> Snapshot:
        """The device as it is now, what programs have not synced included."""
        self._count += 1
        name = f"{self.name}.{self._count}"
        self.home.snapshot(self.name, name)
        self._snapshots.append(name)
        return Snapshot(name, self._tree / name)

    def changes(self, before: Snapshot) -> list[FileChange]:
        """The paths that differ now from a snapshot, sorted; see `Home.changes`."""
        return list(self.home.changes(self.name, before.name))

    def rollback(self, before: Snapshot, *, force: bool = False) -> None:
        """Have the device hold again what a snapshot does, in the mount too.

        Args:
            force: detach files that are open; without it they raise DeviceBusy.
        """
        self.home.rollback(self.name, before.name, force=force)

    def power_cut(self, *, seed: int | None = None) -> int:
        """Cut the power of the disk and restore it: what was not synced is lost.

        The files are there again when this returns. As after any power cut, what a program has open is of no use any
        more (ESTALE), the file system's journal is replayed, and what was synced with fsync is in its place.

        Args:
            seed: of what was not synced some is lost, torn at sectors of 512 bytes, and some is not; a number chooses
                which. None: all of it is lost. `cow_seed` is another number for each test.

        Returns:
            How many bytes that were written to the disk are lost. What had not been written to it is not counted.
        """
        return self.home.power_cut(self.name, seed=seed).lost_bytes

    def remove(self) -> None:
        """Remove the device and its snapshots; one that is still in use goes with its last user."""
        for name in [*self._snapshots, self.name]:
            with suppress(UnknownDevice):
                self.home.remove(name, deferred=True)
