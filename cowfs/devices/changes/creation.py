"""Making devices, each a snapshot of another one: thins, records and the lines about parents, all or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol

from cowfs.devices.active import ActiveDevices
from cowfs.devices.changes.guard import ChangeGuard
from cowfs.devices.changes.renaming import Renames
from cowfs.devices.changes.transactions import Transactions
from cowfs.devices.on_disk.names import BASE
from cowfs.devices.on_disk.options import check_device_size
from cowfs.devices.on_disk.records import DeviceFile, ParentLine
from cowfs.devices.on_disk.store import DeviceStore
from cowfs.errors import NoSuchThin, UsageError


class Base(Protocol):
    """What making devices needs of the base device."""

    def ensure(self) -> None: ...

    def grow_new(self, name: str, record: DeviceFile) -> None: ...


class Creation:
    """Snapshots of the devices of one home.

    Args:
        base: what is made when it is missing; it makes the file system of a larger device fill it.
    """

    def __init__(
        self,
        active: ActiveDevices,
        store: DeviceStore,
        guard: ChangeGuard,
        transactions: Transactions,
        renames: Renames,
        base: Base,
    ) -> None:
        self._active = active
        self._store = store
        self._guard = guard
        self._transactions = transactions
        self._renames = renames
        self._base = base

    def prepare(self, names: Sequence[str], origin_name: str | None, size_bytes: int | None) -> None:
        """Check that devices can be made of an existing one, and have the home ready for that; see `DeviceSet.create`.

        Args:
            origin_name: None where what they are made of is known to be usable.
        """
        self._guard.check_writable()
        self._check(names, size_bytes)
        if origin_name == BASE:
            self._base.ensure()
        if origin_name is not None:
            self._check_origin(origin_name, names[0], size_bytes)
        self._guard.require_free_space()
        self._renames.finish_interrupted()

    def _check(self, names: Sequence[str], size_bytes: int | None) -> None:
        """Raises UsageError, DeviceExists: devices cannot have these names, or this size."""
        if not names:
            raise UsageError("no device is named; name at least one")
        for name in names:
            self._store.check_free(name)
            if size_bytes is not None:
                check_device_size(size_bytes, f"size of device {name!r}")
        if twice := next((name for name, count in Counter(names).items() if count > 1), None):
            raise UsageError(f"the device {twice!r} is named twice, so nothing was made; name each once")

    def _check_origin(self, origin_name: str, name: str, size_bytes: int | None) -> None:
        """Raises UnknownDevice, DeviceBusy, UsageError: device `name` cannot be a snapshot of this one."""
        origin = self._active.usable(origin_name)
        if size_bytes is not None and size_bytes < origin.size:
            raise UsageError(
                f"size {size_bytes} of device {name!r} is less than that of its parent {origin_name!r}, "
                f"{origin.size}; a snapshot cannot be smaller"
            )

    def create(
        self,
        name: str,
        origin_name: str,
        size_bytes: int | None = None,
        *,
        is_layer: bool = False,
        thin_id: int | None = None,
    ) -> None:
        """Make a device with a name that is free; see `DeviceSet.create`.

        Args:
            thin_id: an id that the caller has taken; a fresh one when None.
        """
        origin = self._store.require(origin_name)
        self._transactions.make(
            name,
            size_bytes or origin.size,
            partial(self._send, origin_name, size_bytes),
            partial(self._note_parents, origin_name, is_layer=is_layer),
            thin_id=thin_id,
            is_one_commit=size_bytes in (None, origin.size),
        )

    def create_incomplete(
        self, name: str, size_bytes: int, origin_name: str | None, *, parent: str | None = None, grows: bool = True
    ) -> DeviceFile:
        """Make a device that is marked for deletion, so that a crash leaves nothing of it.

        Args:
            origin_name: what it is a snapshot of; when None it maps nothing.
            parent: what is noted as its parent; `origin_name` when None.
            grows: have the file system fill a larger size.

        Returns:
            The record to store when the content is complete.
        """

        def note(records: Mapping[str, DeviceFile]) -> None:
            if (noted := parent or origin_name) is not None:
                self._note_parents(noted, records)
            else:
                self._store.note_parents(
                    [ParentLine(name, made.transaction_id, "", False) for made in records.values()]
                )

        if origin_name is None:
            send = self._send_empty
        else:
            send = partial(self._send, origin_name, size_bytes if grows else None)
        return self._transactions.make(name, size_bytes, send, note, incomplete=True)

    def _send_empty(self, thin_ids: Mapping[str, int]) -> None:
        for thin_id in thin_ids.values():
            self._active.pool.create_thin(thin_id)

    def create_many(self, names: Iterable[str], origin_name: str, size_bytes: int | None) -> None:
        origin = self._store.require(origin_name)
        self._transactions.make_many(
            dict.fromkeys(names, size_bytes or origin.size),
            partial(self._send, origin_name, size_bytes),
            partial(self._note_parents, origin_name),
        )

    def _send(self, origin_name: str, size_bytes: int | None, thin_ids: Mapping[str, int]) -> None:
        """Within the transaction, so devices are grown or not there."""
        origin = self._store.require(origin_name)
        try:
            self._active.snapshot(origin_name, origin.device_id, *thin_ids.values())
        except NoSuchThin as error:
            raise NoSuchThin(
                f"device {next(iter(thin_ids))!r} cannot be made: thin {origin.device_id} of its parent "
                f"{origin_name!r} is not in pool {self._active.pool.name}"
            ) from error
        if size_bytes is not None and size_bytes > origin.size:
            for name, thin_id in thin_ids.items():
                self._base.grow_new(name, DeviceFile(thin_id, size_bytes))

    def _note_parents(self, origin_name: str, records: Mapping[str, DeviceFile], *, is_layer: bool = False) -> None:
        inherited = False if origin_name == BASE else self._store.is_layer(origin_name)
        of_layer = is_layer or inherited
        self._store.note_parents(
            [ParentLine(name, made.transaction_id, origin_name, of_layer) for name, made in records.items()]
        )
