"""The dm-thin metadata format, version 2: blocks to typed values and back. No policy, no I/O.

Every metadata block is 4096 bytes, little endian, and one of four kinds, which differ in the salt of the checksum:

    superblock   block 0, and the held copy     csum flags blocknr uuid magic version time ... (see Superblock)
    btree node   32-byte header, keys, values   csum flags blocknr nr_entries max_entries value_size pad
    bitmap       16320 two-bit counts           csum pad blocknr, then 4080 bytes
    index        255 index entries              csum pad blocknr, then 255 x 16 bytes

    checksum = crc32c over bytes 4..4095, started at all ones and not inverted at the end, xor salt

Sources: the kernel's dm-thin, dm-persistent-data (Linux 6.1), confirmed byte by byte on files they wrote.
"""

from __future__ import annotations

import errno
import struct
import sys
from array import array
from operator import lt
from typing import ClassVar, Final

import google_crc32c
import msgspec

from cowfs.errors import MetadataCorrupt
from cowfs.units import METADATA_BLOCK_BYTES, METADATA_BLOCK_SECTORS

SUPERBLOCK_LOCATION: Final = 0
SUPERBLOCK_MAGIC: Final = 27022010
FORMAT_VERSION: Final = 2

SUPERBLOCK_SALT: Final = 160774
NODE_SALT: Final = 121107
BITMAP_SALT: Final = 240779
INDEX_SALT: Final = 160478
_KINDS: Final = {
    SUPERBLOCK_SALT: "a superblock",
    NODE_SALT: "a btree node",
    BITMAP_SALT: "a bitmap",
    INDEX_SALT: "a metadata index",
}

ENTRIES_PER_BITMAP: Final = 16320
MAX_METADATA_BITMAPS: Final = 255
MAX_DATA_BLOCK: Final = 2**40 - 1
TIME_BITS: Final = 24
TIME_MASK: Final = (1 << TIME_BITS) - 1
NEXT_BLOCK: Final = 1 << TIME_BITS  # what the mapping value of the next data block is higher by

_BLOCK_HEADER: Final = struct.Struct("<IIQ")
_NODE_HEADER: Final = struct.Struct("<IIQIIII")
_INTERNAL_NODE: Final = 1
_LEAF_NODE: Final = 2


def checksum(block: bytes | bytearray, salt: int) -> int:
    return int(google_crc32c.value(bytes(block[4:]))) ^ 0xFFFFFFFF ^ salt


def seal(block: bytearray, salt: int) -> bytes:
    """Put the checksum into a finished block."""
    struct.pack_into("<I", block, 0, checksum(block, salt))
    return bytes(block)


def verify(block: bytes, salt: int, location: int, path: str = "") -> None:
    """Check size, checksum and self-address of a block that must be of the kind of `salt`.

    Raises:
        MetadataCorrupt: says what the block is when it is a valid block of another kind.
    """
    if len(block) != METADATA_BLOCK_BYTES:
        raise MetadataCorrupt(f"only {len(block)} of 4096 bytes can be read", block=location, path=path)
    csum, _, blocknr = _BLOCK_HEADER.unpack_from(block)
    computed = checksum(block, 0)
    if csum != computed ^ salt:
        kind = _KINDS.get(csum ^ computed)
        what = f"it is {kind}" if kind else f"checksum is {csum:#x} and should be {computed ^ salt:#x}"
        raise MetadataCorrupt(f"not {_KINDS[salt]}: {what}", block=location, path=path)
    if blocknr != location:
        raise MetadataCorrupt(f"says it is block {blocknr}", block=location, path=path)


# --------------------------------------------------------------------------------------------- superblock


class SpaceMapRoot(msgspec.Struct):
    """Where a space map starts; counts are in blocks of the mapped device."""

    nr_blocks: int = 0
    nr_allocated: int = 0
    bitmap_root: int = 0
    ref_count_root: int = 0

    FORMAT: ClassVar = struct.Struct("<QQQQ")

    def pack(self) -> bytes:
        return self.FORMAT.pack(self.nr_blocks, self.nr_allocated, self.bitmap_root, self.ref_count_root)

    @classmethod
    def unpack(cls, data: bytes) -> SpaceMapRoot:
        return cls(*cls.FORMAT.unpack_from(data))


