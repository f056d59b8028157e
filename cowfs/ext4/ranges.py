"""Sets of bytes as sorted, disjoint ranges of (offset, length)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

Range: TypeAlias = tuple[int, int]


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Ranges in any order, overlapping or not, as a set."""
    found: list[Range] = []
    for offset, length in sorted(ranges):
        if found and offset <= sum(found[-1]):
            begin, size = found[-1]
            found[-1] = begin, max(size, offset + length - begin)
        elif length:
            found.append((offset, length))
    return found


def intersection(left: Iterable[Range], right: Iterable[Range]) -> Iterator[Range]:
    """What is in both sets; a range of `left` is cut where one of `right` ends."""
    others = iter(right)
    other = next(others, None)
    for offset, length in left:
        end = offset + length
        while other is not None and sum(other) <= offset:
            other = next(others, None)
        while other is not None and other[0] < end:
            begin, stop = max(offset, other[0]), min(end, sum(other))
            yield begin, stop - begin
            if sum(other) > end:
                break
            other = next(others, None)


def difference(left: Iterable[Range], right: Iterable[Range]) -> Iterator[Range]:
    """What is in `left` and not in `right`."""
    others = iter(right)
    other = next(others, None)
    for offset, length in left:
        begin, end = offset, offset + length
        while other is not None and sum(other) <= begin:
            other = next(others, None)
        while other is not None and other[0] < end:
            if other[0] > begin:
                yield begin, other[0] - begin
            begin = max(begin, sum(other))
            if sum(other) > end:
                break
            other = next(others, None)
        if begin < end:
            yield begin, end - begin
