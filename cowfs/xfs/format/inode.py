"""Inodes.

    offset  size
         0     2  magic `IN`
         2     2  mode
         4     1  version: 1, 2, or 3 (in version 5 of the format)
         5     1  form of the data fork: 0 device, 1 local, 2 extents, 3 tree
         6     2  links (version 1)
         8     4  user            12  4  group         16  4  links
        24     8  count of extents of the data fork, with large counts
        32     8  accessed        40  8  modified      48  8  changed
        56     8  size            64  8  blocks
        76     4  count of extents of the data fork; with large counts, of the attribute fork
        80     2  count of extents of the attribute fork, without large counts
        82     1  where the attribute fork begins, in 8 bytes from the end of this; 0: there is none
        83     1  form of the attribute fork
        90     2  flags           92  4  generation
       100     4  checksum       112  8  LSN of the last change   (from here on in version 3)
       120     8  more flags     144  8  made         152  8  number        160  16  uuid
  100 or 176      data fork, attribute fork

Times are seconds and nanoseconds of 4 bytes, or with large times nanoseconds since December 1901.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import Final

from cowfs.filetree import Attributes
from cowfs.xfs.format.superblock import Superblock, checksum, damaged

FORM_DEVICE: Final = 0
FORM_LOCAL: Final = 1
FORM_EXTENTS: Final = 2
FORM_TREE: Final = 3

CORE_BYTES: Final = 100
CORE_BYTES_3: Final = 176

_CORE: Final = struct.Struct(">2sHBBHIIIHHQ8s8s8sQQIIHBbIHHII")
_CORE_3: Final = struct.Struct(">IQQQI12s8sQ16s")
_TIME: Final = struct.Struct(">iI")
_CHECKSUM_OFFSET: Final = 100
_FLAG_REALTIME: Final = 0x1
_MORE_LARGE_TIMES: Final = 0x8
_MORE_LARGE_COUNTS: Final = 0x10
_LARGE_EPOCH_NS: Final = (1 << 31) * 10**9
_SIZE_MAX: Final = (1 << 63) - 1


@dataclass(slots=True)
class Inode:
    """An inode; forks are the bytes that it has room for."""

    attributes: Attributes
    form: int
    fork: bytes
    extents: int
    attribute_form: int
    attribute_fork: bytes
    attribute_extents: int
    is_realtime: bool

    @property
    def number(self) -> int:
        return self.attributes.inode

    @property
    def size(self) -> int:
        return self.attributes.size_bytes

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.attributes.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.attributes.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.attributes.mode)


def unpack(sb: Superblock, number: int, raw: bytes, *, where: str, is_replayed: bool = False) -> Inode | None:
    """An inode of `sb.inode_bytes`; None for one that is not in use.

    Args:
        where: its place, for messages.
        is_replayed: it comes from the log, so that its checksum is not that of all.

    Raises:
        FilesystemError (EUCLEAN)
    """
    f = _CORE.unpack_from(raw)
    magic, mode, version, form = f[0], f[1], f[2], f[3]
    if magic != b"IN" or version not in ((3,) if sb.has_checksums else (1, 2)):
        raise damaged(f"{where}: there is no inode {number}")
    more, made_ns = 0, 0
    if version == 3:
        stored, _, _, more, _, _, made, own, uuid = _CORE_3.unpack_from(raw, CORE_BYTES)
        if not is_replayed and checksum(raw, _CHECKSUM_OFFSET) != int.from_bytes(stored.to_bytes(4, "big"), "little"):
            raise damaged(f"{where}: inode {number} has a wrong checksum")
        if own != number or uuid != sb.meta_uuid:
            raise damaged(f"{where}: there is inode {own} of another place instead of inode {number}")
        made_ns = _time_ns(made, is_large=bool(more & _MORE_LARGE_TIMES))
    if not mode:
        return None
    is_large = bool(more & _MORE_LARGE_TIMES)
    counts = (f[10], f[17]) if more & _MORE_LARGE_COUNTS else (f[17], f[18])
    literal = raw[CORE_BYTES_3 if version == 3 else CORE_BYTES :]
    begin = f[19] * 8
    if begin >= len(literal) or f[14] > _SIZE_MAX or not _has_sound_form(mode, form):
        raise damaged(f"{where}: inode {number} has a form or sizes that cannot be")
    fork = literal[:begin] if begin else literal
    return Inode(
        attributes=Attributes(
            inode=number,
            generation=f[24],
            mode=mode,
            nlink=f[4] if version == 1 else f[7],
            uid=f[5],
            gid=f[6],
            rdev=_device(fork) if form == FORM_DEVICE and stat.S_IFMT(mode) in (stat.S_IFCHR, stat.S_IFBLK) else 0,
            size_bytes=f[14],
            blocks=f[15] << sb.block_log >> 9,
            atime_ns=_time_ns(f[11], is_large=is_large),
            mtime_ns=_time_ns(f[12], is_large=is_large),
            ctime_ns=_time_ns(f[13], is_large=is_large),
            crtime_ns=made_ns,
        ),
        form=form,
        fork=fork,
        extents=counts[0],
        attribute_form=f[20] if begin else FORM_EXTENTS,
        attribute_fork=literal[begin:] if begin else b"",
        attribute_extents=counts[1] if begin else 0,
        is_realtime=bool(f[23] & _FLAG_REALTIME),
    )


def _has_sound_form(mode: int, form: int) -> bool:
    kind = stat.S_IFMT(mode)
    if kind in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
        return form == FORM_DEVICE
    if kind == stat.S_IFREG:
        return form in (FORM_EXTENTS, FORM_TREE)
    return kind in (stat.S_IFDIR, stat.S_IFLNK) and form in (FORM_LOCAL, FORM_EXTENTS, FORM_TREE)


def _time_ns(raw: bytes, *, is_large: bool) -> int:
    if is_large:
        return int.from_bytes(raw, "big") - _LARGE_EPOCH_NS
    seconds, nanoseconds = _TIME.unpack(raw)
    return int(seconds) * 10**9 + int(nanoseconds)


def _device(fork: bytes) -> int:
    """As os.makedev packs it; on the disk, 14 bits of the major and 18 of the minor number."""
    number = int.from_bytes(fork[:4], "big")
    major, minor = number >> 18, number & 0x3FFFF
    return (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12 | (major & ~0xFFF) << 32
