"""The device set of a home: named thin devices over one pool. What the command line and the mounts build on.

    make_home(home, backend, options)       makes a home, with a base device that holds an empty ext4
    devices = open_home(home, backend)      locks it, recovers it, checks that pool and records belong together
      devices.create("a")                   a snapshot of the base device
      devices.create("b", parent="a")       a snapshot of "a", consistent also while "a" is in use
      thin = devices.active.activate("b")   a disk; counted, ended by `deactivate`
      devices.remove("b")
    devices.close()

The first two are in `cowfs.devices.opening`.

One process at a time has a home open. Nothing here awaits, and one thread at a time calls it. Opening reads one small
file per device and activates nothing but the base device, for a moment, to read its UUID.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec

from cowfs.devices.active import ActiveDevices
from cowfs.devices.base.base_device import BaseDevice, filesystem_named
from cowfs.devices.changes.creation import Creation
from cowfs.devices.changes.deletions import Deletions
from cowfs.devices.changes.device_imports import DeviceImports
from cowfs.devices.changes.guard import ChangeGuard
from cowfs.devices.changes.ids import ThinIds, last_given
from cowfs.devices.changes.renaming import Renames
from cowfs.devices.changes.replacement import Replacements
from cowfs.devices.changes.snapshots import Snapshots
from cowfs.devices.changes.transactions import Transactions
from cowfs.devices.injected import Injected
from cowfs.devices.on_disk.files import HomeFiles
from cowfs.devices.on_disk.lock import HomeLock
from cowfs.devices.on_disk.names import BASE, pool_prefix
from cowfs.devices.on_disk.options import MinimumFree, check_device_size, check_not_smaller
from cowfs.devices.on_disk.records import DeviceRecord, HomeFile
from cowfs.devices.on_disk.store import DeviceStore
from cowfs.devices.pools import no_space
from cowfs.devices.pools.pool_growth import grow_pool
from cowfs.devices.reporting import Reporting
from cowfs.devices.reports import ClonedHome, HomeFinding, HomeReport
from cowfs.devices.uses import DeviceUses
from cowfs.ending import Closing
from cowfs.errors import CowfsError, HomeError, PoolModeError, UsageError
from cowfs.forking import not_inherited
from cowfs.pool import Pool, ThinDevice


class DeviceSet(Closing):
    """An open home, from `cowfs.devices.opening`; ended by `close`, which a `with` block calls.

    Attributes:
        active: devices in use; `activate` makes one a disk.
        uses: who uses which device; what activates one for a user notes it there.
        snapshots: devices as they are now, for reading.
        imports: new devices with content that is written into them.
        reports: what is reported of the home and its devices.
        deletions: devices that were removed while they were in use.
        base: the base device.
        guard: what a change asks first.
        read_only: nothing can be changed, by what was asked or because of the pool.

    Names are file names; `base` is the base device. Every change is durable when its call returns, and after a crash
    it is done wholly or not at all.
    """

    def __init__(
        self,
        files: HomeFiles,
        lock: HomeLock,
        pool: Pool,
        settings: HomeFile,
        injected: Injected,
        *,
        read_only: bool,
    ) -> None:
        not_inherited(self, f"the home {files.home}", ends=("close",))
        self.home = Path(files.home)
        self.pool = pool
        self.uses = DeviceUses(injected.clock)
        self._files = files
        self._lock = lock
        self._settings = settings
        self._is_closed = False
        minimum_free = MinimumFree(settings.min_free_percent, settings.min_free_bytes)
        self.guard = guard = ChangeGuard(files.home, pool, minimum_free, read_only=read_only)
        self.read_only = guard.read_only
        self._store = store = DeviceStore(files, read_only=guard.read_only)
        if guard.health.problem:
            store.problems.append(guard.health.problem)
        store.load()
        set_file = store.load_set()
        thin_ids = pool.thin_ids() if guard.health.can_read else []
        device_ids = store.device_ids()
        self._ids = ThinIds(last_given(set_file.next_device_id, device_ids), device_ids, thin_ids)
        self.active = active = ActiveDevices(pool, store, self.uses, pool_prefix(files.home))
        self._transactions = transactions = Transactions(pool, store, self._ids)
        self._replacements = Replacements(active, store, self._ids)
        self._renames = Renames(store)
        # On devices of the user's own a discard is slow and seldom wanted.
        is_discarding = not (settings.data_device or settings.thin_pool)
        self.deletions = Deletions(active, store, transactions, discards_removed=is_discarding)
        filesystem = injected.filesystem or filesystem_named(set_file.base_filesystem)
        size_bytes, new_uuid = settings.base_size_bytes, injected.new_uuid
        self.base = BaseDevice(active, store, guard, transactions, filesystem, set_file, size_bytes, new_uuid)
        self._creation = Creation(active, store, guard, transactions, self._renames, self.base)
        self.imports = DeviceImports(active, store, transactions, self._creation)
        self.snapshots = Snapshots(active, guard, transactions, self._replacements)
        self.reports = Reporting(active, store, self.base, minimum_free, self._orphans)

    # ------------------------------------------------------------------ opening, recovery, closing

    @property
    def is_shared(self) -> bool:
        """Whether the home cannot be written here, and other processes may read it at the same time."""
        return self._lock.is_shared

    def undo_unfinished(self) -> None:
        """Finish or undo what a crash left: the first thing after opening, where the pool can be read."""
        try:
            self._transactions.recover()
            self._replacements.recover()
            self._renames.recover()
        except CowfsError as error:
            self._store.problems.append(f"changes that a crash interrupted could not be undone yet: {error}")
        marked = self.deletions.names()
        self.deletions.retry()
        self._store.findings.extend(
            HomeFinding("deleted_device", f"device {name!r} was removed while it was in use", "removed", name)
            for name in marked
            if self.read_only or name not in self
        )

    def verify(self, *, base: bool = True) -> None:
        """Check that pool and records belong together; what contradicts without harm is noted among the problems.

        Args:
            base: False leaves out the base device, without which the home is not known to be that of the pool.

        Raises:
            HomeError: the base device is not the one that the records mean.
        """
        self._store.problems.extend(self._store.contradictions(set(self.pool.thin_ids())))
        if base:
            self.base.verify()

    def recover(self, *, delete_orphans: bool = False) -> list[HomeFinding]:
        """Bring records and pool together again, where they say different things; `cowfs.devices.recovery` says how.

        For a home that was opened with `verify=False`. Open read-only, it says what would be done. What opening did is
        among the findings; doing it again finds nothing.

        Args:
            delete_orphans: delete thins that belong to no device, instead of taking them in.

        Raises:
            PoolModeError: the pool needs a check first, or failed.
            MetadataCorrupt, HomeError: what the pool or the disk answers. It can be run again.
        """
        if self.guard.health.problem:
            raise PoolModeError(self.guard.health.problem)
        if not self.read_only:
            self._files.make_directory(self._files.records)
        from cowfs.devices.recovery import Recovery

        recovery = Recovery(self.active, self._store, self._ids, self._transactions, self.base, self._orphans)
        return recovery.run(delete_orphans=delete_orphans)

    def close(self) -> None:
        """Deactivate every device, close the pool and release the lock. A second call does nothing.

        Everything is closed whatever fails; the first error is raised at the end.
        """
        if self._is_closed:
            return
        self._is_closed = True
        with ExitStack() as last:
            last.callback(self._lock.release)
            last.callback(self.pool.close)
            last.callback(self.active.close)
            self._save_next_id()

    def _save_next_id(self) -> None:
        """Note the last id where no device has it. It only keeps ids from being used again soon."""
        if self.read_only or self._ids.last == last_given(self.base.set_file.next_device_id, self._store.device_ids()):
            return
        with suppress(HomeError):
            set_file = msgspec.structs.replace(self.base.set_file, next_device_id=self._ids.last)
            self._store.save_set(set_file, durable=False)

    # ------------------------------------------------------------------ changes

    def create(
        self, name: str, *, parent: str | None = None, size_bytes: int | None = None, is_layer: bool = False
    ) -> DeviceRecord:
        """Make a device: a snapshot of `parent`, or of the base device.

        An active parent is quiesced for the moment of the snapshot, so the new device holds a consistent file system.

        Args:
            size_bytes: the parent's size when None; never less. In a larger device the file system is grown to fill
                it, which takes time in proportion to its metadata; without it a snapshot takes none.
            is_layer: noted in its record; a snapshot of a layer is one in any case.

        Raises:
            UsageError: a name or size that cannot be.
            DeviceExists, UnknownDevice: `name` is taken, or `parent` is not there.
            OutOfDataSpace, OutOfMetadataSpace: less than the minimum is free.
        """
        origin = BASE if parent is None else parent
        self._creation.prepare([name], origin, size_bytes)
        self._creation.create(name, origin, size_bytes, is_layer=is_layer)
        return self._store.view(name)

    def create_many(
        self, names: Sequence[str], *, parent: str | None = None, size_bytes: int | None = None
    ) -> list[DeviceRecord]:
        """As `create`, for several devices of the same moment: all of them, or none after any failure.

        Raises:
            UsageError: a name twice, too.
        """
        if len(names) == 1:
            return [self.create(names[0], parent=parent, size_bytes=size_bytes)]
        origin = BASE if parent is None else parent
        self._creation.prepare(names, origin, size_bytes)
        self._creation.create_many(names, origin, size_bytes)
        return [self._store.view(name) for name in names]

    def check_rollback(self, name: str, snapshot: str, *, keep: str | None = None) -> None:
        """Raises what `roll_back` would, but for a device that is in use: nothing is done."""
        self.guard.check_writable()
        self._replacements.check_rollback(name, snapshot)
        if keep is not None:
            self._store.check_free(keep)
            self.guard.require_free_space()

    def roll_back(self, name: str, snapshot: str, *, keep: str | None = None) -> DeviceRecord:
        """Have a device hold what another one does now, with its size; name, parent and children stay.

        It takes no longer the more is mapped, but for freeing what the device alone held. An active snapshot is
        quiesced for the moment. After a crash at any moment the device is as it was, or rolled back.

        Args:
            keep: the device that gets what the device held, as if it were a snapshot of it.

        Raises:
            UsageError: the base device, a device to itself, a layer to what is none, a name that cannot be.
            UnknownDevice, DeviceBusy: one is not there, or marked for deletion; `name` is in use.
            DeviceExists: `keep` is taken.
            OutOfDataSpace, OutOfMetadataSpace: less than the minimum is free for one more device.
        """
        self.check_rollback(name, snapshot, keep=keep)
        self.active.require_unused(name, "rolled back")
        self._transactions.finish_interrupted()
        self._renames.finish_interrupted()
        kept = keep or ""
        self._replacements.roll_back(
            name, snapshot, kept, lambda thin_id: self._creation.create(kept, name, thin_id=thin_id)
        )
        return self._store.view(name)

    def are_related(self, name: str, other: str) -> bool:
        """Whether one of two devices is known to descend from the other, or both from a third, not counting the base.

        Every device is related to the base.
        """
        return BASE in (name, other) or not self._lineage(name).isdisjoint(self._lineage(other))

    def _lineage(self, name: str) -> set[str]:
        found: set[str] = set()
        while name != BASE and name not in found:
            found.add(name)
            name = self._store.parent(name) or BASE
        return found

    def resize(self, name: str, size_bytes: int) -> DeviceRecord:
        """Grow a device and the file system in it; after a crash at any moment it has the old size or the new one.

        With the size that it has, the file system is made to fill it where it does not yet. The base device grows for
        the devices that are made after. The thin gets another id.

        Raises:
            UsageError: a size that cannot be, or a smaller one.
            UnknownDevice, DeviceBusy: it is not there, in use, or marked for deletion.
            FilesystemError: there is no file system in it that can be grown.
            OutOfDataSpace, OutOfMetadataSpace: less than the minimum is free.
        """
        self.guard.check_writable()
        record = self.active.usable(name)
        check_device_size(size_bytes, f"size of device {name!r}")
        check_not_smaller(f"device {name!r}", record.size, size_bytes, "; make a smaller one and copy what is in it")
        self.active.require_idle(name, "resized")
        self.guard.require_free_space()
        self._transactions.finish_interrupted()
        with self._replacements.replacing(name, size_bytes) as thin:
            self.base.grow_filesystem(name, thin)
        return self._store.view(name)

    def check_rename(self, name: str, new_name: str) -> None:
        """Raises what `rename` would, but for a device that is in use: nothing is done."""
        self.guard.check_writable(to_make_room=True)
        self.active.usable(name)
        self._renames.check(name, new_name)

    def rename(self, name: str, new_name: str) -> DeviceRecord:
        """Give a device another name; it stays the parent of its children. After a crash it has the one or the other.

        Raises:
            UsageError: the base device, or a name that cannot be.
            UnknownDevice, DeviceBusy: it is not there, in use, or marked for deletion.
            DeviceExists: `new_name` is taken.
        """
        self.check_rename(name, new_name)
        self.active.require_unused(name, "renamed")
        self._transactions.finish_interrupted()
        self._renames.rename(name, new_name)
        return self._store.view(new_name)

    def remove(self, name: str, *, deferred: bool = False) -> bool:
        """Remove a device; its children keep what they share with it.

        Args:
            deferred: a busy device is marked instead, and removed when its last user deactivates it, or by
                `Deletions.retry`. Until then its name stays taken, and it cannot be activated again.

        Returns:
            Whether it is removed; False when it was marked.

        Raises:
            DeviceBusy: it is in use.
            UsageError: the base device.
        """
        self.guard.check_writable(to_make_room=True)
        self._store.require(name)
        if name == BASE:
            raise UsageError("the base device cannot be removed: every device without a parent is a snapshot of it")
        return self.deletions.remove(name, deferred=deferred)

    @contextmanager
    def replacing(self, name: str) -> Iterator[ThinDevice]:
        """Give a device new content, all of it or nothing: a disk that begins as the device is now.

        When the block ends, the disk takes the device's place; after an error, or a crash at any moment before, the
        device is as it was. It cannot be activated meanwhile.

        Raises:
            UnknownDevice, DeviceBusy: it is not there, in use, or marked for deletion.
        """
        self.guard.check_writable()
        self.active.usable(name)
        self.active.require_idle(name, "written anew")
        self._transactions.finish_interrupted()
        with self._replacements.replacing(name) as thin:
            yield thin

    def resize_pool(self, *, data_size_bytes: int | None = None, metadata_size_bytes: int | None = None) -> HomeReport:
        """Make the pool larger, also while devices are in use. Without a size, a device is taken as large as it is.

        Raises:
            UsageError: a size that cannot be, or a smaller one; a block device, which is enlarged by other means.
            OutOfMetadataSpace: so much data needs more metadata.
            HomeError, PoolError: a file cannot grow, or the pool does not take it.
        """
        self.guard.check_writable(to_make_room=True)
        if self._settings.thin_pool:
            raise UsageError(f"pool {self.pool.name} was not made by this home; it grows by the tools that made it")
        self._transactions.finish_interrupted()
        grow_pool(self._files, self.pool, data_size_bytes, metadata_size_bytes)
        return self.reports.status()

    def set_no_space(self, *, error: bool | None = None, timeout_seconds: float | None = None) -> HomeReport:
        """What writes to a full pool do from now on, those that wait already included; None leaves it.

        Args:
            error: fail at once; otherwise wait for space.
            timeout_seconds: for so long; 0 is for ever.

        Raises:
            UsageError: a pool that this home did not make, or a time-out that the pool has not to itself.
            HomeError, PoolError: the setting cannot be written, or the pool does not take it; it is as it was.
        """
        self.guard.check_writable(to_make_room=True)
        no_space.change(self._files, self.pool, error=error, timeout_seconds=timeout_seconds)
        return self.reports.status()

    def clone(self, target: str) -> ClonedHome:
        """A copy of the home in a new directory, of one moment: all active devices are quiesced meanwhile.

        Of those that others use through their nodes, a snapshot is copied, and their users go on.

        Args:
            target: absolute, without symbolic links; it does not exist, or is a home whose making was interrupted.

        Raises:
            HomeError: `target` exists or cannot be made.
            HomeError, PoolModeError: a device is in use through its node, and there can be no snapshot of it.
            CowfsError: copying failed, and nothing was left.
        """
        from cowfs.devices.cloning import clone_home

        with self.active.all_quiesced(), self.snapshots.of_nodes() as snapshots:
            if not self.read_only:
                self.pool.commit()
            return clone_home(self._files, self.pool, target, snapshots)

    # ------------------------------------------------------------------ records and reports

    def record(self, name: str) -> DeviceRecord:
        """Raises UnknownDevice."""
        return self._store.view(name)

    def records(self) -> list[DeviceRecord]:
        """Every device by name, the base included. Reads nothing."""
        return [self._store.view(name) for name in sorted(self._store.names())]

    def __contains__(self, name: str) -> bool:
        return self._store.get(name) is not None

    @property
    def problems(self) -> tuple[str, ...]:
        """What was found wrong since the home was opened, in words; the home works without it."""
        return tuple(self._store.problems)

    def _orphans(self, thin_ids: Iterable[int]) -> list[int]:
        """Thins of the pool that no record names: made by messages, or left by something else."""
        known = {record.device_id for _, record in self._store.items()}
        known |= self._replacements.thin_ids() | self._transactions.left
        return [thin_id for thin_id in thin_ids if thin_id not in known]
