"""The base device: an empty ext4 that every device without a parent is a snapshot of."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Protocol

import msgspec

from cowfs.blockdev import BlockDevice
from cowfs.devices.active import ActiveDevices
from cowfs.devices.base.base_ext4 import Ext4
from cowfs.devices.changes.guard import ChangeGuard
from cowfs.devices.changes.transactions import Transactions
from cowfs.devices.on_disk.names import BASE
from cowfs.devices.on_disk.records import DeviceFile, Identity, SetFile
from cowfs.devices.on_disk.store import DeviceStore
from cowfs.errors import DeviceBusy, FilesystemError, HomeError, NoSuchThin
from cowfs.pool import ThinDevice


class BaseFilesystem(Protocol):
    """How the base device's file system is made and recognised."""

    @property
    def name(self) -> str: ...

    def make(self, device: BlockDevice, uuid: str) -> None: ...

    def empty_bytes(self, size_bytes: int, block_bytes: int) -> int:
        """What an empty one of this size takes of a pool with blocks of `block_bytes`, found by making one."""
        ...

    def read_uuid(self, device: BlockDevice) -> str: ...

    def identify(self, device: BlockDevice) -> Identity:
        """Look at a file system, whose device may be shorter than it; then not into it. Raises FilesystemError."""
        ...

    def grow(self, device: BlockDevice) -> None:
        """Make the file system fill a device that is larger than it; nothing happens where it does already.

        Raises:
            FilesystemError: there is none, or it cannot be grown.
        """
        ...


def filesystem_named(name: str, mkfs_args: Sequence[str] = ()) -> BaseFilesystem:
    """The file system that a home says it has; ext4 where it says nothing that is known.

    Args:
        mkfs_args: further arguments of its mkfs.
    """
    if name == "xfs":
        from cowfs.devices.base.base_xfs import Xfs

        return Xfs(mkfs_args)
    return Ext4(mkfs_args)


class BaseDevice:
    """The base of one home.

    Args:
        size_bytes: of a base that is still to be made.
        new_uuid: called once for each file system made.
    """

    def __init__(
        self,
        active: ActiveDevices,
        store: DeviceStore,
        guard: ChangeGuard,
        transactions: Transactions,
        filesystem: BaseFilesystem,
        set_file: SetFile,
        size_bytes: int,
        new_uuid: Callable[[], str],
    ) -> None:
        self._active = active
        self._store = store
        self._guard = guard
        self._transactions = transactions
        self._size_bytes = size_bytes
        self._filesystem = filesystem
        self._new_uuid = new_uuid
        self.set_file = set_file

    def finished(self) -> DeviceFile | None:
        """The base's record, when there is one that was made to its end."""
        record = self._store.get(BASE)
        return record if record is not None and record.initialized and not record.deleted else None

    def identify(self, thin: ThinDevice) -> Identity | None:
        """What is on a device of the home, when it is a file system as the base has it."""
        try:
            return self._filesystem.identify(thin)
        except FilesystemError:
            return None

    def disown(self) -> None:
        """Let the base be made anew; its record says then that it was not finished."""
        self._store.save(BASE, msgspec.structs.replace(self._store.require(BASE), initialized=False))

    def is_present(self) -> bool:
        """Whether there is one that was made to its end, with its thin."""
        record = self.finished()
        return record is not None and self._transactions.is_in_pool(record.device_id)

    def verify(self) -> None:
        """Check that the base in the pool is the one that the records mean, by its UUID.

        Raises:
            HomeError: it is another one or none, so pool and records do not belong together.
        """
        record = self.finished()
        if record is None:
            return
        if self.set_file.base_filesystem not in ("", self._filesystem.name):
            return
        try:
            thin = self._active.open_thin(BASE, record, True)
        except NoSuchThin:  # reported with all the others
            return
        except DeviceBusy:  # the kernel uses it; it was verified before that
            return
        try:
            with closing(thin):
                uuid = self._filesystem.read_uuid(thin)
        except FilesystemError as error:
            raise HomeError(
                f"the base device (thin {record.device_id}) of the home {self._store.files.home} is not what the home "
                f"says: {error}; pool and records may not belong together"
            ) from error
        if not self.set_file.base_uuid and not self._store.read_only:
            self.note_uuid(uuid)
        elif self.set_file.base_uuid and uuid != self.set_file.base_uuid:
            raise HomeError(
                f"the base device in the pool has UUID {uuid} and the home {self._store.files.home} says "
                f"{self.set_file.base_uuid}: pool and records do not belong together"
            )

    @property
    def filesystem_name(self) -> str:
        """The file system of the base, and so of its snapshots: `ext4` or `xfs`; empty before it is made."""
        return self.set_file.base_filesystem

    def ensure(self) -> None:
        """Make the base when the home has none that was finished.

        Raises:
            OutOfDataSpace, OutOfMetadataSpace: there is none, and less than the minimum is free.
        """
        self._guard.check_writable()
        if self.is_present():
            return
        self._guard.require_free_space()
        size_bytes, record = self._size_bytes, self._store.get(BASE)
        if record is not None:
            size_bytes = record.size
            self._transactions.remove(BASE)
        pool = self._active.pool
        record = self._transactions.make(BASE, size_bytes, lambda thin_ids: pool.create_thin(thin_ids[BASE]))
        uuid = self._new_uuid()
        with closing(self._active.open_thin(BASE, record, False)) as thin:
            self._filesystem.make(thin, uuid)
            thin.flush()
        self.note_uuid(uuid)
        # Last, because it says that all the rest is complete.
        self._store.save(BASE, msgspec.structs.replace(record, initialized=True))

    def grow_new(self, name: str, record: DeviceFile) -> None:
        """Make the file system of a thin that is becoming a device fill it."""
        with closing(self._active.open_thin(name, record, False)) as thin:
            self.grow_filesystem(name, thin)
            thin.flush()

    def grow_filesystem(self, name: str, thin: ThinDevice) -> None:
        try:
            self._filesystem.grow(thin)
        except FilesystemError as error:
            from cowfs.devices.pools.contents import without_files

            held = without_files(thin) if error.errno == errno.EINVAL else None
            raise FilesystemError(f"device {name!r}: {held or error.message}", errno=error.errno) from error

    def note_uuid(self, uuid: str) -> None:
        """From now on the base is the one with this UUID."""
        self.set_file = msgspec.structs.replace(self.set_file, base_uuid=uuid, base_filesystem=self._filesystem.name)
        self._store.save_set(self.set_file)
