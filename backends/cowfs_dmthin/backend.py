"""Opening pools of the kernel: devices, what a crash left, and what this machine lacks."""

from __future__ import annotations

import errno
import os
import time
from contextlib import ExitStack
from typing import TypeAlias

from cowfs.errors import InvalidRequest, MetadataCorrupt, MissingRequirement, PoolError
from cowfs.pool import Capability, DiskRole, Pool, PoolTable, ProbeResult
from cowfs.thinmeta import Superblock
from cowfs.units import METADATA_BLOCK_BYTES
from cowfs_dmthin import nodes
from cowfs_dmthin.abi import DM_CONTROL_PATH, LOOP_CONTROL_PATH, MAX_DM_NAME_BYTES, parse_device_number
from cowfs_dmthin.control import Control, ControlError, only_line
from cowfs_dmthin.fault_injection import FailingDevice, set_no_space_timeout
from cowfs_dmthin.fault_layer import ROLES, FaultLayer
from cowfs_dmthin.holders import describe_holders
from cowfs_dmthin.loop import Backing, open_backing
from cowfs_dmthin.pool import POOL_SUFFIX, DmPool, load_pool_table

Layers: TypeAlias = dict[DiskRole, FaultLayer]
_IN_UML = "cowfs uml -- COMMAND"
_BUSY_TRIES = 50
_BUSY_PAUSE_SECONDS = 0.02


