"""What a disk loses when its power fails: what was written to it since its last flush, all of it or some.

    put_in_place(thin, unsynced.under, innermost=True)      flushes count that reach the disk itself
    disk = unsynced.over(thin)      written through, and what was there before is kept until the next flush
    unsynced.power_off()            the power fails; what is written from now on, was on its way to the disk
    unsynced.power_on(thin)         the disk is as it was at its last flush
    unsynced.power_on(thin, rng)    or as if it had failed a little later, with some of what was written by then on it,
                                    down to single sectors

Reordering and tearing are those that a disk may do: it has what was written before the last flush that it has finished,
and any part of the rest.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from cowfs.blockdev import BlockDevice, Buffer, WrappedDevice
from cowfs.units import SECTOR_BYTES

_MOST_KEPT_BYTES: Final = 256 << 20
_PIECE_BYTES: Final = 1 << 20
_STAGES: Final = 2
_SHARE: Final = 0.5  # of the writes that are lost, of those that are torn, and of the sectors of these


@dataclass(frozen=True, slots=True)
class _Write:
    """A change of a range, with what was there before; None stands for zeros. A flush changes nothing."""

    offset: int = 0
    length: int = 0
    before: bytes | None = None
    is_flush: bool = False


class Unsynced:
    """Of one disk, which may be closed and opened again meanwhile."""

    def __init__(self) -> None:
        self._writes: list[_Write] = []
        self._kept_bytes = 0
        self._off_at: int | None = None

    @property
    def is_off(self) -> bool:
        """Whether the power is off."""
        return self._off_at is not None

    def over(self, disk: BlockDevice) -> BlockDevice:
        """The disk, for those who write to it."""
        return _Watched(disk, self)

    def under(self, disk: BlockDevice) -> BlockDevice:
        """The disk, for what stands in its place: a flush that is lost on the way down makes nothing durable."""
        return _Flushed(disk, self)

    def power_off(self) -> None:
        self._off_at = len(self._writes)

    def power_on(self, disk: BlockDevice, rng: random.Random | None = None) -> int:
        """Make the disk what it is when the power is back; how many bytes of writes are not on it, or not wholly.

        Args:
            disk: nothing else uses it now.
            rng: chooses the moment and what is lost; everything since the last flush is when None.
        """
        writes, self._writes, off_at = self._writes, [], self._off_at or 0
        self._off_at, self._kept_bytes = None, 0
        after = [b""] * len(writes)
        for number in range(len(writes) - 1, -1, -1):
            write = writes[number]
            if write.is_flush:
                continue
            if rng is not None:
                after[number] = disk.pread(write.offset, write.length)
            disk.pwrite(write.offset, write.before or bytes(write.length))
        lost_bytes = sum(write.length for write in writes[:off_at])
        if rng is not None:
            end = _moment(writes, off_at, rng)
            durable = max((number for number in range(end) if writes[number].is_flush), default=0)
            for number, write in enumerate(writes[:end]):
                is_durable = number < durable
                for begin, length in [(0, write.length)] if is_durable else _survivors(write.length, rng):
                    disk.pwrite(write.offset + begin, memoryview(after[number])[begin : begin + length])
                    lost_bytes -= length if number < off_at else 0
        disk.flush()
        return lost_bytes

    def note(self, disk: BlockDevice, offset: int, length: int) -> None:
        """A range is about to change. A disk has sectors: what is written to a part of one, is written to all of it."""
        end = min(-(-(offset + length) // SECTOR_BYTES) * SECTOR_BYTES, disk.size_bytes)
        for begin in range(offset // SECTOR_BYTES * SECTOR_BYTES, end, _PIECE_BYTES):
            size = min(_PIECE_BYTES, end - begin)
            before = disk.pread(begin, size)
            is_zero = before == bytes(size)
            self._writes.append(_Write(begin, size, None if is_zero else before))
            self._kept_bytes += 0 if is_zero else size
        if self._kept_bytes > _MOST_KEPT_BYTES and not self.is_off:
            disk.flush()  # a disk may do so at any time

    def note_flush(self) -> None:
        if self.is_off:
            self._writes.append(_Write(is_flush=True))
        else:
            self._writes.clear()
            self._kept_bytes = 0


def _moment(writes: list[_Write], off_at: int, rng: random.Random) -> int:
    """How many writes were requested when the power failed, at `off_at` or up to two flushes later.

    Each of the stages between flushes is as likely, however many writes it has: what is written before a commit of the
    journal is durable, and what is after it.
    """
    flushes = [number for number in range(off_at, len(writes)) if writes[number].is_flush]
    bounds = [off_at, *flushes[:_STAGES]] if flushes else [off_at, len(writes)]
    stage = rng.randrange(len(bounds) - 1)
    return rng.randint(bounds[stage], bounds[stage + 1])


def _survivors(length: int, rng: random.Random) -> list[tuple[int, int]]:
    """(offset, length) of the pieces of a write that the disk has."""
    if rng.random() < _SHARE:
        return []
    if length <= SECTOR_BYTES or rng.random() < _SHARE:
        return [(0, length)]
    pieces = ((begin, min(SECTOR_BYTES, length - begin)) for begin in range(0, length, SECTOR_BYTES))
    return [piece for piece in pieces if rng.random() < _SHARE]


class _Watched(WrappedDevice):
    """A disk whose changes are noted."""

    def __init__(self, inner: BlockDevice, unsynced: Unsynced) -> None:
        super().__init__(inner)
        self._unsynced = unsynced

    def pread(self, offset: int, length: int) -> bytes:
        return self.inner.pread(offset, length)

    def pwrite(self, offset: int, data: Buffer) -> None:
        self._unsynced.note(self.inner, offset, len(data))
        self.inner.pwrite(offset, data)

    def zero(self, offset: int, length: int) -> None:
        self._unsynced.note(self.inner, offset, length)
        self.inner.zero(offset, length)

    def discard(self, offset: int, length: int) -> None:
        self._unsynced.note(self.inner, offset, length)
        self.inner.discard(offset, length)

    def copy(self, source_offset: int, target_offset: int, length: int) -> None:
        self._unsynced.note(self.inner, target_offset, length)
        self.inner.copy(source_offset, target_offset, length)

    def flush(self) -> None:
        self.inner.flush()


class _Flushed(WrappedDevice):
    """A disk whose flushes are noted."""

    def __init__(self, inner: BlockDevice, unsynced: Unsynced) -> None:
        super().__init__(inner)
        self._unsynced = unsynced
        self.pread = inner.pread
        self.pwrite = inner.pwrite
        self.zero = inner.zero
        self.discard = inner.discard
        self.copy = inner.copy

    def flush(self) -> None:
        self.inner.flush()
        self._unsynced.note_flush()