class Superblock(msgspec.Struct):
    """Block 0, or the held copy of it (metadata snapshot), whose two space map roots are zero.

    offset  size  name                 meaning
       0      4   csum
       4      4   flags                bit 0: needs check
       8      8   blocknr              own location
      16     16   uuid                 zeros; a set one is kept
      32      8   magic                27022010
      40      4   version              2
      44      4   time                 snapshot counter
      48      8   trans_id             the user's transaction id
      56      8   metadata_snap        block of the held copy, 0 for none
      64    128   data space map root  first 32 bytes used
     192    128   metadata space map root
     320      8   data_mapping_root    top level of the mapping btree
     328      8   device_details_root
     336      4   data_block_size      sectors
     340      4   metadata_block_size  sectors, 8
     344      8   metadata_nr_blocks   size when formatted; growth does not change it
     352     12   compat, compat_ro, incompat feature bits
    """

    data_block_sectors: int
    metadata_nr_blocks: int
    flags: int = 0
    location: int = SUPERBLOCK_LOCATION
    uuid: bytes = bytes(16)
    version: int = FORMAT_VERSION
    time: int = 0
    transaction_id: int = 0
    held_root: int = 0
    data_space_map: SpaceMapRoot = msgspec.field(default_factory=SpaceMapRoot)
    metadata_space_map: SpaceMapRoot = msgspec.field(default_factory=SpaceMapRoot)
    mapping_root: int = 0
    details_root: int = 0
    metadata_block_sectors: int = METADATA_BLOCK_SECTORS
    compat_flags: int = 0
    compat_ro_flags: int = 0
    incompat_flags: int = 0

    NEEDS_CHECK: ClassVar = 1
    FORMAT: ClassVar = struct.Struct("<IIQ16sQIIQQ128s128sQQIIQIII")

    @property
    def needs_check(self) -> bool:
        return bool(self.flags & self.NEEDS_CHECK)

    @needs_check.setter
    def needs_check(self, value: bool) -> None:
        self.flags = self.flags | self.NEEDS_CHECK if value else self.flags & ~self.NEEDS_CHECK

    def pack(self) -> bytes:
        block = bytearray(METADATA_BLOCK_BYTES)
        self.FORMAT.pack_into(
            block,
            0,
            0,
            self.flags,
            self.location,
            self.uuid,
            SUPERBLOCK_MAGIC,
            self.version,
            self.time,
            self.transaction_id,
            self.held_root,
            self.data_space_map.pack(),
            self.metadata_space_map.pack(),
            self.mapping_root,
            self.details_root,
            self.data_block_sectors,
            self.metadata_block_sectors,
            self.metadata_nr_blocks,
            self.compat_flags,
            self.compat_ro_flags,
            self.incompat_flags,
        )
        return seal(block, SUPERBLOCK_SALT)

    @classmethod
    def unpack(cls, block: bytes, location: int = SUPERBLOCK_LOCATION) -> Superblock:
        """Raises MetadataCorrupt: ENOTBLK for another block's number, which the kernel looks at first, else EILSEQ."""
        path = "superblock" if location == SUPERBLOCK_LOCATION else "held superblock"
        if len(block) < cls.FORMAT.size:
            raise MetadataCorrupt(f"only {len(block)} of 4096 bytes can be read", block=location, path=path)
        (
            _csum,
            flags,
            blocknr,
            uuid,
            magic,
            version,
            time,
            transaction_id,
            held_root,
            data_root,
            metadata_root,
            mapping_root,
            details_root,
            data_block_sectors,
            metadata_block_sectors,
            metadata_nr_blocks,
            compat,
            compat_ro,
            incompat,
        ) = cls.FORMAT.unpack_from(block)
        if blocknr != location:
            message = f"says it is block {blocknr}"
            raise MetadataCorrupt(message, block=location, path=path, errno=errno.ENOTBLK)
        if magic != SUPERBLOCK_MAGIC:
            raise MetadataCorrupt(f"magic is {magic} and should be {SUPERBLOCK_MAGIC}", block=location, path=path)
        verify(block, SUPERBLOCK_SALT, location, path)
        return cls(
            data_block_sectors=data_block_sectors,
            metadata_nr_blocks=metadata_nr_blocks,
            flags=flags,
            location=location,
            uuid=uuid,
            version=version,
            time=time,
            transaction_id=transaction_id,
            held_root=held_root,
            data_space_map=SpaceMapRoot.unpack(data_root),
            metadata_space_map=SpaceMapRoot.unpack(metadata_root),
            mapping_root=mapping_root,
            details_root=details_root,
            metadata_block_sectors=metadata_block_sectors,
            compat_flags=compat,
            compat_ro_flags=compat_ro,
            incompat_flags=incompat,
        )


