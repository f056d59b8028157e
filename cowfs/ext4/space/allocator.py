"""Free blocks: taking them, giving them back, and the bitmaps on the device.

Freed blocks stay marked as used until the next sync. So nothing overwrites them before the metadata that frees them
is durable, and a crash finds the old tree with its data. After that sync they are discarded into the device, which
gives the space back to the pool. Who finds no space while some waits can sync and try again: between two operations,
since a sync in the middle of one would write half of it.

Of a group with a bad bitmap (see `bitmaps`) nothing is allocated, and what lies there is not freed: it stays marked as
used until a check repairs that. The same if a bitmap calls something free that is not: an inode that has links, or
blocks that are being freed.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from typing import Any

from cowfs.ext4.format import layout
from cowfs.ext4.library import libext2fs
from cowfs.ext4.library.block_runs import Run
from cowfs.ext4.library.filesystem import Filesystem, os_error
from cowfs.ext4.space.bitmaps import Bitmaps
from cowfs.ranges import RangeSet


class Allocator:
    """Blocks and inode numbers of one volume."""

    def __init__(self, fs: Filesystem) -> None:
        self._fs = fs
        self._freed = RangeSet()
        self._cursor = 0  # where the last run ended: files written one after the other lie one after the other
        self._block_groups: set[int] = set()
        self._inode_groups: set[int] = set()
        self._discards = True
        self._first = fs.ffi.new("uint64_t *")
        self._callbacks: list[Any] = []
        self._set_free_counts()
        if not fs.read_only:
            self._bitmaps = Bitmaps(fs)
            self._serve_library()

    def _set_free_counts(self) -> None:
        """In memory: the superblock's own counts are old after a crash."""
        sb = self._fs.super
        blocks, sb.s_free_inodes_count = self._fs.descriptors.free_in_all()
        sb.s_free_blocks_count, sb.s_free_blocks_hi = blocks & 0xFFFFFFFF, blocks >> 32

    @property
    def free_blocks(self) -> int:
        """What a writer can still use, the blocks reserved for root included, and what waits for a sync."""
        return self._free_now + self._freed.length

    @property
    def free_inodes(self) -> int:
        free: int = self._fs.super.s_free_inodes_count
        return free if self._fs.read_only else max(free - self._bitmaps.lost_inodes, 0)

    @property
    def _free_now(self) -> int:
        free: int = self._fs.c.ext2fs_free_blocks_count(self._fs.super)
        return free if self._fs.read_only else max(free - self._bitmaps.lost_blocks, 0)

    @property
    def is_waiting(self) -> bool:
        """Whether blocks wait for a sync to become free."""
        return bool(self._freed)

    @property
    def changed_bitmaps(self) -> int:
        """How many bitmaps the next sync will write, at most."""
        ends_in = 2 * len(self._freed)
        freed = min(ends_in + self._freed.length // self._fs.blocks_per_group, self._fs.groups)
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
        """Free blocks, at the next sync. Cached content is dropped at once."""
        self._fs.cache.forget(run.physical, run.length)
        for group, piece in self._bitmaps.pieces(run):
            if self._can_free(group, piece):
                self._freed.add(piece.physical, piece.physical + piece.length)

    def _can_free(self, group: int, piece: Run) -> bool:
        if not self._bitmaps.has_blocks(group):
            return False
        last = piece.physical + piece.length - 1
        find = self._fs.c.ext2fs_find_first_zero_generic_bmap
        if find(self._bitmaps.blocks, piece.physical, last, self._first):
            return True
        self._bitmaps.distrust_blocks(group, f"calls block {self._first[0]} free, which is in use")
        return False

    def prepare_to_free(self, runs: Iterable[Run], inode: int | None = None) -> None:
        """Read the bitmaps that freeing something will take, while an error of the device does no harm yet."""
        for run in runs:
            for group, _ in self._bitmaps.pieces(run):
                self._bitmaps.has_blocks(group)
        if inode is not None:
            self._bitmaps.has_inodes(self._inode_group(inode))

    def free_block(self, block: int) -> None:
        self.free(Run(block, 1))

    def undo(self, runs: list[Run]) -> None:
        """Give back blocks that nothing refers to, at once."""
        for run in runs:
            self._fs.cache.forget(run.physical, run.length)
            self._mark(run, used=False)

    def _find(self, count: int, goal: int) -> list[Run]:
        """The first place from `goal` on that has all of `count`; else what is free from there, run by run.

        The library's own search (`ext2fs_new_range`) does not return when the last blocks of the volume are used
        and no place is long enough.
        """
        if self._is_free(goal, count):
            return [Run(goal, count)]
        pieces: list[Run] = []
        lacking = count
        for run in self._free_runs_from(goal, count):
            if run.length >= count:
                return [Run(run.physical, count)]
            if lacking:
                pieces.append(Run(run.physical, min(run.length, lacking)))
                lacking -= pieces[-1].length
        if lacking:
            raise os_error(errno.ENOSPC)
        return pieces

    def _is_free(self, begin: int, count: int) -> bool:
        """Whether all of a run in one group is free: what `_find` finds first mostly, told at a third of the cost."""
        fs = self._fs
        last = begin + count - 1
        if not (count and fs.first_data_block <= begin and last < fs.blocks):
            return False
        group = fs.descriptors.group_of(begin)
        if group != fs.descriptors.group_of(last):
            return False
        if fs.descriptors.free_blocks(group) < count or not self._bitmaps.has_blocks(group):
            return False
        is_used: int = fs.c.ext2fs_find_first_set_generic_bmap(self._bitmaps.blocks, begin, last, self._first)
        return is_used != 0

    def _free_runs_from(self, goal: int, enough: int) -> Iterator[Run]:
        """Runs of free blocks from `goal` to the end, then those before it."""
        first, end = self._fs.first_data_block, self._fs.blocks
        goal = goal if first <= goal < end else first
        yield from self._free_runs(goal, end, enough)
        yield from self._free_runs(first, goal, enough)

    def _free_runs(self, begin: int, end: int, enough: int) -> Iterator[Run]:
        """Runs of free blocks. A group's bitmap is read when the search comes to it, unless the group is full.

        Args:
            enough: a run of so many blocks may be given although it is longer; nothing more is wanted after it.
        """
        last = Run(begin, 0)
        for group, piece in self._bitmaps.pieces(Run(begin, max(end - begin, 0))):
            if not self._fs.descriptors.free_blocks(group) or not self._bitmaps.has_blocks(group):
                continue
            for run in self._free_runs_of_group(piece, enough):
                if last.physical + last.length == run.physical:
                    last = Run(last.physical, last.length + run.length)
                else:
                    if last.length:
                        yield last
                    last = run
                if last.length >= enough or last.physical + last.length < piece.physical + piece.length:
                    yield last
                    last = Run(begin, 0)
        if last.length:
            yield last

    def _free_runs_of_group(self, piece: Run, enough: int) -> Iterator[Run]:
        fs, found, bitmap = self._fs, self._first, self._bitmaps.blocks
        begin, end = piece.physical, piece.physical + piece.length
        while begin < end and not fs.c.ext2fs_find_first_zero_generic_bmap(bitmap, begin, end - 1, found):
            begin = found[0]
            limit = min(begin + enough, end)
            is_free = fs.c.ext2fs_find_first_set_generic_bmap(bitmap, begin, limit - 1, found)
            stop: int = limit if is_free else found[0]
            yield Run(begin, stop - begin)
            begin = stop

    def _mark(self, run: Run, *, used: bool) -> None:
        self._fs.c.ext2fs_block_alloc_stats_range(self._fs.fs, run.physical, run.length, 1 if used else -1)
        self._note(run)

    # Inode numbers.

    def allocate_inode(self, parent: int, *, is_directory: bool) -> int:
        """A free inode number, near its directory. Raises OSError (ENOSPC)."""
        number = self._find_inode(self._inode_group(parent))
        group = self._inode_group(number)
        unused = layout.GROUP_INODE_UNINIT | layout.GROUP_BLOCK_UNINIT
        if self._fs.descriptors.has_unused_inodes(group) and self._bitmaps.has_blocks(group):
            self._fs.c.ext2fs_bg_flags_clear(self._fs.fs, group, unused)
            self._block_groups.add(group)
        self._mark_inode(number, 1, is_directory)
        return number

    def _find_inode(self, group: int) -> int:
        """The first free number of this group or, if it has none, of those after it."""
        for following in range(self._fs.groups):
            number = self._find_inode_in((group + following) % self._fs.groups)
            if number is not None:
                return number
        raise os_error(errno.ENOSPC)

    def _find_inode_in(self, group: int) -> int | None:
        fs = self._fs
        if not fs.descriptors.free_inodes(group) or not self._bitmaps.has_inodes(group):
            return None
        begin = group * fs.inodes_per_group + 1
        last = begin + fs.inodes_per_group - 1
        if fs.c.ext2fs_find_first_zero_generic_bmap(self._bitmaps.inodes, begin, last, self._first):
            return None
        number: int = self._first[0]
        if number - begin < fs.descriptors.initialized_inodes(group) and fs.is_linked(number):
            self._bitmaps.distrust_inodes(group, f"calls inode {number} free, which has links")
            return None
        return number

    def free_inode(self, number: int, *, is_directory: bool) -> None:
        if self.is_allocated(number):
            self._mark_inode(number, -1, is_directory)

    def is_allocated(self, number: int) -> bool:
        """Whether an inode number that is in use can be freed."""
        group = self._inode_group(number)
        if not self._bitmaps.has_inodes(group):
            return False
        if self._fs.c.ext2fs_find_first_zero_generic_bmap(self._bitmaps.inodes, number, number, self._first):
            return True
        self._bitmaps.distrust_inodes(group, f"calls inode {number} free, which is in use")
        return False

    def _inode_group(self, number: int) -> int:
        return (number - 1) // self._fs.inodes_per_group

    def _mark_inode(self, number: int, change: int, is_directory: bool) -> None:
        self._fs.c.ext2fs_inode_alloc_stats2(self._fs.fs, number, change, int(is_directory))
        self.note_inodes([number])

    def note_inodes(self, numbers: Iterable[int]) -> None:
        """Remember whose inode bitmaps changed."""
        self._inode_groups.update(map(self._inode_group, numbers))

    # What the library allocates itself, for extended attributes: single blocks, and inodes for large values.

    def _serve_library(self) -> None:
        fs = self._fs
        changed = fs.callback("void(ext2_filsys, blk64_t, int)", self._library_changed)
        allocate = fs.callback("errcode_t(ext2_filsys, blk64_t, blk64_t *)", self._library_allocates)
        self._callbacks += [changed, allocate]
        fs.c.ext2fs_set_block_alloc_stats_callback(fs.fs, changed, fs.ffi.NULL)
        fs.c.ext2fs_set_alloc_block_callback(fs.fs, allocate, fs.ffi.NULL)

    def _library_allocates(self, _fs: Any, goal: int, result: Any) -> int:
        """A block, which the library marks itself."""
        try:
            result[0] = self._find(1, goal)[0].physical
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return errno.ENOSPC
        return 0

    def show_free_inode(self) -> None:
        """Let the library find a free inode, if there is one: it takes the first in memory."""
        any(self._bitmaps.has_inodes(group) and self._find_inode_in(group) for group in range(self._fs.groups))

    def _library_changed(self, _fs: Any, block: int, change: int) -> None:
        self._note(Run(block, 1))
        if change < 0:
            run = Run(block, 1)
            self._mark(run, used=True)
            self.free(run)

    def _note(self, run: Run) -> None:
        """Remember whose bitmaps changed."""
        group_of = self._fs.descriptors.group_of
        self._block_groups.update(range(group_of(run.physical), group_of(run.physical + run.length - 1) + 1))

    # Writing down.

    def release_freed(self) -> list[Run]:
        """Make the waiting blocks free; returns them, merged, to be discarded when that is durable."""
        if not self._freed:
            return []
        released = RangeSet()
        for freed in self._freed:
            for group, piece in self._bitmaps.pieces(Run(freed.begin, freed.length)):
                if self._bitmaps.has_blocks(group):
                    self._mark(piece, used=False)
                    released.add(piece.physical, piece.physical + piece.length)
        self._freed.clear()
        return [Run(item.begin, item.length) for item in released]

    def take_back(self, runs: list[Run]) -> None:
        """Let blocks that were made free wait again: the sync failed."""
        for run in runs:
            self._mark(run, used=True)
            self._freed.add(run.physical, run.physical + run.length)

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
        if fs.descriptors.has_unused_blocks(group) or not self._bitmaps.has_blocks(group):
            return
        begin, bits = fs.descriptors.first_block(group), fs.descriptors.block_count(group)
        data = bytearray(b"\xff" * fs.block_bytes)
        buffer = fs.ffi.from_buffer("char[]", data)
        fs.call(
            fs.c.ext2fs_get_block_bitmap_range2, self._bitmaps.blocks, begin, bits, buffer, doing="read a block bitmap"
        )
        if bits % 8:  # the bits after the last block are ones
            data[bits // 8] |= 0xFF << bits % 8 & 0xFF
        fs.call(
            fs.c.ext2fs_block_bitmap_csum_set, fs.fs, group, buffer, fs.blocks_per_group // 8, doing="checksum a bitmap"
        )
        fs.c.ext2fs_group_desc_csum_set(fs.fs, group)
        fs.cache.write(fs.descriptors.block_bitmap(group), bytes(data))

    def _write_inode_bitmap(self, group: int) -> None:
        fs = self._fs
        if fs.descriptors.has_unused_inodes(group) or not self._bitmaps.has_inodes(group):
            return
        size = fs.inodes_per_group
        data = bytearray(b"\xff" * fs.block_bytes)
        buffer = fs.ffi.from_buffer("char[]", data)
        fs.call(
            fs.c.ext2fs_get_inode_bitmap_range2,
            self._bitmaps.inodes,
            group * size + 1,
            size,
            buffer,
            doing="read an inode bitmap",
        )
        fs.call(fs.c.ext2fs_inode_bitmap_csum_set, fs.fs, group, buffer, (size + 7) // 8, doing="checksum a bitmap")
        fs.c.ext2fs_group_desc_csum_set(fs.fs, group)
        fs.cache.write(fs.descriptors.inode_bitmap(group), bytes(data))

    def discard(self, runs: list[Run]) -> None:
        """Discard free blocks on the device, once it has the metadata that says so."""
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
        return list(self._free_runs(max(begin, self._fs.first_data_block), last, self._fs.blocks))
