"""Block groups: what their descriptors say, and where the volume's own metadata lies.

    descriptor, 32 bytes                       with 64bit, the high half of each
    0x00  4  block of the block bitmap         0x20  4
    0x04  4  block of the inode bitmap         0x24  4
    0x08  4  first block of the inode table    0x28  4
    0x0C  2  free blocks                       0x2C  2
    0x0E  2  free inodes                       0x2E  2
    0x12  2  flags
    0x1C  2  inodes never used, at the end     0x32  2

The library keeps them in memory and changes them there; this is a view of that memory. They are checked before anything
is written, as the kernel does when it mounts: a pointer that leads to a wrong block would have it overwritten.

Source: Linux fs/ext4/super.c (ext4_check_descriptors), fs/ext4/block_validity.c.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import TYPE_CHECKING, Final

from cowfs.ext4.format import layout
from cowfs.ext4.library.block_runs import Run

if TYPE_CHECKING:
    from cowfs.ext4.library.filesystem import Filesystem

_SMALL_BYTES: Final = 32
_FLAGS_OFFSET: Final = 0x12


class SystemBlocks:
    """The blocks of superblocks, descriptors, bitmaps and inode tables: sorted runs that no file may have."""

    def __init__(self, runs: Iterable[tuple[int, int]]) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []
        for begin, length in sorted(runs):
            if self._ends and begin <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], begin + length)
            else:
                self._begins.append(begin)
                self._ends.append(begin + length)

    def __iter__(self) -> Iterator[Run]:
        return (Run(begin, end - begin) for begin, end in zip(self._begins, self._ends, strict=True))

    def overlap(self, begin: int, length: int) -> bool:
        """Whether one of `length` blocks from `begin` is among them."""
        index = bisect_right(self._begins, begin + length - 1) - 1
        return index >= 0 and self._ends[index] > begin

    def bits(self, begin: int, length: int) -> int:
        """Those among `length` blocks from `begin`, as a bitmap."""
        found = 0
        index = max(bisect_right(self._begins, begin) - 1, 0)
        while index < len(self._begins) and self._begins[index] < begin + length:
            first = max(self._begins[index], begin)
            end = min(self._ends[index], begin + length)
            if first < end:
                found |= ((1 << end - first) - 1) << first - begin
            index += 1
        return found


class Descriptors:
    """The group descriptors of one open volume. Groups are numbered from 0."""

    def __init__(self, fs: Filesystem) -> None:
        self._fs = fs
        self._bytes_each = fs.super.s_desc_size if fs.has_64bit else _SMALL_BYTES
        if self._bytes_each not in {_SMALL_BYTES << shift for shift in range(6)}:
            raise fs.damaged(f"group descriptors of {self._bytes_each} bytes")
        self._has_high = self._bytes_each > _SMALL_BYTES
        memory = memoryview(fs.ffi.buffer(fs.fs.group_desc, fs.groups * self._bytes_each)).cast("B")
        self._words = memory.cast("I")
        self._halves = memory.cast("H")

    def forget(self) -> None:
        """The library's memory is about to be freed."""
        self._words.release()
        self._halves.release()

    # Where a group is, and what it has.

    def first_block(self, group: int) -> int:
        return self._fs.first_data_block + group * self._fs.blocks_per_group

    def block_count(self, group: int) -> int:
        return min(self._fs.blocks_per_group, self._fs.blocks - self.first_block(group))

    def group_of(self, block: int) -> int:
        return (block - self._fs.first_data_block) // self._fs.blocks_per_group

    def block_bitmap(self, group: int) -> int:
        return self._wide(self._words, 4, group, 0x00, 0x20)

    def inode_bitmap(self, group: int) -> int:
        return self._wide(self._words, 4, group, 0x04, 0x24)

    def inode_table(self, group: int) -> int:
        return self._wide(self._words, 4, group, 0x08, 0x28)

    def free_blocks(self, group: int) -> int:
        return self._wide(self._halves, 2, group, 0x0C, 0x2C)

    def free_inodes(self, group: int) -> int:
        return self._wide(self._halves, 2, group, 0x0E, 0x2E)

    def initialized_inodes(self, group: int) -> int:
        """How many records of the inode table, from its begin, hold what is or was an inode."""
        if not self._fs.has_group_csum:
            return self._fs.inodes_per_group
        if self.has_unused_inodes(group):
            return 0
        return max(self._fs.inodes_per_group - self._wide(self._halves, 2, group, 0x1C, 0x32), 0)

    def has_unused_blocks(self, group: int) -> bool:
        """Whether the block bitmap was never written, since the group holds nothing but metadata."""
        return self._has_flag(group, layout.GROUP_BLOCK_UNINIT)

    def has_unused_inodes(self, group: int) -> bool:
        """Whether the inode bitmap and the inode table were never written."""
        return self._has_flag(group, layout.GROUP_INODE_UNINIT)

    def _has_flag(self, group: int, flag: int) -> bool:
        return self._fs.has_group_csum and bool(self._halves[(group * self._bytes_each + _FLAGS_OFFSET) >> 1] & flag)

    def _wide(self, fields: memoryview, width: int, group: int, low: int, high: int) -> int:
        begin = group * self._bytes_each
        value: int = fields[(begin + low) // width]
        if self._has_high:
            value |= fields[(begin + high) // width] << 8 * width
        return value

    def free_in_all(self) -> tuple[int, int]:
        """Free blocks and free inodes of the volume, as the groups count them. None counts more than it has."""
        fs = self._fs
        blocks = self._column(self._halves, 2, 0x0C, 0x2C)
        inodes = self._column(self._halves, 2, 0x0E, 0x2E)
        counted = sum(min(free, fs.blocks_per_group) for free in blocks)
        return min(counted, fs.blocks), sum(min(free, fs.inodes_per_group) for free in inodes)

    def _column(self, fields: memoryview, width: int, low: int, high: int) -> list[int]:
        """One field of all groups."""
        step = self._bytes_each // width
        values: list[int] = fields[low // width :: step].tolist()
        if not self._has_high:
            return values
        highs = fields[high // width :: step].tolist()
        return [value | more << 8 * width for value, more in zip(values, highs, strict=True)]

    # Whether they can be believed.

    @functools.cached_property
    def system_blocks(self) -> SystemBlocks:
        """Where the volume's own metadata lies; nowhere, if the descriptors make no sense, which only a reader sees."""
        runs = sorted(self._metadata_runs())
        return SystemBlocks(() if self._find_misplaced() or _find_overlap(runs) else runs)

    def is_system_block(self, block: int) -> bool:
        return self.system_blocks.overlap(block, 1)

    def protect(self, runs: Iterable[Run]) -> None:
        """Add the journal's blocks to the volume's own metadata. Raises FilesystemError (EUCLEAN): they are that."""
        journal = list(runs)
        if any(self.system_blocks.overlap(*run) for run in journal):
            raise self._fs.damaged("the journal lies where a bitmap, an inode table or group descriptors are")
        self.system_blocks = SystemBlocks([*self.system_blocks, *journal])

    def check(self) -> None:
        """Raises FilesystemError (EUCLEAN): a group's pointers lead to wrong places, or its checksum is wrong."""
        runs = sorted(self._metadata_runs())
        found = self._find_misplaced() or _find_overlap(runs) or self._find_wrong_checksum()
        if found:
            raise self._fs.damaged(found)
        self.system_blocks = SystemBlocks(runs)

    def _find_misplaced(self) -> str | None:
        """What of a group is not inside it or, with flex_bg, not inside the volume."""
        fs = self._fs
        begin, end = fs.first_data_block, fs.blocks
        is_flexible = fs.super.s_feature_incompat & layout.INCOMPAT_FLEX_BG
        for what, places, length in self._pointers():
            if is_flexible and begin <= min(places) and max(places) + length <= end:
                continue
            for group, first in enumerate(places):
                if not is_flexible:
                    begin = self.first_block(group)
                    end = begin + self.block_count(group)
                if first < begin or first + length > end:
                    return f"group {group} has its {what} at block {first}, outside of blocks {begin} to {end - 1}"
        return None

    def _find_wrong_checksum(self) -> str | None:
        fs = self._fs
        if not fs.has_group_csum:
            return None
        verify = fs.c.ext2fs_group_desc_csum_verify
        wrong = next((group for group in range(fs.groups) if not verify(fs.fs, group)), None)
        return None if wrong is None else f"the descriptor of group {wrong} has a wrong checksum"

    def _pointers(self) -> Iterator[tuple[str, list[int], int]]:
        """(what, the first block of each group's, how many blocks it has)."""
        yield "block bitmap", self._column(self._words, 4, 0x00, 0x20), 1
        yield "inode bitmap", self._column(self._words, 4, 0x04, 0x24), 1
        yield "inode table", self._column(self._words, 4, 0x08, 0x28), self._fs.fs.inode_blocks_per_group

    def _metadata_runs(self) -> Iterator[tuple[int, int]]:
        """(begin, length) of all that must not be anything else."""
        fs = self._fs
        for _what, places, length in self._pointers():
            yield from zip(places, repeat(length))
        used, null = fs.ffi.new("blk_t *"), fs.ffi.NULL
        has_more = fs.super.s_feature_incompat & layout.INCOMPAT_META_BG
        for group in range(fs.groups):
            if has_more or fs.c.ext2fs_bg_has_super(fs.fs, group):
                fs.c.ext2fs_super_and_bgd_loc2(fs.fs, group, null, null, null, used)
                if used[0]:
                    yield self.first_block(group), used[0]


def _find_overlap(runs: list[tuple[int, int]]) -> str | None:
    """Which block is in two of some sorted runs."""
    end = -1
    for begin, length in runs:
        if begin < end:
            return f"block {begin} is in two places: as a bitmap, inode table or group descriptor"
        end = begin + length
    return None
