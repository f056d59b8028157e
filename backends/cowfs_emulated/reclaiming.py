"""Which freed data blocks are still to be punched out of the data device.

Much at once would hold up all requests: so there is a limit for each time, and the rest follows at later commits and
ticks. A block that is allocated again before its turn is not punched. After a crash the rest is not punched either; it
takes space on the host until its blocks are used again.

The runs are a sorted list, not a `RangeSet`: a commit may free a million runs, which a list takes in 0.04 s and a set,
run by run, in 3.6 s.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable


class Reclaiming:
    """Runs of data blocks as (first, length), sorted, which do not overlap."""

    def __init__(self) -> None:
        self._runs: list[tuple[int, int]] = []

    def __bool__(self) -> bool:
        return bool(self._runs)

    def add(self, runs: Iterable[tuple[int, int]]) -> None:
        self._runs.extend(runs)
        self._runs.sort()

    def withdraw(self, first: int, length: int) -> None:
        """Forget blocks that are allocated again."""
        end = first + length
        begin = max(bisect_right(self._runs, (first, 0)) - 1, 0)
        stop = begin
        kept: list[tuple[int, int]] = []
        while stop < len(self._runs) and self._runs[stop][0] < end:
            start, count = self._runs[stop]
            if start < first:
                kept.append((start, min(count, first - start)))
            if start + count > end:
                kept.append((max(start, end), start + count - max(start, end)))
            stop += 1
        self._runs[begin:stop] = kept

    def take(self, most_blocks: int) -> list[tuple[int, int]]:
        """The first of them, which are to be punched now."""
        taken: list[tuple[int, int]] = []
        while len(taken) < len(self._runs) and most_blocks > 0:
            first, length = self._runs[len(taken)]
            if length > most_blocks:
                self._runs[len(taken)] = first + most_blocks, length - most_blocks
                del self._runs[: len(taken)]
                return [*taken, (first, most_blocks)]
            taken.append((first, length))
            most_blocks -= length
        del self._runs[: len(taken)]
        return taken
