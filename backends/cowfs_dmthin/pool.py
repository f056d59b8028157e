"""A thin pool of the kernel: a device-mapper device with a `thin-pool` table over two backing devices."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import islice
from typing import TypeVar

from cowfs.blockdev import BlockDevice, FileDevice, copy_sparse
from cowfs.errors import (
    InvalidRequest,
    MetadataCorrupt,
    NoSuchThin,
    OutOfDataSpace,
    OutOfMetadataSpace,
    PoolError,
    PoolIoError,
    PoolModeError,
    ThinBusy,
    ThinExists,
)
from cowfs.forking import not_inherited
from cowfs.pool import (
    Counters,
    DiskFault,
    DiskRole,
    Extent,
    Message,
    PoolCounters,
    PoolMode,
    PoolStatus,
    PoolTable,
    ThinCounters,
    ThinDevice,
    ThinStatus,
    ThinTable,
    UnreadableStatus,
    check_data_device,
    check_reload,
    check_thin_length,
    refusal_by_mode,
)
from cowfs.thinmeta import Metadata, Superblock
from cowfs.thinmeta.format import ENTRIES_PER_BITMAP, unpack_index
from cowfs.units import METADATA_BLOCK_BYTES, SECTOR_BYTES
from cowfs_dmthin import nodes
from cowfs_dmthin.abi import MAX_DM_NAME_BYTES, TargetLine, format_device_number
from cowfs_dmthin.control import Control, ControlError, DeviceInfo, only_line
from cowfs_dmthin.fault_layer import ROLES, FaultLayer, check_faults
from cowfs_dmthin.holders import describe_holders
from cowfs_dmthin.loop import Backing, open_backing
from cowfs_dmthin.space_guard import SpaceGuard, no_space_timeout_seconds
from cowfs_dmthin.statistics import Statistics, breakdown
from cowfs_dmthin.thin import DmThin

_T = TypeVar("_T")
POOL_SUFFIX = "-pool"
_STABLE_READ_TRIES = 3


class DmPool:
    """A `Pool` of the kernel. Made by `DmThinBackend.open_pool`.

    The kernel commits on its own once a second, so `tick` has nothing to do. Writes that would wait in the kernel for
    space are refused instead: see `space_guard`.

    The pool device is removed with its last user, this process or a thin that is in use (see `DmThin.hand_over`): so
    nothing outlives a crash. A pool that was made externally (`is_foreign`) is never removed.

    Reading metadata while the pool runs: see `_read_committed`.
    """

    def __init__(
        self,
        control: Control,
        name: str,
        table: PoolTable,
        metadata: Backing,
        data: Backing,
        *,
        durable: bool,
        is_foreign: bool = False,
        layers: Mapping[DiskRole, FaultLayer] | None = None,
    ) -> None:
        """Over a pool device that is live already; takes the backing devices over when this succeeds.

        Args:
            layers: the devices for faults that are between the pool and its backing devices.
        """
        self._control = control
        self._name = name
        self._metadata = metadata
        self._data = data
        self._layers = dict(layers or {})
        self._durable = durable
        self._is_foreign = is_foreign
        self._table = table
        self._loaded: PoolTable | None = None
        self._suspended = False
        self._closed = False
        self._thins: list[DmThin] = []
        self._counted: dict[int, ThinCounters] = {}  # of devices that were active, by thin
        self._at_first = {backing: backing.statistics() for backing in (metadata, data)}
        self.space_guard = SpaceGuard(lambda must_commit: self.status(flush=must_commit))
        self._device_number = self._info().device_number
        self._others_at_first: dict[int, tuple[Statistics, int | None]] = {}
        for _, other, number in self._other_devices():
            with suppress(OSError, PoolError):
                self._others_at_first[number] = Statistics.of(number), self._mapped_blocks_of(other)
        self._has_had_origins = False
        self._fd = self._hold()
        not_inherited(self, f"pool '{name}'", drop=lambda pool: os.close(pool._fd))

    def _hold(self) -> int:
        """Be a user of the pool device, and have it removed with its last user."""
        fd = nodes.open_block(self._device_number, os.O_RDONLY)
        try:
            if not self._is_foreign:
                self._control.remove(self._name, deferred=True)
        except BaseException:
            os.close(fd)
            raise
        return fd

    # ------------------------------------------------------------------------------------------ properties

    @property
    def name(self) -> str:
        return self._name

    @property
    def no_space_timeout_seconds(self) -> float:
        return no_space_timeout_seconds()

    @property
    def block_bytes(self) -> int:
        return self._table.block_sectors * SECTOR_BYTES

    @property
    def table_name(self) -> str:
        """The pool device as tables of thins name it."""
        return format_device_number(self._device_number)

    @property
    def suspended(self) -> bool:
        return self._suspended

    @property
    def durable(self) -> bool:
        return self._durable

    @property
    def ignores_discards(self) -> bool:
        return self._table.ignore_discard

    @property
    def event_counter(self) -> int:
        return self._info().event_number

    def open_events(self) -> int:
        return self._control.open_events()

    def arm_events(self, fd: int) -> None:
        self._control.arm_events(fd)

    def _below(self) -> tuple[Backing | FaultLayer, Backing | FaultLayer]:
        """What the pool's table has for its metadata and its data."""
        return self._layers.get("metadata", self._metadata), self._layers.get("data", self._data)

    def _info(self) -> DeviceInfo:
        self._require_open()
        info = self._control.info(self._name)
        if info is None:
            raise self._vanished()
        return info

    def _vanished(self) -> PoolIoError:
        return PoolIoError(
            f"pool '{self._name}' vanished: device mapper has no device of this name any more; open it again"
        )

    # ------------------------------------------------------------------------------------------ messages

    def create_thin(self, thin_id: int) -> None:
        self.message(f"create_thin {thin_id}")

    def create_snap(self, thin_id: int, origin_id: int) -> None:
        self.create_snaps({thin_id: origin_id})

    def create_snaps(self, origins: Mapping[int, int]) -> None:
        with ExitStack() as resumes:
            for origin_id in origins.values():
                for name in self._other_devices_of(origin_id):
                    self._suspend_for_snapshot(name)
                    resumes.callback(self._control.resume, name)
            for thin_id, origin_id in origins.items():
                self.message(f"create_snap {thin_id} {origin_id}")

    def _suspend_for_snapshot(self, name: str) -> None:
        """Suspend a device that others use, with its file system whole on it."""
        try:
            self._control.suspend(name)
        except ControlError as error:
            if error.errno == errno.EBUSY:  # another program has frozen its file system, which is whole therefore
                self._control.suspend(name, freeze=False)
                return
            status = self.status(flush=False)
            is_full = isinstance(status, PoolStatus) and status.mode is PoolMode.OUT_OF_DATA_SPACE
            if error.errno != errno.EIO or not is_full:
                raise
            raise OutOfDataSpace(
                f"no snapshot of device '{name}' can be made: pool '{self._name}' has no space for what was written to "
                "the device; make the pool larger, or delete or discard something"
            ) from error

    def delete(self, thin_id: int) -> None:
        self.message(f"delete {thin_id}")

    def set_transaction_id(self, old: int, new: int) -> None:
        self.message(f"set_transaction_id {old} {new}")

    def reserve_metadata_snap(self) -> None:
        self.message("reserve_metadata_snap")

    def release_metadata_snap(self) -> None:
        self.message("release_metadata_snap")

    def message(self, text: str) -> None:
        self._require_open()
        if text.lstrip().startswith("@"):  # device mapper's own messages, not the pool's
            Message.parse(text)
        try:
            self._control.message(self._name, text)
        except ControlError as error:
            raise self._message_error(text, error) from error
        finally:
            self._invalidate()

    def _invalidate(self) -> None:
        """Blocks may have been freed or become shared."""
        self.space_guard.invalidate()
        for thin in self._thins:
            thin.invalidate()

    def _message_error(self, text: str, error: ControlError) -> PoolError:
        """The kernel's refusal in the words of all backends. It looks at the mode before it looks at the words."""
        number = error.errno
        if number == errno.EOPNOTSUPP:
            return self.refusal_by_mode(f"message '{text}'", errno.EOPNOTSUPP)
        if number == errno.ENXIO:
            return self._vanished()
        if number == errno.EILSEQ:
            return MetadataCorrupt(
                f"message '{text}' to pool '{self._name}': the kernel met a damaged block; check the metadata", block=-1
            )
        try:
            message = Message.parse(text)
        except InvalidRequest as refusal:
            return refusal
        if number == errno.EEXIST:
            return ThinExists(f"thin device {message.arguments[0]} exists already; take another id")
        if number == errno.ENODATA:
            return NoSuchThin(f"thin device {message.arguments[-1]} is not in the pool")
        if number == errno.EBUSY:
            return ThinBusy(self._why_busy(message))
        if number == errno.EINVAL:
            return InvalidRequest(self._why_invalid(message))
        if number == errno.ENOSPC:
            return OutOfMetadataSpace(f"message '{text}' to pool '{self._name}': no free metadata block")
        return error

    def _why_busy(self, message: Message) -> str:
        if message.name == "reserve_metadata_snap":
            status = self.status(flush=False)
            where = f", at block {status.held_root}" if isinstance(status, PoolStatus) else ""
            return f"a metadata snapshot is held already{where}; release it first"
        (thin_id,) = message.arguments
        others = self._other_devices_of(thin_id)
        if others:
            return f"thin {thin_id} of pool '{self._name}' is in use: {describe_holders(*others.values())}"
        names = ", ".join(f"'{thin.name}'" for thin in self._thins if thin.thin_id == thin_id)
        return f"thin {thin_id} of pool '{self._name}' is active as {names}; close it before deleting"

    def _why_invalid(self, message: Message) -> str:
        if message.name == "set_transaction_id":
            status = self.status(flush=False)
            if isinstance(status, PoolStatus):
                return f"the transaction id is {status.transaction_id}, not {message.arguments[0]}; it was not changed"
        if message.name == "release_metadata_snap":
            return "no metadata snapshot is held"
        return f"pool '{self._name}' refused '{message.format()}'"

    # ------------------------------------------------------------------------------------------ status

    def status(self, *, flush: bool = True) -> PoolStatus | UnreadableStatus:
        self._require_open()
        return PoolStatus.parse(self._ask(lambda: self._control.status(self._name, flush=flush)).parameters)

    def _ask(self, ask: Callable[[], list[TargetLine]]) -> TargetLine:
        """The pool's only target, from a request."""
        try:
            return only_line(ask(), self._name)
        except ControlError as error:
            if error.errno == errno.ENXIO:
                raise self._vanished() from error
            raise

    def can_provision(self) -> bool:
        """Whether the mode lets the metadata change."""
        status = self.status(flush=False)
        return isinstance(status, PoolStatus) and status.mode <= PoolMode.OUT_OF_DATA_SPACE

    def refusal_by_mode(self, request: str, number: int) -> PoolModeError:
        status = self.status(flush=False)
        mode, needs_check = PoolMode.FAIL, False
        if isinstance(status, PoolStatus):
            mode, needs_check = status.mode, status.needs_check
        return refusal_by_mode(request, self._name, mode, needs_check=needs_check, errno=number)

    def has_failed(self) -> bool:
        return self.status(flush=False) is UnreadableStatus.FAIL

    def table(self) -> PoolTable:
        """The kernel's live table, with the paths in place of device numbers."""
        self._require_open()
        line = self._ask(lambda: self._control.table(self._name))
        live = PoolTable.parse(f"{line.start_sectors} {line.length_sectors} {line.target} {line.parameters}")
        return live.replace(metadata_device=self._metadata.path, data_device=self._data.path)

    def thin_ids(self) -> list[int]:
        return self._read_committed(Metadata.thin_ids)

    def thin_status(self, thin_id: int) -> ThinStatus | UnreadableStatus:
        for thin in self._thins:
            if thin.thin_id == thin_id:
                return thin.status()
        if self.has_failed():
            return UnreadableStatus.FAIL

        def read(metadata: Metadata) -> tuple[int, int | None]:
            mapping = metadata.open_thin(thin_id)
            return mapping.mapped_blocks, mapping.highest()

        mapped, highest = self._read_committed(read)
        return ThinStatus.of_blocks(mapped, highest, self._table.block_sectors)

    def mapped_extents(self, thin_id: int, begin_vblock: int, end_vblock: int | None) -> list[Extent]:
        return self._read_committed(
            lambda metadata: list(metadata.open_thin(thin_id).extents(begin_vblock, end_vblock))
        )

    def blocks_needed(self, thin_id: int, begin_vblock: int, count: int) -> list[bool]:
        """Whether a write to each of these blocks takes a new data block."""

        def read(metadata: Metadata) -> list[bool]:
            runs = metadata.open_thin(thin_id).lookup(begin_vblock, count)
            return [dblock < 0 or bool(is_shared) for length, dblock, is_shared in runs for _ in range(length)]

        return self._read_committed(read)

    # ------------------------------------------------------------------------------------------ metadata

    def open_metadata(self) -> BlockDevice:
        """A copy of the committed metadata, consistent whatever the pool does meanwhile; gone when closed."""
        self._require_open()

        def copy(device: BlockDevice) -> FileDevice:
            with tempfile.NamedTemporaryFile(prefix="cowfs-metadata-") as file:
                try:
                    ranges = list(_allocated_ranges(device))
                except (MetadataCorrupt, PoolIoError):
                    ranges = [(0, device.size_bytes)]
                copy_sparse(device, file.fileno(), ranges)
                return FileDevice(file.name, read_only=True)

        return self._read_stable(copy)

    def open_data(self) -> BlockDevice:
        self._require_open()
        return self._data.open_for_reading()

    def read_metadata(self, read: Callable[[BlockDevice, bool], _T]) -> _T:
        """What a metadata snapshot holds stays in place, whatever the pool commits meanwhile."""
        try:
            self.reserve_metadata_snap()
        except PoolError:  # another one is held, or the pool is read-only and hardly commits
            self.commit()
            return self._read_stable(lambda device: read(device, False))
        try:
            for _ in range(_STABLE_READ_TRIES):
                with suppress(MetadataCorrupt):  # the superblock, which says where it is, is being written
                    return self._read_once(lambda device: read(device, True))
            return self._read_once(lambda device: read(device, True))
        finally:
            self.release_metadata_snap()

    def _read_committed(self, read: Callable[[Metadata], _T]) -> _T:
        """Read something from the metadata as of now."""
        self._require_open()
        self.commit()

        def read_metadata(device: BlockDevice) -> _T:
            with closing(Metadata.open(device, read_only=True)) as metadata:
                return read(metadata)

        return self._read_stable(read_metadata)

    def _read_stable(self, read: Callable[[BlockDevice], _T]) -> _T:
        """Read the metadata device so that no commit falls into the reading.

        The blocks of one commit stay in place until the next commit is complete, and every commit writes. So what was
        read is one commit when the device completed no write meanwhile. A pool that never pauses is suspended for the
        reading; that is the last resort, since its resume arms the low water event again.
        """
        for _ in range(_STABLE_READ_TRIES):
            before = self._metadata.writes_completed()
            with suppress(MetadataCorrupt):
                result = self._read_once(read)
                if self._metadata.writes_completed() == before:
                    return result
                _discard_result(result)
        with self._paused():
            return self._read_once(read)

    def _read_once(self, read: Callable[[BlockDevice], _T]) -> _T:
        with closing(self._metadata.open_for_reading()) as device:
            return read(device)

    @contextmanager
    def _paused(self) -> Iterator[None]:
        if self._suspended:
            yield
            return
        self._control.suspend(self._name)
        try:
            yield
        finally:
            self._control.resume(self._name)

    # ------------------------------------------------------------------------------------------ thin devices

    def activate(
        self,
        name: str,
        thin_id: int,
        length_sectors: int,
        *,
        read_only: bool = False,
        external_origin: str | None = None,
    ) -> ThinDevice:
        self._require_open()
        check_thin_length(name, length_sectors)
        if any(thin.name == name for thin in self._thins):
            raise InvalidRequest(f"'{name}' is already active in pool '{self._name}'", errno=errno.EBUSY)
        dm_name = name if self._is_foreign else dm_name_of_thin(self._name, name)
        others = self._other_devices_of(thin_id)
        if self._is_foreign:  # on which idle devices of others are not ours to remove
            others = {other: number for other, number in others.items() if other == dm_name or self._is_used(other)}
        for number in self._used(others).values():
            raise ThinBusy(f"thin {thin_id} of pool '{self._name}' is in use already: {describe_holders(number)}")
        with ExitStack() as undo:
            origin = None
            if external_origin is not None:
                origin = open_backing(external_origin, "external origin", read_only=True)
                undo.callback(origin.close)
            thin = DmThin(
                self._control,
                self,
                name,
                dm_name,
                thin_id,
                length_sectors,
                read_only=read_only,
                origin=origin,
            )
            undo.pop_all()
        self._thins.append(thin)
        self._has_had_origins |= origin is not None
        return thin

    def active(self) -> list[ThinDevice]:
        return list(self._thins)

    def remove_active(self, thin: DmThin) -> None:
        self._thins.remove(thin)
        self._others_at_first[thin.device_number] = Statistics(), thin.mapped_blocks_at_first  # if it is left to others

    def note_counters(self, thin_id: int, counters: ThinCounters) -> None:
        self._counted[thin_id] = ThinCounters.total([counters, *self._counted_of(thin_id)])

    def _counted_of(self, thin_id: int) -> list[ThinCounters]:
        return [self._counted[thin_id]] if thin_id in self._counted else []

    def counters(self) -> Counters:
        """By the kernel, which counts requests; see `statistics.breakdown` for what follows from them."""
        self._require_open()
        thins = dict(self._counted)
        found: list[tuple[int, ThinCounters]] = []
        for thin in self._thins:
            with suppress(OSError, PoolError):  # gone meanwhile
                found.append((thin.thin_id, thin.counters()))
        found += [(thin_id, now) for thin_id, _, now in self._counters_of_others()]
        for thin_id, now in found:
            thins[thin_id] = ThinCounters.total([now, *([thins[thin_id]] if thin_id in thins else [])])
        metadata, data = (
            backing.statistics().since(self._at_first[backing]) for backing in (self._metadata, self._data)
        )
        requests = ThinCounters.total([Statistics().counters(), *thins.values()])
        if not self._has_had_origins:  # from which blocks are copied, too
            requests = breakdown(requests, data)
        metadata_bytes = metadata.written_sectors * SECTOR_BYTES
        pool = PoolCounters(
            requests=requests,
            data_written_bytes=data.written_sectors * SECTOR_BYTES,
            data_flushes=data.flushes,
            metadata_written_blocks=metadata_bytes // METADATA_BLOCK_BYTES,
            metadata_written_bytes=metadata_bytes,
        )
        return Counters(pool, thins)

    def _counters_of_others(self) -> Iterator[tuple[int, int, ThinCounters]]:
        """(thin id, device number, what it did since this object opened the pool) of devices that are not its own."""
        for thin_id, name, number in self._other_devices():
            with suppress(OSError, PoolError):
                mapped = self._mapped_blocks_of(name)
                statistics, mapped_at_first = self._others_at_first.get(number, (Statistics(), None))
                provisioned = None if mapped is None or mapped_at_first is None else mapped - mapped_at_first
                yield thin_id, number, Statistics.of(number).since(statistics).counters(provisioned)

    def _mapped_blocks_of(self, name: str) -> int | None:
        status = ThinStatus.parse(only_line(self._control.status(name, flush=False), name).parameters)
        if isinstance(status, UnreadableStatus):
            return None
        return status.mapped_sectors // self._table.block_sectors

    def open_nodes(self) -> dict[int, list[int]]:
        self._require_open()
        found: dict[int, list[int]] = {}
        for thin_id, name, number in self._other_devices():
            if self._is_used(name):
                found.setdefault(thin_id, []).append(number)
        return found

    def _is_used(self, name: str) -> bool:
        info = self._control.info(name)
        return info is not None and info.is_used

    def kept_nodes(self) -> dict[int, str]:
        self._require_open()
        return {
            thin_id: nodes.named_node(name, number)
            for thin_id, name, number in self._other_devices()
            if (info := self._control.info(name)) is not None and info.is_kept
        }

    def end_kept(self, thin_id: int) -> None:
        self._require_open()
        for name, number in self._other_devices_of(thin_id).items():
            info = self._control.info(name)
            if info is None or not info.is_kept:
                continue
            try:
                self._control.remove_if_there(name)
            except ControlError as error:
                if error.errno != errno.EBUSY:
                    raise
                raise ThinBusy(
                    f"the node of thin {thin_id} of pool '{self._name}' is in use: {describe_holders(number)}"
                ) from error
            nodes.remove_named_node(name, number)
            return
        raise InvalidRequest(f"thin {thin_id} of pool '{self._name}' has no node that was left active")

    def _other_devices(self) -> Iterator[tuple[int, str, int]]:
        """(thin id, name, device number) of the devices on this pool that are not this object's."""
        mine = {thin.device_number for thin in self._thins}
        for name, number in self._control.devices_above(self._device_number).items():
            if number not in mine:
                with suppress(ControlError, InvalidRequest):  # gone meanwhile, or not a thin
                    line = only_line(self._control.table(name), name)
                    table = ThinTable.parse(f"0 {line.length_sectors} {line.target} {line.parameters}")
                    yield table.thin_id, name, number

    def _other_devices_of(self, thin_id: int) -> dict[str, int]:
        return {name: number for other_id, name, number in self._other_devices() if other_id == thin_id}

    def _used(self, devices: dict[str, int]) -> dict[str, int]:
        """Those of some devices that are in use; the others, left by a crash, are removed."""
        used = {}
        for name, number in devices.items():
            if self._is_used(name):
                used[name] = number
            else:
                self._control.remove_if_there(name)
        return used

    # ------------------------------------------------------------------------------------------ tables

    def reload(self, table: PoolTable) -> None:
        self._require_open()
        if self._is_foreign:
            raise InvalidRequest(
                f"pool '{self._name}' was created by another program, so its table cannot be changed here"
            )
        check_reload(self._name, self._table, table)
        load_pool_table(self._control, self._name, table, *self._below())
        self._loaded = table

    def suspend(self) -> None:
        self._require_open()
        if self._suspended:
            return
        self._control.suspend(self._name)
        self._suspended = True

    def resume(self) -> None:
        self._require_open()
        if self._loaded is None and not self._suspended:
            return
        self._below()[0].refresh_size()
        self.suspend()
        try:
            self._control.resume(self._name)
        except ControlError as error:
            raise InvalidRequest(
                f"pool '{self._name}' cannot be resumed: "
                f"{'the table or a device is smaller than the pool' if error.errno == errno.EINVAL else error}",
                errno=error.errno,
            ) from error
        self._table = self._loaded or self._table
        self._loaded = None
        self._suspended = False
        self._invalidate()
        for thin in self._thins:
            thin.apply_suspension()

    # ------------------------------------------------------------------------------------------ faults

    def put_faults_below(self, faults: Sequence[DiskFault]) -> None:
        self._require_open()
        if self._is_foreign:
            raise InvalidRequest(
                f"pool '{self._name}' was created by another program, so nothing can be put below it here"
            )
        check_faults(self._control, faults)
        if faults and not self._layers:
            self._require_idle()
            self._stack()
        for role, layer in self._layers.items():
            layer.put([fault for fault in faults if fault.role == role])
        if not faults and self._layers and not self._devices_in_use():
            self._unstack()

    def _devices_in_use(self) -> list[str]:
        mine = [thin.name for thin in self._thins]
        return mine + [name for _, name, _ in self._other_devices() if self._is_used(name)]

    def _require_idle(self) -> None:
        if used := self._devices_in_use():
            raise ThinBusy(
                f"device '{used[0]}' is in use, and the kernel puts nothing below a pool in use; have the faults in "
                "force before, by 'cowfs mount --faults PLAN'"
            )

    def _stack(self) -> None:
        """Put devices for faults below the pool."""
        with ExitStack() as undo:
            layers: dict[DiskRole, FaultLayer] = {}
            for role, backing in zip(ROLES, (self._metadata, self._data), strict=True):
                layers[role] = FaultLayer.made(self._control, self._name, role, backing)
                undo.callback(layers[role].remove)
            self._reopen(layers)
            for layer in layers.values():
                layer.lend()
            undo.pop_all()

    def _unstack(self) -> None:
        former = list(self._layers.values())
        self._reopen({})
        for layer in former:
            layer.remove()

    def _reopen(self, layers: dict[DiskRole, FaultLayer]) -> None:
        """Make the pool device anew, over other devices. When that fails, it is as it was."""
        self._other_devices_removed()
        with suppress(PoolError):  # as in `close`
            self.commit()
        self._remove()
        former, self._layers = self._layers, layers
        try:
            self._make_device()
        except BaseException:
            self._layers = former
            self._make_device()
            raise
        self._invalidate()

    def _other_devices_removed(self) -> None:
        self._used({name: number for _, name, number in self._other_devices()})

    def _make_device(self) -> None:
        self._device_number = self._control.create(self._name)
        with ExitStack() as undo:
            undo.callback(self._control.remove_if_there, self._name)
            load_pool_table(self._control, self._name, self._table, *self._below())
            self._control.resume(self._name)
            self._fd = self._hold()
            undo.pop_all()

    # ------------------------------------------------------------------------------------------ time, end

    def tick(self) -> None:
        self._require_open()

    def extra_space_wait_seconds(self) -> float:
        self._require_open()
        return self.space_guard.wait_seconds()

    def commit(self) -> None:
        """A status that flushes is the kernel's way to ask for a commit."""
        self.status()

    def close(self) -> None:
        """As `Pool.close`; a pool with exported thins stays until the last of them is removed.

        Raises:
            ThinBusy (EBUSY): a thin's node or the pool's is in use; the pool then stays open.
        """
        if self._closed:
            return
        if self._suspended and any(thin.awaits_space() for thin in self._thins):
            # What waits in a suspended pool cannot be withdrawn.
            self._control.clear(self._name)
            self._control.resume(self._name)
            self._suspended = False
        for thin in list(self._thins):
            thin.close()
        for layer in self._layers.values():
            layer.put(())  # faults end with this process, though the pool may have other users
        with suppress(PoolError):  # a pool that failed is closed all the same
            self.commit()
        if not self._is_foreign:
            is_used = True  # then, or when it is unknown, the kernel removes the pool with its last user
            with suppress(ControlError):
                is_used = bool(self._used({name: number for _, name, number in self._other_devices()}))
            if not is_used:
                self._remove()
                for layer in self._layers.values():
                    layer.remove()
        self._closed = True
        if self._fd >= 0:
            self._let_go()
        self._metadata.close()
        self._data.close()

    def _remove(self) -> None:
        with suppress(ControlError):
            # Else the kernel would remove it later, when the node is closed.
            self._control.cancel_deferred_remove(self._name)
        self._let_go()
        try:
            self._control.remove_if_there(self._name)
        except ControlError as error:
            if error.errno != errno.EBUSY:
                raise
            self._fd = self._hold()
            raise ThinBusy(f"pool '{self._name}' cannot be closed: {describe_holders(self._device_number)}") from error

    def _let_go(self) -> None:
        """Close the pool's node. In this order, for a thread that forks: the number may be another file's at once."""
        fd, self._fd = self._fd, -1
        os.close(fd)

    def _require_open(self) -> None:
        if self._closed:
            raise InvalidRequest(f"pool '{self._name}' is closed", errno=errno.EBADF)


