"""An active thin device: a device-mapper device with a `thin` table, read and written through its node."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import Protocol, TypeVar

from cowfs.blockdev import Buffer, copy_by_reading
from cowfs.errors import InvalidRequest, NoSuchThin, OutOfDataSpace, PoolError, PoolIoError, PoolModeError, ThinBusy
from cowfs.forking import not_inherited
from cowfs.pool import Extent, ThinCounters, ThinStatus, ThinTable, UnreadableStatus, check_thin_length
from cowfs.units import SECTOR_BYTES, Sectors, ThinId
from cowfs_dmthin import nodes
from cowfs_dmthin.abi import TargetLine
from cowfs_dmthin.control import Control, ControlError, only_line
from cowfs_dmthin.disk import DirectDisk
from cowfs_dmthin.holders import describe_holders
from cowfs_dmthin.loop import Backing
from cowfs_dmthin.space_guard import Petition, SpaceGuard
from cowfs_dmthin.statistics import Statistics

_COPY_CHUNK_BYTES = 1 << 20
_LOOK_AHEAD_BLOCKS = 256
_MOST_KNOWN_BLOCKS = 1 << 16
# The kernel takes notice of a petition in no time.
_NOTICE_TRIES = 100
_NOTICE_SECONDS = 0.02
_NODE_SECONDS = 2.0  # udev takes less to name a node
_T = TypeVar("_T")


class ThinOwner(Protocol):
    """What a thin device needs of its pool."""

    @property
    def name(self) -> str: ...

    @property
    def block_bytes(self) -> int: ...

    @property
    def table_name(self) -> str: ...

    @property
    def suspended(self) -> bool: ...

    @property
    def durable(self) -> bool: ...

    @property
    def ignores_discards(self) -> bool: ...

    @property
    def space_guard(self) -> SpaceGuard: ...

    def blocks_needed(self, thin_id: int, begin_vblock: int, count: int) -> list[bool]: ...

    def can_provision(self) -> bool: ...

    def refusal_by_mode(self, request: str, number: int) -> PoolModeError: ...

    def has_failed(self) -> bool: ...

    def commit(self) -> None: ...

    def extra_space_wait_seconds(self) -> float: ...

    def mapped_extents(self, thin_id: int, begin_vblock: int, end_vblock: int | None) -> list[Extent]: ...

    def remove_active(self, thin: DmThin) -> None: ...

    def note_counters(self, thin_id: int, counters: ThinCounters) -> None:
        """What a device of a thin has done, which is removed."""
        ...


class DmThin:
    """A `ThinDevice` of the kernel. Made by `DmPool.activate`.

    The kernel is asked at once to remove the device with its last user, which is this process until `hand_over`: so
    nothing outlives a crash.

    I/O on a suspended device would wait in the kernel; it is refused with EAGAIN, as on every backend, as long as it
    was suspended through this object or its pool. So would a write to a full pool that queues; it is refused too, with
    `may_queue` (see `space_guard`).
    """

    def __init__(
        self,
        control: Control,
        pool: ThinOwner,
        name: str,
        dm_name: str,
        thin_id: int,
        length_sectors: int,
        *,
        read_only: bool,
        origin: Backing | None,
    ) -> None:
        self._control = control
        self._pool = pool
        self._name = name
        self.dm_name = dm_name
        self._thin_id = thin_id
        self._length_sectors = length_sectors
        self._read_only = read_only
        self._origin = origin
        self._suspended = False
        # The state in the kernel; a pool that is suspended lets no request of this kind through.
        self._is_suspended_in_kernel = False
        self._closed = False
        self._petition: Petition | None = None
        self._needs: dict[int, bool] = {}  # by virtual block: whether a write to it takes a new data block
        with ExitStack() as undo:
            self.device_number = self._create()
            undo.callback(control.remove_if_there, dm_name)
            self._load(length_sectors)
            control.resume(dm_name)
            self._disk = self._open_disk()
            undo.callback(self._disk.close)
            self.mapped_blocks_at_first = self._mapped_blocks()
            control.remove(dm_name, deferred=True)
            undo.pop_all()
        not_inherited(self, f"the device '{name}'")

    def _create(self) -> int:
        info = self._control.info(self.dm_name)
        if info is not None and not info.has_live_table and not info.open_count:  # left by a crash before it was one
            self._control.remove_if_there(self.dm_name)
        try:
            return self._control.create(self.dm_name)
        except ControlError as error:
            if error.errno != errno.EBUSY:
                raise
            raise InvalidRequest(
                f"'{self._name}' cannot be activated: there is already a device '{self.dm_name}' on this machine",
                errno=errno.EBUSY,
            ) from error

    def _load(self, length_sectors: int) -> None:
        origin = "" if self._origin is None else f" {self._origin.table_name}"
        line = TargetLine(0, length_sectors, "thin", f"{self._pool.table_name} {self._thin_id}{origin}")
        try:
            self._control.load(self.dm_name, line, read_only=self._read_only)
        except ControlError as error:
            raise self._table_error(error) from error

    def _table_error(self, error: ControlError) -> PoolError:
        what = f"'{self._name}' (thin {self._thin_id}) cannot be activated or resized"
        if error.errno == errno.ENODATA:
            return NoSuchThin(f"thin {self._thin_id} is not in pool '{self._pool.name}'")
        if error.errno == errno.EINVAL and self._pool.suspended:
            return InvalidRequest(f"{what}: pool '{self._pool.name}' is suspended; resume it")
        if error.errno == errno.EINVAL and self._pool.has_failed():
            return InvalidRequest(f"{what}: pool '{self._pool.name}' has failed")
        return error

    # ------------------------------------------------------------------------------------------ properties

    @property
    def name(self) -> str:
        return self._name

    @property
    def thin_id(self) -> int:
        return self._thin_id

    @property
    def size_bytes(self) -> int:
        return self._length_sectors * SECTOR_BYTES

    @property
    def block_bytes(self) -> int:
        return self._pool.block_bytes

    @property
    def node(self) -> str:
        """Path of the device's node, for mount(2) and for tools."""
        return nodes.node_path(self.device_number)

    def status(self, *, flush: bool = True) -> ThinStatus | UnreadableStatus:
        self._require_open()
        return ThinStatus.parse(only_line(self._control.status(self.dm_name, flush=flush), self.dm_name).parameters)

    def counters(self) -> ThinCounters:
        """What was asked of it since it is active. Raises OSError where the kernel has it no more."""
        now, first = self._mapped_blocks(), self.mapped_blocks_at_first
        return Statistics.of(self.device_number).counters(None if now is None or first is None else now - first)

    def _mapped_blocks(self) -> int | None:
        status = self.status(flush=False)
        if isinstance(status, UnreadableStatus):
            return None
        return status.mapped_sectors * SECTOR_BYTES // self.block_bytes

    def table(self) -> ThinTable:
        return ThinTable(
            length_sectors=Sectors(self._length_sectors),
            pool_device=self._pool.name,
            thin_id=ThinId(self._thin_id),
            external_origin=None if self._origin is None else self._origin.path,
        )

    def extents(self, begin_vblock: int = 0, end_vblock: int | None = None) -> Iterator[Extent]:
        """Read in one go from the committed metadata, which this commits first."""
        self._require_open()
        return iter(self._pool.mapped_extents(self._thin_id, begin_vblock, end_vblock))

    # ------------------------------------------------------------------------------------------ lifecycle

    def resize(self, length_sectors: int) -> None:
        self._require_open()
        check_thin_length(self._name, length_sectors)
        self._load(length_sectors)
        if self.awaits_space():
            self._control.suspend(self.dm_name, flush=False)
        self._control.resume(self.dm_name)
        self._length_sectors = length_sectors
        self._is_suspended_in_kernel = False
        self.apply_suspension()

    def suspend(self) -> None:
        self._require_open()
        if self._suspended:
            return
        try:
            if not self._pool.suspended:
                self.flush()
        finally:
            self._suspended = True
            self.apply_suspension()

    def resume(self) -> None:
        self._require_open()
        self._suspended = False
        self.apply_suspension()

    def apply_suspension(self) -> None:
        """Bring the kernel's state up to date; while the pool is suspended this waits for the pool's resume."""
        if self._pool.suspended or self._is_suspended_in_kernel == self._suspended:
            return
        if self._suspended:
            self._control.suspend(self.dm_name, flush=not self.awaits_space())
        else:
            self._control.resume(self.dm_name)
        self._is_suspended_in_kernel = self._suspended

    def hand_over(self) -> int:
        """Leave the device to the users of its node; it is removed with the last of them.

        Returns:
            A descriptor of the node, the first user, which the caller closes.
        """
        self._require_open()
        self._withdraw()
        fd = nodes.open_block(self.device_number, self._access)
        self._disk.close()
        self._end()
        return fd

    def keep(self) -> str:
        """Leave the device active, for any user of its node, until `DmPool.end_kept` or the end of the kernel.

        Returns:
            The path of the node.
        """
        self._require_open()
        self._withdraw()
        self._control.keep(self.dm_name)
        self._disk.close()
        self._end()
        return nodes.named_node(self.dm_name, self.device_number, wait_seconds=_NODE_SECONDS)

    def close(self) -> None:
        """Deactivate.

        Raises:
            ThinBusy (EBUSY): another process uses the node; the device stays active, and may be closed again.
        """
        if self._closed:
            return
        self._withdraw()
        with suppress(ControlError):
            # Else the kernel would remove it later, when the node is closed.
            self._control.cancel_deferred_remove(self.dm_name)
        self._disk.close()
        counters = ThinCounters()
        with suppress(OSError, PoolError):  # it was removed by others
            counters = self.counters()
        try:
            self._control.remove_if_there(self.dm_name)
        except ControlError as error:
            if error.errno != errno.EBUSY:
                raise
            self._disk = self._open_disk()
            self._control.remove(self.dm_name, deferred=True)
            holders = describe_holders(self.device_number)
            raise ThinBusy(f"'{self._name}' (thin {self._thin_id}) cannot be deactivated: {holders}") from error
        self._pool.note_counters(self._thin_id, counters)
        self._end()

    def _end(self) -> None:
        self._closed = True
        self._pool.remove_active(self)
        if self._origin is not None:
            self._origin.close()

    @property
    def _access(self) -> int:
        return os.O_RDONLY if self._read_only else os.O_RDWR

    def _open_disk(self) -> DirectDisk:
        return DirectDisk(nodes.open_block(self.device_number, self._access | os.O_DIRECT))

    # ------------------------------------------------------------------------------------------ data

    def pread(self, offset: int, length: int) -> bytes:
        if self._admit("read", offset, length):
            return self._carry_out("read", offset, length, lambda: self._disk.pread(offset, length))
        return b""

    def pwrite(self, offset: int, data: Buffer) -> None:
        length = len(data)
        if not self._admit("write", offset, length):
            return
        blocks = -(-(offset + length) // self.block_bytes) - offset // self.block_bytes
        if not self.awaits_space() and self._pool.space_guard.take(blocks):
            self._needs.clear()
            self._carry_out("write", offset, length, lambda: self._disk.pwrite(offset, data))
        else:
            self._write_with_little_space(offset, memoryview(data).cast("B"))

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros: whole blocks are unmapped where that shows zeros, the rest is written."""
        if not self._admit("zero", offset, length):
            return
        block_bytes, end = self.block_bytes, offset + length
        first, last = -(-offset // block_bytes), end // block_bytes
        if self._origin is None and first < last and not self._pool.ignores_discards:
            self.discard(first * block_bytes, (last - first) * block_bytes)
        # A discard is a wish: a read-only pool lets it pass, and the block layer drops some where the data block is
        # not a power of two.
        self._write_zeros(offset, end)

    def _write_zeros(self, begin: int, end: int) -> None:
        for offset in range(begin, end, _COPY_CHUNK_BYTES):
            chunk = min(_COPY_CHUNK_BYTES, end - offset)
            # What reads as zeros is left alone, so that unmapped blocks stay so.
            if any(self.pread(offset, chunk)):
                self.pwrite(offset, bytes(chunk))

    def copy(self, source_offset: int, target_offset: int, length: int) -> None:
        copy_by_reading(self, source_offset, target_offset, length)

    def discard(self, offset: int, length: int) -> None:
        if self._pool.ignores_discards:
            raise InvalidRequest(
                f"discard on '{self._name}': pool '{self._pool.name}' has ignore_discard", errno=errno.EOPNOTSUPP
            )
        if not self._admit("discard", offset, length):
            return
        first, last = -(-offset // self.block_bytes), (offset + length) // self.block_bytes
        begin, size = first * self.block_bytes, (last - first) * self.block_bytes
        if size > 0:
            self._withdraw()
            self._carry_out("discard", offset, length, lambda: self._disk.discard(begin, size))
            self._pool.space_guard.invalidate(must_commit=True)
            self.invalidate()

    def flush(self) -> None:
        self._admit("flush", 0, 0)
        if not self._pool.durable:
            return
        if not self._pool.space_guard.holds_writes():
            with suppress(OutOfDataSpace):
                self._carry_out("flush", 0, 0, self._disk.flush)
                return
        # A full pool takes a flush for a write to the first block; a commit of the pool does what it would do.
        self._pool.commit()
        if not self._pool.can_provision():
            raise self._pool.refusal_by_mode(f"flush of '{self._name}'", errno.EIO)

    # ------------------------------------------------------------------------------------------ little space

    def invalidate(self) -> None:
        """What is known about blocks may be wrong."""
        self._needs.clear()

    def awaits_space(self) -> bool:
        """Whether the kernel holds a petition of this device's."""
        if self._petition is not None and self._petition.is_answered():
            self._petition = None
        return self._petition is not None

    def _write_with_little_space(self, offset: int, data: memoryview) -> None:
        """Write what needs no new block, or finds one, block by block; refuse the first that does not."""
        while data:
            vblock = offset // self.block_bytes
            piece = data[: (vblock + 1) * self.block_bytes - offset]
            if self._needs_block(vblock) and not self._pool.space_guard.take(1) and not self._ask_for(vblock):
                raise self._no_space("write", offset, len(data), may_queue=self._pool.extra_space_wait_seconds() > 0)
            if self._petition is not None and self._petition.vblock == vblock:
                self._withdraw()  # else it might come after this write
            self._carry_out("write", offset, len(piece), partial(self._disk.pwrite, offset, piece))
            self._needs[vblock] = False
            offset += len(piece)
            data = data[len(piece) :]

    def _needs_block(self, vblock: int) -> bool:
        if vblock not in self._needs:
            if len(self._needs) > _MOST_KNOWN_BLOCKS:
                self._needs.clear()
            count = min(_LOOK_AHEAD_BLOCKS, -(-self.size_bytes // self.block_bytes) - vblock)
            self._needs |= dict(enumerate(self._pool.blocks_needed(self._thin_id, vblock, count), vblock))
        return self._needs[vblock]

    def _ask_for(self, vblock: int) -> bool:
        """Have the kernel see that the pool is full; whether it answered at once instead."""
        if self.awaits_space() or self._pool.space_guard.holds_writes():
            return False
        offset = vblock * self.block_bytes
        self._petition = Petition(self._disk.fd, vblock, offset, self._disk.pread(offset, self._disk.sector_bytes))
        for _ in range(_NOTICE_TRIES):
            if self._petition.is_answered(_NOTICE_SECONDS) or self._pool.space_guard.holds_writes():
                break
        return not self.awaits_space()

    def _withdraw(self) -> None:
        """End a petition that the kernel has not answered.

        A suspension that does not flush pushes back what waits, and an error target then refuses it.

        Raises:
            ThinBusy (EBUSY): the pool is suspended, which holds everything.
        """
        if not self.awaits_space():
            return
        if self._pool.suspended:
            raise ThinBusy(
                f"a write to '{self._name}' (thin {self._thin_id}) waits for space in pool '{self._pool.name}', "
                "which is suspended; resume it first"
            )
        self._control.load(self.dm_name, TargetLine(0, self._length_sectors, "error", ""))
        self._control.suspend(self.dm_name, flush=False)
        self._control.resume(self.dm_name)
        assert self._petition is not None
        self._petition.is_answered(None)
        self._petition = None
        self._load(self._length_sectors)
        self._control.suspend(self.dm_name, flush=False)
        self._control.resume(self.dm_name)
        if self._is_suspended_in_kernel:
            self._control.suspend(self.dm_name)

    # ------------------------------------------------------------------------------------------ errors

    def _admit(self, request: str, offset: int, length: int) -> bool:
        """Whether there is something to do. Raises what the kernel would answer, or would wait for."""
        self._require_open()
        if self._suspended or self._pool.suspended:
            what = f"'{self._name}'" if self._suspended else f"pool '{self._pool.name}'"
            raise InvalidRequest(f"{request} on '{self._name}': {what} is suspended; resume it", errno=errno.EAGAIN)
        if request not in ("read", "flush") and self._read_only:
            raise PoolModeError(f"{request} on '{self._name}': it was activated read-only", errno=errno.EROFS)
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise InvalidRequest(
                f"{request} of {length} bytes at {offset:#x} on '{self._name}': it is {self.size_bytes:#x} bytes long"
            )
        return length > 0

    def _carry_out(self, request: str, offset: int, length: int, action: Callable[[], _T]) -> _T:
        try:
            return action()
        except PoolError:
            raise
        except OSError as error:
            raise self._io_error(request, offset, length, error) from error

    def _io_error(self, request: str, offset: int, length: int, cause: OSError) -> PoolError:
        pool = self._pool.name
        what = f"{request} of {length} bytes at {offset:#x} on '{self._name}' (thin {self._thin_id})"
        if cause.errno == errno.ENOSPC:
            return self._no_space(request, offset, length, may_queue=False)
        with suppress(PoolError):
            if cause.errno == errno.EIO and not self._pool.can_provision():
                return self._pool.refusal_by_mode(what, errno.EIO)
        reason = os.strerror(cause.errno or errno.EIO).lower()
        return PoolIoError(f"{what} failed in pool '{pool}': {reason}", errno=cause.errno)

    def _no_space(self, request: str, offset: int, length: int, *, may_queue: bool) -> OutOfDataSpace:
        return OutOfDataSpace(
            f"{request} of {length} bytes at {offset:#x} on '{self._name}' (thin {self._thin_id}): pool "
            f"'{self._pool.name}' is out of data space; grow it, or delete or discard something",
            may_queue=may_queue,
        )

    def _require_open(self) -> None:
        if self._closed:
            raise InvalidRequest(f"'{self._name}' is not active any more", errno=errno.EBADF)
