"""New devices with content that is written into them: all of them are there when the block ends, or none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from cowfs.devices.active import ActiveDevices
from cowfs.devices.changes.creation import Creation
from cowfs.devices.changes.transactions import Transactions
from cowfs.devices.on_disk.records import DeviceFile, ParentLine
from cowfs.devices.on_disk.store import DeviceStore
from cowfs.ending import ending_with
from cowfs.errors import UsageError
from cowfs.pool import ThinDevice


class DeviceImports:
    """Devices of one home that are being filled."""

    def __init__(
        self, active: ActiveDevices, store: DeviceStore, transactions: Transactions, creation: Creation
    ) -> None:
        self._active = active
        self._store = store
        self._transactions = transactions
        self._creation = creation

    @contextmanager
    def importing(
        self, name: str, size_bytes: int | None, *, origin: str | None = None, grows: bool = True
    ) -> Iterator[ThinDevice]:
        """A new device with the content that is written in the block: it is there when the block ends, or not at all.

        Args and errors are those of `NewDevices.begin`.
        """
        with self.importing_together() as new:
            yield new.begin(name, size_bytes, origin=origin, grows=grows)

    @contextmanager
    def importing_together(self) -> Iterator[NewDevices]:
        """New devices with the content that is written in the block: all are there when the block ends, or none."""
        with ExitStack() as ends:
            new = NewDevices(self._active, self._store, self._creation, ends)
            yield new
            for thin in new.thins:
                thin.flush()
            self._transactions.complete(new.records)

    def note_layer(self, name: str) -> None:
        """Have a device that is being brought in be a layer, since it holds one."""
        record = self._store.require(name)
        self._store.note_parents([ParentLine(name, record.transaction_id, self._store.parent(name) or "", True)])


class NewDevices:
    """Devices that are made together, each a disk until their block ends.

    Attributes:
        records: to store when the content is complete.
    """

    def __init__(self, active: ActiveDevices, store: DeviceStore, creation: Creation, ends: ExitStack) -> None:
        self._active = active
        self._store = store
        self._creation = creation
        self._ends = ends
        self.records: dict[str, DeviceFile] = {}
        self.thins: list[ThinDevice] = []

    def begin(
        self,
        name: str,
        size_bytes: int | None,
        *,
        origin: str | None = None,
        parent: str | None = None,
        grows: bool = True,
    ) -> ThinDevice:
        """Make one of them.

        Args:
            size_bytes: that of `origin` when None.
            origin: what it begins as a snapshot of, which may be one of those begun before it, whose file system, if
                there is one, is not grown; when None it maps nothing.
            parent: what is noted as its parent; `origin` when None.
            grows: have the file system of `origin` fill a larger size.

        Raises:
            As `DeviceSet.create`.
        """
        is_chained = origin in self.records
        self._creation.prepare([name], None if is_chained else origin, size_bytes)
        if size_bytes is None:
            if origin is None:
                raise UsageError(f"device {name!r} needs a size")
            size_bytes = self._store.require(origin).size
        grows = grows and not is_chained
        record = self._creation.create_incomplete(name, size_bytes, origin, parent=parent, grows=grows)
        self.records[name] = record
        self.thins.append(self._active.activate_as(name, record, read_only=False))
        self._ends.enter_context(ending_with(partial(self._active.deactivate, name)))
        return self.thins[-1]