class DmThinBackend:
    """Thin pools of this machine's kernel, on block devices and, through loop devices, on regular files.

    What a crash left under the same name and on the same devices is taken over: thin devices that are still in use
    stay as they are, everything else is removed and loaded anew.

    Two locks (flock) say who may open a pool. A shared one on the metadata excludes pools of the emulated backend,
    which take it exclusively; the kernel holds it as long as the pool device exists, also after a crash. An exclusive
    one on the data excludes other pools of this backend, and ends with the process.
    """

    def __init__(self, control: Control | None = None) -> None:
        self._control = control or Control()

    @property
    def name(self) -> str:
        return "dmthin"

    @property
    def capabilities(self) -> Capability:
        return Capability.KERNEL_NODES

    def probe(self) -> ProbeResult:
        try:
            self._require_usable()
        except _Missing as missing:
            return ProbeResult(usable=False, problem=missing.problem, remedy=missing.remedy)
        return ProbeResult(usable=True)

    def open_pool(self, name: str, table: PoolTable, *, durable: bool = True) -> Pool:
        table.check()
        _check_name(name)
        self._require_usable()
        control = self._control
        with ExitStack() as undo:
            metadata = open_backing(table.metadata_device, "metadata", read_only=table.read_only)
            undo.callback(metadata.close)
            metadata.lock_shared()
            data = open_backing(table.data_device, "data")
            undo.callback(data.close)
            if metadata.device_number == data.device_number:
                raise InvalidRequest(
                    f"{table.metadata_device} and {table.data_device} are the same device; a pool needs two"
                )
            data.lock_exclusive()
            self._remove_unfinished(name)
            layers = self._layers_left(name, metadata, data)
            if self._take_over(name, metadata, data, layers):
                self._refresh(name, table, metadata, data, layers)
            else:
                for layer in layers.values():
                    layer.remove()
                layers.clear()
                control.create(name)
                undo.callback(control.remove_if_there, name)
                self._load(name, table, metadata, data)
            pool = DmPool(control, name, table, metadata, data, durable=durable, layers=layers)
            undo.pop_all()
        return pool

    def open_existing_pool(self, name: str, *, durable: bool = True) -> Pool:
        _check_name(name)
        self._require_usable()
        info = self._control.info(name)
        if info is None:
            raise InvalidRequest(
                f"there is no device '{name}' on this machine; activate the pool first, by lvchange or dmsetup",
                errno=errno.ENXIO,
            )
        line = next(iter(self._control.table(name)), None)
        if line is None or line.target != "thin-pool":
            what = f"its target is {line.target}" if line else "it has no table"
            raise InvalidRequest(f"device '{name}' is not a thin pool: {what}; name another one")
        if info.suspended:
            raise InvalidRequest(
                f"pool '{name}' is suspended, so nothing can be done with it; resume it: dmsetup resume {name}",
                errno=errno.EBUSY,
            )
        table = PoolTable.parse(f"{line.start_sectors} {line.length_sectors} {line.target} {line.parameters}")
        paths = [nodes.node_path(parse_device_number(word)) for word in (table.metadata_device, table.data_device)]
        with ExitStack() as undo:
            metadata = open_backing(paths[0], "metadata", read_only=True)
            undo.callback(metadata.close)
            data = open_backing(paths[1], "data", read_only=True)
            undo.callback(data.close)
            table = table.replace(metadata_device=paths[0], data_device=paths[1])
            pool = DmPool(self._control, name, table, metadata, data, durable=durable, is_foreign=True)
            undo.pop_all()
        return pool

    def failing_device(self, name: str, path: str) -> FailingDevice:
        """A device for tests, which shows a file and can be made to fail."""
        return FailingDevice(self._control, name, path)

    def set_no_space_timeout(self, seconds: float) -> float:
        """For tests: see `fault_injection`."""
        return set_no_space_timeout(seconds)

    def _load(self, name: str, table: PoolTable, metadata: Backing, data: Backing) -> None:
        """Give a pool device its first table."""
        for attempt in range(_BUSY_TRIES):
            try:
                load_pool_table(self._control, name, table, metadata, data)
                self._control.resume(name)
            except ControlError as error:
                # A pool that was closed a moment ago may still be on its way out.
                if error.errno != errno.EBUSY or attempt + 1 == _BUSY_TRIES:
                    raise _opening_error(name, table, metadata, data, error) from error
                time.sleep(_BUSY_PAUSE_SECONDS)
            else:
                return

    def _refresh(self, name: str, table: PoolTable, metadata: Backing, data: Backing, layers: Layers) -> None:
        """Give a pool that was taken over the table that is wanted now, where that is another one."""
        control = self._control
        line = only_line(control.table(name), name)
        live = PoolTable.parse(f"{line.start_sectors} {line.length_sectors} {line.target} {line.parameters}")
        wanted = table.replace(
            metadata_device=live.metadata_device, data_device=live.data_device, read_only=live.read_only
        )
        try:
            if wanted != live:
                wanted = table.replace(read_only=live.read_only)
                load_pool_table(control, name, wanted, layers.get("metadata", metadata), layers.get("data", data))
                control.suspend(name)
            control.resume(name)
        except ControlError as error:
            control.clear(name)
            control.resume(name)
            raise _opening_error(name, table, metadata, data, error) from error

    def _layers_left(self, name: str, metadata: Backing, data: Backing) -> Layers:
        """What a dead process put below the pool for faults, which has none now."""
        used = [] if self._control.info(name) is None else self._control.dependencies(name)
        found: Layers = {}
        for role, backing in zip(ROLES, (metadata, data), strict=True):
            layer = FaultLayer.left(self._control, name, role, backing)
            if layer is not None and layer.device_number in used:
                found[role] = layer
            elif layer is not None:
                layer.remove()
        return found

    def _take_over(self, name: str, metadata: Backing, data: Backing, layers: Layers) -> bool:
        """Clear what a dead process left (the lock on the data says so). Returns True if the pool exists, in use."""
        control = self._control
        info = control.info(name)
        if info is None:
            return False
        used = control.dependencies(name)
        below = {layers.get("metadata", metadata).device_number, layers.get("data", data).device_number}
        if used and set(used) != below:
            raise InvalidRequest(
                f"there is already a device '{name}' on this machine, on other devices than {metadata.path} and "
                f"{data.path}; it belongs to another program",
                errno=errno.EBUSY,
            )
        is_used = False
        for other in control.devices_above(info.device_number):
            found = control.info(other)
            if found is None or not found.is_used:
                control.remove_if_there(other)
                continue
            is_used = True
            if found.suspended:  # in the middle of a snapshot
                control.resume(other)
        if not is_used:
            self._remove_leftover(name, info.device_number)
        return is_used

    def _remove_unfinished(self, pool_name: str) -> None:
        """Remove thin devices that a process was making when it died: named as ours, and without a table yet."""
        prefix = f"{pool_name.removesuffix(POOL_SUFFIX)}-"
        for other in self._control.devices():
            if other.startswith(prefix) and other != pool_name:
                info = self._control.info(other)
                if info is not None and not info.has_live_table and not info.open_count:
                    self._control.remove_if_there(other)

    def _remove_leftover(self, name: str, device_number: int) -> None:
        try:
            self._control.remove_if_there(name)
        except ControlError as error:
            if error.errno != errno.EBUSY:
                raise
            raise InvalidRequest(
                f"device '{name}', left by an ended process, is still in use: {describe_holders(device_number)}; "
                "unmount or end that first",
                errno=errno.EBUSY,
            ) from error

    # ------------------------------------------------------------------------------------------ this machine

    def _require_usable(self) -> None:
        """Try what every pool needs.

        Raises:
            MissingRequirement: something is missing, with the command that helps.
        """
        try:
            self._control.devices()
            version = self._control.target_version("thin-pool")
        except OSError as error:
            raise _no_device_mapper(error) from None
        if version is None:
            raise _missing(
                "this kernel has device mapper but not its thin-pool target",
                f"sudo modprobe dm-thin-pool (or, without it: {_IN_UML})",
            )
        try:
            os.close(nodes.open_misc(LOOP_CONTROL_PATH, "loop-control", os.O_RDWR))
        except OSError as error:
            reason = os.strerror(error.errno or errno.EIO).lower()
            raise _missing(f"no loop devices for files: {LOOP_CONTROL_PATH}: {reason}", "sudo modprobe loop") from None


