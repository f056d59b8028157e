"""The device set of a home: named thin devices over one pool. What the command line and the mounts build on.

    make_home(home, backend, options)       makes a home, with a base device that holds an empty ext4
    devices = open_home(home, backend)      locks it, recovers it, checks that pool and records belong together
      devices.create("a")                   a snapshot of the base device
      devices.create("b", parent="a")       a snapshot of "a", consistent also while "a" is in use
      thin = devices.activate("b")          a disk; counted, ended by `deactivate`
      devices.remove("b")
    devices.close()

The first two are in `cowfs.devices.opening`.

One process at a time has a home open. Nothing here awaits, and one thread at a time calls it. Opening reads one small
file per device and activates nothing but the base device, for a moment, to read its UUID.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from cowfs.devices.active import ActiveDevices, Quiescer
from cowfs.devices.base.base_device import BaseDevice, filesystem_named
from cowfs.devices.changes.deletions import Deletions
from cowfs.devices.changes.ids import ThinIds
from cowfs.devices.changes.renaming import Renames
from cowfs.devices.changes.replacement import Replacements
from cowfs.devices.changes.transactions import Transactions
from cowfs.devices.cloning import ClonedHome, clone_home
from cowfs.devices.injected import Injected
from cowfs.devices.on_disk.files import HomeFiles
from cowfs.devices.on_disk.lock import HomeLock
from cowfs.devices.on_disk.names import BASE, check_name, pool_prefix
from cowfs.devices.on_disk.options import MinimumFree, check_device_size
from cowfs.devices.on_disk.records import DeviceFile, DeviceRecord, HomeFile, ParentLine
from cowfs.devices.on_disk.store import DeviceStore
from cowfs.devices.pools import figures, free_space, health, no_space
from cowfs.devices.pools.pool_growth import grow_pool
from cowfs.devices.recovery import Recovery, contradictions, remake_base
from cowfs.devices.reports import DeviceCounters, DeviceReport, Finding, HomeReport, IoReport, UsageRow
from cowfs.devices.uses import DeviceUses
from cowfs.error_record import plain_text
from cowfs.errors import (
    CowfsError,
    DeviceBusy,
    DeviceExists,
    HomeError,
    MissingRequirement,
    NoSuchThin,
    PoolModeError,
    ThinBusy,
    UsageError,
)
from cowfs.forking import not_inherited
from cowfs.pool import (
    Counters,
    CountingPool,
    NodePool,
    NodeThin,
    NoSpacePolicy,
    Pool,
    PoolCounters,
    PoolMode,
    PoolStatus,
    ThinDevice,
)
from cowfs.units import METADATA_BLOCK_BYTES, format_size


class DeviceSet:
    """An open home, from `cowfs.devices.opening`; ended by `close`, which a `with` block calls.

    `discards_removed`: the data device is told what a removed device leaves free. On a pool of the kernel it takes a
    discard of the whole device first; other pools do it anyway.

    `uses`: who uses which device; what activates one for a user notes it there.

    Names are file names; `base` is the base device. Every change is durable when its call returns, and after a crash
    it is there wholly or not at all.
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
        self._files = files
        self._lock = lock
        self._settings = settings
        self._is_closed = False
        self._active = ActiveDevices(pool, pool_prefix(files.home))
        self.pool = pool
        self.uses = DeviceUses(injected.clock)
        self._node_pool = pool if isinstance(pool, NodePool) else None
        # On devices of the user's own it is slow and seldom wanted.
        self.discards_removed = not (settings.data_device or settings.thin_pool)
        self._health = health.examine(pool)
        self.read_only = read_only or not self._health.can_change
        self._store = DeviceStore(files, read_only=self.read_only)
        if self._health.problem:
            self._store.problems.append(self._health.problem)
        self._store.load()
        set_file = self._store.load_set()
        self._ids = ThinIds(set_file.next_device_id, (record.device_id for _, record in self._store.items()))
        for thin_id in pool.thin_ids() if self._health.can_read else ():
            self._ids.reserve(thin_id)
        self._transactions = Transactions(pool, self._store, self._ids, partial(figures.is_fresh, pool))
        self._replacements = Replacements(pool, self._store, self._ids, self._active.open_thin, self.quiesced)
        self._renames = Renames(self._store)
        self._deletions = Deletions(self._store, self._remove_idle, self._active.__contains__)
        filesystem = injected.filesystem or filesystem_named(set_file.base_filesystem)
        not_inherited(self, f"the home {files.home}", ends=("close", "deactivate"))
        self._base = BaseDevice(
            pool, self._store, self._transactions, filesystem, self._active.open_thin, injected.new_uuid, set_file
        )

    # ------------------------------------------------------------------ opening, recovery, closing

    @property
    def can_be_read(self) -> bool:
        """Whether the pool could be read when the home was opened; if not, only its records are of use."""
        return self._health.can_read

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
        marked = self._deletions.names()
        self.retry_deletions()
        self._store.findings.extend(
            Finding("deleted_device", f"device {name!r} was removed while it was in use", "removed", name)
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
        self._store.problems.extend(contradictions(self.pool, self._store))
        if base:
            self._base.verify()

    def recover(self, *, delete_orphans: bool = False) -> list[Finding]:
        """Bring records and pool together again, where they say different things; `cowfs.devices.recovery` says how.

        For a home that was opened with `verify=False`. Open read-only, it says what would be done. What opening did is
        among the findings; doing it again finds nothing.

        Args:
            delete_orphans: delete thins that belong to no device, instead of taking them in.

        Raises:
            PoolModeError: the pool needs a check first, or failed.
            MetadataCorrupt, HomeError: what the pool or the disk answers. It can be run again.
        """
        if self._health.problem:
            raise PoolModeError(self._health.problem)
        if not self.read_only:
            self._files.make_directory(self._files.records)
        recovery = Recovery(
            self.pool,
            self._store,
            self._ids,
            self._transactions,
            self._base,
            self._active.open_thin,
            lambda: self._orphans(self.pool.thin_ids()),
            delete_orphans=delete_orphans,
        )
        findings = [*self._store.findings, *recovery.run()]
        if all(finding.kind != "foreign_pool" for finding in findings):
            findings.extend(remake_base(self._base, findings, None if self.read_only else self.ensure_base))
        return findings

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
            last.callback(self._active.close)
            self._save_next_id()

    def _save_next_id(self) -> None:
        if self.read_only or self._base.set_file.next_device_id == self._ids.last:
            return
        # Only keeps ids from being used again soon; which ids are taken is found anew at each opening.
        with suppress(HomeError):
            self._store.save_set(msgspec.structs.replace(self._base.set_file, next_device_id=self._ids.last))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ devices

    @property
    def home(self) -> Path:
        return Path(self._files.home)

    @property
    def problems(self) -> tuple[str, ...]:
        """What was found wrong since the home was opened, in words; the home works without it."""
        return tuple(self._store.problems)

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
        origin_name, origin = self._origin_of([name], parent, size_bytes)

        def send(thin_id: int) -> None:
            with self.quiesced(origin_name):
                self._create_snap(name, thin_id, origin_name, origin)
            self._grow_new(name, thin_id, size_bytes, origin)

        self._renames.settle()
        self._transactions.make(
            name,
            size_bytes or origin.size,
            send,
            lambda made: self._store.note_parents([self._parent_line(name, made, origin_name, is_layer=is_layer)]),
        )
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
        origin_name, origin = self._origin_of(names, parent, size_bytes)

        def send(thin_ids: Mapping[str, int]) -> None:
            with self.quiesced(origin_name):
                for name, thin_id in thin_ids.items():
                    self._create_snap(name, thin_id, origin_name, origin)
            for name, thin_id in thin_ids.items():
                self._grow_new(name, thin_id, size_bytes, origin)

        def note_parents(records: Mapping[str, DeviceFile]) -> None:
            self._store.note_parents([self._parent_line(name, made, origin_name) for name, made in records.items()])

        self._renames.settle()
        self._transactions.make_many(dict.fromkeys(names, size_bytes or origin.size), send, note_parents)
        return [self._store.view(name) for name in names]

    def _origin_of(self, names: Sequence[str], parent: str | None, size_bytes: int | None) -> tuple[str, DeviceFile]:
        """What new devices are made from. Raises what stands against making them."""
        self.check_writable()
        if not names:
            raise UsageError("no device is named; name at least one")
        for name in names:
            check_name(name)
            self._check_unused(name)
            if size_bytes is not None:
                check_device_size(size_bytes, f"size of device {name!r}")
        if twice := next((name for name, count in Counter(names).items() if count > 1), None):
            raise UsageError(f"the device {twice!r} is named twice, so nothing was made; name each once")
        origin_name = BASE if parent is None else parent
        if origin_name == BASE:
            self.ensure_base()
        origin = self._usable(origin_name)
        if size_bytes is not None and size_bytes < origin.size:
            raise UsageError(
                f"size {size_bytes} of device {names[0]!r} is less than that of its parent {origin_name!r}, "
                f"{origin.size}; a snapshot cannot be smaller"
            )
        self.require_free_space()
        return origin_name, origin

    def _create_snap(self, name: str, thin_id: int, origin_name: str, origin: DeviceFile) -> None:
        try:
            self.pool.create_snap(thin_id, origin.device_id)
        except NoSuchThin as error:
            raise NoSuchThin(
                f"device {name!r} cannot be made: thin {origin.device_id} of its parent {origin_name!r} is not in "
                f"pool {self.pool.name}"
            ) from error

    def _grow_new(self, name: str, thin_id: int, size_bytes: int | None, origin: DeviceFile) -> None:
        """Within the transaction, so it is grown or not there."""
        if size_bytes is not None and size_bytes > origin.size:
            self._base.grow_new(name, DeviceFile(thin_id, size_bytes))

    def _parent_line(self, name: str, made: DeviceFile, origin_name: str, *, is_layer: bool = False) -> ParentLine:
        inherited = False if origin_name == BASE else self._store.is_layer(origin_name)
        return ParentLine(name, made.transaction_id, origin_name, is_layer or inherited)

    def check_rollback(self, name: str, snapshot: str, *, keep: str | None = None) -> None:
        """Raises what `roll_back` would, but for a device that is in use: nothing is done."""
        self.check_writable()
        record, origin = self._usable(name), self._usable(snapshot)
        if name == BASE:
            raise UsageError("the base device cannot be rolled back: every later device begins as a copy of it")
        if name == snapshot:
            raise UsageError(f"device {name!r} cannot be rolled back to itself; name one of its snapshots")
        for device, thin_id in ((name, record.device_id), (snapshot, origin.device_id)):
            if len(self._store.claims(thin_id)) > 1:
                raise HomeError(
                    f"device {device!r} cannot take part in a rollback: its thin {thin_id} is also that of another "
                    "device; one of the two records is wrong; run 'recover' on the closed home"
                )
        if self._store.is_layer(name) and self._store.is_layer(snapshot) is False:
            raise UsageError(f"{name!r} is a layer and {snapshot!r} is none; a layer is rolled back to a layer")
        if keep is not None:
            check_name(keep)
            self._check_unused(keep)
            self.require_free_space()

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
        self._require_inactive(name, "rolled back")
        record = self._store.require(name)
        if name in self.lent():
            raise DeviceBusy(
                f"device {name!r} (thin {record.device_id}) is in use through its node; end that, then roll it back"
            )
        self._transactions.settle()
        self._renames.settle()

        def make_kept(thin_id: int) -> None:
            assert keep is not None
            self._transactions.make(
                keep,
                record.size,
                lambda new_id: self._create_snap(keep, new_id, name, record),
                lambda made: self._store.note_parents([self._parent_line(keep, made, name)]),
                thin_id=thin_id,
            )

        self._replacements.roll_back(name, snapshot, keep or "", make_kept)
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
        self.check_writable()
        record = self._usable(name)
        check_device_size(size_bytes, f"size of device {name!r}")
        if size_bytes < record.size:
            raise UsageError(
                f"device {name!r} has {record.size} bytes ({format_size(record.size)}) and cannot shrink to "
                f"{size_bytes} ({format_size(size_bytes)}); make a smaller one and copy what is in it"
            )
        self._require_inactive(name, "resized")
        self.require_free_space()
        self._transactions.settle()
        with self._replacements.replacing(name, size_bytes) as thin:
            self._base.grow_filesystem(name, thin)
        return self._store.view(name)

    def rename(self, name: str, new_name: str) -> DeviceRecord:
        """Give a device another name; it stays the parent of its children. After a crash it has the one or the other.

        Raises:
            UsageError: the base device, or a name that cannot be.
            UnknownDevice, DeviceBusy: it is not there, in use, or marked for deletion.
            DeviceExists: `new_name` is taken.
        """
        self.check_writable(to_make_room=True)
        record = self._usable(name)
        if name == BASE:
            raise UsageError("the base device cannot be renamed: the home finds it by its name")
        if new_name == name:
            raise UsageError(f"device {name!r} has this name already; choose another one")
        check_name(new_name)
        self._check_unused(new_name)
        self._require_inactive(name, "renamed")
        if name in self.lent():
            raise DeviceBusy(
                f"device {name!r} (thin {record.device_id}) is in use through its node, which has this name; end that, "
                "then rename it"
            )
        self._transactions.settle()
        self._renames.rename(name, new_name)
        return self._store.view(new_name)

    def resize_pool(self, *, data_size_bytes: int | None = None, metadata_size_bytes: int | None = None) -> HomeReport:
        """Make the pool larger, also while devices are in use. Without a size, a device is taken as large as it is.

        Raises:
            UsageError: a size that cannot be, or a smaller one; a block device, which is enlarged by other means.
            OutOfMetadataSpace: so much data needs more metadata.
            HomeError, PoolError: a file cannot grow, or the pool does not take it.
        """
        self.check_writable(to_make_room=True)
        if self._settings.thin_pool:
            raise UsageError(f"pool {self.pool.name} was not made by this home; it grows by the tools that made it")
        self._transactions.settle()
        grow_pool(self._files, self.pool, data_size_bytes, metadata_size_bytes)
        return self.status()

    def set_no_space(self, *, error: bool | None = None, timeout_seconds: float | None = None) -> HomeReport:
        """What writes to a full pool do from now on, those that wait already included; None leaves it.

        Args:
            error: fail at once; otherwise wait for space.
            timeout_seconds: for so long; 0 is for ever.

        Raises:
            UsageError: a pool that this home did not make, or a time-out that the pool has not to itself.
            HomeError, PoolError: the setting cannot be written, or the pool does not take it; it is as it was.
        """
        self.check_writable(to_make_room=True)
        no_space.change(self._files, self.pool, error=error, timeout_seconds=timeout_seconds)
        return self.status()

    def remove(self, name: str, *, deferred: bool = False) -> bool:
        """Remove a device; its children keep what they share with it.

        Args:
            deferred: a busy device is marked instead, and goes when its last user deactivates it, or by
                `retry_deletions`. Until then its name stays taken, and nobody else can use it.

        Returns:
            Whether it is gone; False when it was marked.

        Raises:
            DeviceBusy: it is in use.
            UsageError: the base device.
        """
        self.check_writable(to_make_room=True)
        self._store.require(name)
        if name == BASE:
            raise UsageError("the base device cannot be removed: every device without a parent is a snapshot of it")
        try:
            self._require_inactive(name, "removed")
            self._remove_idle(name)
        except (DeviceBusy, ThinBusy) as error:
            if deferred:
                self._deletions.mark(name)
                return False
            what = f"device {name!r} cannot be removed: " if isinstance(error, ThinBusy) else ""
            raise DeviceBusy(f"{what}{error}") from error
        return True

    def _remove_idle(self, name: str) -> None:
        self._replacements.check_idle(name)
        mode = health.examine(self.pool).mode
        if mode is PoolMode.OUT_OF_METADATA_SPACE:
            # Let the pool try again: what removing needs is in its reserve.
            self.pool.reload(self.pool.table())
            self.pool.resume()
        if self._node_pool is None or not self.discards_removed or mode is not PoolMode.WRITE:
            self._transactions.remove(name)
        else:
            self._remove_discarding(name)

    def _remove_discarding(self, name: str) -> None:
        """Remove a device, all of which is unmapped first: with that the kernel discards what nobody else maps."""
        emptied = False

        def discard(record: DeviceFile) -> None:
            nonlocal emptied
            with suppress(OSError), closing(self._active.open_thin(name, record, False)) as thin:
                emptied = True
                thin.discard(0, thin.size_bytes)

        try:
            self._transactions.remove(name, before_message=discard)
        except CowfsError:
            if emptied and name in self:  # then nobody may find it as it is now
                self._deletions.mark(name)
            raise

    def retry_deletions(self) -> int:
        """Try again to delete what is marked for deletion; returns how many devices are left.

        Done when a home opens. Whoever keeps one open calls this every 30 s; a device that fails again and again is
        tried less and less often, in the end every ten minutes. Raises nothing that the pool or the home raises.
        """
        return self._deletions.retry()

    def record(self, name: str) -> DeviceRecord:
        """Raises UnknownDevice."""
        return self._store.view(name)

    def records(self) -> list[DeviceRecord]:
        """Every device by name, the base included. Reads nothing."""
        return [self._store.view(name) for name in sorted(self._store.names())]

    def __contains__(self, name: str) -> bool:
        return self._store.get(name) is not None

    def inspect(self, name: str) -> DeviceReport:
        """Everything about a device; the exclusive bytes take time in proportion to what it maps alone.

        Raises:
            UnknownDevice, NoSuchThin: no record, or no thin for it.
        """
        record = self._store.view(name)
        with figures.reading(self.pool) as reading:
            thin = reading.find(record.device_id)
            if thin is None:
                raise NoSuchThin(f"device {name!r}: its thin {record.device_id} is not in pool {self.pool.name}")
            usage = reading.usage(thin, name)
            highest = reading.highest_mapped_byte(thin)
        return DeviceReport(
            name=name,
            id=record.device_id,
            size_bytes=record.size_bytes,
            mapped_bytes=usage.mapped_bytes,
            exclusive_bytes=usage.exclusive_bytes,
            highest_mapped_byte=highest,
            parent=record.parent,
            children=[other.name for other in self.records() if other.parent == name],
            created_transaction_id=thin.details.transaction_id,
            creation_time=thin.details.creation_time,
            snapshotted_time=thin.details.snapshotted_time,
            active=any(active.thin_id == record.device_id for active in self.pool.active()) or name in self.lent(),
            deleted=record.deleted,
            views=[],
            counters=self._counters().thins.get(record.device_id),
        )

    def io(self) -> IoReport:
        """What the pool and its devices have done since the pool was opened."""
        counters = self._counters()
        names = {record.device_id: record.name for record in self.records()}
        devices = [
            DeviceCounters(names[thin_id], thin_id, found)
            for thin_id, found in counters.thins.items()
            if thin_id in names
        ]
        return IoReport(
            self.pool.block_bytes,
            counters.pool,
            counters.pool.write_amplification(),
            sorted(devices, key=lambda device: device.name),
        )

    def _counters(self) -> Counters:
        return self.pool.counters() if isinstance(self.pool, CountingPool) else Counters(PoolCounters(), {})

    def usage(self, names: Iterable[str]) -> dict[str, UsageRow]:
        """What devices occupy at one moment; names without a device, and devices without a thin, are left out."""
        found = {}
        with figures.reading(self.pool) as reading:
            thins = reading.thins()
            for name in names:
                record = self._store.get(name)
                if record is not None and record.device_id in thins:
                    found[name] = reading.usage(thins[record.device_id], name)
        return found

    def orphan_usage(self) -> list[UsageRow]:
        """What the thins occupy that belong to no device; they have no names."""
        with figures.reading(self.pool) as reading:
            thins = reading.thins()
            return [reading.usage(thins[thin_id], None) for thin_id in self._orphans(thins)]

    def status(self) -> HomeReport:
        """The figures of the home and its pool."""
        answer = self.pool.status()
        pool = answer if isinstance(answer, PoolStatus) else None
        table = self.pool.table()
        allocated, free = figures.backing_space(table.data_device)
        base = self._store.get(BASE)
        return HomeReport(
            home=plain_text(self._files.home),
            backend="",
            holder_pid=None,
            views=[],
            pool=self.pool.name,
            mode=(pool.mode if pool else PoolMode.FAIL).name.lower(),
            no_space="queue" if pool and pool.no_space is NoSpacePolicy.QUEUE else "error",
            no_space_timeout_seconds=self.pool.no_space_timeout_seconds,
            needs_check=pool.needs_check if pool else False,
            transaction_id=pool.transaction_id if pool else 0,
            block_bytes=self.pool.block_bytes,
            data_used_bytes=pool.used_data_blocks * self.pool.block_bytes if pool else 0,
            data_total_bytes=pool.total_data_blocks * self.pool.block_bytes if pool else 0,
            metadata_used_bytes=pool.used_metadata_blocks * METADATA_BLOCK_BYTES if pool else 0,
            metadata_total_bytes=pool.total_metadata_blocks * METADATA_BLOCK_BYTES if pool else 0,
            min_free_percent=self._settings.min_free_percent,
            min_free_bytes=self._settings.min_free_bytes,
            metadata_snapshot_block=pool.held_root if pool else None,
            devices=len(self._store) - (base is not None),
            deleted_devices=sum(record.deleted for _, record in self._store.items()),
            base_size_bytes=base.size if base else 0,
            base_uuid=self._base.set_file.base_uuid,
            data_file=plain_text(table.data_device),
            data_file_allocated_bytes=allocated,
            metadata_file=plain_text(table.metadata_device),
            host_free_bytes=free,
            orphan_thin_ids=list(self._orphans(self.pool.thin_ids())) if pool else [],
            problems=[plain_text(problem) for problem in self._all_problems()],
            warnings=self.warnings(),
        )

    def _all_problems(self) -> tuple[str, ...]:
        problem = health.examine(self.pool).problem
        return self.problems if not problem or problem in self.problems else (problem, *self.problems)

    def warnings(self) -> list[str]:
        """What space of the pool is running out, in words; a pool that is out of it is among the problems."""
        return free_space.warnings(self.pool, self._minimum_free)

    def _orphans(self, thin_ids: Iterable[int]) -> tuple[int, ...]:
        """Thins of the pool that no record names: made by messages, or left by something else."""
        known = {record.device_id for _, record in self._store.items()}
        known |= self._replacements.thin_ids() | self._transactions.left
        return tuple(thin_id for thin_id in thin_ids if thin_id not in known)

    def ensure_base(self) -> None:
        """Make the base device when the home has none that was finished.

        Raises:
            OutOfDataSpace, OutOfMetadataSpace: there is none, and less than the minimum is free.
        """
        self.check_writable()
        if not self._base.is_there():
            self.require_free_space()
            self._base.ensure(self._settings.base_size_bytes)

    # ------------------------------------------------------------------ use

    def activate(self, name: str, *, read_only: bool = False) -> ThinDevice:
        """A device as a disk. Each call needs a `deactivate`; all users share one disk and one mode.

        Raises:
            UnknownDevice, NoSuchThin: no record, or no thin for it.
            DeviceBusy: it is active in the other mode, or marked for deletion.
        """
        return self._active.activate(name, self._usable(name), read_only=read_only or self.read_only)

    def deactivate(self, name: str) -> None:
        """End one activation; the last one flushes the device, closes it, and deletes it where it is marked for that.

        Raises:
            UsageError: it is not active.
            ThinBusy: something else has its node open; it stays active, and may be deactivated again.
        """
        if self._active.deactivate(name) and self._store.require(name).deleted:
            self._deletions.delete(name)

    def lend(self, name: str) -> int:
        """Give a device to whoever uses its node, such as a mount by the kernel; active until the last is gone.

        Returns:
            A descriptor of the node, the first user, which the caller closes.

        Raises:
            UnknownDevice, NoSuchThin, DeviceBusy: as `activate`.
            MissingRequirement: the backend has no nodes.
        """
        record = self._usable(name)
        if self._node_pool is None:
            raise MissingRequirement(
                f"device {name!r} has no block device node: its backend runs in this process, not in the kernel",
                remedy="cowfs --backend dmthin ...",
                errno=errno.EOPNOTSUPP,
            )
        self._require_inactive(name, "mounted by the kernel")
        thin = self._active.open_thin(name, record, self.read_only)
        assert isinstance(thin, NodeThin)
        return thin.lend()

    def lent(self) -> dict[str, list[int]]:
        """Devices that others use through their nodes, with the numbers of these; whoever lent them."""
        if self._node_pool is None:
            return {}
        nodes = self._node_pool.lent()
        return {name: nodes[record.device_id] for name, record in self._store.items() if record.device_id in nodes}

    def came_back(self, name: str) -> None:
        """A device that was lent is free again: delete it where it is marked for that. Raises nothing of the pool's."""
        record = self._store.get(name)
        if record is not None and record.deleted and not self.read_only:
            self._deletions.delete(name)

    @property
    def base_filesystem(self) -> str:
        """The file system of the base device, and so of its snapshots: `ext4` or `xfs`; empty before it is made."""
        return self._base.set_file.base_filesystem

    def target_name(self, name: str) -> str:
        """A device's name as a target of the kernel."""
        return self._active.target_name(name)

    @contextmanager
    def replacing(self, name: str) -> Iterator[ThinDevice]:
        """Give a device new content, all of it or nothing: a disk that begins as the device is now.

        When the block ends, the disk takes the device's place; after an error, or a crash at any moment before, the
        device is as it was. Nobody can use the device meanwhile.

        Raises:
            UnknownDevice, DeviceBusy: it is not there, in use, or marked for deletion.
        """
        self.check_writable()
        self._usable(name)
        self._require_inactive(name, "written anew")
        self._transactions.settle()
        with self._replacements.replacing(name) as thin:
            yield thin

    @contextmanager
    def frozen(self, name: str, *, read_only: bool = True) -> Iterator[ThinDevice]:
        """A device as it is now, for reading while its users go on: a snapshot that lasts as long as the block.

        Args:
            read_only: False where a journal may have to be replayed first.

        Raises:
            UnknownDevice, DeviceBusy: it is not there, or marked for deletion.
        """
        self.check_writable()
        self._usable(name)
        self._transactions.settle()
        with self._replacements.copied(name, read_only=read_only) as thin:
            yield thin

    def active(self) -> dict[str, ThinDevice]:
        """Active devices by name."""
        return self._active.thins()

    def add_quiescer(self, name: str, quiescer: Quiescer) -> Callable[[], None]:
        """Have `quiescer` bring a device to a consistent state around each snapshot of it.

        Its context is entered before the device is suspended and left after it is resumed; a file system view flushes
        in the one and lets its users go on in the other. It runs in the caller of `create` and must not wait.

        Returns:
            A function that takes it out again.
        """
        return self._active.add_quiescer(name, quiescer)

    def quiesced(self, name: str) -> AbstractContextManager[None]:
        """Hold a device still: its quiescers, then the device itself. Nothing happens for one that is not active."""
        return self._active.quiesced(name)

    def clone(self, target: str) -> ClonedHome:
        """A copy of the home in a new directory, of one moment: all active devices are quiesced meanwhile.

        Args:
            target: absolute, without symbolic links; it does not exist, or is a home whose making was interrupted.

        Raises:
            HomeError: `target` exists or cannot be made; the pool is the kernel's, or is not in files of the home.
            CowfsError: copying failed, and nothing was left.
        """
        if self._node_pool is not None:
            raise HomeError(
                f"the home {self.home} cannot be copied while the kernel has its pool; when none of its devices is "
                f"mounted, run: cowfs --backend emulated clone-home {self.home} {target}",
                errno=errno.EOPNOTSUPP,
            )
        with self._active.all_quiesced():
            if not self.read_only:
                self.pool.commit()
            return clone_home(self._files, target)

    # ------------------------------------------------------------------ helpers

    def check_writable(self, *, to_make_room: bool = False) -> None:
        """Raises HomeError or PoolModeError (EROFS) when nothing can be changed.

        Args:
            to_make_room: what is done works, and helps, when the metadata is full.
        """
        if self.read_only and self._health.can_change:
            raise HomeError(
                f"the home {self.home} is open read-only, because that was asked for or it cannot be written here; "
                "to change it, open it for writing",
                errno=errno.EROFS,
            )
        now = health.examine(self.pool)
        if not now.can_change or (now.mode is PoolMode.OUT_OF_METADATA_SPACE and not to_make_room):
            raise PoolModeError(now.problem, errno=errno.EROFS)

    @property
    def _minimum_free(self) -> MinimumFree:
        return MinimumFree(self._settings.min_free_percent, self._settings.min_free_bytes)

    def require_free_space(self) -> None:
        """Raises OutOfDataSpace or OutOfMetadataSpace when less than the minimum is free."""
        free_space.require_minimum(self.pool, self._minimum_free)

    def _check_unused(self, name: str) -> None:
        record = self._store.get(name)
        if record is not None:
            note = ", marked for deletion" if record.deleted else ""
            raise DeviceExists(f"device {name!r} exists already (thin {record.device_id}{note}); choose another name")

    def _require_inactive(self, name: str, purpose: str) -> None:
        if name in self._active:
            raise self.uses.busy(name, purpose)

    def _usable(self, name: str) -> DeviceFile:
        record = self._store.require(name)
        if record.deleted:
            raise DeviceBusy(f"device {name!r} (thin {record.device_id}) is marked for deletion")
        self._replacements.check_idle(name)
        return record
