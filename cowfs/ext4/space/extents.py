"""Extent trees: a block map as the inode and its tree blocks hold it.

    node = header, entries, and in tree blocks with metadata_csum a 4-byte checksum after the last possible entry
    header (12 bytes): u16 magic 0xF30A, u16 entries, u16 capacity, u16 depth, u32 generation
    leaf entry (12):   u32 logical, u16 count (over 32768: unwritten, count - 32768), u16 physical high, u32 low
    index entry (12):  u32 logical, u32 child low, u16 child high, u16 unused

The root is the inode's 60 bytes of block pointers and holds four entries. A changed map is stored by packing the
whole tree anew into the blocks it has: leaves full, in order. What did not change is equal to what the cache holds
and is not written again.

Source: Linux fs/ext4/ext4_extents.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from cowfs.ext4.format import checksums
from cowfs.ext4.library.filesystem import Filesystem
from cowfs.ext4.space.block_map import BlockMap

_MAGIC: Final = 0xF30A
_HEADER: Final = struct.Struct("<HHHHI")
_ENTRY_BYTES: Final = 12
_ROOT_BYTES: Final = 60
_ROOT_ENTRIES: Final = 4
_MAX_DEPTH: Final = 5
_UNWRITTEN: Final = 32768
_LOGICAL_END: Final = 1 << 32

EMPTY_ROOT: Final = _HEADER.pack(_MAGIC, 0, _ROOT_ENTRIES, 0, 0).ljust(_ROOT_BYTES, b"\0")


def _capacity(block_bytes: int) -> int:
    return (block_bytes - _HEADER.size) // _ENTRY_BYTES


def _tail_offset(block_bytes: int) -> int:
    """Where the checksum is: block sizes leave room for it after the entries."""
    return _HEADER.size + _capacity(block_bytes) * _ENTRY_BYTES


def load(fs: Filesystem, inode: int, seed: int, root: bytes) -> tuple[BlockMap, list[int]]:
    """The map stored under `root`, and the tree blocks.

    Args:
        seed: the inode's checksum seed.

    Raises:
        FilesystemError (EUCLEAN): anything that is not as it must be.
    """
    map_, seen = BlockMap(), set[int]()
    _load_node(fs, inode, seed, root, map_, seen, None)
    return map_, sorted(seen)


def _load_node(
    fs: Filesystem,
    inode: int,
    seed: int,
    node: bytes,
    map_: BlockMap,
    seen: set[int],
    expected_depth: int | None,
) -> None:
    magic, entries, capacity, depth, _generation = _HEADER.unpack_from(node)
    room = (len(node) - _HEADER.size) // _ENTRY_BYTES
    if magic != _MAGIC or not entries <= capacity <= room or depth > _MAX_DEPTH:
        raise fs.damaged(f"inode {inode} has a bad extent header")
    if expected_depth is not None and depth != expected_depth:
        raise fs.damaged(f"inode {inode} has an extent node of depth {depth} where {expected_depth} belongs")
    if depth == 0:
        _load_leaf(fs, inode, node, entries, map_)
        return
    for _logical, low, high, _unused in struct.iter_unpack("<IIHH", _entries(node, entries)):
        block = low | high << 32
        if not fs.first_data_block < block < fs.blocks or block in seen:
            raise fs.damaged(f"inode {inode} has an extent node at block {block}, twice or outside the volume")
        seen.add(block)
        data = fs.cache.read(block)
        _verify(fs, inode, seed, block, data)
        _load_node(fs, inode, seed, data, map_, seen, depth - 1)


def _verify(fs: Filesystem, inode: int, seed: int, block: int, node: bytes) -> None:
    if not fs.has_metadata_csum:
        return
    tail = _tail_offset(fs.block_bytes)
    (stored,) = struct.unpack_from("<I", node, tail)
    if stored != checksums.extent_checksum(seed, node, tail):
        raise fs.damaged(f"the extent node of inode {inode} at block {block} has a wrong checksum")


def _load_leaf(fs: Filesystem, inode: int, node: bytes, entries: int, map_: BlockMap) -> None:
    end = map_.end
    for logical, count, high, low in struct.iter_unpack("<IHHI", _entries(node, entries)):
        physical = low | high << 32
        written = count <= _UNWRITTEN
        length = count if written else count - _UNWRITTEN
        if (
            not length
            or logical < end
            or logical + length > _LOGICAL_END
            or physical <= fs.first_data_block
            or physical + length > fs.blocks
        ):
            raise fs.damaged(f"inode {inode} has a bad extent: {length} blocks at {physical} for {logical}")
        map_.append(logical, length, physical, written)
        end = logical + length


def _entries(node: bytes, count: int) -> bytes:
    return node[_HEADER.size : _HEADER.size + count * _ENTRY_BYTES]


def nodes_needed(fs: Filesystem, map_: BlockMap) -> int:
    """How many tree blocks a map takes."""
    capacity = _capacity(fs.block_bytes)
    total, entries = 0, len(map_)
    while entries > _ROOT_ENTRIES:
        entries = -(-entries // capacity)
        total += entries
    return total


def store(fs: Filesystem, seed: int, map_: BlockMap, nodes: list[int]) -> bytes:
    """Write the tree into `nodes`, as many as `nodes_needed` says; returns the root."""
    free = iter(nodes)
    entries = [
        struct.pack(
            "<IHHI",
            segment.logical,
            segment.length if segment.written else segment.length + _UNWRITTEN,
            segment.physical >> 32,
            segment.physical & 0xFFFFFFFF,
        )
        for segment in map_
    ]
    depth = 0
    while len(entries) > _ROOT_ENTRIES:
        entries = _store_level(fs, seed, entries, depth, free)
        depth += 1
    header = _HEADER.pack(_MAGIC, len(entries), _ROOT_ENTRIES, depth, 0)
    return (header + b"".join(entries)).ljust(_ROOT_BYTES, b"\0")


def _store_level(fs: Filesystem, seed: int, entries: list[bytes], depth: int, free: Iterator[int]) -> list[bytes]:
    """Write nodes full of `entries`; returns the index entries that lead to them."""
    capacity = _capacity(fs.block_bytes)
    above = []
    for begin in range(0, len(entries), capacity):
        part = entries[begin : begin + capacity]
        data = bytearray(fs.block_bytes)
        _HEADER.pack_into(data, 0, _MAGIC, len(part), capacity, depth, 0)
        data[_HEADER.size : _HEADER.size + len(part) * _ENTRY_BYTES] = b"".join(part)
        if fs.has_metadata_csum:
            tail = _tail_offset(fs.block_bytes)
            struct.pack_into("<I", data, tail, checksums.extent_checksum(seed, bytes(data), tail))
        block = next(free)
        fs.cache.write(block, bytes(data))
        above.append(part[0][:4] + struct.pack("<IHH", block & 0xFFFFFFFF, block >> 32, 0))
    return above