class _Missing(MissingRequirement):
    """Keeps the problem apart from the remedy."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"backend 'dmthin' cannot work here: {problem}", remedy=remedy)
        self.problem = problem


def _missing(problem: str, remedy: str) -> _Missing:
    return _Missing(problem, remedy)


def _no_device_mapper(error: OSError) -> _Missing:
    """Why the control device cannot be used, whatever it answered."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return _missing("device mapper is for root (CAP_SYS_ADMIN)", f"sudo cowfs ... (or, without root: {_IN_UML})")
    reason = os.strerror(error.errno or errno.EIO).lower()
    what = "is not there" if error.errno == errno.ENOENT else f"is not usable: {reason}"
    return _missing(
        f"this kernel has no device mapper ({DM_CONTROL_PATH} {what})",
        f"sudo modprobe dm-thin-pool (or, without it: {_IN_UML})",
    )


def _check_name(name: str) -> None:
    if not name or "/" in name or len(os.fsencode(name)) > MAX_DM_NAME_BYTES:
        raise InvalidRequest(
            f"'{name}' is not a name for a pool device: give 1 to {MAX_DM_NAME_BYTES} bytes without a slash"
        )


def _opening_error(name: str, table: PoolTable, metadata: Backing, data: Backing, error: ControlError) -> PoolError:
    """Why the kernel did not load or resume a pool, found by looking at what it looked at."""
    number = error.errno or errno.EIO
    if number == errno.EBUSY:
        holders = describe_holders(metadata.device_number, data.device_number)
        return InvalidRequest(f"{table.metadata_device} or {table.data_device} is in use: {holders}", errno=number)
    if number == errno.EPERM:
        return InvalidRequest(
            f"{table.metadata_device} is not formatted, and a read_only pool formats nothing", errno=number
        )
    try:
        superblock = _read_superblock(metadata)
    except MetadataCorrupt as damage:
        return damage
    if superblock is None:
        return InvalidRequest(f"pool '{name}' cannot be opened: {error}", errno=number)
    if superblock.data_block_sectors != table.block_sectors:
        return InvalidRequest(
            f"the pool on {table.metadata_device} has data blocks of {superblock.data_block_sectors} sectors, "
            f"not {table.block_sectors}",
            errno=number,
        )
    if table.data_blocks < superblock.data_space_map.nr_blocks:
        return InvalidRequest(
            f"the pool on {table.metadata_device} has {superblock.data_space_map.nr_blocks} data blocks; a table with "
            f"{table.data_blocks} is too small, and pools do not shrink",
            errno=number,
        )
    if number in (errno.EILSEQ, errno.ENOTBLK):
        return MetadataCorrupt("the kernel met a damaged block; check the metadata", block=-1, errno=number)
    return InvalidRequest(f"pool '{name}' cannot be opened: {error}", errno=number)


def _read_superblock(metadata: Backing) -> Superblock | None:
    """None when the first block is zeros. Raises MetadataCorrupt when it is damaged."""
    device = metadata.open_for_reading()
    try:
        block = device.pread(0, METADATA_BLOCK_BYTES)
    finally:
        device.close()
    return Superblock.unpack(block) if any(block) else None
