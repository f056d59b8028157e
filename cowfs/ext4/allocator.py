"""Free blocks: taking them, giving them back, and the bitmaps on the device.

Freed blocks stay marked as used until the next sync. So nothing overwrites them before the metadata that frees them
is durable, and a crash finds the old tree with its data. After that sync they are discarded into the device, which
gives the space back to the pool. Who finds no space while some waits can sync and try again: between two operations,
since a sync in the middle of one would write half of it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from typing import Any

from cowfs.ext4 import layout, libext2fs
from cowfs.ext4.block_map import Run
from cowfs.ext4.filesystem import Filesystem, os_error


class Allocator:
    """Blocks and inode numbers of one volume."""

    def __init__(self, fs: Filesystem) -> None:
        self._fs = fs
        self._freed: list[Run] = []
        self._freed_blocks = 0
        self._cursor = 0  # where the last run ended: files written one after the other lie one after the other
        self._block_groups: set[int] = set()
        self._inode_groups: set[int] = set()
        self._discards = True
        self._first = fs.ffi.new("uint64_t *")
        self._number = fs.ffi.new("uint32_t *")
        self._callback: Any = None
        if not fs.read_only:
            self._watch_library()

    @property
    def free_blocks(self) -> int:
        """What a writer can still use, the blocks reserved for root included, and what waits for a sync."""
        return self._free_now + self._freed_blocks

    @property
    def _free_now(self) -> int:
        free: int = self._fs.c.ext2fs_free_blocks_count(self._fs.super)
        return free

    @property
    def is_waiting(self) -> bool:
        """Whether blocks wait for a sync to become free."""
        return bool(self._freed)

    @property
    def changed_bitmaps(self) -> int:
        """How many bitmaps the next sync will write, at most."""
        freed = min(len(self._freed), self._fs.groups)
        return len(self._block_groups) + len(self._inode_groups) + freed

    def allocate(self, count: int, goal: int = -1) -> list[Run]:
        """`count` blocks in as few runs as can be had, near `goal`.

        Raises:
            OSError (ENOSPC): fewer are free; nothing was taken.
        """
        if count > self._free_now:
            raise os_error(errno.ENOSPC)
        runs = self._find(count, self._cursor if goal < 0 else goal)
        for run in runs:
            self._mark(run, used=True)
        self._cursor = runs[-1].physical + runs[-1].length
        return runs

    def free(self, run: Run) -> None:
        """Give blocks back, at the next sync. Cached content is forgotten at once."""
        self._fs.cache.forget(run.physical, run.length)
        self._freed.append(run)
        self._freed_blocks += run.length

    def free_block(self, block: int) -> None:
        self.free(Run(block, 1))

    def undo(self, runs: list[Run]) -> None:
        """Give back blocks that nothing refers to, at once."""
        for run in runs:
            self._fs.cache.forget(run.physical, run.length)
            self._mark(run, used=False)

    def _find(self, count: int, goal: int) -> list[Run]:
        """The first place from `goal` on that has all of `count`; else what is free from there, run by run.

        The library's own search (`ext2fs_new_range`) does not come back when the last blocks of the volume are used
        and no place is long enough.
        """
        pieces: list[Run] = []
        lacking = count
        for run in self._free_runs_from(goal):
            if run.length >= count:
                return [Run(run.physical, count)]
            if lacking:
                pieces.append(Run(run.physical, min(run.length, lacking)))
                lacking -= pieces[-1].length
        if lacking:
            raise os_error(errno.ENOSPC)
        return pieces

    def _free_runs_from(self, goal: int) -> Iterator[Run]:
        """Runs of free blocks from `goal` to the end, then those before it."""
        first, end = self._fs.first_data_block, self._fs.blocks
        goal = goal if first <= goal < end else first
        yield from self._free_runs(goal, end)
        yield from self._free_runs(first, goal)

    def _free_runs(self, begin: int, end: int) -> Iterator[Run]:
        fs, found = self._fs, self._first
        while begin < end and not fs.c.ext2fs_find_first_zero_generic_bmap(fs.fs.block_map, begin, end - 1, found):
            begin = found[0]
            is_last = fs.c.ext2fs_find_first_set_generic_bmap(fs.fs.block_map, begin, end - 1, found)
            stop: int = end if is_last else found[0]
            yield Run(begin, stop - begin)
            begin = stop

    def _mark(self, run: Run, *, used: bool) -> None:
        self._fs.c.ext2fs_block_alloc_stats_range(self._fs.fs, run.physical, run.length, 1 if used else -1)
        self._note(run)

    # Inode numbers.

    def allocate_inode(self, parent: int, mode: int, *, is_directory: bool) -> int:
        """A free inode number, near its directory. Raises OSError (ENOSPC)."""
        fs = self._fs
        fs.call(fs.c.ext2fs_new_inode, fs.fs, parent, mode, fs.ffi.NULL, self._number, doing="find a free inode")
        number: int = self._number[0]
        self._mark_inode(number, 1, is_directory)
        return number

    def free_inode(self, number: int, *, is_directory: bool) -> None:
        self._mark_inode(number, -1, is_directory)

    def _mark_inode(self, number: int, change: int, is_directory: bool) -> None:
        self._fs.c.ext2fs_inode_alloc_stats2(self._fs.fs, number, change, int(is_directory))
        self.note_inodes([number])

    def note_inodes(self, numbers: Iterable[int]) -> None:
        """Remember whose inode bitmaps changed."""
        self._inode_groups.update((number - 1) // self._fs.inodes_per_group for number in numbers)

    # Following what the library allocates itself, for extended attributes: single blocks.

    def _watch_library(self) -> None:
        fs = self._fs
        self._callback = fs.callback("void(ext2_filsys, blk64_t, int)", self._library_changed)
        fs.c.ext2fs_set_block_alloc_stats_callback(fs.fs, self._callback, fs.ffi.NULL)

    def _library_changed(self, _fs: Any, block: int, change: int) -> None:
        self._note(Run(block, 1))
        if change < 0:
            run = Run(block, 1)
            self._mark(run, used=True)
            self.free(run)

    def _note(self, run: Run) -> None:
        """Remember whose bitmaps changed."""
        begin = run.physical - self._fs.first_data_block
        size = self._fs.blocks_per_group
        self._block_groups.update(range(begin // size, (begin + run.length - 1) // size + 1))

    # Writing down.

    def release_freed(self) -> list[Run]:
        """Make the waiting blocks free; returns them, merged, to be discarded when that is durable."""
        merged: list[Run] = []
        for run in sorted(self._freed):
            self._mark(run, used=False)
            if merged and merged[-1].physical + merged[-1].length == run.physical:
                merged[-1] = Run(merged[-1].physical, merged[-1].length + run.length)
            else:
                merged.append(run)
        self._freed.clear()
        self._freed_blocks = 0
        return merged

    def take_back(self, runs: list[Run]) -> None:
        """Let blocks that were made free wait again: the sync failed."""
        for run in runs:
            self._mark(run, used=True)
            self._freed.append(run)
            self._freed_blocks += run.length

    def write_bitmaps(self) -> None:
        """Put the changed bitmaps into the cache, instead of all of them as the library would."""
        for group in sorted(self._block_groups):
            self._write_block_bitmap(group)
        self._block_groups.clear()
        for group in sorted(self._inode_groups):
            self._write_inode_bitmap(group)
        self._inode_groups.clear()
        self._fs.fs.flags &= ~(libext2fs.FS_BLOCK_BITMAP_DIRTY | libext2fs.FS_INODE_BITMAP_DIRTY)

    def _write_block_bitmap(self, group: int) -> None:
        fs = self._fs
        if fs.has_group_csum and fs.c.ext2fs_bg_flags_test(fs.fs, group, layout.GROUP_BLOCK_UNINIT):
            return
        begin = fs.first_data_block + group * fs.blocks_per_group
        bits = min(fs.blocks_per_group, fs.blocks - begin)
        data = bytearray(b"\xff" * fs.block_bytes)
        buffer = fs.ffi.from_buffer("char[]", data)
        fs.call(fs.c.ext2fs_get_block_bitmap_range2, fs.fs.block_map, begin, bits, buffer, doing="read a block bitmap")
        if bits % 8:  # the bits after the last block are ones
            data[bits // 8] |= 0xFF << bits % 8 & 0xFF
        fs.call(
            fs.c.ext2fs_block_bitmap_csum_set, fs.fs, group, buffer, fs.blocks_per_group // 8, doing="checksum a bitmap"
        )
        fs.c.ext2fs_group_desc_csum_set(fs.fs, group)
        fs.cache.write(fs.c.ext2fs_block_bitmap_loc(fs.fs, group), bytes(data))

    def _write_inode_bitmap(self, group: int) -> None:
        fs = self._fs
        if fs.has_group_csum and fs.c.ext2fs_bg_flags_test(fs.fs, group, layout.GROUP_INODE_UNINIT):
            return
        size = fs.inodes_per_group
        data = bytearray(b"\xff" * fs.block_bytes)
        buffer = fs.ffi.from_buffer("char[]", data)
        fs.call(
            fs.c.ext2fs_get_inode_bitmap_range2,
            fs.fs.inode_map,
            group * size + 1,
            size,
            buffer,
            doing="read an inode bitmap",
        )
        fs.call(fs.c.ext2fs_inode_bitmap_csum_set, fs.fs, group, buffer, (size + 7) // 8, doing="checksum a bitmap")
        fs.c.ext2fs_group_desc_csum_set(fs.fs, group)
        fs.cache.write(fs.c.ext2fs_inode_bitmap_loc(fs.fs, group), bytes(data))

    def discard(self, runs: list[Run]) -> None:
        """Tell the device that blocks are free, once it has the metadata that says so."""
        block_bytes = self._fs.block_bytes
        for run in runs:
            if not self._discards:
                return
            try:
                self._fs.device.discard(run.physical * block_bytes, run.length * block_bytes)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                self._discards = False

    def free_runs(self, begin: int = 0, end: int | None = None) -> list[Run]:
        """All runs of free blocks from `begin` up to `end`, for a trim."""
        last = self._fs.blocks if end is None else min(end, self._fs.blocks)
        return list(self._free_runs(max(begin, self._fs.first_data_block), last))