# --------------------------------------------------------------------------------------------- btree nodes


class ValueKind(msgspec.Struct, frozen=True):
    """How a tree's leaves hold their values: `stride` array items of `typecode` each, `size_bytes` on disk."""

    name: str
    size_bytes: int
    typecode: str
    stride: int

    @property
    def max_entries(self) -> int:
        return (METADATA_BLOCK_BYTES - _NODE_HEADER.size) // (8 + self.size_bytes) // 3 * 3


U64: Final = ValueKind("u64", 8, "Q", 1)  # child pointers, subtree roots, mappings
U32: Final = ValueKind("u32", 4, "I", 1)  # reference counts above two
INDEX_ENTRY: Final = ValueKind("index entry", 16, "Q", 2)  # bitmap block; nr_free | none_free_before << 32
DETAILS: Final = ValueKind("device details", 24, "Q", 3)  # mapped; transaction; creation | snapshotted << 32


class Node:
    """A btree node in memory: `keys` ascending, `values` with `kind.stride` items per key; internal nodes hold U64."""

    __slots__ = ("is_leaf", "keys", "kind", "values")

    def __init__(self, kind: ValueKind, is_leaf: bool, keys: array[int], values: array[int]) -> None:
        self.kind = kind
        self.is_leaf = is_leaf
        self.keys = keys
        self.values = values

    @classmethod
    def leaf(cls, kind: ValueKind) -> Node:
        return cls(kind, True, array("Q"), array(kind.typecode))

    @classmethod
    def internal(cls, keys: array[int], children: array[int]) -> Node:
        return cls(U64, False, keys, children)

    def copy(self) -> Node:
        return Node(self.kind, self.is_leaf, self.keys[:], self.values[:])

    def pack(self, location: int) -> bytes:
        kind = self.kind
        maximum = kind.max_entries
        block = bytearray(METADATA_BLOCK_BYTES)
        flags = _LEAF_NODE if self.is_leaf else _INTERNAL_NODE
        _NODE_HEADER.pack_into(block, 0, 0, flags, location, len(self.keys), maximum, kind.size_bytes, 0)
        keys = _to_little_endian(self.keys)
        values = _to_little_endian(self.values)
        block[32 : 32 + len(keys)] = keys
        start = 32 + 8 * maximum
        block[start : start + len(values)] = values
        return seal(block, NODE_SALT)

    @classmethod
    def unpack(cls, block: bytes, location: int, kind: ValueKind, path: str = "") -> Node:
        """Read a node of a tree whose leaves hold `kind`.

        Raises:
            MetadataCorrupt: checksum, address, flags, sizes or the order of the keys are wrong.
        """
        verify(block, NODE_SALT, location, path)
        _, flags, _, count, maximum, value_bytes, _ = _NODE_HEADER.unpack_from(block)
        if flags not in (_INTERNAL_NODE, _LEAF_NODE):
            raise MetadataCorrupt(f"node flags are {flags:#x}: neither internal nor leaf", block=location, path=path)
        is_leaf = flags == _LEAF_NODE
        if not is_leaf:
            kind = U64
        if value_bytes != kind.size_bytes:
            message = f"values of {value_bytes} bytes where {kind.size_bytes} ({kind.name}) are expected"
            raise MetadataCorrupt(message, block=location, path=path)
        if count > maximum or 32 + maximum * (8 + value_bytes) > METADATA_BLOCK_BYTES:
            raise MetadataCorrupt(f"{count} entries of at most {maximum} do not fit", block=location, path=path)
        if not is_leaf and not count:
            raise MetadataCorrupt("an internal node without children", block=location, path=path)
        keys = _from_little_endian("Q", block[32 : 32 + 8 * count])
        start = 32 + 8 * maximum
        values = _from_little_endian(kind.typecode, block[start : start + value_bytes * count])
        if not all(map(lt, keys, keys[1:])):
            raise MetadataCorrupt("keys are not in ascending order", block=location, path=path)
        return cls(kind, is_leaf, keys, values)


def _to_little_endian(values: array[int]) -> bytes:
    if sys.byteorder != "little":
        values = values[:]
        values.byteswap()
    return values.tobytes()


def _from_little_endian(typecode: str, data: bytes) -> array[int]:
    values = array(typecode, data)
    if sys.byteorder != "little":
        values.byteswap()
    return values


def pack_mapping(dblock: int, time: int) -> int:
    return dblock << TIME_BITS | time


