"""What handlers raise and what the kernel is answered, without a mount."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Awaitable, Callable

import pytest
import trio
from pyfuse3 import FUSEError, InodeT
from trio.testing import MockClock, wait_all_tasks_blocked

from cowfs.errors import MetadataCorrupt, NoSuchThin, OutOfDataSpace, OutOfMetadataSpace
from cowfs.fuse import translate
from cowfs.fuse.translate import MAX_WAITING, SpaceQueue, View, answered, changing


class Failing(View):
    """Every handler raises what it is given."""

    @answered
    def look(self, error: Exception) -> None:
        raise error

    @changing
    def change(self, error: Exception | None) -> str:
        if error is not None:
            raise error
        return "changed"

    @changing
    def attempt(self, attempts: list[Exception | None]) -> int:
        error = attempts.pop(0)
        if error is not None:
            raise error
        return 7


async def answer_of(handler: Callable[..., Awaitable[object]], *arguments: object) -> int:
    with pytest.raises(FUSEError) as caught:
        await handler(*arguments)
    return caught.value.errno


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (FUSEError(errno.ENOTDIR), errno.ENOTDIR),
        (OSError(errno.EMLINK, "too many"), errno.EMLINK),
        (FileNotFoundError(errno.ENOENT, "none"), errno.ENOENT),
        (OutOfDataSpace("full"), errno.ENOSPC),
        (OutOfMetadataSpace("full"), errno.ENOSPC),
        (MetadataCorrupt("bad", block=3), errno.EIO),
        (NoSuchThin("gone"), errno.EIO),
        (OSError(512, "beyond the kernel's range"), errno.EIO),
        (OSError(-5, "negative"), errno.EIO),
    ],
)
async def test_errors_keep_their_meaning(error: Exception, number: int) -> None:
    view = Failing()
    assert await answer_of(view.look, error) == number
    assert await answer_of(view.change, error) == number
    assert await answer_of(view.attempt, [error]) == number
    assert view.failure == ""


@pytest.mark.parametrize("error", [ZeroDivisionError("bug"), AssertionError(), OSError("no errno"), MemoryError()])
@pytest.mark.parametrize("name", ["look", "change", "attempt"])
async def test_a_bug_turns_the_view_read_only(error: Exception, name: str, caplog: pytest.LogCaptureFixture) -> None:
    view = Failing()
    assert await answer_of(getattr(view, name), [error] if name == "attempt" else error) == errno.EIO
    assert view.failure == name
    assert "Traceback" in caplog.text
    assert await answer_of(view.change, None) == errno.EROFS
    assert await answer_of(view.attempt, [None]) == errno.EROFS
    assert await answer_of(view.look, FileNotFoundError(2, "")) == errno.ENOENT


async def test_read_only_views_refuse_changes() -> None:
    assert await answer_of(Failing(read_only=True).change, None) == errno.EROFS


async def test_a_failing_disk_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    view = Failing()
    for _ in range(100):
        await answer_of(view.look, OSError(errno.EIO, "bad sector"))
    assert len(caplog.records) == 1


class Pool:
    """The clock side of a pool that is full for `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.until = seconds
        self.ticks = 0

    def tick(self) -> None:
        self.ticks += 1

    def wait_seconds(self) -> float:
        return self.until - trio.current_time()


def full() -> Exception:
    return OutOfDataSpace("full", may_queue=True)


async def test_a_queued_write_waits_for_space(autojump_clock: MockClock) -> None:
    pool = Pool(trio.current_time() + 60)
    view = Failing(space=SpaceQueue(pool.tick, pool.wait_seconds))
    assert await view.attempt([full(), full(), full(), None]) == 7
    assert pool.ticks == 3


async def test_a_queued_write_fails_when_the_time_is_over(autojump_clock: MockClock) -> None:
    began = trio.current_time()
    pool = Pool(began + 60)
    view = Failing(space=SpaceQueue(pool.tick, pool.wait_seconds))
    with pytest.raises(FUSEError) as caught:
        await view.attempt([full() for _ in range(1000)])
    assert caught.value.errno == errno.ENOSPC
    assert trio.current_time() - began == pytest.approx(60, abs=0.5)


async def test_space_wakes_all_waiters_at_once(autojump_clock: MockClock) -> None:
    pool = Pool(trio.current_time() + 60)
    space = SpaceQueue(pool.tick, pool.wait_seconds)
    view = Failing(space=space)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(view.attempt, [full(), None])
        await wait_all_tasks_blocked()
        assert space.waiting == 5
        began = trio.current_time()
        space.wake()
    assert trio.current_time() == began
    assert space.waiting == 0


async def test_too_many_waiters_fail_instead_of_blocking_the_mount(autojump_clock: MockClock) -> None:
    pool = Pool(trio.current_time() + 60)
    space = SpaceQueue(pool.tick, pool.wait_seconds)
    view = Failing(space=space)
    async with trio.open_nursery() as nursery:
        for _ in range(MAX_WAITING):
            nursery.start_soon(view.attempt, [full(), None])
        await wait_all_tasks_blocked()
        with pytest.raises(FUSEError) as caught:
            await view.attempt([full(), None])
        assert caught.value.errno == errno.ENOSPC


async def test_no_queue_no_waiting() -> None:
    assert await answer_of(Failing().attempt, [full(), None]) == errno.ENOSPC


async def test_a_pool_that_breaks_while_one_waits(autojump_clock: MockClock) -> None:
    def tick() -> None:
        raise ZeroDivisionError("bug in tick")

    view = Failing(space=SpaceQueue(tick, lambda: 60.0))
    with pytest.raises(FUSEError) as caught:
        await view.attempt([full(), None])
    assert caught.value.errno == errno.EIO
    assert view.failure


class Recording(View):
    """What is asked of a device."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def sync(self) -> None:
        self.asked.append("sync")

    def sync_clean(self) -> None:
        self.asked.append("clean")

    def tick(self, *, changed: bool = False) -> list[str]:
        self.changed = self.changed or changed
        self.asked.clear()
        self.sync_changes()
        return self.asked


def test_what_is_in_use_is_synced_and_made_clean_once_it_is_left_alone() -> None:
    view = Recording()
    assert view.tick() == []
    for _ in range(3):
        assert view.tick(changed=True) == ["sync"]
    assert view.tick() == ["clean"]
    assert view.tick() == []
    assert view.tick(changed=True) == ["sync"]
    view.failure = "write"
    assert view.tick(changed=True) == []


async def test_what_is_fetched_in_vain_again_and_again_takes_one_thread(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """The kernel does not write, as where the pool is full: the loop's threads are there for others."""
    del autojump_clock
    asked: list[list[int]] = []
    is_asked, go_on = threading.Event(), threading.Event()

    def drop(inodes: list[int]) -> None:
        asked.append(inodes)
        is_asked.set()
        assert go_on.wait(60)

    monkeypatch.setattr(translate, "drop_caches", drop)
    view = Failing()
    view.open_file(InodeT(7), os.O_RDWR)
    for _ in range(50):
        with trio.move_on_after(0.5) as patience:
            await view.write_back()
        assert patience.cancelled_caught
    await trio.to_thread.run_sync(is_asked.wait, 60)
    assert asked == [[7]]
    with trio.fail_after(5):
        await trio.to_thread.run_sync(go_on.set)
    view.open_file(InodeT(8), os.O_RDWR)
    await view.write_back()
    assert asked == [[7], [7, 8]], "once more, for what was written since"
