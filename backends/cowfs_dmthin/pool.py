"""A thin pool of the kernel: a device-mapper device with a `thin-pool` table over two backing devices."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from typing import TypeVar

from cowfs.blockdev import BlockDevice, FileDevice
from cowfs.errors import (
    InvalidRequest,
    MetadataCorrupt,
    NoSuchThin,
    OutOfMetadataSpace,
    PoolError,
    PoolIoError,
    PoolModeError,
    ThinBusy,
    ThinExists,
)
from cowfs.pool import (
    Extent,
    Message,
    PoolMode,
    PoolStatus,
    PoolTable,
    ThinDevice,
    ThinStatus,
    UnreadableStatus,
)
from cowfs.thinmeta import Metadata
from cowfs.units import METADATA_BLOCK_BYTES, SECTOR_BYTES, Sectors
from cowfs_dmthin.abi import MAX_DM_NAME_BYTES, TargetLine, format_device_number
from cowfs_dmthin.control import Control, ControlError, DeviceInfo, only_line
from cowfs_dmthin.holders import describe_holders
from cowfs_dmthin.loop import Backing, open_backing
from cowfs_dmthin.thin import DmThin

_T = TypeVar("_T")
_POOL_SUFFIX = "-pool"
_QUIET_READS = 3
_COPY_CHUNK_BYTES = 1 << 20


class DmPool:
    """A `Pool` of the kernel. Made by `DmThinBackend.open_pool`.

    The kernel commits on its own once a second, and lets writers to a full pool wait by itself; so `tick` has nothing
    to do and `extra_space_wait_seconds` is 0.

    Reading metadata while the pool runs: see `_read_committed`.
    """

    def __init__(
        self, control: Control, name: str, table: PoolTable, metadata: Backing, data: Backing, *, durable: bool
    ) -> None:
        """Over a pool device that is live already; takes the backing devices over."""
        self._control = control
        self._name = name
        self._metadata = metadata
        self._data = data
        self._durable = durable
        self._table = table
        self._loaded: PoolTable | None = None
        self._suspended = False
        self._closed = False
        self._thins: list[DmThin] = []
        self._device_number = self._info().device_number

    # ------------------------------------------------------------------------------------------ properties

    @property
    def name(self) -> str:
        return self._name

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

    def wait_for_event(self, after: int) -> int:
        """Block until the event counter has passed `after`; its value. For a thread at the edge."""
        self._require_open()
        return self._control.wait(self._name, after)

    def _info(self) -> DeviceInfo:
        self._require_open()
        info = self._control.info(self._name)
        if info is None:
            raise PoolIoError(f"pool '{self._name}' vanished: device mapper has no device of this name any more")
        return info

    # ------------------------------------------------------------------------------------------ messages

    def create_thin(self, thin_id: int) -> None:
        self.message(f"create_thin {thin_id}")

    def create_snap(self, thin_id: int, origin_id: int) -> None:
        self.message(f"create_snap {thin_id} {origin_id}")

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

    def _message_error(self, text: str, error: ControlError) -> PoolError:
        """The kernel's refusal in our terms. It looks at the mode before it looks at the words."""
        number = error.errno
        if number == errno.EOPNOTSUPP:
            return PoolModeError(
                f"message '{text}' was refused: pool '{self._name}' is read-only or failed; see its status"
            )
        if number == errno.EINVAL:
            try:
                message = Message.parse(text)
            except InvalidRequest as refusal:
                return refusal
            return InvalidRequest(f"pool '{self._name}' refused '{text}': {self._why_invalid(message)}")
        what = f"message '{text}' to pool '{self._name}'"
        if number == errno.EEXIST:
            return ThinExists(f"{what}: the id is taken")
        if number == errno.ENODATA:
            return NoSuchThin(f"{what}: there is no thin of this id")
        if number == errno.EBUSY:
            held = text.lower().startswith("reserve")
            return ThinBusy(f"{what}: {'a metadata snapshot is held already' if held else 'the thin is active'}")
        if number == errno.EILSEQ:
            return MetadataCorrupt(f"{what}: the kernel met a damaged block; check the metadata", block=-1)
        if number == errno.ENOSPC:
            return OutOfMetadataSpace(f"{what}: no free metadata block")
        return error

    def _why_invalid(self, message: Message) -> str:
        if message.name == "set_transaction_id":
            status = self.status(flush=False)
            if isinstance(status, PoolStatus):
                return f"its transaction id is {status.transaction_id}"
        if message.name == "release_metadata_snap":
            return "no metadata snapshot is held"
        return "invalid argument"

    # ------------------------------------------------------------------------------------------ status

    def status(self, *, flush: bool = True) -> PoolStatus | UnreadableStatus:
        self._require_open()
        line = only_line(self._control.status(self._name, flush=flush), self._name)
        return PoolStatus.parse(line.parameters)

    def can_provision(self) -> bool:
        """Whether the mode lets the metadata change."""
        status = self.status(flush=False)
        return isinstance(status, PoolStatus) and status.mode <= PoolMode.OUT_OF_DATA_SPACE

    def has_failed(self) -> bool:
        return self.status(flush=False) is UnreadableStatus.FAIL

    def table(self) -> PoolTable:
        """The live table, as the kernel tells it, with the paths in place of device numbers."""
        self._require_open()
        line = only_line(self._control.table(self._name), self._name)
        told = PoolTable.parse(f"{line.start_sectors} {line.length_sectors} {line.target} {line.parameters}")
        return told.replace(metadata_device=self._metadata.path, data_device=self._data.path)

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
        sectors = self._table.block_sectors
        end = None if highest is None else Sectors((highest + 1) * sectors - 1)
        return ThinStatus(Sectors(mapped * sectors), end)

    def mapped_extents(self, thin_id: int, begin_vblock: int, end_vblock: int | None) -> list[Extent]:
        return self._read_committed(
            lambda metadata: list(metadata.open_thin(thin_id).extents(begin_vblock, end_vblock))
        )

    # ------------------------------------------------------------------------------------------ metadata

    def open_metadata(self) -> BlockDevice:
        """A copy of the committed metadata, consistent whatever the pool does meanwhile; gone when closed."""
        self._require_open()

        def copy(device: BlockDevice) -> FileDevice:
            with tempfile.NamedTemporaryFile(prefix="cowfs-metadata-") as file:
                _copy_sparse(device, file.fileno())
                return FileDevice(file.name, read_only=True)

        return self._read_quietly(copy)

    def _read_committed(self, read: Callable[[Metadata], _T]) -> _T:
        """Read something from the metadata as of now."""
        self._require_open()
        self.commit()

        def read_metadata(device: BlockDevice) -> _T:
            metadata = Metadata.open(device, read_only=True)
            try:
                return read(metadata)
            finally:
                metadata.close()

        return self._read_quietly(read_metadata)

    def _read_quietly(self, read: Callable[[BlockDevice], _T]) -> _T:
        """Read the metadata device so that no commit falls into the reading.

        The blocks of one commit stay in place until the next commit is complete, and every commit writes. So what was
        read is one commit when the device completed no write meanwhile. A pool that never pauses is suspended for the
        reading; that is the last resort, since its resume arms the low water event again.
        """
        for _ in range(_QUIET_READS):
            before = self._metadata.writes_completed()
            with suppress(MetadataCorrupt):
                result = self._read_once(read)
                if self._metadata.writes_completed() == before:
                    return result
                _discard_result(result)
        with self._paused():
            return self._read_once(read)

    def _read_once(self, read: Callable[[BlockDevice], _T]) -> _T:
        device = self._metadata.open_for_reading()
        try:
            return read(device)
        finally:
            device.close()

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
        if length_sectors <= 0:
            raise InvalidRequest(f"'{name}' cannot be {length_sectors} sectors long; give at least 1")
        if any(thin.name == name for thin in self._thins):
            raise InvalidRequest(f"'{name}' is already active in pool '{self._name}'", errno=errno.EBUSY)
        with ExitStack() as undo:
            origin = None
            if external_origin is not None:
                origin = open_backing(external_origin, "external origin", read_only=True)
                undo.callback(origin.close)
            thin = DmThin(
                self._control,
                self,
                name,
                dm_name_of_thin(self._name, name),
                thin_id,
                length_sectors,
                read_only=read_only,
                origin=origin,
            )
            undo.pop_all()
        self._thins.append(thin)
        return thin

    def active(self) -> list[ThinDevice]:
        return list(self._thins)

    def forget(self, thin: DmThin) -> None:
        self._thins.remove(thin)

    # ------------------------------------------------------------------------------------------ tables

    def reload(self, table: PoolTable) -> None:
        self._require_open()
        table.check()
        live = self._table
        if (table.metadata_device, table.data_device) != (live.metadata_device, live.data_device):
            raise InvalidRequest(
                f"pool '{self._name}' is on {live.metadata_device} and {live.data_device}; a reload cannot move it"
            )
        if table.block_sectors != live.block_sectors:
            raise InvalidRequest(
                f"pool '{self._name}' has data blocks of {live.block_sectors} sectors, not {table.block_sectors}"
            )
        if table.ignore_discard != live.ignore_discard:
            raise InvalidRequest(f"pool '{self._name}': a reload cannot turn discard support on or off")
        load_pool_table(self._control, self._name, table, self._metadata, self._data)
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
        self._metadata.refresh_size()
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
        for thin in self._thins:
            thin.settle()

    # ------------------------------------------------------------------------------------------ time, end

    def tick(self) -> None:
        self._require_open()

    def extra_space_wait_seconds(self) -> float:
        self._require_open()
        return 0.0

    def commit(self) -> None:
        """A status that flushes is the kernel's way to ask for a commit."""
        self.status()

    def close(self) -> None:
        """As `Pool.close`. Raises ThinBusy (EBUSY) when somebody uses a thin's node or the pool; it then stays open."""
        if self._closed:
            return
        for thin in list(self._thins):
            thin.close()
        with suppress(PoolError):  # a pool that failed is closed all the same
            self.commit()
        try:
            self._control.remove(self._name)
        except ControlError as error:
            if error.errno == errno.EBUSY:
                raise ThinBusy(
                    f"pool '{self._name}' cannot be closed: {describe_holders(self._device_number)}"
                ) from error
            if error.errno != errno.ENXIO:
                raise
        self._closed = True
        self._metadata.close()
        self._data.close()

    def _require_open(self) -> None:
        if self._closed:
            raise InvalidRequest(f"pool '{self._name}' is closed", errno=errno.EBADF)


