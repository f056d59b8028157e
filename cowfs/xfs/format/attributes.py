"""Extended attributes: in the inode, or in blocks of a tree by hash.

    in the inode:  length 2, count 1, 1 | entries
        an entry:  length of the name 1, of the value 1, flags 1, name, value

    a leaf:        header 32, or 80 in version 5, with the count at 12 or 56 | slots | free space | entries
        a slot:    hash 4, offset of the entry 2, flags 1, 1
        an entry with its value:      length of the value 2, of the name 1, name, value
        an entry with the value away: block of the value 4, length of the value 4, of the name 1, name
    above:         header 16, or 64 in version 5, with count and level at 12 or 56 | slots: hash 4, block 4

Values away are in blocks of the attribute fork.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from cowfs.xfs.format.superblock import Superblock

LEAVES: Final = (b"\x3b\xee", b"\xfb\xee")
VALUE_BYTES_MAX: Final = 65536

_LOCAL: Final = 0x1
_ROOT: Final = 0x2
_SECURE: Final = 0x4
_PARENT: Final = 0x8
_INCOMPLETE: Final = 0x80
_COUNT_AT: Final = 12
_COUNT_AT_5: Final = 56


class StoredAttribute(NamedTuple):
    """An attribute with its namespace; `value` is None where it is away, `value_bytes` from `value_block` on."""

    name: bytes
    value: bytes | None
    value_block: int
    value_bytes: int


class BadAttributes(ValueError):
    """Entries that cannot be; the text says why."""


def attributes_in_inode(fork: bytes) -> Iterator[StoredAttribute]:
    if len(fork) < 4:
        raise BadAttributes("it has no room for attributes")
    at = 4
    for _ in range(fork[2]):
        if at + 3 > len(fork):
            raise BadAttributes("its attributes do not end")
        name_bytes, value_bytes, flags = fork[at : at + 3]
        begin = at + 3 + name_bytes
        at = begin + value_bytes
        if at > len(fork):
            raise BadAttributes("its attributes do not end")
        name = _shown_name(fork[begin - name_bytes : begin], flags)
        if name is not None:
            yield StoredAttribute(name, fork[begin:at], 0, value_bytes)


def attributes_in_leaf(sb: Superblock, block: bytes) -> Iterator[StoredAttribute]:
    """Those in a leaf whose header was checked."""
    at, count_at = (80, _COUNT_AT_5) if sb.has_checksums else (32, _COUNT_AT)
    count = int.from_bytes(block[count_at : count_at + 2], "big")
    if at + 8 * count > len(block):
        raise BadAttributes(f"{count} attributes are more than fit")
    for slot in range(at, at + 8 * count, 8):
        entry, flags = int.from_bytes(block[slot + 4 : slot + 6], "big"), block[slot + 6]
        is_local = bool(flags & _LOCAL)
        begin = entry + (3 if is_local else 9)
        if begin > len(block):
            raise BadAttributes(f"an entry is at {entry}")
        name_end = begin + block[begin - 1]
        value_bytes = int.from_bytes(block[entry : entry + 2] if is_local else block[entry + 4 : entry + 8], "big")
        end = name_end + (value_bytes if is_local else 0)
        if end > len(block) or value_bytes > VALUE_BYTES_MAX:
            raise BadAttributes(f"the entry at {entry} does not end")
        name = _shown_name(block[begin:name_end], flags)
        if name is not None:
            value = block[name_end:end] if is_local else None
            value_block = 0 if is_local else int.from_bytes(block[entry : entry + 4], "big")
            yield StoredAttribute(name, value, value_block, value_bytes)


def children(sb: Superblock, block: bytes) -> tuple[int, list[int]]:
    """(level, blocks below) of a block above leaves whose header was checked; at least one block."""
    at, count_at = (64, _COUNT_AT_5) if sb.has_checksums else (16, _COUNT_AT)
    count = int.from_bytes(block[count_at : count_at + 2], "big")
    level = int.from_bytes(block[count_at + 2 : count_at + 4], "big")
    if not count or at + 8 * count > len(block):
        raise BadAttributes(f"{count} blocks below are more than fit")
    return level, [int.from_bytes(block[slot + 4 : slot + 8], "big") for slot in range(at, at + 8 * count, 8)]


def _shown_name(name: bytes, flags: int) -> bytes | None:
    """With its namespace; None for what is not shown: it is not complete, or leads to a parent directory."""
    if flags & (_INCOMPLETE | _PARENT):
        return None
    if not name or b"\0" in name:
        raise BadAttributes(f"{name!r} is not a name")
    return (b"trusted." if flags & _ROOT else b"security." if flags & _SECURE else b"user.") + name
