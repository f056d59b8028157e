"""Names of directories: in the inode, or in blocks.

    in the inode:  count 1, how many numbers are long 1 | parent 4 or 8 | entries
        an entry:  length of the name 1, offset 2, name, [type 1], inode 4 or 8

    in a block:    header 16, or 64 in version 5 | entries and free space | in a block that is alone: hashes, count 4, 4
        an entry:  inode 8, length of the name 1, name, [type 1], tag 2; a multiple of 8
        free space: 0xffff 2, length 2, ..., tag 2

The type is there with the feature `ftype`. Hashes and free space serve changes and look-ups, and are not needed.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from cowfs.xfs.format.superblock import Superblock

ALONE: Final = (b"XD2B", b"XDB3")
LEAF_BYTES: Final = 32 << 30  # in the file: where names end and hashes begin

_FREE_TAG: Final = b"\xff\xff"
_HEADER_BYTES: Final = 16
_HEADER_BYTES_5: Final = 64
_HASH_BYTES: Final = 8
_KINDS: Final = (
    *(0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFLNK),
    stat.S_IFCHR,
)


class Name(NamedTuple):
    """`kind`: the type bits of a mode, 0 where the entry does not say."""

    name: bytes
    inode: int
    kind: int


class BadNames(ValueError):
    """Entries that cannot be; the text says why."""


def parent_in_inode(fork: bytes) -> int:
    """The inode of `..`."""
    if len(fork) < 6:
        raise BadNames("it has no room for its parent")
    return int.from_bytes(fork[2 : 10 if fork[1] else 6], "big")


def names_in_inode(sb: Superblock, fork: bytes) -> Iterator[Name]:
    """All but `.` and `..`."""
    parent_in_inode(fork)
    width = 8 if fork[1] else 4
    at = 2 + width
    for _ in range(fork[0]):
        begin = at + 3
        end = begin + (fork[at] if at < len(fork) else 0)
        inode_at = end + sb.has_file_types
        at = inode_at + width
        if at > len(fork):
            raise BadNames("its entries do not end")
        kind = fork[end] if sb.has_file_types else 0
        yield _name(fork[begin:end], int.from_bytes(fork[inode_at:at], "big"), kind)


def names_in_block(sb: Superblock, block: bytes) -> Iterator[Name]:
    """Those in a block whose header was checked; `.` and `..` are the first two of a directory."""
    at = _HEADER_BYTES_5 if sb.has_checksums else _HEADER_BYTES
    stop = len(block)
    if block[:4] in ALONE:
        stop -= 8 + _HASH_BYTES * int.from_bytes(block[-8:-4], "big")
        if stop < at:
            raise BadNames("it has more hashes than fit")
    while at < stop:
        if block[at : at + 2] == _FREE_TAG:
            length = int.from_bytes(block[at + 2 : at + 4], "big")
            if length < 8 or length % 8:
                raise BadNames(f"free space of {length} bytes at {at}")
            at += length
            continue
        begin = at + 9
        end = begin + (block[at + 8] if at + 8 < stop else stop)
        length = end + sb.has_file_types + 2 - at + 7 & ~7
        if at + length > stop:
            raise BadNames(f"the entry at {at} does not end")
        kind = block[end] if sb.has_file_types else 0
        yield _name(block[begin:end], int.from_bytes(block[at : at + 8], "big"), kind)
        at += length
    if at != stop:
        raise BadNames("its free space does not end")


def _name(name: bytes, inode: int, kind: int) -> Name:
    if not name or b"/" in name or b"\0" in name:
        raise BadNames(f"{name!r} is not a name")
    return Name(name, inode, _KINDS[kind] if kind < len(_KINDS) else 0)
