"""What identifies a block of metadata. In version 5 it says its own place, its owner and its checksum.

| kind | magic, bytes at | checksum | place | change (LSN) | uuid | owner | header |
|---|---|---|---|---|---|---|---|
| block of a tree of extents | `BMA3`, 4 at 0 | 64 | 24 | 32 | 40 | 56 | 72 |
| block of names | `XDB3` alone, `XDD3` one of several, 4 at 0 | 4 | 8 | 16 | 24 | 40 | 64 |
| block of attributes | 0x3bee leaf, 0x3ebe above, 2 at 8 | 12 | 16 | 24 | 32 | 48 | 80, 64 |
| value of an attribute | `XARM`, 4 at 0 | 12 | 40 | 48 | 16 | 32 | 56 |
| target of a symbolic link | `XSLM`, 4 at 0 | 12 | 40 | 48 | 16 | 32 | 56 |

The place is in sectors of 512 bytes. Version 4 has other magic numbers and nothing else to check.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cowfs.xfs.format.superblock import SECTOR_BYTES, Superblock, checksum, damaged


@dataclass(frozen=True, slots=True)
class HeaderKind:
    """A structure with a header. Offsets are in bytes.

    Attributes:
        magics: of version 5; `old_magics`: of version 4, in which some structures have no header.
    """

    name: str
    magics: tuple[bytes, ...]
    old_magics: tuple[bytes, ...]
    magic: int
    checksum: int
    place: int
    change: int
    uuid: int
    owner: int


TREE: Final = HeaderKind("a block of a tree of extents", (b"BMA3",), (b"BMAP",), 0, 64, 24, 32, 40, 56)
NAMES: Final = HeaderKind("a block of names", (b"XDB3", b"XDD3"), (b"XD2B", b"XD2D"), 0, 4, 8, 16, 24, 40)
ATTRIBUTES: Final = HeaderKind(
    "a block of attributes", (b"\x3b\xee", b"\x3e\xbe"), (b"\xfb\xee", b"\xfe\xbe"), 8, 12, 16, 24, 32, 48
)
VALUE: Final = HeaderKind("the value of an attribute", (b"XARM",), (), 0, 12, 40, 48, 16, 32)
TARGET: Final = HeaderKind("the target of a symbolic link", (b"XSLM",), (), 0, 12, 40, 48, 16, 32)

OWNED_HEADER_BYTES: Final = 56  # of VALUE and TARGET


def require(
    sb: Superblock, kind: HeaderKind, data: bytes, offset: int, owner: int, *, is_replayed: bool = False
) -> bytes:
    """Check the header of a block of metadata.

    Args:
        data: the whole structure; `offset`: where it begins on the device.
        owner: the inode that it belongs to.
        is_replayed: parts of it come from the log, so that its checksum is not that of all.

    Returns:
        Its magic.

    Raises:
        FilesystemError (EUCLEAN): it is something else, or damaged.
    """
    magics = kind.magics if sb.has_checksums else kind.old_magics
    magic = data[kind.magic : kind.magic + len(magics[0])]
    reason = ""
    if magic not in magics:
        reason = f"it begins with {data[: kind.magic + 4].hex()}"
    elif sb.has_checksums:
        reason = next(_wrong(sb, kind, data, offset, owner, is_replayed=is_replayed), "")
    if reason:
        raise damaged(f"{sb.place(offset)}, {kind.name} of inode {owner}: {reason}")
    return magic


def _wrong(
    sb: Superblock, kind: HeaderKind, data: bytes, offset: int, owner: int, *, is_replayed: bool
) -> Iterator[str]:
    stored = int.from_bytes(data[kind.checksum : kind.checksum + 4], "little")
    if not is_replayed and stored != checksum(data, kind.checksum):
        yield "wrong checksum"
    if data[kind.uuid : kind.uuid + 16] != sb.meta_uuid:
        yield "it belongs to another file system"
    if (place := _number(data, kind.place)) != offset // SECTOR_BYTES:
        yield f"it says that it is sector {place}"
    if (found := _number(data, kind.owner)) != owner:
        yield f"it says that it belongs to inode {found}"


def _number(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 8], "big")
