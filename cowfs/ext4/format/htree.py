"""The hash index of a directory: which block holds the names of which hash.

    root (block 0):   entries `.` (12 bytes) and `..` (the rest of the block), and inside the latter at byte 24:
                      u32 0, u8 hash version, u8 8, u8 levels below the root, u8 flags; then the slots
    node:             one unused entry as long as the block (8 bytes); then the slots
    slots:            u16 limit, u16 count, u32 block, then `count - 1` times u32 hash, u32 block
    checksum:         after `limit` slots, u32 reserved, u32 crc32c, with metadata_csum

The first slot leads to everything below the second slot's hash. Hashes are even; an odd one in a slot says that the
block before ends with names of the same hash, so a search for it must go on there. The whole index is held in memory
once a directory is used: it has one slot per directory block.

Source: Linux fs/ext4/namei.c.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from cowfs.ext4.format import checksums
from cowfs.ext4.format.directory_block import HEADER

_ROOT_INFO: Final = struct.Struct("<IBBBB")
_ROOT_INFO_OFFSET: Final = 24
_ROOT_SLOTS: Final = 32
_NODE_SLOTS: Final = 8
_SLOT_BYTES: Final = 8
_TAIL_BYTES: Final = 8
_BLOCK_MASK: Final = 0x0FFFFFFF
_LAST_HASH_VERSION: Final = 2  # legacy, half MD4, TEA; their unsigned variants are chosen by a superblock flag


class DamagedIndex(Exception):
    """An index block makes no sense."""


@dataclass(slots=True)
class Node:
    """An index block: `hashes[i]` is the first hash below `children[i]`, a directory block; `nodes` one level down."""

    block: int
    hashes: list[int]
    children: list[int]
    nodes: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Index:
    """The index of one directory. `levels` are those below the root: 0 means that the root's slots are the leaves."""

    root: Node
    hash_version: int
    levels: int
    parent: int  # the inode of `..`, which lives in the root block
    directory_type: int = 2  # the type code that entries for directories have; 0 without the filetype feature

    def path(self, hash_: int) -> list[tuple[Node, int]]:
        """From the root down to the slot that a hash belongs to."""
        node, path = self.root, []
        while True:
            slot = max(bisect_right(node.hashes, hash_) - 1, 0)
            path.append((node, slot))
            if not node.nodes:
                return path
            node = node.nodes[slot]

    def advance(self, path: list[tuple[Node, int]]) -> int | None:
        """Move a path to the next leaf; returns the hash of its slot, or None at the end."""
        depth = len(path)
        while depth:
            depth -= 1
            node, slot = path[depth]
            if slot + 1 < len(node.hashes):
                break
        else:
            return None
        del path[depth:]
        path.append((node, slot + 1))
        hash_ = node.hashes[slot + 1]
        while node.nodes:
            node = node.nodes[path[-1][1]]
            path.append((node, 0))
        return hash_

    @property
    def blocks(self) -> list[int]:
        """All index blocks, the root first."""
        found, todo = [], [self.root]
        while todo:
            node = todo.pop()
            found.append(node.block)
            todo.extend(node.nodes)
        return found


def limit(block_bytes: int, *, is_root: bool, has_tail: bool) -> int:
    """How many slots a block has."""
    begin = _ROOT_SLOTS if is_root else _NODE_SLOTS
    return (block_bytes - begin - (_TAIL_BYTES if has_tail else 0)) // _SLOT_BYTES


def load(read: Callable[[int], bytes], seed: int | None, blocks: int, max_levels: int) -> Index:
    """Read a whole index.

    Args:
        read: gives a block of the directory.
        seed: the directory's checksum seed; None without metadata_csum.
        blocks: how many blocks the directory has.

    Raises:
        DamagedIndex
    """
    data = read(0)
    zero, version, length, levels, flags = _ROOT_INFO.unpack_from(data, _ROOT_INFO_OFFSET)
    if zero or length != _ROOT_INFO.size or levels >= max_levels or flags & 1:
        raise DamagedIndex(f"root with zero {zero}, length {length}, {levels} levels, flags {flags:#x}")
    if version > _LAST_HASH_VERSION:
        raise DamagedIndex(f"unknown hash version {version}")
    seen: set[int] = set()
    root = _load_node(read, seed, blocks, 0, levels, seen)
    (parent,) = struct.unpack_from("<I", data, 12)
    return Index(root, version, levels, parent, data[7])


def _load_node(
    read: Callable[[int], bytes], seed: int | None, blocks: int, block: int, levels: int, seen: set[int]
) -> Node:
    if block in seen or block >= blocks:
        raise DamagedIndex(f"block {block} of {blocks} comes twice or not at all")
    seen.add(block)
    data = read(block)
    begin = _ROOT_SLOTS if block == 0 else _NODE_SLOTS
    capacity, count = struct.unpack_from("<HH", data, begin)
    if not 1 <= count <= capacity or capacity != limit(len(data), is_root=block == 0, has_tail=seed is not None):
        raise DamagedIndex(f"block {block} has {count} slots of {capacity}")
    if seed is not None:
        (stored,) = struct.unpack_from("<I", data, begin + capacity * _SLOT_BYTES + 4)
        if stored != checksums.index_checksum(seed, data, begin, count, capacity):
            raise DamagedIndex(f"block {block} has a wrong checksum")
    slots = struct.unpack_from(f"<{2 * count}I", data, begin)
    hashes = [0, *slots[2::2]]
    children = [child & _BLOCK_MASK for child in slots[1::2]]
    if any(one > two for one, two in pairwise(hashes)):
        raise DamagedIndex(f"block {block} has hashes out of order")
    node = Node(block, hashes, children)
    if levels:
        node.nodes = [_load_node(read, seed, blocks, child, levels - 1, seen) for child in children]
        return node
    for child in children:
        if child in seen or child >= blocks:
            raise DamagedIndex(f"block {child} of {blocks} comes twice or not at all")
        seen.add(child)
    return node


def store_node(node: Node, index: Index, inode: int, block_bytes: int, seed: int | None) -> bytes:
    """The block of an index node; `inode` is the directory's own number."""
    data = bytearray(block_bytes)
    begin = _NODE_SLOTS
    if node is index.root:
        begin = _ROOT_SLOTS
        HEADER.pack_into(data, 0, inode, 12, 1, index.directory_type)
        data[8:9] = b"."
        HEADER.pack_into(data, 12, index.parent, block_bytes - 12, 2, index.directory_type)
        data[20:22] = b".."
        _ROOT_INFO.pack_into(data, _ROOT_INFO_OFFSET, 0, index.hash_version, _ROOT_INFO.size, index.levels, 0)
    else:
        HEADER.pack_into(data, 0, 0, block_bytes, 0, 0)
    count = len(node.hashes)
    capacity = limit(block_bytes, is_root=node is index.root, has_tail=seed is not None)
    slots = [number for pair in zip(node.hashes, node.children, strict=True) for number in pair]
    struct.pack_into(f"<{2 * count}I", data, begin, *slots)
    struct.pack_into("<HH", data, begin, capacity, count)
    if seed is not None:
        checksum = checksums.index_checksum(seed, data, begin, count, capacity)
        struct.pack_into("<I", data, begin + capacity * _SLOT_BYTES + 4, checksum)
    return bytes(data)
