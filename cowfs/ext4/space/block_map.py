"""Which blocks of the volume hold which blocks of a file, in memory: a sorted list of extents.

An extent is a run of logical blocks that lies in a run of physical blocks. It is *written*, or *unwritten*: allocated,
but reading as zeros until written. Logical blocks in no extent are a hole. The same map serves inodes that store an
extent tree and inodes that store indirect blocks; how it is stored is the business of `extents` and `indirect`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from cowfs.ext4.library.block_runs import Run

MAX_EXTENT_BLOCKS = 32768  # the longest run one on-disk extent can describe


class Segment(NamedTuple):
    """`length` logical blocks from `logical`; `physical` is -1 in a hole."""

    logical: int
    length: int
    physical: int
    written: bool


class BlockMap:
    """The map of one inode.

    Invariants:
        1. Extents are sorted by logical block and do not overlap.
        2. Each has 1..MAX_EXTENT_BLOCKS blocks.

    Memory: 21 bytes an extent.
    """

    __slots__ = ("_counts", "_physical", "_starts", "_written")

    def __init__(self) -> None:
        self._starts = array("L")
        self._counts = array("I")
        self._physical = array("L")
        self._written = array("B")

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Segment]:
        for start, count, physical, written in zip(
            self._starts, self._counts, self._physical, self._written, strict=True
        ):
            yield Segment(start, count, physical, bool(written))

    @property
    def runs(self) -> Iterator[Run]:
        """Where the extents lie, in their order."""
        return map(Run, self._physical, self._counts)

    @property
    def end(self) -> int:
        """The first logical block after the last extent."""
        return self._starts[-1] + self._counts[-1] if self._starts else 0

    def append(self, logical: int, count: int, physical: int, written: bool) -> None:
        """Add an extent after all others, as it is; for loading."""
        self._starts.append(logical)
        self._counts.append(count)
        self._physical.append(physical)
        self._written.append(written)

    def block(self, logical: int) -> int:
        """The written block that holds a logical block, or -1."""
        return self.run(logical, 1)

    def run(self, logical: int, count: int) -> int:
        """The block that holds `logical` when `count` blocks from there are written, in one extent; else -1."""
        index = bisect_right(self._starts, logical) - 1
        if index < 0:
            return -1
        distance = logical - self._starts[index]
        if distance + count > self._counts[index] or not self._written[index]:
            return -1
        return self._physical[index] + distance

    def before(self, logical: int) -> int:
        """The physical block after the extent that ends last before `logical`, or -1: where to go on."""
        index = bisect_right(self._starts, logical) - 1
        return self._physical[index] + self._counts[index] if index >= 0 else -1

    def next_written(self, logical: int) -> tuple[int, int] | None:
        """The first run of written blocks at or after `logical`, as (begin, end), wherever on the volume they lie."""
        starts, counts = self._starts, self._counts
        index = max(bisect_right(starts, logical) - 1, 0)
        while index < len(starts) and (not self._written[index] or starts[index] + counts[index] <= logical):
            index += 1
        if index == len(starts):
            return None
        begin, end = max(starts[index], logical), starts[index] + counts[index]
        while (index := index + 1) < len(starts) and starts[index] == end and self._written[index]:
            end += counts[index]
        return begin, end

    def segments(self, logical: int, count: int) -> list[Segment]:
        """The range as extents and holes, in order, clipped to it."""
        result = []
        end = logical + count
        index = max(bisect_right(self._starts, logical) - 1, 0)
        while logical < end and index < len(self._starts):
            start = self._starts[index]
            extent_end = start + self._counts[index]
            if extent_end > logical:
                if start >= end:
                    break
                if start > logical:
                    result.append(Segment(logical, start - logical, -1, False))
                    logical = start
                stop = min(extent_end, end)
                physical = self._physical[index] + logical - start
                result.append(Segment(logical, stop - logical, physical, bool(self._written[index])))
                logical = stop
            index += 1
        if logical < end:
            result.append(Segment(logical, end - logical, -1, False))
        return result

    def insert(self, logical: int, count: int, physical: int, *, written: bool = True) -> None:
        """Fill a hole. The range must be one."""
        index = bisect_right(self._starts, logical)
        assert index == 0 or self._starts[index - 1] + self._counts[index - 1] <= logical
        assert index == len(self._starts) or logical + count <= self._starts[index]
        longest = MAX_EXTENT_BLOCKS - (not written)
        if index and self._continues(index - 1, logical, physical, written):
            taken = min(count, longest - self._counts[index - 1])
            self._counts[index - 1] += taken
            logical, physical, count = logical + taken, physical + taken, count - taken
        while count:
            piece = min(count, longest)
            self._starts.insert(index, logical)
            self._counts.insert(index, piece)
            self._physical.insert(index, physical)
            self._written.insert(index, written)
            index += 1
            logical, physical, count = logical + piece, physical + piece, count - piece
        self._join(index - 1)

    def remove(self, logical: int, count: int) -> list[Run]:
        """Make the range a hole; returns the blocks it had."""
        first, last = self._cut(logical), self._cut(logical + count)
        runs = [Run(self._physical[index], self._counts[index]) for index in range(first, last)]
        for column in (self._starts, self._counts, self._physical, self._written):
            del column[first:last]
        return runs

    def set_written(self, logical: int, count: int, *, written: bool = True) -> None:
        """Mark the allocated blocks of the range as written, or as unwritten again."""
        first, last = self._cut(logical), self._cut(logical + count)
        for index in range(first, last):
            self._written[index] = written
        for index in range(last - 1, first - 2, -1):
            self._join(index)

    def _continues(self, index: int, logical: int, physical: int, written: bool) -> bool:
        """Whether a block would follow extent `index` seamlessly."""
        count = self._counts[index]
        return (
            self._starts[index] + count == logical
            and self._physical[index] + count == physical
            and bool(self._written[index]) == written
            and (written or count < MAX_EXTENT_BLOCKS - 1)
        )

    def _join(self, index: int) -> None:
        """Make extent `index` and the next one into one, if they fit."""
        following = index + 1
        if index < 0 or following >= len(self._starts):
            return
        total = self._counts[index] + self._counts[following]
        written = bool(self._written[following])
        if total > MAX_EXTENT_BLOCKS - (not written):
            return
        if self._continues(index, self._starts[following], self._physical[following], written):
            self._counts[index] = total
            for column in (self._starts, self._counts, self._physical, self._written):
                del column[following]

    def _cut(self, logical: int) -> int:
        """Split the extent that `logical` lies inside of; returns the index of the first extent not before it."""
        index = bisect_right(self._starts, logical) - 1
        if index < 0:
            return 0
        distance = logical - self._starts[index]
        if distance == 0:
            return index
        if distance >= self._counts[index]:
            return index + 1
        self._starts.insert(index + 1, logical)
        self._counts.insert(index + 1, self._counts[index] - distance)
        self._physical.insert(index + 1, self._physical[index] + distance)
        self._written.insert(index + 1, self._written[index])
        self._counts[index] = distance
        return index + 1
