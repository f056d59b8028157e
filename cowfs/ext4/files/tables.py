"""The inode tables of a volume as they are on its device: for finding out which inodes two volumes do not share.

An inode's record is `inode_bytes` long and lies in the table of its group; the group's inode bitmap says whether it is
in use, and records that are not may hold anything. Where the bitmap is damaged, all count that were ever used: nothing
is missed then. The fields that are looked at here:

    0x00  2  mode          0x08  4  access time                      0x20  4  flags
    0x1A  2  link count    0x7C  2  checksum, low                    0x80  2  bytes in use beyond the first 128
                           0x82  2  checksum, high                   0x8C  4  access time, nanoseconds

Every change of an inode, of its attributes, or of the names in a directory shows in the record, at least in its time of
change. So two equal records mean that nothing happened, as long as records have nanoseconds and only a file
system has written (a repair changes directories without a trace in their inodes): `Geometry` holds what shows it.

Source: Linux fs/ext4/ext4.h.
"""

from __future__ import annotations

import stat
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from cowfs.errors import FilesystemError
from cowfs.ext4.format import layout
from cowfs.ext4.library.filesystem import Filesystem
from cowfs.ext4.space.bitmaps import DamagedBitmap, read_inode_bitmap

_MODE_AND_LINKS: Final = struct.Struct("<H24xH4xI")
_EXTRA_BYTES_OFFSET: Final = 0x80
_TYPE_BITS: Final = 0o170000
_NANOSECONDS_EXTRA_BYTES: Final = 0x90 - layout.GOOD_OLD_INODE_BYTES


class InodeRange(NamedTuple):
    """`length` inodes from number `first`, all of one group."""

    first: int
    length: int


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where a volume's inodes are. Volumes of equal geometry can be compared by their inode tables.

    Args:
        tables: where the table of each group begins, in bytes of the device.
        checked_at: when e2fsck last checked the volume, in seconds since 1970.
    """

    uuid: bytes
    blocks: int
    block_bytes: int
    inode_bytes: int
    inodes_per_group: int
    first_inode: int
    tables: tuple[int, ...]
    checked_at: int

    @property
    def has_nanoseconds(self) -> bool:
        return self.inode_bytes > layout.GOOD_OLD_INODE_BYTES

    def offset(self, inode: int) -> int:
        """Where an inode's record is, in bytes of the device."""
        group, index = divmod(inode - 1, self.inodes_per_group)
        return self.tables[group] + index * self.inode_bytes

    def inodes_in(self, ranges: Iterable[tuple[int, int]]) -> Iterator[InodeRange]:
        """The inodes whose records lie in byte ranges (begin, end) of the device, bounded by whole blocks."""
        order = sorted(range(len(self.tables)), key=self.tables.__getitem__)
        begins = [self.tables[group] for group in order]
        table_bytes = self.inodes_per_group * self.inode_bytes
        for begin, end in ranges:
            position = max(bisect_right(begins, begin) - 1, 0)
            while position < len(order) and begins[position] < end:
                first = max(begin - begins[position], 0) // self.inode_bytes
                last = min(end - begins[position], table_bytes) // self.inode_bytes
                if first < last:
                    yield InodeRange(order[position] * self.inodes_per_group + first + 1, last - first)
                position += 1


class Record(NamedTuple):
    """An inode in use."""

    mode: int
    links: int

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


class InodeTables:
    """The inode tables of one volume, which must not change while this is used; quiesce one that is open to write."""

    def __init__(self, fs: Filesystem) -> None:
        self._fs = fs
        self._bitmaps: dict[int, int] = {}
        self.geometry = Geometry(
            uuid=fs.uuid,
            blocks=fs.blocks,
            block_bytes=fs.block_bytes,
            inode_bytes=fs.inode_bytes,
            inodes_per_group=fs.inodes_per_group,
            first_inode=fs.first_inode,
            tables=tuple(fs.c.ext2fs_inode_table_loc(fs.fs, group) * fs.block_bytes for group in range(fs.groups)),
            checked_at=fs.super.s_lastcheck,
        )

    def read(self, inodes: InodeRange) -> bytes:
        """The records, in use or not."""
        return self._fs.device.pread(self.geometry.offset(inodes.first), inodes.length * self.geometry.inode_bytes)

    def record(self, inode: int, raw: bytes) -> Record | None:
        """What a record says; None for an inode that is not in use, has no names, or holds an attribute's value."""
        mode, links, flags = _MODE_AND_LINKS.unpack_from(raw)
        if not mode or not links or flags & layout.INODE_FLAG_EA_INODE or not self.is_used(inode):
            return None
        return Record(mode, links)

    def is_used(self, inode: int) -> bool:
        group, index = divmod(inode - 1, self.geometry.inodes_per_group)
        return bool(self._bitmap(group) >> index & 1)

    def directories(self, inodes: InodeRange) -> list[int]:
        """The directories among some inodes, in order."""
        group, index = divmod(inodes.first - 1, self.geometry.inodes_per_group)
        if not self._bitmap(group) >> index & ((1 << inodes.length) - 1):
            return []
        raw, size = self.read(inodes), self.geometry.inode_bytes
        modes = memoryview(raw).cast("H")[:: size // 2].tolist()
        indices = [index for index, mode in enumerate(modes) if mode & _TYPE_BITS == stat.S_IFDIR]
        return [
            inodes.first + index
            for index in indices
            if self.record(inodes.first + index, raw[index * size : (index + 1) * size])
        ]

    def _bitmap(self, group: int) -> int:
        """The used inodes of a group, as bits."""
        bits = self._bitmaps.get(group)
        if bits is None:
            try:
                bits = read_inode_bitmap(self._fs, group)
            except (DamagedBitmap, FilesystemError):
                bits = (1 << self._fs.descriptors.initialized_inodes(group)) - 1
            self._bitmaps[group] = bits
        return bits


def differ(one: bytes, other: bytes) -> bool:
    """Whether two records say different things, apart from the time of the last access."""
    return one != other and _without_access_time(one) != _without_access_time(other)


def _without_access_time(raw: bytes) -> bytes:
    if len(raw) <= layout.GOOD_OLD_INODE_BYTES or raw[_EXTRA_BYTES_OFFSET] < _NANOSECONDS_EXTRA_BYTES:
        return raw
    return raw[:0x08] + raw[0x0C:0x7C] + raw[0x7E:0x82] + raw[0x84:0x8C] + raw[0x90:]
