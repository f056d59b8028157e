"""Free space and inodes, by the allocation groups: the superblock has them only after an unmount.

second sector of a group `XAGF`:  blocks of its reserve at 48, free blocks 52, blocks of its trees 60, each of 4
third sector `XAGI`:              inodes at 16, free inodes 28
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from cowfs.xfs.files.blocks import Blocks
from cowfs.xfs.format.superblock import Superblock, damaged

_SPACE: Final = struct.Struct(">4s44xII4xI")
_INODES: Final = struct.Struct(">4s12xI8xI")


class Counts(NamedTuple):
    """As the superblock has them."""

    blocks_free: int
    inodes: int
    inodes_free: int

    @classmethod
    def of(cls, sb: Superblock) -> Counts:
        return cls(sb.blocks_free, sb.inodes, sb.inodes_free)


def count(blocks: Blocks) -> Counts:
    """By the groups. Raises FilesystemError: a group has no counts."""
    sb = blocks.sb
    blocks_free = inodes = inodes_free = 0
    for group in range(sb.ag_count):
        begin = group * sb.ag_blocks << sb.block_log
        space_magic, reserve, free, in_trees = _SPACE.unpack(blocks.device.pread(begin + sb.sector_bytes, _SPACE.size))
        magic, made, unused = _INODES.unpack(blocks.device.pread(begin + 2 * sb.sector_bytes, _INODES.size))
        if (space_magic, magic) != (b"XAGF", b"XAGI"):
            raise damaged(f"{sb.place(begin)} does not begin with the counts of its group")
        blocks_free += reserve + free + in_trees
        inodes += made
        inodes_free += unused
    return Counts(blocks_free, inodes, inodes_free)
