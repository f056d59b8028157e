"""The superblock: geometry, features, and the arithmetic of addresses.

    inode number    allocation group | block in the group | inode in the block
    block number    allocation group | block in the group         (`fsblock`; not the same as its place on the device)

The bits for the block are as many as the largest group needs, so that not every number is an address.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import Final

import google_crc32c

from cowfs.blockdev import BlockDevice
from cowfs.errors import FilesystemError
from cowfs.xfs.signature import MAGIC, SUPERBLOCK_BYTES

SECTOR_BYTES: Final = 512  # of addresses in headers and in the log, whatever the disk's

_FIELDS: Final = struct.Struct(">4sIQQQ16sQQQQIIIIIHHHH12sBBBBBBBBQQQQQQHBBIIIBBHIIIIIIIIIqQ16s")
_CRC_OFFSET: Final = 224

_VERSION_DIR2: Final = 0x2000
_VERSION_MORE: Final = 0x8000
_VERSION_LOG2: Final = 0x0400
_FEATURES2_FTYPE: Final = 0x200
_INCOMPAT_FTYPE: Final = 0x1
_INCOMPAT_META_UUID: Final = 0x4
_INCOMPAT_NEEDS_REPAIR: Final = 0x10
_INCOMPAT_KNOWN: Final = 0x1FF
_BLOCK_BYTES: Final = range(9, 17)  # log2
_SECTOR_LOG: Final = range(9, 16)
_INODE_LOG: Final = range(8, 12)
_DIRECTORY_BLOCK_LOG_MAX: Final = 16


def damaged(what: str) -> FilesystemError:
    """The error for bytes that cannot be as they are."""
    return FilesystemError(f"xfs is damaged: {what}", errno=errno.EUCLEAN)


@dataclass(frozen=True, slots=True)
class Superblock:
    """Sizes are in bytes where their names say so, else in file system blocks. `*_log` is the logarithm to base 2."""

    block_bytes: int
    block_log: int
    blocks: int
    uuid: bytes
    meta_uuid: bytes
    log_start: int
    log_blocks: int
    log_version: int
    root_inode: int
    ag_blocks: int
    ag_block_log: int
    ag_count: int
    version: int
    sector_bytes: int
    inode_bytes: int
    inodes_per_block_log: int
    directory_block_log: int
    inodes: int
    inodes_free: int
    blocks_free: int
    inodes_percent_max: int
    has_file_types: bool
    incompat: int

    @property
    def has_checksums(self) -> bool:
        return self.version == 5

    @property
    def needs_repair(self) -> bool:
        return bool(self.incompat & _INCOMPAT_NEEDS_REPAIR)

    @property
    def directory_block_bytes(self) -> int:
        return self.block_bytes << self.directory_block_log

    def group_blocks(self, group: int) -> int:
        """How many blocks a group has; the last one may have fewer."""
        return self.ag_blocks if group < self.ag_count - 1 else self.blocks - group * self.ag_blocks

    def offset_of(self, fsblock: int, count: int = 1) -> int | None:
        """Where blocks lie on the device [bytes]; None for what is not a range of blocks in one group."""
        group, block = fsblock >> self.ag_block_log, fsblock & ((1 << self.ag_block_log) - 1)
        if fsblock < 0 or group >= self.ag_count or block + count > self.group_blocks(group):
            return None
        return (group * self.ag_blocks + block) << self.block_log

    def place(self, offset: int) -> str:
        """An address on the device as people look it up."""
        group, block = divmod(offset >> self.block_log, self.ag_blocks)
        return f"block {block} of allocation group {group}"

    def inode_address(self, inode: int) -> tuple[int, int] | None:
        """(fsblock, byte in it); None for a number that no inode can have."""
        fsblock, index = inode >> self.inodes_per_block_log, inode & ((1 << self.inodes_per_block_log) - 1)
        if inode <= 0 or self.offset_of(fsblock) is None:
            return None
        return fsblock, index * self.inode_bytes


def read_superblock(device: BlockDevice, *, is_replayed: bool = False) -> Superblock:
    """The superblock of a device.

    Args:
        is_replayed: parts of it come from the log, so that its checksum is not that of all.

    Raises:
        FilesystemError: no xfs (EINVAL), a feature that is not supported (EOPNOTSUPP), damage (EUCLEAN).
    """
    if device.size_bytes < SUPERBLOCK_BYTES:
        raise FilesystemError("there is no xfs on the device", errno=errno.EINVAL)
    raw = device.pread(0, SUPERBLOCK_BYTES)
    if raw[:4] != MAGIC:
        raise FilesystemError("there is no xfs on the device", errno=errno.EINVAL)
    sector_bytes = int.from_bytes(raw[102:104], "big")
    if SUPERBLOCK_BYTES < sector_bytes <= min(1 << 15, device.size_bytes):
        raw = device.pread(0, sector_bytes)
    superblock = _parse(raw, is_replayed=is_replayed)
    needed = superblock.blocks << superblock.block_log
    if needed > device.size_bytes:
        raise damaged(f"the superblock says {needed} bytes, and the device has {device.size_bytes}")
    return superblock


def _parse(raw: bytes, *, is_replayed: bool) -> Superblock:
    f = _FIELDS.unpack_from(raw)
    version, features2, incompat = f[15], f[44], f[48]
    number = version & 0xF
    if number == 5:
        stored = int.from_bytes(raw[_CRC_OFFSET : _CRC_OFFSET + 4], "little")
        if not is_replayed and checksum(raw, _CRC_OFFSET) != stored:
            raise damaged("the superblock, block 0 of allocation group 0, has a wrong checksum")
        if incompat & ~_INCOMPAT_KNOWN:
            raise FilesystemError(
                f"xfs has features that are not supported: incompat 0x{incompat & ~_INCOMPAT_KNOWN:x}; mount it by the "
                "kernel",
                errno=errno.EOPNOTSUPP,
            )
    elif number != 4 or not version & _VERSION_DIR2:
        raise FilesystemError(f"xfs of version {number} is not supported; there are 4 and 5", errno=errno.EOPNOTSUPP)
    is_new = number == 5
    superblock = Superblock(
        block_bytes=f[1],
        block_log=f[20],
        blocks=f[2],
        uuid=f[5],
        meta_uuid=f[54] if is_new and incompat & _INCOMPAT_META_UUID else f[5],
        log_start=f[6],
        log_blocks=f[14],
        log_version=2 if version & _VERSION_LOG2 or is_new else 1,
        root_inode=f[7],
        ag_blocks=f[11],
        ag_block_log=f[24],
        ag_count=f[12],
        version=number,
        sector_bytes=f[16],
        inode_bytes=f[17],
        inodes_per_block_log=f[23],
        directory_block_log=f[40],
        inodes=f[28],
        inodes_free=f[29],
        blocks_free=f[30],
        inodes_percent_max=f[27],
        has_file_types=bool(incompat & _INCOMPAT_FTYPE)
        if is_new
        else bool(version & _VERSION_MORE and features2 & _FEATURES2_FTYPE),
        incompat=incompat if is_new else 0,
    )
    _check(superblock, sector_log=f[21], inode_log=f[22], in_progress=f[26])
    return superblock


def _check(sb: Superblock, *, sector_log: int, inode_log: int, in_progress: int) -> None:
    if in_progress:
        raise FilesystemError("xfs was not made to its end: mkfs.xfs was interrupted", errno=errno.EUCLEAN)
    is_sound = (
        sb.block_log in _BLOCK_BYTES
        and sb.block_bytes == 1 << sb.block_log
        and sector_log in _SECTOR_LOG
        and sb.sector_bytes == 1 << sector_log
        and inode_log in _INODE_LOG
        and sb.inode_bytes == 1 << inode_log
        and sb.inode_bytes <= sb.block_bytes
        and sb.inodes_per_block_log == sb.block_log - inode_log
        and sb.directory_block_log + sb.block_log <= _DIRECTORY_BLOCK_LOG_MAX
        and sb.ag_blocks > 0
        and sb.ag_block_log == (sb.ag_blocks - 1).bit_length()
        and sb.ag_count > 0
        and sb.ag_blocks * (sb.ag_count - 1) < sb.blocks <= sb.ag_blocks * sb.ag_count
        and sb.inode_address(sb.root_inode) is not None
    )
    if not is_sound:
        raise damaged("the superblock, block 0 of allocation group 0, has sizes that do not go together")


def checksum(data: bytes, offset: int) -> int:
    """CRC32c of a structure whose own checksum, of 4 bytes at `offset`, counts as zeros."""
    value = google_crc32c.value(data[:offset])
    value = google_crc32c.extend(value, bytes(4))
    return int(google_crc32c.extend(value, data[offset + 4 :]))
