"""Checksums of directory and extent blocks, for volumes with metadata_csum.

    seed = stored in the superblock (metadata_csum_seed), else crc32c of the UUID
    of an inode's blocks = crc32c over seed, inode number, generation, content

libext2fs can do this too, but reads the inode from the inode table for it each time. ext4's crc32c starts from all
ones and is not inverted at the end; google_crc32c inverts on both sides.

Source: Linux fs/ext4/namei.c (ext4_dirblock_csum, ext4_dx_csum), fs/ext4/extents.c (ext4_extent_block_csum).
"""

from __future__ import annotations

import struct

import google_crc32c

_ONES = 0xFFFFFFFF


def crc32c(seed: int, data: bytes | bytearray) -> int:
    """The checksum continued from `seed`, as ext4 writes it."""
    result: int = google_crc32c.extend(seed ^ _ONES, bytes(data))
    return result ^ _ONES


def inode_seed(seed: int, inode: int, generation: int) -> int:
    return crc32c(seed, struct.pack("<II", inode, generation))


def leaf_checksum(seed: int, block: bytes | bytearray, tail_bytes: int) -> int:
    """Of a directory block with entries: all but the tail."""
    return crc32c(seed, block[:-tail_bytes])


def index_checksum(seed: int, block: bytes | bytearray, begin: int, count: int, limit: int) -> int:
    """Of a directory's index block: `count` of `limit` slots of 8 bytes, from `begin`; then 4 reserved bytes."""
    tail = begin + 8 * limit
    return crc32c(crc32c(seed, block[: begin + 8 * count]), block[tail : tail + 4] + bytes(4))


def extent_checksum(seed: int, block: bytes | bytearray, tail: int) -> int:
    """Of an extent tree block: all before the checksum at `tail`."""
    return crc32c(seed, block[:tail])
