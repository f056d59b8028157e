"""Sets and maps of ranges beside plain sets and dictionaries of integers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cowfs.ranges import Range, RangeMap, RangeSet, difference, intersection

NUMBERS = st.integers(min_value=0, max_value=60)
RANGES = st.tuples(NUMBERS, NUMBERS).map(lambda pair: (min(pair), max(pair)))


class SetOfRanges(RuleBasedStateMachine):
    """`found` is what is tested, `wanted` the integers that must be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.found = RangeSet()
        self.wanted: set[int] = set()

    @rule(item=RANGES)
    def add(self, item: tuple[int, int]) -> None:
        self.found.add(*item)
        self.wanted.update(range(*item))

    @rule(item=RANGES)
    def remove(self, item: tuple[int, int]) -> None:
        self.found.remove(*item)
        self.wanted.difference_update(range(*item))

    @precondition(lambda self: len(self.wanted) > 40)
    @rule()
    def clear(self) -> None:
        self.found.clear()
        self.wanted.clear()

    @rule(item=RANGES)
    def look(self, item: tuple[int, int]) -> None:
        assert _numbers(self.found.within(*item)) == sorted(self.wanted & set(range(*item)))
        assert _numbers(self.found.gaps(*item)) == sorted(set(range(*item)) - self.wanted)

    @rule(items=st.lists(RANGES, max_size=4))
    def combine(self, items: list[tuple[int, int]]) -> None:
        left = list(RangeSet(items))
        inside = {number for item in items for number in range(*item)}
        assert _numbers(intersection(left, self.found)) == sorted(inside & self.wanted)
        assert _numbers(difference(left, self.found)) == sorted(inside - self.wanted)

    @invariant()
    def is_the_same(self) -> None:
        assert _numbers(self.found) == sorted(self.wanted)
        assert self.found.length == len(self.wanted)
        assert bool(self.found) == bool(self.wanted)
        assert [number for number in range(-1, 62) if number in self.found] == sorted(self.wanted)
        assert self.found == RangeSet((number, number + 1) for number in self.wanted)

    @invariant()
    def has_no_ranges_that_touch(self) -> None:
        ranges = list(self.found)
        assert len(self.found) == len(ranges)
        assert all(item.begin < item.end for item in ranges)
        assert all(item.end < following.begin for item, following in itertools.pairwise(ranges))


class MapOfRanges(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.found = RangeMap[int]()
        self.wanted: dict[Range, int] = {}

    @rule(item=RANGES, value=st.integers())
    def insert(self, item: tuple[int, int], value: int) -> None:
        is_free = item[0] < item[1] and not any(set(range(*item)) & set(range(*known)) for known in self.wanted)
        if is_free:
            self.found.insert(*item, value)
            self.wanted[Range(*item)] = value
        else:
            with pytest.raises(ValueError, match="overlaps"):
                self.found.insert(*item, value)

    @rule(item=RANGES)
    def look(self, item: tuple[int, int]) -> None:
        wanted = [(known, value) for known, value in sorted(self.wanted.items()) if _share(known, item)]
        assert list(self.found.within(*item)) == wanted

    @invariant()
    def is_the_same(self) -> None:
        assert list(self.found) == sorted(self.wanted.items())
        assert len(self.found) == len(self.wanted)
        for number in range(-1, 62):
            wanted = [(known, value) for known, value in self.wanted.items() if number in range(*known)]
            assert self.found.at(number) == (wanted[0] if wanted else None)


def _numbers(ranges: object) -> list[int]:
    return [number for item in ranges for number in range(*item)]  # type: ignore[attr-defined]


def _share(left: tuple[int, int], right: tuple[int, int]) -> bool:
    return max(left[0], right[0]) < min(left[1], right[1])


TestSetOfRanges = SetOfRanges.TestCase
TestMapOfRanges = MapOfRanges.TestCase
