"""How the dmthin backend knows whether a write would wait for space in the kernel."""

from __future__ import annotations

import math

import pytest

from cowfs.pool import PoolStatus, UnreadableStatus
from cowfs_dmthin import space_guard
from cowfs_dmthin.space_guard import SpaceGuard

FULL = "0 115/1024 64/64 - out_of_data_space no_discard_passdown queue_if_no_space - 256 "


class FakePool:
    """Returns a status, and records how it was asked."""

    def __init__(self) -> None:
        self.line = line_of(64 - 10)
        self.now = 100.0
        self.asked: list[bool] = []
        self.guard = SpaceGuard(self.status, lambda: self.now)

    def status(self, must_commit: bool) -> PoolStatus | UnreadableStatus:
        self.asked.append(must_commit)
        return PoolStatus.parse(self.line)


def line_of(used: int) -> str:
    return f"0 115/1024 {used}/64 - rw no_discard_passdown queue_if_no_space - 256 "


@pytest.fixture
def pool() -> FakePool:
    return FakePool()


def test_one_question_covers_as_many_blocks_as_are_free(pool: FakePool) -> None:
    assert pool.guard.take(4)
    assert pool.guard.take(6)
    assert pool.asked == [False]
    pool.line = line_of(64)
    assert not pool.guard.take(1)
    assert not pool.guard.take(1)
    assert pool.asked == [False] * 3


def test_an_answer_does_not_last(pool: FakePool) -> None:
    assert pool.guard.take(1)
    pool.line = line_of(64)
    assert pool.guard.take(1)
    pool.now += 1
    assert not pool.guard.take(1)


def test_what_was_freed_is_asked_for_with_a_commit(pool: FakePool) -> None:
    assert pool.guard.take(1)
    pool.guard.invalidate(must_commit=True)
    pool.guard.invalidate()
    assert pool.guard.take(1)
    pool.guard.invalidate()
    assert pool.guard.take(1)
    assert pool.asked == [False, False, True, False]


def test_a_pool_that_does_not_queue_is_left_to_commit_by_itself(pool: FakePool) -> None:
    pool.line = line_of(64).replace("queue_if", "error_if")
    pool.guard.invalidate(must_commit=True)
    assert pool.guard.take(1)
    assert pool.asked == [False]


@pytest.mark.parametrize(
    "line",
    [
        FULL.replace("queue_if", "error_if"),
        line_of(64).replace("queue_if", "error_if"),
        line_of(64).replace("rw", "ro"),
        "Fail",
    ],
)
def test_where_the_kernel_answers_at_once_there_is_room_for_everything(pool: FakePool, line: str) -> None:
    pool.line = line
    assert pool.guard.take(1 << 40)
    assert not pool.guard.holds_writes()
    assert pool.guard.wait_seconds() == 0


def test_the_kernels_timeout_is_counted_from_when_it_was_full(pool: FakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    timeout = 60.0
    monkeypatch.setattr(space_guard, "no_space_timeout_seconds", lambda: timeout)
    assert not pool.guard.holds_writes()
    assert pool.guard.wait_seconds() == 60
    pool.now += 1000
    pool.line = FULL
    assert not pool.guard.take(1)
    assert pool.guard.holds_writes()
    assert pool.guard.wait_seconds() == 60
    pool.now += 20
    assert pool.guard.wait_seconds() == 40
    pool.now += 60
    assert 0 < pool.guard.wait_seconds() < 1  # the kernel says when it is over
    timeout = 0.0  # for ever
    assert pool.guard.wait_seconds() == math.inf
