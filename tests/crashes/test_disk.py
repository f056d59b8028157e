"""States of a disk: each is what a crash may leave, each is told from all others, and none is forgotten."""

from __future__ import annotations

import itertools
import random

import pytest

from cowfs.crashes.history import Loss, State
from cowfs.crashes.planning import plan
from cowfs.recording.journal import Entry
from cowfs.recording.recorder import Mark
from tests.crashes.recordings import SECTOR, disk_history, left_by_crash, lost_entries, random_entries

SIZE = 12 * SECTOR
BEFORE = bytes(range(256)) * (SIZE // 256)


def write(sector: int, value: int, length: int = SECTOR) -> Entry:
    return Entry("web", "write", sector * SECTOR, length, bytes([value]) * length)


FLUSH = Entry("web", "flush")


def last_flush(entries: list[Entry], events: int) -> int:
    return max((number + 1 for number in range(events) if entries[number].operation == "flush"), default=0)


def test_states_have_the_content_that_a_crash_leaves_and_keys_tell_contents_apart(rng: random.Random) -> None:
    for _ in range(20):
        entries = random_entries(rng, 25, SIZE)
        history = disk_history(entries, BEFORE)
        content_of: dict[int, bytes] = {}
        for state in plan(history, states=150, seed=rng.randrange(100)):
            expected = left_by_crash(entries, BEFORE, state.position, lost_entries(entries, state))
            made = bytearray(BEFORE)
            durable = history.durable_items(state.position)
            for one in (
                *history.writes(0, durable),
                *history.writes(durable, history.issued_until(state.position), state.lost),
            ):
                made[one.offset : one.offset + one.length] = bytes(one.length) if one.data is None else one.data
            assert made == expected
            key = history.key(state)
            assert content_of.setdefault(key, expected) == expected
        assert len(set(content_of.values())) == len(content_of)


def test_what_was_flushed_is_never_lost_and_all_else_is_lost_in_some_state(rng: random.Random) -> None:
    for _ in range(20):
        entries = random_entries(rng, 14, SIZE)
        history = disk_history(entries, BEFORE)
        planned = plan(history, states=None, seed=1)
        contents = {left_by_crash(entries, BEFORE, s.position, lost_entries(entries, s)) for s in planned}
        for state in planned:
            durable = last_flush(entries, state.position)
            assert all(durable <= number < state.position for number in lost_entries(entries, state))
        ends = [number for number, entry in enumerate(entries) if entry.operation == "flush"]
        for end in (*ends, len(entries)):
            written = list(range(last_flush(entries, end), end))
            if len(written) > 8:  # too many to try all of their subsets
                continue
            for count in range(len(written) + 1):
                for lost in itertools.combinations(written, count):
                    assert left_by_crash(entries, BEFORE, end, dict.fromkeys(lost, ())) in contents


def test_equal_contents_are_one_state_with_all_that_was_promised() -> None:
    entries = [write(4, 1), FLUSH, write(4, 1), FLUSH]
    history = disk_history(entries, BEFORE, [Mark("one", 2, 0), Mark("two", 4, 0)])
    planned = plan(history, states=None, seed=1)
    assert [history.marks_at(state.position) for state in planned] == [[], ["one", "two"]]


def test_a_mark_holds_from_where_it_was_set() -> None:
    entries = [write(4, 1), write(5, 2), FLUSH]
    history = disk_history(entries, BEFORE, [Mark("m", 1, 0)])
    assert history.marks_at(1) == []
    assert history.marks_at(2) == ["m"]
    assert [item.issued for item in history.items] == [1, 3]
    assert history.open_at(2) == [0]
    assert State(2, (Loss(0),)) in plan(history, states=None, seed=1)  # promised, and lost


def test_a_seed_repeats_the_states_and_a_number_bounds_them(rng: random.Random) -> None:
    entries = random_entries(rng, 60, SIZE)
    history = disk_history(entries, BEFORE)
    one, again, other = (plan(history, states=40, seed=seed) for seed in (7, 7, 8))
    assert one == again
    assert one != other
    assert len(one) == 40
    assert len({history.key(state) for state in one}) == 40


def test_few_states_are_the_flush_boundaries_first() -> None:
    entries = [one for number in range(20) for one in (write(4, number), write(5, number), FLUSH)]
    history = disk_history(entries, BEFORE)
    planned = plan(history, states=200, seed=3)
    boundaries = {history.key(State(position)) for position in (0, *history.flushes)}
    assert len(boundaries) == 21
    assert boundaries <= {history.key(state) for state in planned}


def test_the_superblock_is_written_as_a_whole() -> None:
    history = disk_history([write(0, 9, 6 * SECTOR)], BEFORE)
    assert history.torn(0, [0, 2]) == Loss(0, (0, 2, 3))
    assert history.torn(0, [0]) == Loss(0, (0,))
    assert history.torn(0, range(6)) == Loss(0)
    assert history.torn(0, []) is None


@pytest.mark.parametrize("sector", [0, 3, 11])
def test_torn_writes_lose_whole_sectors(sector: int) -> None:
    entry = Entry("web", "write", 100, SIZE - 200, b"\xff" * (SIZE - 200))
    history = disk_history([entry], BEFORE)
    writes = list(history.writes(0, 1, [Loss(0, (sector,))]))
    image = bytearray(BEFORE)
    for one in writes:
        assert one.data is not None
        image[one.offset : one.offset + one.length] = one.data
    for at in range(0, SIZE, SECTOR):
        is_old = image[at : at + SECTOR] == BEFORE[at : at + SECTOR]
        assert is_old == (at // SECTOR == sector)
