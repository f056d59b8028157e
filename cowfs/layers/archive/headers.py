"""Headers of tar archives: what the library's TarInfo makes of them; the commonest at a fraction of the cost."""

from __future__ import annotations

import struct
import tarfile
from typing import Final

# name, mode, uid, gid, size, mtime, checksum, type, target; magic and names of owners; device numbers, prefix
_FIELDS: Final = struct.Struct("100s8s8s8s12s12s8sc100s72x16s155s12x")
_CHECKSUM: Final = slice(148, 156)
_CHECKSUM_OF_SPACES: Final = 8 * ord(" ")
_NO_DEVICES: Final = (bytes(16), 2 * b"0000000\0")
_PLAIN_TYPES: Final = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.XHDTYPE)


def parse_header(block: bytes) -> tarfile.TarInfo:
    """The header in a block of 512 bytes, with names as latin-1. Raises tarfile.HeaderError."""
    return _parse_plain(block) or tarfile.TarInfo.frombuf(block, "latin-1", "strict")


def _parse_plain(block: bytes) -> tarfile.TarInfo | None:
    """As `TarInfo.frombuf`, without the names of owners, for a header of octal numbers and no device; else None."""
    if len(block) != tarfile.BLOCKSIZE:
        return None
    name, mode, uid, gid, size, mtime, checksum, kind, target, devices, prefix = _FIELDS.unpack(block)
    if kind not in _PLAIN_TYPES or devices not in _NO_DEVICES:
        return None
    info = tarfile.TarInfo(_text(name))
    try:
        info.mode, info.uid, info.gid = _number(mode), _number(uid), _number(gid)
        info.size, info.mtime, info.chksum = _number(size), _number(mtime), _number(checksum)
    except ValueError:
        return None
    if info.chksum != sum(block) - sum(block[_CHECKSUM]) + _CHECKSUM_OF_SPACES:
        return None
    info.type = kind
    info.linkname = _text(target)
    if kind == tarfile.DIRTYPE:
        info.name = info.name.rstrip("/")
    if above := _text(prefix):
        info.name = f"{above}/{info.name}"
    return info


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("latin-1")


def _number(field: bytes) -> int:
    """Raises ValueError also for what TarInfo reads in other ways, such as an empty field."""
    return int(field.rstrip(b"\0 "), 8)
