"""New devices with content that is written into them: all of them are there when the block ends, or none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Protocol

from cowfs.devices.active import ActiveDevices
from cowfs.devices.changes.creation import Creation
from cowfs.devices.changes.transactions import Transactions
from cowfs.devices.on_disk.records import DeviceFile, ParentLine
from cowfs.devices.on_disk.store import DeviceStore
from cowfs.ending import ending_with
from cowfs.errors import UsageError
from cowfs.pool import ThinDevice


class BeginImport(Protocol):
    """Begins one of the new devices of `DeviceImports.importing_together`: a disk, for as long as the block lasts.

    Args:
        size_bytes: that of `origin` when None.
        origin: what it begins as a snapshot of, which may be one begun before it, whose file system, if there is one,
            is not grown; when None it maps nothing.
        parent: what is noted as its parent; `origin` when None.
        grows: have the file system of `origin` fill a larger size.

    Raises:
        As `DeviceSet.create`.
    """

    def __call__(
        self,
        name: str,
        size_bytes: int | None,
        *,
        origin: str | None = None,
        parent: str | None = None,
        grows: bool = True,
    ) -> ThinDevice: ...


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

        Args:
            size_bytes: that of `origin` when None.
            origin: what it begins as a snapshot of; when None it maps nothing.
            grows: have the file system of `origin` fill a larger size.

        Raises:
            As `DeviceSet.create`.
        """
        with self.importing_together() as begin:
            yield begin(name, size_bytes, origin=origin, grows=grows)

    @contextmanager
    def importing_together(self) -> Iterator[BeginImport]:
        """New devices with the content that is written in the block: all are there when the block ends, or none."""
        records: dict[str, DeviceFile] = {}
        thins: list[ThinDevice] = []
        with ExitStack() as stack:

            def begin(
                name: str,
                size_bytes: int | None,
                *,
                origin: str | None = None,
                parent: str | None = None,
                grows: bool = True,
            ) -> ThinDevice:
                is_chained = origin in records
                records[name] = self._make_incomplete(
                    name, size_bytes, origin, parent, is_chained=is_chained, grows=grows and not is_chained
                )
                thins.append(self._active.activate_as(name, records[name], read_only=False))
                stack.enter_context(ending_with(partial(self._active.deactivate, name)))
                return thins[-1]

            yield begin
            for thin in thins:
                thin.flush()
            self._transactions.complete(records)

    def note_layer(self, name: str) -> None:
        """Have a device that is being brought in be a layer, since it holds one."""
        record = self._store.require(name)
        self._store.note_parents([ParentLine(name, record.transaction_id, self._store.parent(name) or "", True)])

    def _make_incomplete(
        self,
        name: str,
        size_bytes: int | None,
        origin: str | None,
        parent: str | None,
        *,
        is_chained: bool,
        grows: bool,
    ) -> DeviceFile:
        self._creation.prepare([name], None if is_chained else origin, size_bytes)
        if size_bytes is None:
            if origin is None:
                raise UsageError(f"device {name!r} needs a size")
            size_bytes = self._store.require(origin).size
        return self._creation.create_incomplete(name, size_bytes, origin, parent=parent, grows=grows)