def load_pool_table(control: Control, name: str, table: PoolTable, metadata: Backing, data: Backing) -> None:
    """Load a pool's table into the inactive slot, devices by number; both devices take the size they have now."""
    metadata.refresh_size()
    have_sectors = data.refresh_size() // SECTOR_BYTES
    if table.length_sectors > have_sectors:
        raise InvalidRequest(
            f"pool '{name}' of {table.length_sectors} sectors does not fit {table.data_device}, which has "
            f"{have_sectors}; enlarge it or give a shorter table"
        )
    words = table.replace(metadata_device=metadata.table_name, data_device=data.table_name).format().split()
    control.load(name, TargetLine(0, table.length_sectors, "thin-pool", " ".join(islice(words, 3, None))))


def dm_name_of_thin(pool_name: str, name: str) -> str:
    """`<prefix>-<name>` as moby has it, where the pool is `<prefix>-pool`; a digest where that is no name."""
    prefix = pool_name.removesuffix(_POOL_SUFFIX)
    plain = f"{prefix}-{name}"
    if plain != pool_name and "/" not in plain and len(os.fsencode(plain)) <= MAX_DM_NAME_BYTES:
        return plain
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return f"{prefix[: MAX_DM_NAME_BYTES - 40]}-name-{digest}"


def _copy_sparse(device: BlockDevice, fd: int) -> None:
    """Copy a device into an empty file, leaving holes for what is zero."""
    size = device.size_bytes // METADATA_BLOCK_BYTES * METADATA_BLOCK_BYTES
    os.ftruncate(fd, size)
    for offset in range(0, size, _COPY_CHUNK_BYTES):
        data = device.pread(offset, min(_COPY_CHUNK_BYTES, size - offset))
        if data.count(0) != len(data):
            os.pwrite(fd, data, offset)


def _discard_result(result: object) -> None:
    """Close what was read in vain."""
    if isinstance(result, FileDevice):
        result.close()
