"""Extents of files, and what a tree of them consists of.

    an extent, 128 bits:  unwritten 1 | block in the file 54 | fsblock 52 | count of blocks 21

    the root of a tree, in the inode:  level 2, count 2 | keys, 8 each | block numbers, 8 each
    a block of a tree:                 header           | keys, 8 each | block numbers, 8 each
    a block of level 0:                header           | extents, 16 each

The block numbers begin where they would if all the room for keys and numbers were used.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

EXTENT_BYTES: Final = 16
_RAW: Final = struct.Struct(">QQ")
_ROOT: Final = struct.Struct(">HH")
_BLOCK: Final = struct.Struct(">4sHH")
_BLOCK_HEADER_BYTES: Final = 24
_BLOCK_HEADER_BYTES_5: Final = 72


class Extent(NamedTuple):
    """A run of blocks of a file; `fsblock` is as the superblock counts. Reads as zeros where `is_unwritten`."""

    logical: int
    fsblock: int
    length: int
    is_unwritten: bool


class TreeNode(NamedTuple):
    """`children`: block numbers, empty where `level` is 0; `extents`: empty elsewhere."""

    level: int
    children: tuple[int, ...]
    extents: list[Extent]


def unpack_extents(data: bytes, count: int) -> list[Extent] | None:
    """The first `count` extents of some bytes; None where they hold fewer."""
    if count * EXTENT_BYTES > len(data):
        return None
    return [
        Extent(high >> 9 & 0x3FFFFFFFFFFFFF, (high & 0x1FF) << 43 | low >> 21, low & 0x1FFFFF, bool(high >> 63))
        for high, low in _RAW.iter_unpack(data[: count * EXTENT_BYTES])
    ]


def unpack_root(fork: bytes) -> TreeNode | None:
    """The root in an inode's fork; None for what cannot be one."""
    if len(fork) < _ROOT.size:
        return None
    level, count = _ROOT.unpack_from(fork)
    children = _children(fork, _ROOT.size, count)
    return TreeNode(level, children, []) if children and level else None


def unpack_block(block: bytes, *, has_checksums: bool) -> TreeNode | None:
    """A block whose header was checked; None where its count cannot be."""
    _, level, count = _BLOCK.unpack_from(block)
    header = _BLOCK_HEADER_BYTES_5 if has_checksums else _BLOCK_HEADER_BYTES
    if level:
        children = _children(block, header, count)
        return TreeNode(level, children, []) if children else None
    extents = unpack_extents(block[header:], count)
    return TreeNode(0, (), extents) if extents else None


def _children(data: bytes, header: int, count: int) -> tuple[int, ...]:
    room = (len(data) - header) // 16
    if not 0 < count <= room:
        return ()
    return struct.unpack_from(f">{count}Q", data, header + 8 * room)
