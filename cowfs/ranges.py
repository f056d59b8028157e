"""Sets of integers, and maps over them, as sorted disjoint ranges: bytes of a device, blocks of a volume.

A range is half-open, `begin` up to `end`. Both classes use `sortedcontainers`, keyed by where a range begins; each
operation costs O(log n), and what it passes over or joins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from sortedcontainers import SortedDict

_V = TypeVar("_V")


class Range(NamedTuple):
    """`begin` up to `end`, which is not in it."""

    begin: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.begin


class RangeSet:
    """A set of integers. Ranges that touch are one.

    Args:
        ranges: (begin, end), in any order, overlapping or not.
    """

    __slots__ = ("_ends", "_length")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._ends: Any = SortedDict()  # begin: end
        self._length = 0
        for begin, end in ranges:
            self.add(begin, end)

    def __iter__(self) -> Iterator[Range]:
        """The ranges, ascending; the set must not change meanwhile."""
        return map(Range._make, self._ends.items())

    def __len__(self) -> int:
        """How many ranges there are."""
        return len(self._ends)

    def __bool__(self) -> bool:
        return bool(self._ends)

    def __contains__(self, number: int) -> bool:
        found = self._last_from(number)
        return found is not None and number < found.end

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeSet) and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]  # a set that changes

    @property
    def length(self) -> int:
        """How many integers there are."""
        return self._length

    def add(self, begin: int, end: int) -> None:
        """Include a range; nothing when it is empty."""
        if begin >= end:
            return
        before = self._last_from(begin)
        if before is None or before.end < begin:
            before = Range(begin, begin)
        elif before.end >= end:
            return
        for known in list(self._from(before.begin + 1, end + 1)):
            end = max(end, known.end)
            self._drop(known)
        self._ends[before.begin] = end
        self._length += end - before.end

    def remove(self, begin: int, end: int) -> None:
        """Exclude a range, whatever of it is included."""
        for known in list(self._touching(begin, end)):
            self._drop(known)
            self._put(known.begin, begin)
            self._put(end, known.end)

    def clear(self) -> None:
        self._ends.clear()
        self._length = 0

    def within(self, begin: int, end: int) -> Iterator[Range]:
        """What of a range is included, in pieces, ascending."""
        for known in self._touching(begin, end):
            yield Range(max(known.begin, begin), min(known.end, end))

    def gaps(self, begin: int, end: int) -> Iterator[Range]:
        """What of a range is not included, in pieces, ascending."""
        for known in self._touching(begin, end):
            if known.begin > begin:
                yield Range(begin, known.begin)
            begin = known.end
        if begin < end:
            yield Range(begin, end)

    def _last_from(self, number: int) -> Range | None:
        """The last range that begins at or before a number."""
        index = self._ends.bisect_right(number) - 1
        return Range._make(self._ends.peekitem(index)) if index >= 0 else None

    def _from(self, begin: int, end: int) -> Iterator[Range]:
        """The ranges that begin in a range."""
        for known in self._ends.irange(begin, end, inclusive=(True, False)):
            yield Range(known, self._ends[known])

    def _touching(self, begin: int, end: int) -> Iterator[Range]:
        """The ranges that share an integer with a range."""
        if begin >= end:
            return
        before = self._last_from(begin)
        if before is not None and before.end > begin:
            yield before
        yield from self._from(begin + 1, end)

    def _put(self, begin: int, end: int) -> None:
        if begin < end:
            self._ends[begin] = end
            self._length += end - begin

    def _drop(self, known: Range) -> None:
        del self._ends[known.begin]
        self._length -= known.length


class RangeMap(Generic[_V]):
    """Values of disjoint ranges."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: Any = SortedDict()  # begin: (end, value)

    def __iter__(self) -> Iterator[tuple[Range, _V]]:
        for begin, (end, value) in self._items.items():
            yield Range(begin, end), value

    def __len__(self) -> int:
        return len(self._items)

    def insert(self, begin: int, end: int, value: _V) -> None:
        """Raises ValueError when the range is empty, or part of it has a value."""
        if begin >= end or next(self.within(begin, end), None) is not None:
            raise ValueError(f"{begin} up to {end} is empty, or overlaps a range in the map")
        self._items[begin] = end, value

    def at(self, number: int) -> tuple[Range, _V] | None:
        """The range that holds a number, and its value."""
        index = self._items.bisect_right(number) - 1
        if index < 0:
            return None
        begin, (end, value) = self._items.peekitem(index)
        return (Range(begin, end), value) if number < end else None

    def within(self, begin: int, end: int) -> Iterator[tuple[Range, _V]]:
        """The ranges that share an integer with a range, whole, ascending."""
        first = self.at(begin)
        if first is not None and begin < end:
            yield first
        for known in self._items.irange(begin + 1, end, inclusive=(True, False)):
            limit, value = self._items[known]
            yield Range(known, limit), value


def intersection(left: Iterable[Range], right: RangeSet) -> Iterator[Range]:
    """What of some ranges is in a set; a piece ends where one of either side does."""
    for item in left:
        yield from right.within(*item)


def difference(left: Iterable[Range], right: RangeSet) -> Iterator[Range]:
    """What of some ranges is not in a set."""
    for item in left:
        yield from right.gaps(*item)
