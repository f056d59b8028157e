"""Growing an ext4 to the end of its device, by resize2fs.

resize2fs wants a file, so it works on a sparse copy. As long as the group descriptors find room in the blocks that were
reserved for them, which is enough for a thousand times the size, it moves no data, and reads and writes nothing but:

    superblock, group descriptors, blocks reserved for more of them      in the groups that have copies
    bitmaps and inode tables                                             of every group
    the resize inode's double indirect block

Then only these are copied, there and back. Otherwise, and for a volume that was not cleanly unmounted or has a damaged
bitmap or group descriptor (which e2fsck has to see first), everything is.

Source: e2fsprogs 1.47, resize/resize2fs.c.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import Final

from cowfs.blockdev import BlockDevice, FileDevice
from cowfs.errors import FilesystemError
from cowfs.ext4.format import layout
from cowfs.ext4.library.filesystem import Filesystem
from cowfs.ext4.space.bitmaps import find_damage
from cowfs.ext4.tools import commands as tools
from cowfs.ext4.tools.fsck import CheckStatus, needs_check
from cowfs.ranges import RangeSet

_RESIZE_INODE: Final = 7
_DOUBLE_INDIRECT_OFFSET: Final = 0x28 + 13 * 4  # in an inode
_USABLE: Final = CheckStatus.CORRECTED | CheckStatus.REBOOT


def grow_filesystem(device: BlockDevice) -> bool:
    """Make the ext4 on a device fill it; whether it had to grow. What a failure leaves is only good for throwing away.

    Raises:
        FilesystemError: no ext4 (EINVAL), damage (EUCLEAN), or resize2fs refused; its words are in the message.
        MissingRequirement: e2fsprogs are not installed.
    """
    superblock = layout.read_superblock(device)
    if superblock.size_bytes + superblock.block_bytes > device.size_bytes:
        return False
    before = None if needs_check(device) else _metadata(device, device.size_bytes, check=True)
    with tools.temporary_image(device.size_bytes) as image:
        if before is None:
            tools.copy_mapped(device, image)
            _check(image)
            _resize(image)
            _check(image)  # with rare features resize2fs leaves counts that do not fit
            tools.copy_changes(image, device)
        else:
            tools.copy_mapped(device, image, within=before)
            _resize(image)
            after = _metadata(image, image.size_bytes)
            if after is None:
                raise FilesystemError("resize2fs made an ext4 of another kind than it was")
            tools.copy_changes(image, device, within=RangeSet([*before, *after]))
    device.flush()
    return True


def _check(image: FileDevice) -> None:
    status, output = tools.run("e2fsck", ["-fp", image.path])
    if status < 0 or CheckStatus(status) & ~_USABLE:
        raise FilesystemError(f"e2fsck: {_words(output, image)}; repair it, then grow it", errno=errno.EUCLEAN)


def _resize(image: FileDevice) -> None:
    status, output = tools.run("resize2fs", ["-f", image.path])
    if status:
        raise FilesystemError(f"resize2fs cannot make it {image.size_bytes} bytes large: {_words(output, image)}")


def _words(output: str, image: FileDevice) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith("resize2fs 1.")]
    return "; ".join(lines).replace(image.path, "the volume")


def _metadata(device: BlockDevice, grown_bytes: int, *, check: bool = False) -> RangeSet | None:
    """What resize2fs reads and writes to make a volume so large; None where it takes more, or e2fsck before it."""
    superblock = layout.read_superblock(device)
    if (
        superblock.incompat & layout.INCOMPAT_META_BG
        or superblock.compat & layout.COMPAT_SPARSE_SUPER2
        or superblock.ro_compat & layout.RO_COMPAT_BIGALLOC
    ):
        return None
    try:
        fs = Filesystem(device, read_only=True, now_ns=lambda: 0)
    except FilesystemError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return None
    try:
        if not _descriptors_fit(fs, grown_bytes) or (check and _is_damaged(fs)):
            return None
        return RangeSet((offset, offset + length) for offset, length in _pieces(fs))
    finally:
        fs.free()


def _descriptors_fit(fs: Filesystem, grown_bytes: int) -> bool:
    """Whether those of all groups will find room in the blocks that are there for them."""
    descriptor_bytes = fs.super.s_desc_size if fs.super.s_feature_incompat & layout.INCOMPAT_64BIT else 32
    groups = -(-(grown_bytes // fs.block_bytes - fs.first_data_block) // fs.blocks_per_group)
    needed = -(-groups * descriptor_bytes // fs.block_bytes)
    return bool(needed <= fs.fs.desc_blocks + fs.super.s_reserved_gdt_blocks)


def _is_damaged(fs: Filesystem) -> bool:
    """Whether resize2fs would put new metadata, by what a damaged one says, where files are."""
    try:
        fs.descriptors.check()
    except FilesystemError:
        return True
    return find_damage(fs) is not None


def _pieces(fs: Filesystem) -> Iterator[tuple[int, int]]:
    """(offset, length), in bytes of the device."""
    block_bytes = fs.block_bytes
    descriptors = fs.fs.desc_blocks + fs.super.s_reserved_gdt_blocks
    yield 0, (fs.first_data_block + 1 + descriptors) * block_bytes
    for group in range(fs.groups):
        if group and fs.c.ext2fs_bg_has_super(fs.fs, group):
            yield (fs.first_data_block + group * fs.blocks_per_group) * block_bytes, (1 + descriptors) * block_bytes
        yield fs.c.ext2fs_block_bitmap_loc(fs.fs, group) * block_bytes, block_bytes
        yield fs.c.ext2fs_inode_bitmap_loc(fs.fs, group) * block_bytes, block_bytes
        yield fs.c.ext2fs_inode_table_loc(fs.fs, group) * block_bytes, fs.fs.inode_blocks_per_group * block_bytes
    double_indirect = _double_indirect_block(fs)
    if double_indirect:
        yield double_indirect * block_bytes, block_bytes


def _double_indirect_block(fs: Filesystem) -> int:
    """Block of the resize inode's map of the reserved blocks; 0 without one."""
    offset = fs.c.ext2fs_inode_table_loc(fs.fs, 0) * fs.block_bytes + (_RESIZE_INODE - 1) * fs.inode_bytes
    (block,) = struct.unpack("<I", fs.device.pread(offset + _DOUBLE_INDIRECT_OFFSET, 4))
    return int(block) if block < fs.blocks else 0
