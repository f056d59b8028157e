"""Filling in the reports of a home: figures of the pool, what devices occupy, what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import TYPE_CHECKING

from cowfs.devices.active import ActiveDevices
from cowfs.devices.base.base_device import BaseDevice
from cowfs.devices.on_disk.names import BASE
from cowfs.devices.on_disk.options import MinimumFree
from cowfs.devices.on_disk.store import DeviceStore
from cowfs.devices.pools import free_space, health, pool_files
from cowfs.devices.reports import DeviceCounters, DeviceReport, HomeReport, IoReport, UsageRow
from cowfs.error_record import plain_text
from cowfs.errors import HomeError, NoSuchThin
from cowfs.pool import Counters, CountingPool, NoSpacePolicy, PoolCounters, PoolMode, PoolStatus
from cowfs.units import METADATA_BLOCK_BYTES

if TYPE_CHECKING:
    from cowfs.blockdev import FileDevice
    from cowfs.devices.pools.figures import PoolFigures
    from cowfs.thinmeta.walk import ThinEntry


class Reporting:
    """The reports of one home.

    Args:
        orphans: which of some thins no record names.
    """

    def __init__(
        self,
        active: ActiveDevices,
        store: DeviceStore,
        base: BaseDevice,
        minimum_free: MinimumFree,
        orphans: Callable[[Iterable[int]], list[int]],
    ) -> None:
        self._active = active
        self._pool = active.pool
        self._store = store
        self._base = base
        self._minimum_free = minimum_free
        self._orphans = orphans

    def status(self) -> HomeReport:
        """The figures of the home and its pool."""
        answer = self._pool.status()
        pool = answer if isinstance(answer, PoolStatus) else None
        table, block_bytes = self._pool.table(), self._pool.block_bytes
        allocated, free = pool_files.backing_space(table.data_device)
        base = self._store.get(BASE)
        return HomeReport(
            home=plain_text(self._store.files.home),
            backend="",
            holder_pid=None,
            views=[],
            pool=self._pool.name,
            mode=(pool.mode if pool else PoolMode.FAIL).name.lower(),
            no_space="queue" if pool and pool.no_space is NoSpacePolicy.QUEUE else "error",
            no_space_timeout_seconds=self._pool.no_space_timeout_seconds,
            needs_check=pool.needs_check if pool else False,
            transaction_id=pool.transaction_id if pool else 0,
            block_bytes=block_bytes,
            data_used_bytes=pool.used_data_blocks * block_bytes if pool else 0,
            data_total_bytes=pool.total_data_blocks * block_bytes if pool else 0,
            metadata_used_bytes=pool.used_metadata_blocks * METADATA_BLOCK_BYTES if pool else 0,
            metadata_total_bytes=pool.total_metadata_blocks * METADATA_BLOCK_BYTES if pool else 0,
            min_free_percent=self._minimum_free.percent,
            min_free_bytes=self._minimum_free.data_bytes,
            metadata_snapshot_block=pool.held_root if pool else None,
            devices=len(self._store) - (base is not None),
            deleted_devices=sum(record.deleted for _, record in self._store.items()),
            base_size_bytes=base.size if base else 0,
            base_uuid=self._base.set_file.base_uuid,
            data_file=plain_text(table.data_device),
            data_file_allocated_bytes=allocated,
            metadata_file=plain_text(table.metadata_device),
            host_free_bytes=free,
            orphan_thin_ids=self._orphans(self._pool.thin_ids()) if pool else [],
            problems=[plain_text(problem) for problem in self._problems()],
            warnings=self.warnings(),
        )

    def warnings(self) -> list[str]:
        """What space of the pool is running out, in words; a pool that is out of it is among the problems."""
        return free_space.warnings(self._pool, self._minimum_free)

    def _problems(self) -> list[str]:
        found, now = self._store.problems, health.examine(self._pool).problem
        return found if not now or now in found else [now, *found]

    def inspect(self, name: str) -> DeviceReport:
        """Everything about a device; the exclusive bytes take time in proportion to what it maps alone.

        Raises:
            UnknownDevice, NoSuchThin: no record, or no thin for it.
        """
        record = self._store.view(name)
        with self._reading() as reading:
            thin = reading.find(record.device_id)
            if thin is None:
                raise NoSuchThin(f"device {name!r}: its thin {record.device_id} is not in pool {self._pool.name}")
            usage = reading.usage(thin, name)
            highest = reading.highest_mapped_byte(thin)
            with self._data() as data:
                contents = self._contents(reading, thin, record.size_bytes, data)
        children = [other for other in self._store.names() if self._store.parent(other) == name]
        is_active = any(active.thin_id == record.device_id for active in self._pool.active())
        return DeviceReport(
            name=name,
            id=record.device_id,
            size_bytes=record.size_bytes,
            mapped_bytes=usage.mapped_bytes,
            exclusive_bytes=usage.exclusive_bytes,
            highest_mapped_byte=highest,
            parent=record.parent,
            children=sorted(children),
            created_transaction_id=thin.details.transaction_id,
            creation_time=thin.details.creation_time,
            snapshotted_time=thin.details.snapshotted_time,
            active=is_active or name in self._active.open_nodes(),
            deleted=record.deleted,
            views=[],
            counters=self._counters().thins.get(record.device_id),
            contents=contents,
        )

    def io(self) -> IoReport:
        """What the pool and its devices have done since the pool was opened."""
        counters = self._counters()
        devices = [
            DeviceCounters(name, record.device_id, counters.thins[record.device_id])
            for name, record in sorted(self._store.items())
            if record.device_id in counters.thins
        ]
        return IoReport(self._pool.block_bytes, counters.pool, counters.pool.write_amplification(), devices)

    def _counters(self) -> Counters:
        return self._pool.counters() if isinstance(self._pool, CountingPool) else Counters(PoolCounters(), {})

    def usage(self, names: Iterable[str]) -> dict[str, UsageRow]:
        """What devices occupy at one moment; names without a device, and devices without a thin, are left out."""
        with self._reading() as reading:
            return {name: reading.usage(thin, name) for name, _, thin in self._thins(reading, names)}

    def usage_and_contents(self, names: Iterable[str]) -> dict[str, tuple[UsageRow, str | None]]:
        """As `usage`, and what the disks hold: `ext4`, `xfs`, `partitions`, `empty`...; None: not known."""
        with self._reading() as reading, self._data() as data:
            return {
                name: (reading.usage(thin, name), self._contents(reading, thin, size_bytes, data))
                for name, size_bytes, thin in self._thins(reading, names)
            }

    def _thins(self, reading: PoolFigures, names: Iterable[str]) -> Iterator[tuple[str, int, ThinEntry]]:
        """(name, size in bytes, thin) of the devices that have both a record and a thin."""
        thins = reading.thins()
        for name in names:
            record = self._store.get(name)
            if record is not None and record.device_id in thins:
                yield name, record.size, thins[record.device_id]

    def _reading(self) -> AbstractContextManager[PoolFigures]:
        """Figures of thins, loaded where they are needed."""
        from cowfs.devices.pools import figures

        return figures.reading(self._pool)

    @contextmanager
    def _data(self) -> Iterator[FileDevice | None]:
        """The pool's data for reading; None where this process cannot open it."""
        try:
            data = pool_files.open_device(self._pool.table().data_device)
        except HomeError:
            yield None
            return
        with closing(data):
            yield data

    def _contents(self, reading: PoolFigures, thin: ThinEntry, size_bytes: int, data: FileDevice | None) -> str | None:
        """What a device's disk holds, read in the pool's data, since the device may be in use; None: not known."""
        from cowfs.devices.pools.contents import PROBED_BYTES, kind_of

        if data is None:
            return None
        block = reading.first_block(thin)
        try:
            length = min(PROBED_BYTES, size_bytes)
            return kind_of(b"" if block is None else data.pread(block * self._pool.block_bytes, length))
        except OSError:  # the data is damaged, or shorter than the metadata says
            return None

    def orphan_usage(self) -> list[UsageRow]:
        """What orphan thins occupy; they have no names."""
        with self._reading() as reading:
            thins = reading.thins()
            return [reading.usage(thins[thin_id], None) for thin_id in self._orphans(thins)]
