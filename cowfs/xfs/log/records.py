"""Records of the log, and which of them count.

The log is a ring of sectors of 512 bytes. A record is a header of one sector, or more for records of more than 32 KiB,
and its data. All its sectors begin with the number of the cycle, in the place of 4 bytes that the header keeps; so what
a crash cut off is known by sectors of an older cycle. An LSN is a cycle in the upper and a sector in the lower half.

    offset  size                                          offset  size
         0     4  magic 0xfeedbabe                            32     4  checksum, little endian
         4     4  cycle                                       36     4  sector of the record before
         8     4  version: 1, 2                               40     4  count of operations
        12     4  length of the data                          44   256  first 4 bytes of the first 64 sectors
        16     8  LSN of the record                          300     4  form: 1 for little endian
        24     8  LSN of the oldest record that counts       304    16  uuid
                                                             320     4  length of the buffers

Several records are written at a time, up to 8, so behind the first one that is missing others may be complete: they do
not count.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import google_crc32c

from cowfs.blockdev import BlockDevice
from cowfs.errors import FilesystemError
from cowfs.xfs.format.superblock import Superblock, damaged

_SECTOR: Final = 512
_MAGIC: Final = b"\xfe\xed\xba\xbe"
_HEADER: Final = struct.Struct(">4sIIIQQ4sII256sI16sI")
_CHECKSUM_AT: Final = 32
_KEPT_PER_HEADER: Final = 64
_DATA_PER_HEADER: Final = _KEPT_PER_HEADER * _SECTOR
_EXTRA_HEADER_BYTES: Final = 260
_HEADER_BYTES: Final = (328, 324)  # of the checksum: on 64 and on 32 bits
_LITTLE_ENDIAN: Final = 1
_BUFFER_BYTES_MAX: Final = 256 << 10
_WRITTEN_AT_A_TIME: Final = 8
_READ_BYTES: Final = 1 << 20

_OPERATION_BYTES: Final = 12
_UNMOUNT: Final = 0x20


class Lsn(NamedTuple):
    """The place of a record, comparable."""

    cycle: int
    sector: int

    @classmethod
    def of(cls, number: int) -> Lsn:
        return cls(number >> 32, number & 0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Record:
    """A record; its data are read when they are needed.

    Attributes:
        lsn: `place` as a number.
        tail: the oldest record that counted when this one was written.
    """

    place: Lsn
    lsn: int
    tail: Lsn
    version: int
    length_bytes: int
    buffer_bytes: int
    operations: int
    header: bytes

    @property
    def headers(self) -> int:
        if self.version < 2 or self.buffer_bytes <= _DATA_PER_HEADER:
            return 1
        return -(-self.buffer_bytes // _DATA_PER_HEADER)

    @property
    def sectors(self) -> int:
        return self.headers + -(-self.length_bytes // _SECTOR)


class Log:
    """The log of a volume."""

    def __init__(self, device: BlockDevice, sb: Superblock) -> None:
        offset = sb.offset_of(sb.log_start, sb.log_blocks) if sb.log_blocks else None
        if offset is None:
            raise damaged("the log is not in the file system")
        self._device = device
        self._sb = sb
        self._offset = offset
        self._sectors = (sb.log_blocks << sb.block_log) // _SECTOR

    def records(self) -> list[Record]:
        """Those that are to be replayed, in order; empty for a volume that was unmounted.

        Raises:
            FilesystemError: the log is damaged (EUCLEAN), or of another kind of machine (EOPNOTSUPP).
        """
        found = self._find_all()
        if found is None:
            return []
        if not found:
            raise damaged("no record of the log can be read")
        by_lsn = sorted(found.values(), key=lambda record: record.place)
        head = by_lsn[-1]
        if self._is_unmount(head):  # mkfs.xfs leaves such a record without a checksum
            return []
        while True:
            chain, is_whole = self._chain(found, head)
            if is_whole:
                break
            if not chain:
                raise damaged(f"the oldest record of the log, at sector {head.tail.sector}, cannot be read")
            head = chain[-1]
            if len(by_lsn) - 1 - by_lsn.index(head) > _WRITTEN_AT_A_TIME:
                raise damaged(f"the log is interrupted after the record at sector {head.place.sector}")
            if self._is_unmount(head):
                return []
        return chain

    def _chain(self, found: dict[int, Record], head: Record) -> tuple[list[Record], bool]:
        """The records from the tail that `head` names, as far as they follow each other; whether `head` is reached."""
        chain: list[Record] = []
        place = head.tail
        while place <= head.place:
            record = found.get(place.sector)
            if record is None or record.place != place or not self._is_complete(record):
                return chain, False
            chain.append(record)
            if record is head:
                return chain, True
            cycles, sector = divmod(place.sector + record.sectors, self._sectors)
            place = Lsn(place.cycle + cycles, sector)
        return chain, False

    def _find_all(self) -> dict[int, Record] | None:
        """Headers of records by sector; None where the log is all zeros."""
        found, is_zero = {}, True
        size = self._sectors * _SECTOR
        for begin in range(0, size, _READ_BYTES):
            data = self._device.pread(self._offset + begin, min(_READ_BYTES, size - begin))
            is_zero = is_zero and not data.strip(b"\0")
            for at in _sectors_with_magic(data):
                sector = (begin + at) // _SECTOR
                record = self._record(sector, data[at : at + _SECTOR])
                if record is not None:
                    found[sector] = record
        return None if is_zero else found

    def _record(self, sector: int, header: bytes) -> Record | None:
        _, cycle, version, length, lsn, tail, _, _, operations, _, form, uuid, buffer = _HEADER.unpack_from(header)
        place = Lsn.of(lsn)
        if place != Lsn(cycle, sector) or version not in (1, 2) or uuid != self._sb.uuid:
            return None
        if form != _LITTLE_ENDIAN:
            raise FilesystemError(
                "it was written by a machine of another byte order, and is replayed by such a one alone",
                errno=errno.EOPNOTSUPP,
            )
        buffer = buffer if version == 2 else _DATA_PER_HEADER
        record = Record(place, lsn, Lsn.of(tail), version, length, buffer, operations, header)
        if not 0 < length <= _BUFFER_BYTES_MAX or buffer > _BUFFER_BYTES_MAX or record.sectors > self._sectors:
            return None
        return record

    def _raw(self, record: Record) -> bytes:
        """The sectors of a record, which may go on at the beginning of the log."""
        length = record.sectors * _SECTOR
        begin = record.place.sector * _SECTOR
        first = min(length, self._sectors * _SECTOR - begin)
        data = self._device.pread(self._offset + begin, first)
        return data + self._device.pread(self._offset, length - first) if first < length else data

    def _is_complete(self, record: Record) -> bool:
        """Whether all of a record was written, and is what was written."""
        raw = self._raw(record)
        if not self._has_all_sectors(record, raw):
            return False
        if not self._sb.has_checksums:
            return True
        stored = int.from_bytes(raw[_CHECKSUM_AT : _CHECKSUM_AT + 4], "little")
        return any(_checksum(record, raw, size) == stored for size in _HEADER_BYTES)

    def _has_all_sectors(self, record: Record, raw: bytes) -> bool:
        for number in range(1, record.sectors):
            cycle = record.place.cycle + (record.place.sector + number >= self._sectors)
            if int.from_bytes(raw[number * _SECTOR : number * _SECTOR + 4], "big") != cycle:
                return False
        return True

    def _is_unmount(self, record: Record) -> bool:
        if record.operations != 1 or not self._has_all_sectors(record, self._raw(record)):
            return False
        return bool(self.data(record)[9] & _UNMOUNT)

    def data(self, record: Record) -> bytes:
        """The data of a record, as they were before the sectors got their cycles."""
        raw = self._raw(record)
        data = bytearray(raw[record.headers * _SECTOR :])
        for number in range(len(data) // _SECTOR):
            header, slot = divmod(number, _KEPT_PER_HEADER)
            kept = header * _SECTOR + (4 if header else 44) + 4 * slot
            data[number * _SECTOR : number * _SECTOR + 4] = raw[kept : kept + 4]
        return bytes(data[: record.length_bytes])


def _sectors_with_magic(data: bytes) -> Iterator[int]:
    at = data.find(_MAGIC)
    while at >= 0:
        if at % _SECTOR == 0:
            yield at
        at = data.find(_MAGIC, at + 1)


def _checksum(record: Record, raw: bytes, header_bytes: int) -> int:
    header = raw[:_CHECKSUM_AT] + bytes(4) + raw[_CHECKSUM_AT + 4 : header_bytes]
    value = google_crc32c.value(header)
    if record.version == 2:
        for number in range(1, -(-record.length_bytes // _DATA_PER_HEADER)):
            value = google_crc32c.extend(value, raw[number * _SECTOR : number * _SECTOR + _EXTRA_HEADER_BYTES])
    begin = record.headers * _SECTOR
    return int(google_crc32c.extend(value, raw[begin : begin + record.length_bytes]))
