"""The parts of ext4's on-disk format that cowfs reads itself; the rest is libext2fs's business.

All integers are little-endian. The superblock is 1024 bytes at byte 1024 of the device:

    offset  size  name                      offset  size  name
    0x000   4     inodes count              0x060   4     incompatible features
    0x004   4     blocks count, low         0x064   4     read-only compatible features
    0x018   4     log2(block size) - 10     0x068   16    UUID
    0x038   2     magic 0xEF53              0x078   16    label
    0x03A   2     state                     0x0E8   4     first inode of the orphan list
    0x04C   4     revision                  0x150   4     blocks count, high
    0x05C   4     compatible features       0x160   4     flags

Sources: Linux fs/ext4/ext4.h, Documentation/filesystems/ext4.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import Final

import msgspec

from cowfs.blockdev import BlockDevice
from cowfs.errors import FilesystemError

SUPERBLOCK_OFFSET: Final = 1024
SUPERBLOCK_BYTES: Final = 1024
SUPERBLOCK_MAGIC: Final = 0xEF53

STATE_VALID: Final = 0x0001  # cleanly unmounted
STATE_ERROR: Final = 0x0002  # errors were found

FLAG_UNSIGNED_HASH: Final = 0x0002

COMPAT_HAS_JOURNAL: Final = 0x0004
COMPAT_DIR_INDEX: Final = 0x0020
COMPAT_SPARSE_SUPER2: Final = 0x0200

INCOMPAT_FILETYPE: Final = 0x0002
INCOMPAT_RECOVER: Final = 0x0004
INCOMPAT_META_BG: Final = 0x0010
INCOMPAT_EXTENTS: Final = 0x0040
INCOMPAT_64BIT: Final = 0x0080
INCOMPAT_FLEX_BG: Final = 0x0200
INCOMPAT_EA_INODE: Final = 0x0400
INCOMPAT_CSUM_SEED: Final = 0x2000
INCOMPAT_LARGEDIR: Final = 0x4000
INCOMPAT_INLINE_DATA: Final = 0x8000

RO_COMPAT_LARGE_FILE: Final = 0x0002
RO_COMPAT_HUGE_FILE: Final = 0x0008
RO_COMPAT_GDT_CSUM: Final = 0x0010
RO_COMPAT_DIR_NLINK: Final = 0x0020
RO_COMPAT_BIGALLOC: Final = 0x0200
RO_COMPAT_METADATA_CSUM: Final = 0x0400
RO_COMPAT_ORPHAN_PRESENT: Final = 0x10000

INCOMPAT_NAMES: Final = {
    0x0001: "compression",
    0x0002: "filetype",
    0x0004: "needs_recovery",
    0x0008: "journal_dev",
    0x0010: "meta_bg",
    0x0040: "extent",
    0x0080: "64bit",
    0x0100: "mmp",
    0x0200: "flex_bg",
    0x0400: "ea_inode",
    0x1000: "dirdata",
    0x2000: "metadata_csum_seed",
    0x4000: "large_dir",
    0x8000: "inline_data",
    0x10000: "encrypt",
    0x20000: "casefold",
}
RO_COMPAT_NAMES: Final = {
    0x0001: "sparse_super",
    0x0002: "large_file",
    0x0004: "btree_dir",
    0x0008: "huge_file",
    0x0010: "uninit_bg",
    0x0020: "dir_nlink",
    0x0040: "extra_isize",
    0x0080: "snapshot",
    0x0100: "quota",
    0x0200: "bigalloc",
    0x0400: "metadata_csum",
    0x0800: "replica",
    0x1000: "read-only",
    0x2000: "project",
    0x4000: "shared_blocks",
    0x8000: "verity",
    0x10000: "orphan_present",
}

# What the engine understands. Bigalloc, quota and project would need bookkeeping of their own on every change.
INCOMPAT_SUPPORTED: Final = 0x0002 | 0x0010 | 0x0040 | 0x0080 | 0x0200 | 0x0400 | 0x2000 | 0x4000 | 0x8000
RO_COMPAT_WRITABLE: Final = 0x0001 | 0x0002 | 0x0008 | 0x0010 | 0x0020 | 0x0040 | 0x0400

INODE_FLAG_IMMUTABLE: Final = 0x00000010
INODE_FLAG_APPEND: Final = 0x00000020
INODE_FLAG_INDEX: Final = 0x00001000
INODE_FLAG_TOPDIR: Final = 0x00020000
INODE_FLAG_HUGE_FILE: Final = 0x00040000
INODE_FLAG_EXTENTS: Final = 0x00080000
INODE_FLAG_EA_INODE: Final = 0x00200000
INODE_FLAG_INLINE_DATA: Final = 0x10000000
# What a new inode takes over from its directory: secure deletion, undelete, compression, sync, no dump, no atime,
# journalled data, no tail, dirsync.
INODE_FLAGS_INHERITED: Final = 0x1 | 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x400 | 0x4000 | 0x8000 | 0x10000
INODE_FLAGS_FOR_FILES: Final = INODE_FLAGS_INHERITED & ~0x10000
INODE_FLAGS_FOR_OTHERS: Final = 0x40 | 0x80  # no dump, no atime

GROUP_INODE_UNINIT: Final = 0x0001
GROUP_BLOCK_UNINIT: Final = 0x0002

LINK_MAX: Final = 65000
NAME_MAX: Final = 255
GOOD_OLD_INODE_BYTES: Final = 128
FAST_SYMLINK_BYTES: Final = 60

MIN_TIME_SECONDS: Final = -(2**31)
MAX_TIME_SECONDS: Final = 2**34 - 2**31 - 1  # May 2446: two more bits of seconds beside the nanoseconds
MAX_OLD_TIME_SECONDS: Final = 2**31 - 1

_NANOSECONDS: Final = 1_000_000_000


class Superblock(msgspec.Struct, frozen=True):
    """The fields of an ext2, ext3 or ext4 superblock that decide how a volume is opened."""

    inodes: int
    blocks: int
    block_bytes: int
    state: int
    revision: int
    compat: int
    incompat: int
    ro_compat: int
    uuid: bytes
    label: bytes
    last_orphan: int

    @property
    def size_bytes(self) -> int:
        """How much of its device the volume takes."""
        return self.blocks * self.block_bytes

    @classmethod
    def unpack(cls, raw: bytes, *, where: str = "the device") -> Superblock:
        """Raises FilesystemError (EINVAL) when `raw` is not a superblock."""
        magic, state = struct.unpack_from("<HH", raw, 0x38)
        if magic != SUPERBLOCK_MAGIC:
            raise FilesystemError(
                f"no ext4 on {where}: magic {magic:#06x} where {SUPERBLOCK_MAGIC:#06x} belongs", errno=errno.EINVAL
            )
        inodes, blocks = struct.unpack_from("<II", raw, 0)
        (log_block,) = struct.unpack_from("<I", raw, 0x18)
        if log_block > 5:
            raise FilesystemError(
                f"ext4 on {where} has blocks of 2^{log_block + 10} bytes; at most 32 KiB are supported",
                errno=errno.EOPNOTSUPP,
            )
        (revision,) = struct.unpack_from("<I", raw, 0x4C)
        compat, incompat, ro_compat = struct.unpack_from("<III", raw, 0x5C)
        (last_orphan,) = struct.unpack_from("<I", raw, 0xE8)
        (blocks_high,) = struct.unpack_from("<I", raw, 0x150)
        if incompat & INCOMPAT_64BIT:
            blocks |= blocks_high << 32
        return cls(
            inodes=inodes,
            blocks=blocks,
            block_bytes=1024 << log_block,
            state=state,
            revision=revision,
            compat=compat,
            incompat=incompat,
            ro_compat=ro_compat,
            uuid=bytes(raw[0x68:0x78]),
            label=bytes(raw[0x78:0x88]).rstrip(b"\0"),
            last_orphan=last_orphan,
        )


def read_superblock(device: BlockDevice, *, where: str = "the device") -> Superblock:
    """The primary superblock; raises FilesystemError (EINVAL) when there is none."""
    if device.size_bytes < SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES:
        raise FilesystemError(f"no ext4 on {where}: it has only {device.size_bytes} bytes", errno=errno.EINVAL)
    return Superblock.unpack(device.pread(SUPERBLOCK_OFFSET, SUPERBLOCK_BYTES), where=where)


def feature_names(mask: int, names: dict[int, str]) -> str:
    """Names of the set bits, as tune2fs calls them; unknown ones in hex."""
    bits = [1 << bit for bit in range(32) if mask >> bit & 1]
    return ", ".join(names.get(bit, f"{bit:#x}") for bit in bits)


def encode_time(time_ns: int, *, extended: bool) -> tuple[int, int]:
    """(seconds field, extra field) of a time, clamped to what the inode can hold.

    The extra field carries two more bits of seconds and 30 bits of nanoseconds.
    """
    seconds, nanoseconds = divmod(time_ns, _NANOSECONDS)
    if extended and 0 <= seconds <= MAX_OLD_TIME_SECONDS:
        return seconds, nanoseconds << 2
    latest = MAX_TIME_SECONDS if extended else MAX_OLD_TIME_SECONDS
    if seconds < MIN_TIME_SECONDS:
        seconds, nanoseconds = MIN_TIME_SECONDS, 0
    elif seconds > latest:
        seconds, nanoseconds = latest, 0
    if not extended:
        return seconds & 0xFFFFFFFF, 0
    epoch = (seconds + 2**31) >> 32
    return seconds & 0xFFFFFFFF, nanoseconds << 2 | epoch


def decode_time(field: int, extra: int) -> int:
    """Nanoseconds since 1970 of the two fields; `extra` is 0 for inodes without it."""
    seconds = (field ^ 0x80000000) - 0x80000000
    nanoseconds = extra >> 2
    if nanoseconds >= _NANOSECONDS:
        nanoseconds = 0
    return (seconds + ((extra & 3) << 32)) * _NANOSECONDS + nanoseconds


def encode_device(rdev: int) -> tuple[int, int]:
    """The first two block fields of a device inode: the old 16-bit encoding where it fits, else the new one."""
    major, minor = os.major(rdev), os.minor(rdev)
    if major < 256 and minor < 256:
        return major << 8 | minor, 0
    if major >= 1 << 12 or minor >= 1 << 20:
        raise OSError(errno.EINVAL, f"device number {major}:{minor} does not fit ext4's 12 and 20 bits")
    return 0, (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def decode_device(old: int, new: int) -> int:
    if old:
        return os.makedev(old >> 8 & 0xFF, old & 0xFF)
    return os.makedev((new & 0xFFF00) >> 8, (new & 0xFF) | (new >> 12 & 0xFFF00))


_TYPE_OF_CODE: Final = (
    0,
    stat.S_IFREG,
    stat.S_IFDIR,
    stat.S_IFCHR,
    stat.S_IFBLK,
    stat.S_IFIFO,
    stat.S_IFSOCK,
    stat.S_IFLNK,
)
_CODE_OF_TYPE: Final = {mode: code for code, mode in enumerate(_TYPE_OF_CODE) if mode}


def file_type_mode(code: int) -> int:
    """Type bits of a mode for the type code of a directory entry; 0 when the entry does not tell."""
    return _TYPE_OF_CODE[code] if code < len(_TYPE_OF_CODE) else 0


def file_type_code(mode: int) -> int:
    return _CODE_OF_TYPE.get(stat.S_IFMT(mode), 0)
