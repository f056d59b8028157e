"""One block of directory entries.

    entry = u32 inode (0: unused), u16 record length, u8 name length, u8 file type, name, padding to 4 bytes

The records fill the block without gaps: an entry's slack belongs to its record length. With metadata_csum the last
12 bytes are a fake unused entry of type 0xDE that holds the checksum. Names are found through a dict of the block's
entries, made when the block is first looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from cowfs.blockdev import Buffer
from cowfs.ext4.format import checksums

HEADER: Final = struct.Struct("<IHBB")
TAIL_BYTES: Final = 12
_TAIL_TYPE: Final = 0xDE


class Entry(NamedTuple):
    name: bytes
    inode: int
    file_type: int


def entry_bytes(name_length: int) -> int:
    """The least record length of an entry."""
    return (HEADER.size + name_length + 3) & ~3


class DamagedBlock(Exception):
    """The records of a directory block make no sense; the message says which."""


def records(data: Buffer, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(offset, inode, where the name ends, file type) of the records before `end`, unused ones too."""
    offset = 0
    while offset < end:
        inode, length, name_length, file_type = HEADER.unpack_from(data, offset)
        after = offset + length
        if length < HEADER.size or length & 3 or after > end or HEADER.size + name_length > length:
            raise DamagedBlock(f"record of {length} bytes, name of {name_length}, at {offset} of {end}")
        yield offset, inode, offset + HEADER.size + name_length, file_type
        offset = after


def entries_in(data: bytes, *, has_tail: bool) -> Iterator[Entry]:
    """The entries of a block, in order, without making a `DirectoryBlock` of it."""
    for offset, inode, name_end, file_type in records(data, len(data) - (TAIL_BYTES if has_tail else 0)):
        if inode:
            yield Entry(data[offset + HEADER.size : name_end], inode, file_type)


def entries_before_damage(data: bytes) -> list[tuple[int, Entry]]:
    """(offset, entry) of what makes sense of a block, from its begin on."""
    found = []
    with suppress(DamagedBlock):
        for offset, inode, name_end, file_type in records(data, len(data)):
            if inode:
                found.append((offset, Entry(data[offset + HEADER.size : name_end], inode, file_type)))
    return found


