"""Block devices for tests: one that fails on request, and one that remembers every write and flush.

Both wrap another device and look like it, growth included.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

from cowfs.blockdev import BlockDevice, Buffer, MemoryDevice
from cowfs.units import SECTOR_BYTES

ALL_OPERATIONS: Final = frozenset({"read", "write", "discard", "flush"})


class _Wrapper:
    """Passes everything on to `inner`."""

    def __init__(self, inner: BlockDevice) -> None:
        self.inner = inner

    @property
    def size_bytes(self) -> int:
        return self.inner.size_bytes

    def refresh_size(self) -> int:
        """See that the device grew, where it is one that has to look."""
        refresh = getattr(self.inner, "refresh_size", None)
        return int(refresh()) if refresh else self.inner.size_bytes

    def close(self) -> None:
        self.inner.close()


@dataclass(slots=True)
class Fault:
    """A rule of a `FaultyDevice`; `seen` and `failed` count what matched it and what it made fail.

    Args:
        operations: of `read`, `write` (zeroing and the target of a copy too), `discard`, `flush`.
        begin, end: the bytes it is about; an operation matches when it touches one of them. Flushes always match.
        after: how many matching operations pass first.
        times: how many then fail; None for all.
    """

    operations: Collection[str] = ALL_OPERATIONS
    begin: int = 0
    end: int | None = None
    after: int = 0
    times: int | None = None
    number: int = errno.EIO
    seen: int = 0
    failed: int = 0

    def hits(self, operation: str, offset: int, length: int) -> bool:
        """Count an operation; whether it must fail."""
        if operation not in self.operations:
            return False
        if operation != "flush" and (offset + length <= self.begin or (self.end is not None and offset >= self.end)):
            return False
        self.seen += 1
        if self.seen <= self.after or (self.times is not None and self.failed >= self.times):
            return False
        self.failed += 1
        return True


class FaultyDevice(_Wrapper):
    """Fails as its `faults` say. A failing operation does nothing else.

    device.fail(Fault({"write"}, after=2, times=1))     the third write fails
    device.fail(Fault({"read"}, begin=4096, end=8192))  one block cannot be read
    device.fail(Fault())                                nothing works any more
    device.heal()                                       everything does
    """

    def __init__(self, inner: BlockDevice) -> None:
        super().__init__(inner)
        self.faults: list[Fault] = []

    def fail(self, fault: Fault) -> Fault:
        self.faults.append(fault)
        return fault

    def heal(self) -> None:
        self.faults.clear()

    def _meet(self, operation: str, offset: int = 0, length: int = 0) -> None:
        for fault in self.faults:
            if fault.hits(operation, offset, length):
                raise OSError(fault.number, f"{os.strerror(fault.number)} (injected into {operation} at {offset:#x})")

    def pread(self, offset: int, length: int) -> bytes:
        self._meet("read", offset, length)
        return self.inner.pread(offset, length)

    def pwrite(self, offset: int, data: Buffer) -> None:
        self._meet("write", offset, len(data))
        self.inner.pwrite(offset, data)

    def zero(self, offset: int, length: int) -> None:
        self._meet("write", offset, length)
        self.inner.zero(offset, length)

    def discard(self, offset: int, length: int) -> None:
        self._meet("discard", offset, length)
        self.inner.discard(offset, length)

    def copy(self, source_offset: int, target_offset: int, length: int) -> None:
        self._meet("read", source_offset, length)
        self._meet("write", target_offset, length)
        self.inner.copy(source_offset, target_offset, length)

    def flush(self) -> None:
        self._meet("flush")
        self.inner.flush()


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened to a device. `data` is None for flushes and for what turns into zeros."""

    device: str
    operation: str  # write, zero, discard, copy or flush
    offset: int = 0
    length: int = 0
    data: bytes | None = None

    def apply(self, image: bytearray, *, sectors: Collection[int] | None = None) -> None:
        """Do it to an image; with `sectors`, only to those of its 512-byte pieces (counted from its begin)."""
        data = bytes(self.length) if self.data is None else self.data
        if sectors is None:
            image[self.offset : self.offset + self.length] = data
            return
        for sector in sectors:
            begin = sector * SECTOR_BYTES
            piece = data[begin : begin + SECTOR_BYTES]
            image[self.offset + begin : self.offset + begin + len(piece)] = piece


