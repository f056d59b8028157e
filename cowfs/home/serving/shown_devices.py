"""Devices as views show them: one alone, or those of a home, all but the base device and those marked for deletion.

The base is what new devices are made from, so a careless `rm -r MNT/*` must not reach it; it can be mounted by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from cowfs.devices.deviceset import DeviceSet
from cowfs.devices.on_disk.names import BASE
from cowfs.devices.on_disk.records import DeviceRecord
from cowfs.errors import UnknownDevice
from cowfs.filetree import ServedTree, TreeStatistics
from cowfs.pool import PoolStatus, ThinDevice
from cowfs.volumes import Volumes

if TYPE_CHECKING:
    from cowfs.fuse.open_devices import Devices

_UNIT_BYTES: Final = 4096
_NAME_MAX: Final = 255


class ShownDevices:
    """What `cowfs.fuse.home_view.HomeView` asks of a device set and its open volumes.

    Args:
        mount_point: of the view, for the ledger of uses.
    """

    def __init__(self, devices: DeviceSet, volumes: Volumes, mount_point: str) -> None:
        self._devices = devices
        self._volumes = volumes
        self._mount_point = mount_point
        self._ends: dict[str, Callable[[], None]] = {}

    def shown(self) -> list[tuple[int, str]]:
        return sorted((record.device_id, record.name) for record in self._devices.records() if _is_shown(record))

    def number(self, name: str) -> int | None:
        try:
            record = self._devices.record(name)
        except UnknownDevice:
            return None
        return record.device_id if _is_shown(record) else None

    def open(self, name: str) -> ServedTree:
        self._volumes.open(name)
        self._ends[name] = self._devices.uses.begin(name, "home", f"{self._mount_point}/{name}")
        return self._volumes.served(name)

    def close(self, name: str) -> None:
        self._ends.pop(name)()
        self._volumes.close(name)

    def rebalance(self) -> None:
        self._volumes.rebalance()

    def figures(self) -> TreeStatistics:
        pool = self._devices.pool
        status = pool.status()
        total, free = 0, 0
        if isinstance(status, PoolStatus):
            total = status.total_data_blocks * pool.block_bytes // _UNIT_BYTES
            free = total - status.used_data_blocks * pool.block_bytes // _UNIT_BYTES
        return TreeStatistics(_UNIT_BYTES, total, free, free, 0, 0, _NAME_MAX)


class ShownTree:
    """The file system of a device that is mounted alone, as `cowfs.fuse.device_mount.DeviceMount` has it."""

    def __init__(self, devices: DeviceSet, volumes: Volumes, name: str, mount_point: str) -> None:
        self.name = name
        self._devices = devices
        self._volumes = volumes
        self._mount_point = mount_point
        self._end: Callable[[], None] | None = None

    def number(self) -> int:
        return self._devices.record(self.name).device_id

    def open(self, *, repair: bool = False) -> ServedTree:
        """Raises, beside what `Volumes.open` does, FilesystemError (EROFS): xfs, which is not to be written."""
        self._volumes.open(self.name, repair=repair)
        if not self._volumes.read_only:
            try:
                self._volumes.require_writable(self.name)
            except BaseException:
                self._volumes.close(self.name)
                raise
        self._end = self._devices.uses.begin(self.name, "tree", self._mount_point)
        return self._volumes.served(self.name)

    def close(self) -> None:
        """One that is not open stays so."""
        if self._end is not None:
            self._end()
            self._end = None
            self._volumes.close(self.name)


class ShownDisk:
    """The disk of a device that is mounted alone, as `cowfs.fuse.device_mount.DeviceMount` has it."""

    def __init__(self, devices: DeviceSet, name: str, mount_point: str, *, read_only: bool) -> None:
        self.name = name
        self._devices = devices
        self._mount_point = mount_point
        self._read_only = read_only
        self._end: Callable[[], None] | None = None

    def number(self) -> int:
        return self._devices.record(self.name).device_id

    def open(self) -> ThinDevice:
        thin = self._devices.active.activate(self.name, read_only=self._read_only)
        self._end = self._devices.uses.begin(self.name, "raw", self._mount_point)
        return thin

    def close(self) -> None:
        """One that is not open stays so."""
        if self._end is not None:
            self._end()
            self._end = None
            self._devices.active.deactivate(self.name)


def _is_shown(record: DeviceRecord) -> bool:
    return record.name != BASE and not record.deleted


if TYPE_CHECKING:
    _: type[Devices] = ShownDevices
