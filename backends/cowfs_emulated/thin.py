"""An active thin device of an emulated pool: the data path.

A write is cut at the borders of runs that are mapped alike, and each run becomes one I/O on the data device:

    mapped, unshared    written in place; the metadata does not change
    unmapped            allocate; blocks not covered whole get zeros, or the external origin's bytes; write; map
    mapped, shared      allocate; blocks not covered whole are copied; write; map (the old block loses a reference)

The mapping is inserted after the data is written. If the data cannot be written, the allocation is released and nothing
changes. A write that runs out of space part-way leaves what it has written, as a disk does, and may be repeated.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress

import msgspec

from cowfs.blockdev import BlockDevice, Buffer, FileDevice, copy_by_reading
from cowfs.errors import InvalidRequest, PoolError, PoolIoError, PoolModeError
from cowfs.forking import not_inherited
from cowfs.pool import Extent, PoolMode, ThinStatus, ThinTable, UnreadableStatus, check_thin_length
from cowfs.thinmeta import ThinMapping
from cowfs.units import MAX_THIN_ID, SECTOR_BYTES, Sectors, ThinId
from cowfs_emulated.engine import Engine
from cowfs_emulated.tally import Tally

_COPY_CHUNK_BYTES = 1 << 20


class OpenThin(msgspec.Struct):
    """What the active devices of one thin id have in common; lives while at least one of them does."""

    mapping: ThinMapping
    tally: Tally
    devices: list[EmulatedThin] = msgspec.field(default_factory=list)
    lost_changes: bool = False

    def note_abort(self) -> None:
        if self.mapping.changed:
            self.lost_changes = True

    def note_mode(self) -> None:
        for device in self.devices:
            device.refresh()


class EmulatedThin:
    """A `ThinDevice`. Made by `EmulatedPool.activate`.

    I/O on a suspended device is refused with EAGAIN: nothing here can wait, the asynchronous edge does.
    """

    def __init__(
        self,
        engine: Engine,
        shared: OpenThin,
        name: str,
        length_sectors: int,
        *,
        read_only: bool = False,
        origin: BlockDevice | None = None,
        origin_path: str | None = None,
    ) -> None:
        self._engine = engine
        self._shared = shared
        self._mapping = shared.mapping
        self._tally = shared.tally
        self._data = engine.data
        self._block_bytes = engine.block_bytes
        self._name = name
        self._read_only = read_only
        self._origin = origin
        self._origin_path = origin_path
        self._suspended = False
        self._pool_suspended = False
        self._closed = False
        self._size_bytes = length_sectors * SECTOR_BYTES
        # Ends of the ranges that may be read and written right now; 0 sends every request to the slow, explaining path.
        self._readable_bytes = 0
        self._writable_bytes = 0
        shared.devices.append(self)
        self.refresh()
        not_inherited(self, f"the device '{name}'")

    # ------------------------------------------------------------------------------------------ properties

    @property
    def name(self) -> str:
        return self._name

    @property
    def thin_id(self) -> int:
        return self._mapping.thin_id

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def block_bytes(self) -> int:
        return self._block_bytes

    def status(self, *, flush: bool = True) -> ThinStatus | UnreadableStatus:
        self._require_open()
        if flush and not self._suspended and not self._pool_suspended:
            with suppress(PoolError):  # the status shows what became of the pool
                self._engine.commit()
        return mapping_status(self._engine, self._mapping)

    def table(self) -> ThinTable:
        return ThinTable(
            length_sectors=Sectors(self._size_bytes // SECTOR_BYTES),
            pool_device=self._engine.name,
            thin_id=ThinId(self.thin_id),
            external_origin=self._origin_path,
        )

    def extents(self, begin_vblock: int = 0, end_vblock: int | None = None) -> Iterator[Extent]:
        self._require_open()
        return self._mapping.extents(begin_vblock, end_vblock)

    # ------------------------------------------------------------------------------------------ lifecycle

    def refresh(self) -> None:
        """Work out again what I/O may do."""
        running = not (self._closed or self._suspended or self._pool_suspended)
        usable = running and self._engine.mode is not PoolMode.FAIL
        self._readable_bytes = self._size_bytes if usable else 0
        self._writable_bytes = 0 if self._read_only else self._readable_bytes

    def set_pool_suspended(self, suspended: bool) -> None:
        self._pool_suspended = suspended
        self.refresh()

    def resize(self, length_sectors: int) -> None:
        self._require_open()
        check_thin_length(self._name, length_sectors)
        if self._pool_suspended:
            raise InvalidRequest(
                f"'{self._name}' cannot be resized: pool '{self._engine.name}' is suspended; resume it"
            )
        self._size_bytes = length_sectors * SECTOR_BYTES
        self.refresh()

    def suspend(self) -> None:
        self._require_open()
        if self._suspended:
            return
        try:
            if not self._pool_suspended:
                self.flush()
        finally:
            self._suspended = True
            self.refresh()

    def resume(self) -> None:
        self._require_open()
        self._suspended = False
        self.refresh()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.refresh()
        self._shared.devices.remove(self)
        if not self._shared.devices:
            self._engine.followers.remove(self._shared)
        if self._origin is not None:
            self._origin.close()

    # ------------------------------------------------------------------------------------------ reading

    def pread(self, offset: int, length: int) -> bytes:
        end = offset + length
        if not 0 <= offset < end <= self._readable_bytes:
            self._raise_refusal("read", offset, length, self._readable_bytes)
            return b""
        tally = self._tally
        tally.reads += 1
        tally.read_bytes += length
        block_bytes = self._block_bytes
        vblock = offset // block_bytes
        runs = self._engine.lookup(self._mapping, vblock, -(-end // block_bytes) - vblock)
        dblock = runs[0][1]
        try:
            if len(runs) == 1 and dblock >= 0:
                return self._data.pread((dblock - vblock) * block_bytes + offset, length)
            return self._pread_runs(offset, end, vblock, runs)
        except OSError as error:
            raise self._io_error("read", offset, length, error) from error

    def _pread_runs(self, offset: int, end: int, vblock: int, runs: list[tuple[int, int, int]]) -> bytes:
        block_bytes = self._block_bytes
        parts = []
        for length, dblock in _join_neighbours(runs):
            begin = max(offset, vblock * block_bytes)
            vblock_end = vblock + length
            count = min(end, vblock_end * block_bytes) - begin
            if dblock >= 0:
                parts.append(self._data.pread((dblock - vblock) * block_bytes + begin, count))
            else:
                parts.append(self._read_origin(begin, count))
            vblock = vblock_end
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_origin(self, offset: int, length: int) -> bytes:
        """What an unmapped range reads as: the external origin, and zeros past its end."""
        if self._origin is None:
            return bytes(length)
        inside = min(length, max(0, self._origin.size_bytes - offset))
        found = self._origin.pread(offset, inside) if inside else b""
        return found + bytes(length - inside)

    # ------------------------------------------------------------------------------------------ writing

    def pwrite(self, offset: int, data: Buffer) -> None:
        length = len(data)
        end = offset + length
        if not 0 <= offset < end <= self._writable_bytes:
            self._raise_refusal("write", offset, length, self._writable_bytes)
            return
        tally = self._tally
        tally.writes += 1
        tally.written_bytes += length
        block_bytes = self._block_bytes
        vblock = offset // block_bytes
        runs = self._engine.lookup(self._mapping, vblock, -(-end // block_bytes) - vblock)
        _, dblock, shared = runs[0]
        try:
            if len(runs) == 1 and dblock >= 0 and not shared:
                self._data.pwrite((dblock - vblock) * block_bytes + offset, data)
            else:
                self._pwrite_runs(offset, memoryview(data), vblock, runs)
        except PoolError:
            raise
        except OSError as error:
            raise self._io_error("write", offset, length, error) from error

    def _pwrite_runs(self, offset: int, view: memoryview, vblock: int, runs: list[tuple[int, int, int]]) -> None:
        block_bytes = self._block_bytes
        end = offset + len(view)
        following = sum(count for count, dblock, shared in runs if dblock < 0 or shared)
        for count, dblock, shared in runs:
            if dblock >= 0 and not shared:
                begin = max(offset, vblock * block_bytes)
                run_end = min(end, (vblock + count) * block_bytes)
                self._data.pwrite((dblock - vblock) * block_bytes + begin, view[begin - offset : run_end - offset])
            else:
                following -= count
                self._provision(offset, view, vblock, count, dblock, following)
            vblock += count

    def _provision(
        self, offset: int, view: memoryview, vblock: int, count: int, old_dblock: int, following: int
    ) -> None:
        """Put the part of a write that falls on a run of unmapped or shared blocks into fresh blocks.

        Args:
            offset: where the whole write, `view`, begins.
            old_dblock: first of the shared data blocks, -1 when the run is unmapped.
            following: fresh blocks that the write needs after this run.
        """
        engine = self._engine
        vblock_end = vblock + count
        while vblock < vblock_end:
            dblock, length = engine.allocate(vblock_end - vblock, following=following)
            try:
                self._fill_fresh(offset, view, vblock, length, dblock, old_dblock)
            except BaseException:
                engine.release(dblock, length)
                raise
            engine.insert(self._mapping, vblock, dblock, length)
            vblock += length
            if old_dblock >= 0:
                old_dblock += length
                self._tally.copied_blocks += length
            else:
                self._tally.provisioned_blocks += length

    def _fill_fresh(
        self, offset: int, view: memoryview, vblock: int, length: int, dblock: int, old_dblock: int
    ) -> None:
        """Write fresh data blocks, complete: what the write covers, and in its first and last block the rest."""
        block_bytes = self._block_bytes
        run_begin, run_end = vblock * block_bytes, (vblock + length) * block_bytes
        begin, end = max(offset, run_begin), min(offset + len(view), run_end)
        last = length - 1
        if begin > run_begin:
            self._fill_around(vblock, dblock, old_dblock)
        if end < run_end and not (begin > run_begin and last == 0):
            self._fill_around(vblock + last, dblock + last, old_dblock + last if old_dblock >= 0 else -1)
        self._data.pwrite(dblock * block_bytes + begin - run_begin, view[begin - offset : end - offset])

    def _fill_around(self, vblock: int, dblock: int, old_dblock: int) -> None:
        """Give a fresh block the content that a partial write is laid over."""
        block_bytes = self._block_bytes
        if old_dblock >= 0:
            self._data.copy(old_dblock * block_bytes, dblock * block_bytes, block_bytes)
            self._tally.copied_bytes += block_bytes
        elif self._origin is not None and self._origin.size_bytes > vblock * block_bytes:
            self._data.pwrite(dblock * block_bytes, self._read_origin(vblock * block_bytes, block_bytes))
            self._tally.copied_bytes += block_bytes
        else:
            self._data.zero(dblock * block_bytes, block_bytes)
            self._tally.zeroed_bytes += block_bytes

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros: whole blocks are unmapped where that shows zeros, the rest is written."""
        end = offset + length
        if not 0 <= offset < end <= self._writable_bytes:
            self._raise_refusal("zero", offset, length, self._writable_bytes)
            return
        block_bytes = self._block_bytes
        first, last = -(-offset // block_bytes), end // block_bytes
        if self._origin is not None or self._engine.table.ignore_discard or last <= first:
            self._write_zeros(offset, end)
            return
        self._write_zeros(offset, first * block_bytes)
        self._remove(first, last, (last - first) * block_bytes)
        # A pool that is read-only let the removal pass without doing it.
        if self._engine.mode >= PoolMode.OUT_OF_METADATA_SPACE:
            self._write_zeros(first * block_bytes, last * block_bytes)
        self._write_zeros(last * block_bytes, end)

    def _write_zeros(self, begin: int, end: int) -> None:
        """Write zeros over what is not zeros already because it is unmapped."""
        block_bytes = self._block_bytes
        while begin < end:
            vblock = begin // block_bytes
            chunk_end = min(end, (vblock + max(1, _COPY_CHUNK_BYTES // block_bytes)) * block_bytes)
            for length, dblock, _ in self._engine.lookup(self._mapping, vblock, -(-chunk_end // block_bytes) - vblock):
                vblock += length
                run_end = min(chunk_end, vblock * block_bytes)
                if dblock >= 0 or self._origin is not None:
                    self.pwrite(begin, bytes(run_end - begin))
                begin = run_end

    def copy(self, source_offset: int, target_offset: int, length: int) -> None:
        copy_by_reading(self, source_offset, target_offset, length)

    # ------------------------------------------------------------------------------------------ discard, flush

    def discard(self, offset: int, length: int) -> None:
        end = offset + length
        if self._engine.table.ignore_discard:
            raise InvalidRequest(
                f"discard on '{self._name}': pool '{self._engine.name}' has ignore_discard", errno=errno.EOPNOTSUPP
            )
        if not 0 <= offset < end <= self._writable_bytes:
            self._raise_refusal("discard", offset, length, self._writable_bytes)
            return
        first, last = -(-offset // self._block_bytes), end // self._block_bytes
        self._remove(first, last, length)

    def _remove(self, first: int, last: int, asked_bytes: int) -> None:
        """Unmap whole blocks, for a discard of so many bytes."""
        tally = self._tally
        tally.discards += 1
        tally.discarded_bytes += asked_bytes
        if first < last:
            tally.unmapped_blocks += self._engine.remove(self._mapping, first, last)

    def flush(self) -> None:
        """Commit the pool when this thin changed since the last commit; else flush the data device alone."""
        if not self._readable_bytes:
            self._raise_refusal("flush", 0, 0, self._readable_bytes)
            raise self._engine.mode_error(f"flush of '{self._name}'", errno.EIO)
        self._tally.flushes += 1
        if self._shared.lost_changes:
            raise PoolIoError(
                f"'{self._name}' (thin {self.thin_id}) lost changes when pool '{self._engine.name}' fell back to its "
                "last commit; close and activate it again"
            )
        if self._engine.mode >= PoolMode.OUT_OF_METADATA_SPACE and self._lacks_first_block():
            raise self._engine.mode_error(f"flush of '{self._name}'", errno.EIO)
        if self._mapping.changed:
            self._engine.commit()
        else:
            self._engine.flush_data()

    def _lacks_first_block(self) -> bool:
        """The kernel treats a flush as a write to the first block, also where it provisions nothing any more."""
        return self._engine.lookup(self._mapping, 0, 1)[0][1] < 0

    def start_flush(self) -> None:
        self._engine.start_flush_data()

    # ------------------------------------------------------------------------------------------ refusals

    def _io_error(self, request: str, offset: int, length: int, cause: OSError) -> PoolIoError:
        reason = cause.strerror or str(cause)
        return PoolIoError(
            f"{request} of {length} bytes at {offset:#x} on '{self._name}' (thin {self.thin_id}) failed on the data "
            f"device of pool '{self._engine.name}': {reason}",
            errno=cause.errno,
        )

    def _require_open(self) -> None:
        if self._closed:
            raise InvalidRequest(f"'{self._name}' is not active any more", errno=errno.EBADF)

    def _raise_refusal(self, request: str, offset: int, length: int, limit_bytes: int) -> None:
        """Raise the reason why a request was not served; returns when it is legal and of length 0."""
        self._require_open()
        if self._suspended or self._pool_suspended:
            what = f"'{self._name}'" if self._suspended else f"pool '{self._engine.name}'"
            raise InvalidRequest(f"{request} on '{self._name}': {what} is suspended; resume it", errno=errno.EAGAIN)
        if self._engine.mode is PoolMode.FAIL:
            raise self._engine.mode_error(f"{request} on '{self._name}'", errno.EIO)
        if request not in ("read", "flush") and self._read_only:
            raise PoolModeError(f"{request} on '{self._name}': it was activated read-only", errno=errno.EROFS)
        if offset < 0 or length < 0 or offset + length > limit_bytes:
            raise InvalidRequest(
                f"{request} of {length} bytes at {offset:#x} on '{self._name}': it is {self._size_bytes:#x} bytes long"
            )


def mapping_status(engine: Engine, mapping: ThinMapping) -> ThinStatus | UnreadableStatus:
    if engine.mode is PoolMode.FAIL:
        return UnreadableStatus.FAIL
    try:
        return ThinStatus.of_blocks(mapping.mapped_blocks, mapping.highest(), engine.table.block_sectors)
    except OSError:
        return UnreadableStatus.ERROR


def require_thin_id(thin_id: int) -> None:
    if not 0 <= thin_id <= MAX_THIN_ID:
        raise InvalidRequest(f"{thin_id} is not a device id; ids are 0 to {MAX_THIN_ID}")


def open_origin(path: str) -> BlockDevice:
    try:
        return FileDevice(path, read_only=True)
    except PoolError:
        raise
    except OSError as error:
        raise InvalidRequest(
            f"external origin {path} cannot be opened: {os.strerror(error.errno or errno.EIO).lower()}",
            errno=error.errno,
        ) from error


def _join_neighbours(runs: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """Runs as (length, dblock), joined where they are one range on the data device, shared or not."""
    joined: list[tuple[int, int]] = []
    for length, dblock, _ in runs:
        if joined:
            before, begin = joined[-1]
            if (dblock == begin + before) if begin >= 0 else dblock < 0:
                joined[-1] = (before + length, begin)
                continue
        joined.append((length, dblock))
    return joined
