"""Writes, discards and flushes of devices in their order, the device that records them, and images of crashes."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from cowfs.blockdev import BlockDevice, Buffer, StartsFlush, WrappedDevice
from cowfs.units import SECTOR_BYTES


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened to a device. `data` is None for flushes and for what turns into zeros."""

    device: str
    operation: str  # write, zero, discard, copy or flush
    offset: int = 0
    length: int = 0
    data: Buffer | None = None

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


class Record(Protocol):
    """Where a `RecordingDevice` writes down what happens to it."""

    def begin(self, name: str, device: BlockDevice) -> None:
        """The device of this name is recorded from now on."""
        ...

    def note(self, entry: Entry) -> None:
        """It has happened. The buffer of its data is the caller's again afterwards."""
        ...


@dataclass(slots=True)
class Journal:
    """A `Record` in memory of several devices, and what they held at its beginning.

    A *crash point* is a position in the journal: everything before it was asked for. What a device got before its
    last flush before that point is on it; of the rest, any part may be.
    """

    entries: list[Entry] = field(default_factory=list)
    bases: dict[str, bytes] = field(default_factory=dict)

    def begin(self, name: str, device: BlockDevice) -> None:
        self.bases[name] = device.pread(0, device.size_bytes) if device.size_bytes else b""

    def note(self, entry: Entry) -> None:
        data = None if entry.data is None else bytes(entry.data)
        self.entries.append(Entry(entry.device, entry.operation, entry.offset, entry.length, data))

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


class RecordingDevice(WrappedDevice):
    """Writes down in a record, under its name, everything that changes it. Copies are recorded with their content.

    Args:
        discard_bytes: the unit of discards: of a range to be discarded the whole units in it become zeros, and that is
            recorded.
    """

    def __init__(self, inner: BlockDevice, record: Record, name: str, *, discard_bytes: int = 1) -> None:
        super().__init__(inner)
        self._record = record
        self._name = name
        self._discard_bytes = discard_bytes
        record.begin(name, inner)

    def _note(self, operation: str, offset: int = 0, length: int = 0, data: Buffer | None = None) -> None:
        self._record.note(Entry(self._name, operation, offset, length, data))

    def pread(self, offset: int, length: int) -> bytes:
        return self.inner.pread(offset, length)

    def pwrite(self, offset: int, data: Buffer) -> None:
        self.inner.pwrite(offset, data)
        self._note("write", offset, len(data), data)

    def zero(self, offset: int, length: int) -> None:
        self.inner.zero(offset, length)
        self._note("zero", offset, length)

    def discard(self, offset: int, length: int) -> None:
        self.inner.discard(offset, length)
        begin = -(-offset // self._discard_bytes) * self._discard_bytes
        end = (offset + length) // self._discard_bytes * self._discard_bytes
        if begin < end:
            self._note("discard", begin, end - begin)

    def copy(self, source_offset: int, target_offset: int, length: int) -> None:
        self.inner.copy(source_offset, target_offset, length)
        self._note("copy", target_offset, length, self.inner.pread(target_offset, length))

    def flush(self) -> None:
        self.inner.flush()
        self._note("flush")

    def start_flush(self) -> None:
        if isinstance(self.inner, StartsFlush):
            self.inner.start_flush()