@dataclass(slots=True)
class Journal:
    """What happened to several devices, in the one order in which it happened.

    A *crash point* is a position in the journal: everything before it was asked for. What a device got before its
    last flush before that point is on it; of the rest, any part may be.
    """

    entries: list[Entry] = field(default_factory=list)
    bases: dict[str, bytes] = field(default_factory=dict)

    def image(self, device: str, position: int) -> bytearray:
        """A device that has everything before `position`."""
        image = bytearray(self.bases[device])
        for entry in self.entries[:position]:
            if entry.device == device:
                self._apply(entry, image)
        return image

    def images(self, device: str, begin: int = 0) -> Iterator[tuple[int, bytearray]]:
        """(position, image) for every crash point from `begin` on; the image is one object, changed in place."""
        image = self.image(device, begin)
        yield begin, image
        for position in range(begin, len(self.entries)):
            if self.entries[position].device == device:
                self._apply(self.entries[position], image)
            yield position + 1, image

    def durable_position(self, device: str, position: int) -> int:
        """Just after the last flush of a device before a crash point."""
        for index in range(position - 1, -1, -1):
            entry = self.entries[index]
            if entry.device == device and entry.operation == "flush":
                return index + 1
        return 0

    def torn_image(
        self,
        device: str,
        position: int,
        rng: random.Random,
        *,
        tear: bool = True,
        whole: range = range(0),
        base: bytes | bytearray | None = None,
        into: bytearray | None = None,
    ) -> bytearray:
        """A device that has what was flushed before `position`, and a random part of the rest.

        Args:
            tear: also keep only some sectors of a write.
            whole: sectors of the device of which a write that covers several keeps all or none.
            base: the device as it was at `durable_position`, where that is known.
            into: an image that is not needed any more; memory that is new costs more than what is copied into it.
        """
        durable = self.durable_position(device, position)
        image = bytearray() if into is None else into
        image[:] = self.image(device, durable) if base is None else base
        for entry in self.entries[durable:position]:
            if entry.device != device or rng.random() < 0.5:
                continue
            sectors = None
            if tear and entry.length > SECTOR_BYTES and rng.random() < 0.5:
                first = entry.offset // SECTOR_BYTES
                count = -(-entry.length // SECTOR_BYTES)
                kept = {first + sector for sector in range(count) if rng.random() < 0.5}
                if kept.intersection(whole):
                    kept.update(whole)
                sectors = [sector for sector in range(count) if first + sector in kept]
            self._apply(entry, image, sectors)
        return image

    @staticmethod
    def _apply(entry: Entry, image: bytearray, sectors: Collection[int] | None = None) -> None:
        if entry.operation == "flush":
            return
        missing = entry.offset + entry.length - len(image)
        if missing > 0:
            image.extend(bytes(missing))
        entry.apply(image, sectors=sectors)


class RecordingDevice(_Wrapper):
    """Writes down in a journal, under its name, everything that changes it. Copies are recorded with their content."""

    def __init__(self, inner: BlockDevice, journal: Journal, name: str) -> None:
        super().__init__(inner)
        self._journal = journal
        self._name = name
        journal.bases[name] = inner.pread(0, inner.size_bytes) if inner.size_bytes else b""

    def _note(self, operation: str, offset: int = 0, length: int = 0, data: bytes | None = None) -> None:
        self._journal.entries.append(Entry(self._name, operation, offset, length, data))

    def pread(self, offset: int, length: int) -> bytes:
        return self.inner.pread(offset, length)

    def pwrite(self, offset: int, data: Buffer) -> None:
        self.inner.pwrite(offset, data)
        self._note("write", offset, len(data), bytes(data))

    def zero(self, offset: int, length: int) -> None:
        self.inner.zero(offset, length)
        self._note("zero", offset, length)

    def discard(self, offset: int, length: int) -> None:
        self.inner.discard(offset, length)
        self._note("discard", offset, length)

    def copy(self, source_offset: int, target_offset: int, length: int) -> None:
        self.inner.copy(source_offset, target_offset, length)
        self._note("copy", target_offset, length, self.inner.pread(target_offset, length))

    def flush(self) -> None:
        self.inner.flush()
        self._note("flush")


def memory_device(image: bytes | bytearray) -> MemoryDevice:
    """A device in memory that holds a copy of an image."""
    return MemoryDevice(bytearray(image))
