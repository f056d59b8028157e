"""Removing devices, and those that were marked because they were in use: tried again until they are removed.

The queue is the records themselves (`deleted`), so it outlives every process. `retry` is called when the home opens and
then every so often by the process that serves it. Each failure doubles the rounds of these calls that a device sits
out; the count ends with the process.
"""

from __future__ import annotations

import logging
from contextlib import closing, suppress
from typing import Final

import msgspec

from cowfs.devices.active import ActiveDevices
from cowfs.devices.changes.transactions import Transactions
from cowfs.devices.on_disk.names import BASE
from cowfs.devices.on_disk.records import DeviceFile
from cowfs.devices.on_disk.store import DeviceStore
from cowfs.devices.pools import health
from cowfs.errors import CowfsError, DeviceBusy, ThinBusy
from cowfs.pool import PoolMode

_log = logging.getLogger(__name__)
_MAX_ROUNDS_OUT: Final = 19  # ten minutes, at a round every 30 s


class _Failures(msgspec.Struct):
    count: int = 0
    rounds_out: int = 0


class Deletions:
    """Removal of the devices of one home.

    Attributes:
        discards_removed: whether what a removed device leaves free is discarded on the data device. A pool of the
            kernel needs a discard of the whole device for that first; other pools do it in any case.
    """

    def __init__(
        self, active: ActiveDevices, store: DeviceStore, transactions: Transactions, *, discards_removed: bool
    ) -> None:
        self._active = active
        self._store = store
        self._transactions = transactions
        self.discards_removed = discards_removed
        self._failures: dict[str, _Failures] = {}
        active.when_idle = self.finish

    def remove(self, name: str, *, deferred: bool) -> bool:
        """See `DeviceSet.remove`."""
        try:
            self._active.require_idle(name, "removed")
            self._remove(name)
        except (DeviceBusy, ThinBusy) as error:
            if deferred:
                self._mark(name)
                return False
            what = f"device {name!r} cannot be removed: " if isinstance(error, ThinBusy) else ""
            raise DeviceBusy(f"{what}{error}") from error
        return True

    def _remove(self, name: str) -> None:
        self._active.require_not_rewritten(name)
        pool = self._active.pool
        mode = health.examine(pool).mode
        if mode is PoolMode.OUT_OF_METADATA_SPACE:
            # Let the pool try again: what removing needs is in its reserve.
            pool.reload(pool.table())
            pool.resume()
        if self._active.has_nodes and self.discards_removed and mode is PoolMode.WRITE:
            self._remove_discarding(name)
        else:
            self._transactions.remove(name)

    def _remove_discarding(self, name: str) -> None:
        """Remove a device, all of which is unmapped first: so the kernel discards the blocks that it alone maps."""
        emptied = False

        def discard(record: DeviceFile) -> None:
            nonlocal emptied
            with suppress(OSError), closing(self._active.open_thin(name, record, False)) as thin:
                emptied = True
                thin.discard(0, thin.size_bytes)

        try:
            self._transactions.remove(name, before_message=discard)
        except CowfsError:
            if emptied and self._store.get(name) is not None:  # it must not be used as it is now
                self._mark(name)
            raise

    def names(self) -> list[str]:
        """Devices that are marked, in order. A base device that was marked is made anew instead."""
        return sorted(name for name, record in self._store.items() if record.deleted and name != BASE)

    def _mark(self, name: str) -> None:
        record = self._store.require(name)
        if not record.deleted:
            self._store.save(name, msgspec.structs.replace(record, deleted=True))

    def retry(self) -> int:
        """Try again to delete what is marked for deletion; returns how many devices are left.

        Done when a home opens. A process that keeps one open calls this every 30 s; a device that fails again and
        again is tried less and less often, in the end every ten minutes. Raises nothing of the pool's or the home's.
        """
        if self._store.read_only:
            return len(self.names())
        left = 0
        for name in self.names():
            failures = self._failures.get(name)
            if failures is not None and failures.rounds_out:
                failures.rounds_out -= 1
                left += 1
            elif not self._finish(name):
                left += 1
        return left

    def finish(self, name: str) -> None:
        """Try to delete a device that became idle, where it is marked. Raises nothing of the pool's or the home's."""
        record = self._store.get(name)
        if record is not None and record.deleted and not self._store.read_only:
            self._finish(name)

    def _finish(self, name: str) -> bool:
        """Whether a marked device is deleted. A failure is logged and tried again later."""
        if name in self._active:
            return False
        try:
            self._remove(name)
        except CowfsError as error:
            failures = self._failures.setdefault(name, _Failures())
            failures.rounds_out = min(2**failures.count - 1, _MAX_ROUNDS_OUT)
            failures.count += 1
            _log.warning("device %r, marked for deletion, could not be deleted yet: %s", name, error)
            return False
        self._failures.pop(name, None)
        return True
