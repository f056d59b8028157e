"""Reading a device as it is now, while its users go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager

import msgspec

from cowfs.devices.active import ActiveDevices
from cowfs.devices.changes.guard import ChangeGuard
from cowfs.devices.changes.replacement import Replacements
from cowfs.devices.changes.transactions import Transactions
from cowfs.pool import ThinDevice


class Snapshots:
    """Temporary snapshots of the devices of one home: thins without a record, each for the length of a block."""

    def __init__(
        self,
        active: ActiveDevices,
        guard: ChangeGuard,
        transactions: Transactions,
        replacements: Replacements,
    ) -> None:
        self._active = active
        self._guard = guard
        self._transactions = transactions
        self._replacements = replacements

    @contextmanager
    def reading(self, name: str) -> Iterator[ThinDevice]:
        """A device for reading: where it is in use and can be changed, a snapshot. Raises UnknownDevice, DeviceBusy."""
        if name in self._active and not self._guard.read_only:
            with self.temporary(name) as thin:
                yield thin
            return
        with self._active.activated(name, "reader", read_only=True) as thin:
            yield thin

    def held_still(self, name: str) -> AbstractContextManager[ThinDevice]:
        """A device that nothing changes meanwhile: a snapshot, where the home can be changed."""
        return self.reading(name) if self._guard.read_only else self.temporary(name)

    @contextmanager
    def of_nodes(self) -> Iterator[dict[int, int]]:
        """Snapshots of what is in use through its nodes only, which others change meanwhile, for the length of a block.

        Returns:
            The snapshot of each such thin; they are of one moment.

        Raises:
            PoolModeError: the pool cannot be changed, and there is such a device.
        """
        names = sorted(name for name in self._active.open_nodes() if name not in self._active)
        if not names:
            yield {}
            return
        self._guard.check_writable()
        self._transactions.finish_interrupted()
        with self._replacements.snapshots_of_nodes(names) as notes:
            yield {note.old_id: note.new_id for note in notes}

    @contextmanager
    def temporary(self, name: str, *, read_only: bool = True) -> Iterator[ThinDevice]:
        """A snapshot that lasts as long as the block.

        Args:
            read_only: False where a journal may have to be replayed first.

        Raises:
            UnknownDevice, DeviceBusy: there is no such device, or it is marked for deletion.
        """
        self._guard.check_writable()
        record = self._active.usable(name)
        self._transactions.finish_interrupted()
        with self._replacements.snapshot(name, name) as note:
            copy = msgspec.structs.replace(record, device_id=note.new_id)
            with closing(self._active.open_thin(f"{name}+{note.new_id}", copy, read_only)) as thin:
                yield thin
