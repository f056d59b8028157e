"""Which blocks and inodes are used: the bitmaps of the groups, each read and checked when it is first needed.

A bitmap that cannot be right must not be believed: blocks that it calls free may hold the inode table, or files. So
the first use of each looks at its checksum, where there is one; whether it marks the metadata that lies in its group,
or the reserved inodes; and whether it has as many free ones as the group's descriptor counts. A group with a bad bitmap
is left alone: nothing is allocated from it, freed into it or trimmed. That is logged, of a volume one group as a
warning, and the volume is marked for a check.

In the library's memory nothing is used in a group whose bitmap was not read, so nothing may be looked for there; and
all is used in a group with a bad one.

Source: Linux fs/ext4/balloc.c, ialloc.c, and mballoc.c (ext4_mb_generate_buddy).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from cowfs.ext4.library.block_runs import Run
from cowfs.ext4.library.filesystem import Filesystem

_UNREAD: Final = 0
_GOOD: Final = 1
_BAD: Final = 2


class DamagedBitmap(Exception):
    """A bitmap cannot be right; the message says why."""


def read_block_bitmap(fs: Filesystem, group: int) -> int:
    """The used blocks of a group, as bits.

    Raises:
        DamagedBitmap
    """
    groups = fs.descriptors
    begin, count = groups.first_block(group), groups.block_count(group)
    system = groups.system_blocks.bits(begin, count)
    if groups.has_unused_blocks(group):
        bits = system
    else:
        bits = _read(fs, group, groups.block_bitmap(group), fs.blocks_per_group, fs.c.ext2fs_block_bitmap_csum_verify)
        bits &= (1 << count) - 1
    if bits & system != system:
        raise DamagedBitmap("calls blocks free that hold a superblock, group descriptors, bitmaps or an inode table")
    return _counted(bits, count, groups.free_blocks(group))


def read_inode_bitmap(fs: Filesystem, group: int) -> int:
    """The used inodes of a group, as bits.

    Raises:
        DamagedBitmap
    """
    groups, count = fs.descriptors, fs.inodes_per_group
    bits = 0
    if not groups.has_unused_inodes(group):
        bits = _read(fs, group, groups.inode_bitmap(group), count, fs.c.ext2fs_inode_bitmap_csum_verify)
    reserved = (1 << fs.first_inode - 1) - 1 if group == 0 else 0
    if bits & reserved != reserved:
        raise DamagedBitmap("calls inodes free that are reserved")
    return _counted(bits, count, groups.free_inodes(group))


def _read(fs: Filesystem, group: int, block: int, count: int, verify: Callable[..., int]) -> int:
    data = fs.cache.read(block)
    if fs.has_metadata_csum and not verify(fs.fs, group, fs.ffi.from_buffer("char[]", data), -(-count // 8)):
        raise DamagedBitmap("has a wrong checksum")
    return int.from_bytes(data, "little") & ((1 << count) - 1)


def _counted(bits: int, count: int, free: int) -> int:
    found = count - bits.bit_count()
    if found != free:
        raise DamagedBitmap(f"has {found} free, while the group's descriptor counts {free}")
    return bits


def find_damage(fs: Filesystem) -> str | None:
    """What is wrong with the first bad bitmap of a volume; None when all can be right."""
    for group in range(fs.groups):
        for what, read in (("block bitmap", read_block_bitmap), ("inode bitmap", read_inode_bitmap)):
            try:
                read(fs, group)
            except DamagedBitmap as error:
                return f"the {what} of group {group} {error}"
    return None


class Bitmaps:
    """The bitmaps of one volume that is open for writing, in the library's memory.

    `blocks` and `inodes` are the library's. `lost_blocks` and `lost_inodes`: free ones of groups with bad bitmaps.
    """

    def __init__(self, fs: Filesystem) -> None:
        self._fs = fs
        self._block_state = bytearray(fs.groups)
        self._inode_state = bytearray(fs.groups)
        self.lost_blocks = 0
        self.lost_inodes = 0
        name = b"cowfs"
        result = fs.ffi.new("ext2fs_bitmap *")
        fs.call(fs.c.ext2fs_allocate_block_bitmap, fs.fs, name, result, doing="allocate a bitmap")
        self.blocks = fs.fs.block_map = result[0]
        fs.call(fs.c.ext2fs_allocate_inode_bitmap, fs.fs, name, result, doing="allocate a bitmap")
        self.inodes = fs.fs.inode_map = result[0]

    # Groups.

    def has_blocks(self, group: int) -> bool:
        """Whether blocks of a group can be allocated and freed."""
        state = self._block_state[group]
        return (state or self._load_blocks(group)) == _GOOD

    def has_inodes(self, group: int) -> bool:
        """Whether inodes of a group can be allocated and freed."""
        state = self._inode_state[group]
        return (state or self._load_inodes(group)) == _GOOD

    def _load_blocks(self, group: int) -> int:
        fs = self._fs
        begin, count = fs.descriptors.first_block(group), fs.descriptors.block_count(group)
        try:
            bits = read_block_bitmap(fs, group)
        except DamagedBitmap as error:
            self.distrust_blocks(group, str(error))
            return _BAD
        self._put(self.blocks, fs.c.ext2fs_set_block_bitmap_range2, begin, count, bits)
        self._block_state[group] = _GOOD
        return _GOOD

    def _load_inodes(self, group: int) -> int:
        fs = self._fs
        try:
            bits = read_inode_bitmap(fs, group)
        except DamagedBitmap as error:
            self.distrust_inodes(group, str(error))
            return _BAD
        count = fs.inodes_per_group
        self._put(self.inodes, fs.c.ext2fs_set_inode_bitmap_range2, group * count + 1, count, bits)
        self._inode_state[group] = _GOOD
        return _GOOD

    def _put(self, bitmap: Any, put: Callable[..., int], begin: int, count: int, bits: int) -> None:
        fs = self._fs
        data = fs.ffi.from_buffer("char[]", bits.to_bytes(-(-count // 8), "little"))
        fs.call(put, bitmap, begin, count, data, doing="fill a bitmap")

    def distrust_blocks(self, group: int, why: str) -> None:
        """Leave the blocks of a group alone from now on."""
        if self._block_state[group] != _BAD:
            self._block_state[group] = _BAD
            fs = self._fs
            self.lost_blocks += min(fs.descriptors.free_blocks(group), fs.blocks_per_group)
            begin, count = fs.descriptors.first_block(group), fs.descriptors.block_count(group)
            fs.c.ext2fs_mark_block_bitmap_range2(self.blocks, begin, count)
            fs.note_damage(f"the block bitmap of group {group} {why}; the group's blocks are left alone", kind="blocks")

    def distrust_inodes(self, group: int, why: str) -> None:
        """Leave the inode numbers of a group alone from now on."""
        if self._inode_state[group] != _BAD:
            self._inode_state[group] = _BAD
            fs = self._fs
            self.lost_inodes += min(fs.descriptors.free_inodes(group), fs.inodes_per_group)
            fs.c.ext2fs_mark_block_bitmap_range2(self.inodes, group * fs.inodes_per_group + 1, fs.inodes_per_group)
            what = f"the inode bitmap of group {group} {why}; no inode of the group is allocated or freed"
            fs.note_damage(what, kind="inodes")

    def pieces(self, run: Run) -> Iterable[tuple[int, Run]]:
        """A run cut where groups end, with the group of each piece."""
        group_of = self._fs.descriptors.group_of
        group = group_of(run.physical)
        if run.length and group_of(run.physical + run.length - 1) == group:
            return ((group, run),)
        return self._cut(run)

    def _cut(self, run: Run) -> Iterator[tuple[int, Run]]:
        begin, end = run.physical, run.physical + run.length
        while begin < end:
            group = self._fs.descriptors.group_of(begin)
            stop = min(end, self._fs.descriptors.first_block(group + 1))
            yield group, Run(begin, stop - begin)
            begin = stop