class DirectoryBlock:
    """A parsed directory block; `data` is always what the block must be, but for the checksum.

    Args:
        data: the whole block.
        has_tail: whether the block ends in a checksum tail.
    """

    __slots__ = ("_end", "_last", "_offsets", "_slack_limit", "data", "has_tail")

    def __init__(self, data: bytes | bytearray, *, has_tail: bool) -> None:
        self.data = bytearray(data)
        self.has_tail = has_tail
        self._end = len(data) - (TAIL_BYTES if has_tail else 0)
        self._offsets: dict[bytes, int] = {}
        self._last = 0
        self._slack_limit = self._end  # no entry larger than this fits: lowered by searches that fail
        self._parse()

    @classmethod
    def empty(cls, block_bytes: int, *, has_tail: bool) -> DirectoryBlock:
        data = bytearray(block_bytes)
        end = block_bytes - (TAIL_BYTES if has_tail else 0)
        HEADER.pack_into(data, 0, 0, end, 0, 0)
        if has_tail:
            HEADER.pack_into(data, end, 0, TAIL_BYTES, 0, _TAIL_TYPE)
        return cls(data, has_tail=has_tail)

    @classmethod
    def packed(cls, entries: list[Entry], block_bytes: int, *, has_tail: bool) -> DirectoryBlock:
        """A block of these entries, all slack in the last one."""
        block = cls.empty(block_bytes, has_tail=has_tail)
        offset = 0
        for entry in entries:
            length = entry_bytes(len(entry.name))
            block._put(offset, entry, length)
            block._last = offset
            offset += length
        assert offset <= block._end
        if entries:
            struct.pack_into("<H", block.data, block._last + 4, block._end - block._last)
        return block

    def _parse(self) -> None:
        data = self.data
        for offset, inode, name_end, _file_type in records(data, self._end):
            if inode:
                self._offsets[bytes(data[offset + HEADER.size : name_end])] = offset
            self._last = offset
        if self.has_tail and HEADER.unpack_from(data, self._end)[:3] != (0, TAIL_BYTES, 0):
            raise DamagedBlock("no checksum tail")

    def find(self, name: bytes) -> Entry | None:
        offset = self._offsets.get(name)
        return None if offset is None else self._entry(name, offset)

    def __len__(self) -> int:
        return len(self._offsets)

    def entries(self) -> list[Entry]:
        """In the order of the dict: that of the block when it was read, then as added."""
        return [self._entry(name, offset) for name, offset in self._offsets.items()]

    def entries_from(self, begin: int) -> list[tuple[int, Entry]]:
        """Entries at and after an offset of the block, with their offsets, in order of offset."""
        found = sorted((offset, name) for name, offset in self._offsets.items() if offset >= begin)
        return [(offset, self._entry(name, offset)) for offset, name in found]

    def _entry(self, name: bytes, offset: int) -> Entry:
        inode, _length, _name_length, file_type = HEADER.unpack_from(self.data, offset)
        return Entry(name, inode, file_type)

    def add(self, entry: Entry) -> bool:
        """Put an entry into the slack of another; False when it does not fit anywhere."""
        needed = entry_bytes(len(entry.name))
        if needed > self._slack_limit:
            return False
        if self._add_at(self._last, entry, needed):
            return True
        offset = 0
        while offset < self._last:
            if self._add_at(offset, entry, needed):
                return True
            offset += HEADER.unpack_from(self.data, offset)[1]
        self._slack_limit = needed - 4
        return False

    def _add_at(self, offset: int, entry: Entry, needed: int) -> bool:
        inode, length, name_length, _file_type = HEADER.unpack_from(self.data, offset)
        used = entry_bytes(name_length) if inode else 0
        if length - used < needed:
            return False
        if used:
            struct.pack_into("<H", self.data, offset + 4, used)
            if offset == self._last:
                self._last = offset + used
        self._put(offset + used, entry, length - used)
        return True

    def _put(self, offset: int, entry: Entry, length: int) -> None:
        HEADER.pack_into(self.data, offset, entry.inode, length, len(entry.name), entry.file_type)
        self.data[offset + 8 : offset + 8 + len(entry.name)] = entry.name
        self._offsets[entry.name] = offset

    def remove(self, name: bytes) -> None:
        """Give the record of a name to the one before it; the first one of the block becomes unused."""
        target = self._offsets.pop(name)
        self._slack_limit = self._end
        if target == 0:
            struct.pack_into("<I", self.data, 0, 0)
            return
        offset = 0
        while True:
            length = HEADER.unpack_from(self.data, offset)[1]
            if offset + length == target:
                break
            offset += length
        total = length + HEADER.unpack_from(self.data, target)[1]
        struct.pack_into("<H", self.data, offset + 4, total)
        if self._last == target:
            self._last = offset

    def replace(self, name: bytes, inode: int, file_type: int) -> None:
        """Let an existing name lead to another inode."""
        offset = self._offsets[name]
        struct.pack_into("<I", self.data, offset, inode)
        self.data[offset + 7] = file_type

    def checksummed(self, seed: int) -> bytes:
        """The block to write, its tail set."""
        if self.has_tail:
            struct.pack_into("<I", self.data, self._end + 8, checksums.leaf_checksum(seed, self.data, TAIL_BYTES))
        return bytes(self.data)


def checksum_fits(data: bytes, seed: int) -> bool:
    """Whether the tail of a block holds the checksum of the rest."""
    (stored,) = struct.unpack_from("<I", data, len(data) - 4)
    return bool(stored == checksums.leaf_checksum(seed, data, TAIL_BYTES))
