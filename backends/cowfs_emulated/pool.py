"""The emulated thin pool: messages, status, tables and lifecycle over one `Engine`."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Protocol, TypeVar, runtime_checkable

from cowfs.blockdev import BlockDevice, Buffer
from cowfs.errors import InvalidRequest, MetadataCorrupt, PoolError, ThinBusy
from cowfs.forking import not_inherited
from cowfs.pool import (
    Counters,
    DiscardMode,
    Message,
    PoolCounters,
    PoolMode,
    PoolStatus,
    PoolTable,
    ThinCounters,
    ThinDevice,
    ThinStatus,
    UnreadableStatus,
    check_data_device,
    check_reload,
    check_thin_length,
)
from cowfs.thinmeta import Metadata
from cowfs.units import MAX_METADATA_BLOCKS, METADATA_BLOCK_BYTES, DataBlocks, MetaBlocks
from cowfs_emulated.engine import NO_SPACE_TIMEOUT_SECONDS, Engine
from cowfs_emulated.tally import MeteredDevice, Tally
from cowfs_emulated.thin import EmulatedThin, OpenThin, mapping_status, open_origin, require_thin_id

_T = TypeVar("_T")


@runtime_checkable
class _CanGrow(Protocol):
    def refresh_size(self) -> int: ...


class EmulatedPool:
    """A `Pool` on two block devices, which it closes in the end.

    Args:
        metadata, data: the devices; a `refresh_size` method, where they have one, notices that they grew.
        table: what to be. Its two paths are only compared, with those of later tables.
        clock: seconds, for the periodic commit and the end of queueing.
        durable: False never flushes a device.
        discards_reach_data: whether discarding on `data` gives space back.
        no_space_timeout_seconds: how long a full pool lets writes wait; 0 is for ever.

    Raises:
        InvalidRequest, MetadataCorrupt: as `Backend.open_pool`. The devices are then still open and the caller's.
    """

    def __init__(
        self,
        metadata: BlockDevice,
        data: BlockDevice,
        table: PoolTable,
        *,
        name: str,
        clock: Callable[[], float] = time.monotonic,
        durable: bool = True,
        discards_reach_data: bool = True,
        no_space_timeout_seconds: float = NO_SPACE_TIMEOUT_SECONDS,
    ) -> None:
        table.check()
        self._name = name
        self._metadata_device = metadata
        self._data_device = data
        self._loaded: PoolTable | None = None
        self._suspended = False
        self._closed = False
        self._is_grouping = False
        self._open_thins: dict[int, OpenThin] = {}
        self._tallies: dict[int, Tally] = {}
        self._of_deleted: list[ThinCounters] = []
        check_data_device(name, table, _current_size(data))
        self._metered = MeteredDevice(metadata, durable=durable)
        opened = _load_metadata(self._metered, table)
        try:
            self._engine = Engine(
                name,
                opened,
                data,
                table,
                clock=clock,
                durable=durable,
                discards_reach_data=discards_reach_data,
                no_space_timeout_seconds=no_space_timeout_seconds,
            )
            self._take_sizes(table)
        except BaseException:
            opened.close()
            raise
        not_inherited(self, f"pool '{name}'")

    @property
    def name(self) -> str:
        return self._name

    @property
    def block_bytes(self) -> int:
        return self._engine.block_bytes

    @property
    def event_counter(self) -> int:
        return self._engine.event_counter

    @property
    def no_space_timeout_seconds(self) -> float:
        return self._engine.no_space_timeout_seconds

    def set_no_space_timeout(self, seconds: float) -> None:
        self._engine.set_no_space_timeout(seconds)

    # ------------------------------------------------------------------------------------------ messages

    def create_thin(self, thin_id: int) -> None:
        self._change(
            "create_thin",
            lambda metadata: metadata.require_new(thin_id),
            lambda metadata: metadata.create_thin(thin_id),
            thin_id,
        )

    def create_snap(self, thin_id: int, origin_id: int) -> None:
        self._change(
            "create_snap",
            lambda metadata: metadata.require_snapshot(thin_id, origin_id),
            lambda metadata: metadata.create_snap(thin_id, origin_id),
            thin_id,
            origin_id,
        )

    def delete(self, thin_id: int) -> None:
        def require_deletable(metadata: Metadata) -> None:
            shared = self._open_thins.get(thin_id)
            if shared is not None and shared.devices:
                names = ", ".join(f"'{device.name}'" for device in shared.devices)
                raise ThinBusy(f"thin {thin_id} of pool '{self._name}' is active as {names}; close it before deleting")
            metadata.open_thin(thin_id)

        self._change("delete", require_deletable, lambda metadata: metadata.delete_thin(thin_id), thin_id)
        if (tally := self._tallies.pop(thin_id, None)) is not None:
            self._of_deleted = [ThinCounters.total([*self._of_deleted, tally.report()])]

    def set_transaction_id(self, old: int, new: int) -> None:
        self._change(
            "set_transaction_id",
            lambda metadata: metadata.require_transaction_id(old),
            lambda metadata: metadata.set_transaction_id(old, new),
        )

    def reserve_metadata_snap(self) -> None:
        # Alone of all messages it commits what was before it also when it is refused.
        self._change("reserve_metadata_snap", Metadata.check_writable, lambda metadata: metadata.reserve_snap())

    def release_metadata_snap(self) -> None:
        self._change("release_metadata_snap", Metadata.require_snap, lambda metadata: metadata.release_snap())

    def message(self, text: str) -> None:
        self._require_messages(f"message '{text}'")
        message = Message.parse(text)
        getattr(self, message.name)(*message.arguments)

    def _require_messages(self, request: str) -> None:
        self._require_open()
        if self._engine.mode >= PoolMode.OUT_OF_METADATA_SPACE:
            raise self._engine.mode_error(request, errno.EOPNOTSUPP)

    def _change(
        self,
        name: str,
        require_possible: Callable[[Metadata], object],
        operation: Callable[[Metadata], None],
        *thin_ids: int,
    ) -> None:
        """Carry out one message and commit it; one that is not possible is refused, and commits nothing.

        What was done before is committed first, so that a message that meets damage can be undone alone; with others
        of its group.
        """
        self._require_messages(name)
        for thin_id in thin_ids:
            require_thin_id(thin_id)
        engine = self._engine
        require_possible(engine.metadata)
        if engine.metadata.changed and not self._is_grouping:
            engine.commit()
            self._require_messages(name)
        try:
            operation(engine.metadata)
        except ThinBusy:
            raise
        except MetadataCorrupt:
            engine.roll_back()
            raise
        except OSError as error:
            raise engine.operation_failed(name, error) from error
        if not self._is_grouping:
            engine.commit_change()

    @contextmanager
    def together(self) -> Iterator[None]:
        self._require_open()
        engine = self._engine
        if engine.metadata.changed:
            engine.commit()
        self._is_grouping = True
        try:
            yield
        finally:
            self._is_grouping = False
            if engine.metadata.changed and engine.mode < PoolMode.OUT_OF_METADATA_SPACE:
                engine.commit_change()

    # ------------------------------------------------------------------------------------------ status

    def status(self, *, flush: bool = True) -> PoolStatus | UnreadableStatus:
        self._require_open()
        engine = self._engine
        if flush and not self._suspended:
            with suppress(PoolError):  # the status shows what became of the pool
                engine.commit()
        if engine.mode is PoolMode.FAIL:
            return UnreadableStatus.FAIL
        engine.queue_seconds_left()
        metadata = engine.metadata
        return PoolStatus(
            transaction_id=metadata.transaction_id,
            used_metadata_blocks=MetaBlocks(metadata.metadata_blocks - engine.usable_metadata_blocks()),
            total_metadata_blocks=MetaBlocks(metadata.metadata_blocks),
            used_data_blocks=DataBlocks(metadata.data_used_blocks),
            total_data_blocks=DataBlocks(metadata.data_blocks),
            held_root=metadata.held_root,
            mode=engine.mode,
            discard=self._discard_mode(),
            no_space=engine.no_space,
            needs_check=metadata.needs_check,
            metadata_low_water=MetaBlocks(engine.metadata_low_water_blocks),
        )

    def _discard_mode(self) -> DiscardMode:
        if self._engine.table.ignore_discard:
            return DiscardMode.IGNORE
        return DiscardMode.PASSDOWN if self._engine.passes_discards_down else DiscardMode.NO_PASSDOWN

    def table(self) -> PoolTable:
        self._require_open()
        return self._engine.table

    def thin_ids(self) -> list[int]:
        self._require_open()
        return self._engine.metadata.thin_ids()

    def thin_status(self, thin_id: int) -> ThinStatus | UnreadableStatus:
        self._require_open()
        require_thin_id(thin_id)
        if self._engine.mode is PoolMode.FAIL:
            return UnreadableStatus.FAIL
        return mapping_status(self._engine, self._engine.metadata.open_thin(thin_id))

    def open_metadata(self) -> BlockDevice:
        """The metadata device, for reading. What is read is one commit as long as the pool does not commit again."""
        self._require_open()
        return ReadOnlyView(self._metadata_device)

    def read_metadata(self, read: Callable[[BlockDevice, bool], _T]) -> _T:
        self.commit()
        return read(self.open_metadata(), False)

    def counters(self) -> Counters:
        self._require_open()
        engine = self._engine
        thins = {thin_id: tally.report() for thin_id, tally in self._tallies.items()}
        requests = ThinCounters.total([Tally().report(), *self._of_deleted, *thins.values()])
        zeroed_bytes = requests.zeroed_bytes if getattr(engine.data, "writes_zeros", True) else 0
        written = (requests.written_bytes, requests.copied_bytes, zeroed_bytes)
        metadata_bytes = self._metered.written_bytes
        pool = PoolCounters(
            requests=requests,
            freed_blocks=engine.freed_blocks,
            commits=engine.commits,
            data_written_bytes=sum(part or 0 for part in written),
            data_flushes=engine.data_flushes,
            metadata_written_blocks=metadata_bytes // METADATA_BLOCK_BYTES,
            metadata_written_bytes=metadata_bytes,
        )
        return Counters(pool, thins)

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
        engine = self._engine
        require_thin_id(thin_id)
        check_thin_length(name, length_sectors)
        if engine.mode is PoolMode.FAIL:
            raise InvalidRequest(f"thin {thin_id} cannot be activated: pool '{self._name}' has failed")
        if any(device.name == name for device in self.active()):
            raise InvalidRequest(f"'{name}' is already active in pool '{self._name}'", errno=errno.EBUSY)
        shared = self._open_thins.get(thin_id)
        if shared is None or not shared.devices:
            mapping = engine.metadata.open_thin(thin_id)
            shared = OpenThin(mapping, self._tallies.setdefault(thin_id, Tally()))
        if self._suspended:
            raise InvalidRequest(f"thin {thin_id} cannot be activated: pool '{self._name}' is suspended; resume it")
        origin = None if external_origin is None else open_origin(external_origin)
        if not shared.devices:
            self._open_thins[thin_id] = shared
            engine.followers.append(shared)
        return EmulatedThin(
            engine,
            shared,
            name,
            length_sectors,
            read_only=read_only,
            origin=origin,
            origin_path=external_origin,
        )

    def active(self) -> list[ThinDevice]:
        return [device for shared in self._open_thins.values() for device in shared.devices]

    # ------------------------------------------------------------------------------------------ tables

    def reload(self, table: PoolTable) -> None:
        self._require_open()
        check_reload(self._name, self._engine.table, table)
        check_data_device(self._name, table, _current_size(self._data_device))
        self._loaded = table

    def suspend(self) -> None:
        self._require_open()
        if self._suspended:
            return
        self._suspended = True
        self._tell_thins()
        self._engine.commit()

    def resume(self) -> None:
        self._require_open()
        table = self._loaded
        if table is None and not self._suspended:
            return
        self.suspend()
        table = table or self._engine.table
        self._require_sizes(table)
        self._engine.bind(table, keep_mode=self._loaded is None)
        self._take_sizes(table)
        self._loaded = None
        self._suspended = False
        self._tell_thins()

    def _tell_thins(self) -> None:
        for shared in self._open_thins.values():
            for device in shared.devices:
                device.set_pool_suspended(self._suspended)

    def _require_sizes(self, table: PoolTable) -> None:
        """Raise where the metadata knows more blocks than the devices or the table have."""
        metadata = self._engine.metadata
        if self._engine.mode is PoolMode.FAIL:
            return
        if table.data_blocks < metadata.data_blocks:
            raise InvalidRequest(
                f"pool '{self._name}' has {metadata.data_blocks} data blocks; a table with {table.data_blocks} is too "
                "small, and pools do not shrink"
            )
        have = self._metadata_device_blocks()
        if have < metadata.metadata_blocks:
            raise InvalidRequest(
                f"pool '{self._name}' has {metadata.metadata_blocks} metadata blocks; {table.metadata_device} is too "
                f"small with {have}"
            )

    def _metadata_device_blocks(self) -> int:
        return min(_current_size(self._metadata_device) // METADATA_BLOCK_BYTES, MAX_METADATA_BLOCKS)

    def _take_sizes(self, table: PoolTable) -> None:
        """Grow the metadata's idea of both devices to what there is; a pool that needs a check keeps its sizes."""
        self._require_sizes(table)
        engine = self._engine
        metadata = engine.metadata
        if engine.mode is PoolMode.OUT_OF_METADATA_SPACE and self._metadata_device_blocks() > metadata.metadata_blocks:
            engine.set_mode(PoolMode.WRITE)
        if engine.mode >= PoolMode.OUT_OF_METADATA_SPACE:
            return
        try:
            if table.data_blocks > metadata.data_blocks:
                metadata.resize_data(table.data_blocks)
            if self._metadata_device_blocks() > metadata.metadata_blocks:
                metadata.resize_metadata(self._metadata_device_blocks())
        except OSError as error:
            raise engine.operation_failed("growing", error) from error
        if metadata.changed:
            engine.commit()

    # ------------------------------------------------------------------------------------------ time, end

    def tick(self) -> None:
        self._require_open()
        self._engine.queue_seconds_left()
        if not self._suspended:
            self._engine.commit_when_due()
            self._engine.reclaim()

    def extra_space_wait_seconds(self) -> float:
        self._require_open()
        return self._engine.queue_seconds_left()

    def commit(self) -> None:
        self._require_open()
        self._engine.commit()

    # ------------------------------------------------------------------------------------------ faults

    def disks(self) -> dict[str, BlockDevice]:
        self._require_open()
        return {"data": self._engine.data, "metadata": self._metered}

    def degrade(self, mode: PoolMode, *, needs_check: bool = False) -> None:
        self._require_open()
        self._engine.degrade(mode, needs_check=needs_check)

    def close(self) -> None:
        if self._closed:
            return
        with ExitStack() as stack:
            stack.callback(self._data_device.close)
            stack.callback(self._metadata_device.close)
            stack.callback(self._engine.metadata.close)
            stack.callback(setattr, self, "_closed", True)
            stack.callback(self._close_thins)
            self._engine.write_needs_check()
            self._engine.commit()
            self._engine.reclaim(everything=True)
            self._engine.flush_data()

    def _close_thins(self) -> None:
        for device in self.active():
            device.close()

    def _require_open(self) -> None:
        if self._closed:
            raise InvalidRequest(f"pool '{self._name}' is closed", errno=errno.EBADF)