def unpack_mapping(value: int) -> tuple[int, int]:
    """(data block, time) of a mapping value."""
    return value >> TIME_BITS, value & TIME_MASK


# --------------------------------------------------------------------------------------------- space maps

# A stored pair of bits has the value's high bit first: stored 01 is 2, 10 is 1.
_SWAP: Final = (0, 2, 1, 3)
_UNPACK_TABLES: Final = tuple(bytes(_SWAP[byte >> shift & 3] for byte in range(256)) for shift in (0, 2, 4, 6))
_PACK_TABLE: Final = bytes(_SWAP[count & 3] for count in range(256))


def unpack_bitmap(block: bytes, location: int, path: str = "") -> bytearray:
    """The 16320 counts of a bitmap block, one byte each; 3 means that the overflow btree has the count."""
    verify(block, BITMAP_SALT, location, path)
    raw = block[16:]
    counts = bytearray(ENTRIES_PER_BITMAP)
    for position, table in enumerate(_UNPACK_TABLES):
        counts[position::4] = raw.translate(table)
    return counts


def pack_bitmap(counts: bytes | bytearray, location: int) -> bytes:
    """A bitmap block of 16320 counts, each 0..3 in its low two bits."""
    return seal_bitmap(pack_counts(counts), location)


def pack_counts(counts: bytes | bytearray) -> bytes:
    """A part of a bitmap: two bits for each of its counts, of which there are a multiple of four."""
    stored = counts.translate(_PACK_TABLE)
    packed = 0
    for position in range(4):
        packed |= int.from_bytes(stored[position::4], "little") << (2 * position)
    return packed.to_bytes(len(counts) // 4, "little")


def seal_bitmap(packed: bytes | bytearray, location: int) -> bytes:
    """A bitmap block of what `pack_counts` made of all its counts."""
    block = bytearray(METADATA_BLOCK_BYTES)
    _BLOCK_HEADER.pack_into(block, 0, 0, 0, location)
    block[16:] = packed
    return seal(block, BITMAP_SALT)


class IndexEntry(msgspec.Struct):
    """Where one bitmap is and what it has free.

    `nr_free` counts the entries past the end of the device as free too: 16320 - (nonzero entries). No entry below
    `none_free_before` is free.
    """

    bitmap_block: int
    nr_free: int
    none_free_before: int

    FORMAT: ClassVar = struct.Struct("<QII")

    def to_words(self) -> tuple[int, int]:
        """As the two u64 of an INDEX_ENTRY leaf value."""
        return self.bitmap_block, self.nr_free | self.none_free_before << 32

    @classmethod
    def from_words(cls, bitmap_block: int, packed: int) -> IndexEntry:
        return cls(bitmap_block, packed & 0xFFFFFFFF, packed >> 32)


def unpack_index(block: bytes, location: int, count: int, path: str = "") -> list[IndexEntry]:
    """The first `count` entries of the metadata space map's index block."""
    verify(block, INDEX_SALT, location, path)
    if count > MAX_METADATA_BITMAPS:
        raise MetadataCorrupt(f"{count} bitmaps do not fit one index block", block=location, path=path)
    entry = IndexEntry.FORMAT
    return [IndexEntry(*entry.unpack_from(block, 16 + i * entry.size)) for i in range(count)]


def pack_index(entries: list[IndexEntry], location: int) -> bytes:
    block = bytearray(METADATA_BLOCK_BYTES)
    _BLOCK_HEADER.pack_into(block, 0, 0, 0, location)
    for i, entry in enumerate(entries):
        packed = (entry.bitmap_block, entry.nr_free, entry.none_free_before)
        IndexEntry.FORMAT.pack_into(block, 16 + i * IndexEntry.FORMAT.size, *packed)
    return seal(block, INDEX_SALT)


class DeviceDetails(msgspec.Struct):
    """What the details btree knows of a thin device; times are values of the pool's snapshot counter."""

    mapped_blocks: int
    transaction_id: int
    creation_time: int
    snapshotted_time: int

    def to_words(self) -> tuple[int, int, int]:
        """As the three u64 of a DETAILS leaf value."""
        return self.mapped_blocks, self.transaction_id, self.creation_time | self.snapshotted_time << 32

    @classmethod
    def from_words(cls, mapped_blocks: int, transaction_id: int, times: int) -> DeviceDetails:
        return cls(mapped_blocks, transaction_id, times & 0xFFFFFFFF, times >> 32)