def load_pool_table(
    control: Control, name: str, table: PoolTable, metadata: Backing | FaultLayer, data: Backing | FaultLayer
) -> None:
    """Load a pool's table into the inactive slot, devices by number; both devices take the size they have now."""
    metadata.refresh_size()
    check_data_device(name, table, data.refresh_size())
    words = table.replace(metadata_device=metadata.table_name, data_device=data.table_name).format().split()
    control.load(name, TargetLine(0, table.length_sectors, "thin-pool", " ".join(islice(words, 3, None))))


def dm_name_of_thin(pool_name: str, name: str) -> str:
    """`<prefix>-<name>` where the pool is `<prefix>-pool`, as moby has it; a digest where that is not a valid name."""
    prefix = pool_name.removesuffix(POOL_SUFFIX)
    plain = name if name.startswith(f"{prefix}-") else f"{prefix}-{name}"
    if plain != pool_name and "/" not in plain and len(os.fsencode(plain)) <= MAX_DM_NAME_BYTES:
        return plain
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return f"{prefix[: MAX_DM_NAME_BYTES - 40]}-name-{digest}"


def _allocated_ranges(device: BlockDevice) -> Iterator[tuple[int, int]]:
    """(offset, length) of what a metadata device has in use, bitmap by bitmap.

    A large metadata device is mostly unused, at its end, and not everywhere do files tell their holes.
    """
    superblock = Superblock.unpack(device.pread(0, METADATA_BLOCK_BYTES))
    blocks, root = superblock.metadata_space_map.nr_blocks, superblock.metadata_space_map.bitmap_root
    index = device.pread(root * METADATA_BLOCK_BYTES, METADATA_BLOCK_BYTES)
    for number, entry in enumerate(unpack_index(index, root, -(-blocks // ENTRIES_PER_BITMAP))):
        if entry.nr_free < ENTRIES_PER_BITMAP:
            begin = number * ENTRIES_PER_BITMAP
            end = min(begin + ENTRIES_PER_BITMAP, blocks)
            yield begin * METADATA_BLOCK_BYTES, (end - begin) * METADATA_BLOCK_BYTES


def _discard_result(result: object) -> None:
    """Close what was read in vain."""
    if isinstance(result, FileDevice):
        result.close()