class ReadOnlyView:
    """Reads another device; `close` leaves that device open."""

    def __init__(self, inner: BlockDevice) -> None:
        self._inner = inner

    @property
    def size_bytes(self) -> int:
        return self._inner.size_bytes

    def pread(self, offset: int, length: int) -> bytes:
        return self._inner.pread(offset, length)

    def pwrite(self, offset: int, data: Buffer) -> None:
        raise _read_only(offset, len(data))

    def zero(self, offset: int, length: int) -> None:
        raise _read_only(offset, length)

    def discard(self, offset: int, length: int) -> None:
        raise _read_only(offset, length)

    def copy(self, source_offset: int, target_offset: int, length: int) -> None:  # noqa: ARG002
        raise _read_only(target_offset, length)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def _read_only(offset: int, length: int) -> InvalidRequest:
    return InvalidRequest(
        f"write of {length} bytes at {offset:#x}: this view of a device is for reading", errno=errno.EROFS
    )


def _current_size(device: BlockDevice) -> int:
    return device.refresh_size() if isinstance(device, _CanGrow) else device.size_bytes


def _load_metadata(device: BlockDevice, table: PoolTable) -> Metadata:
    """Format a device whose first block is zeros, else open what it holds."""
    if _current_size(device) >= METADATA_BLOCK_BYTES and not any(device.pread(0, METADATA_BLOCK_BYTES)):
        if table.read_only:
            raise InvalidRequest(
                f"{table.metadata_device} is not formatted, and a read_only pool formats nothing", errno=errno.EPERM
            )
        return Metadata.create(device, table.block_sectors)
    return Metadata.open(device, data_block_sectors=table.block_sectors, read_only=table.read_only)
