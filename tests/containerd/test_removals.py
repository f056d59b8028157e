"""What containerd waits for while the kernel does not let go of a device, and what is left of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from cowfs.containerd.grpc import CallError, Code
from cowfs.containerd.messages import message_class
from cowfs.containerd.snapshots import Snapshotter
from cowfs.home.executor import Executor, Views
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.snapshot_keys import DEVICE_PREFIX
from tests.containerd.killed_snapshotter import CALLS, answer, opened, removing

MOST_SECONDS = 0.5


class Stuck(Views):
    """Views whose devices the kernel does not let go of until `let_go` is set."""

    def __init__(self) -> None:
        self.let_go = trio.Event()

    async def close_if_idle(self, device: str) -> bool:
        await self.let_go.wait()
        return True


def devices_of(home: OpenHome) -> set[str]:
    return {record.name for record in home.devices.records() if record.name.startswith(DEVICE_PREFIX)}


async def seconds_of(call: Callable[[], Awaitable[object]]) -> float:
    begin = trio.current_time()
    await call()
    return trio.current_time() - begin


async def test_calls_do_not_wait_for_the_kernel(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """The snapshots are gone at once, their devices when the kernel lets go of them."""
    del autojump_clock
    with opened(tmp_path / "home") as (home, store, _):
        views = Stuck()
        snapshotter = Snapshotter(Executor(home, views), store)

        async def call(*words: str) -> float:
            method, key, other = words
            return await seconds_of(lambda: answer(snapshotter, store, (method, key, other)))

        async with removing(snapshotter):
            for key in ("a", "b", "c", "d"):
                await call("Prepare", key, "")
            assert await call("Commit", "a", "base") == 0
            assert await call("Remove", "b", "") <= MOST_SECONDS
            assert await call("Remove", "d", "") == 0, "only the first one of several waits"
            assert await call("Prepare", "box", "base") == 0
            assert await seconds_of(lambda: snapshotter.cleanup(message_class("CleanupRequest")())) <= MOST_SECONDS
            assert [snapshot.key for snapshot in store.all()] == ["base", "box", "c"]
            assert len(devices_of(home)) == 6
            views.let_go.set()
            assert await seconds_of(lambda: snapshotter.cleanup(message_class("CleanupRequest")())) == 0
            assert devices_of(home) == {snapshot.device for snapshot in store.all()}
            assert await call("Remove", "c", "") == 0
            assert devices_of(home) == {snapshot.device for snapshot in store.all()}


class StuckOnce(Stuck):
    """Views of which the kernel holds one device up, the first that it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._held: str | None = None

    async def close_if_idle(self, device: str) -> bool:
        self._held = self._held or device
        return await super().close_if_idle(device) if device == self._held else True


async def test_a_removal_that_is_held_up_holds_no_other_up(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """The others may be what makes room for what it waits for; it is done when it can be."""
    del autojump_clock
    with opened(tmp_path / "home") as (home, store, _):
        views = StuckOnce()
        snapshotter = Snapshotter(Executor(home, views), store)
        async with removing(snapshotter):
            for key in ("a", "b", "c"):
                await answer(snapshotter, store, ("Prepare", key, ""))
            stuck = store.find("a")
            assert stuck is not None
            for key in ("a", "b", "c"):
                await answer(snapshotter, store, ("Remove", key, ""))
            await trio.sleep(20)
            assert devices_of(home) == {stuck.device}
            views.let_go.set()
            await trio.sleep(20)
            assert devices_of(home) == set()


class Written(Views):
    """Views of devices that programs have written much to: it has come when `has_come` is set."""

    def __init__(self) -> None:
        self.has_come = trio.Event()
        self.only: str | None = None  # a device; all of snapshots when None

    async def write_back(self, device: str) -> None:
        if device == self.only or (self.only is None and device.startswith(DEVICE_PREFIX)):
            await self.has_come.wait()


async def test_others_go_on_while_a_commit_waits_for_what_was_written(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    with opened(tmp_path / "home") as (home, store, _):
        views = Written()
        snapshotter = Snapshotter(Executor(home, views), store)
        async with removing(snapshotter), trio.open_nursery() as nursery:
            for key in ("a", "b"):
                await answer(snapshotter, store, ("Prepare", key, ""))
            nursery.start_soon(answer, snapshotter, store, ("Commit", "a", "base"))
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(MOST_SECONDS):
                await answer(snapshotter, store, ("Remove", "b", ""))
                await answer(snapshotter, store, ("Prepare", "c", ""))
            assert [snapshot.key for snapshot in store.all()] == ["a", "c"]
            views.has_come.set()
        assert [snapshot.key for snapshot in store.all()] == ["base", "c"]
        assert devices_of(home) == {snapshot.device for snapshot in store.all()}


async def test_a_commit_does_not_wait_for_much_that_was_written(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """It is refused, the snapshot stays as it was, and another commit, when that has come, has all of it."""
    del autojump_clock
    with opened(tmp_path / "home") as (home, store, _):
        views = Written()
        snapshotter = Snapshotter(Executor(home, views), store)
        async with removing(snapshotter):
            await answer(snapshotter, store, ("Prepare", "a", ""))

            async def commit() -> None:
                with pytest.raises(CallError, match="commit it again in a moment") as caught:
                    await answer(snapshotter, store, ("Commit", "a", "base"))
                assert caught.value.code is Code.UNAVAILABLE

            assert await seconds_of(commit) <= 2 * MOST_SECONDS
            assert [snapshot.key for snapshot in store.all()] == ["a"]
            assert devices_of(home) == {snapshot.device for snapshot in store.all()}
            views.has_come.set()
            await answer(snapshotter, store, ("Commit", "a", "base"))
            assert [snapshot.key for snapshot in store.all()] == ["base"]


async def test_usage_is_found_after_the_commit(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """By a service, or by who asks first; it is kept, and found again where a crash came before."""
    del autojump_clock
    with opened(tmp_path / "home") as (home, store, first):
        async with removing(first):
            for call in CALLS[:7]:
                await answer(first, store, call)
        assert {snapshot.key: snapshot.is_measured for snapshot in store.all()} == {"base": False, "top": False}
        views = Written()
        top = store.find("top")
        assert top is not None
        views.only = top.device
        snapshotter = Snapshotter(Executor(home, views), store)
        async with trio.open_nursery() as nursery:
            await nursery.start(snapshotter.serve_usage)
            usage = await snapshotter.usage(message_class("UsageRequest")(key="base"))
            assert (usage.size > 0, usage.inodes) == (True, 2)
            with trio.move_on_after(1) as patience:
                await snapshotter.usage(message_class("UsageRequest")(key="top"))
            assert patience.cancelled_caught
            assert {snapshot.key: snapshot.is_measured for snapshot in store.all()} == {"base": True, "top": False}
            nursery.cancel_scope.cancel()
    with opened(tmp_path / "home") as (_, store, snapshotter):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(snapshotter.serve_usage)
            while not all(snapshot.is_measured for snapshot in store.all()):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert {snapshot.key: snapshot.inodes for snapshot in store.all()} == {"base": 2, "top": 2}


async def test_a_removal_that_is_not_done_is_done_at_the_end(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    with opened(tmp_path / "home") as (home, store, _):
        snapshotter = Snapshotter(Executor(home, Stuck()), store)
        async with removing(snapshotter):
            await answer(snapshotter, store, ("Prepare", "a", ""))
            await answer(snapshotter, store, ("Remove", "a", ""))
            assert len(devices_of(home)) == 1
        assert devices_of(home) == set()


async def test_a_removal_that_a_crash_prevented_is_done_by_the_next_snapshotter(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """The call was answered, and the process ended before the device was removed."""
    del autojump_clock
    with opened(tmp_path / "home") as (home, store, _):
        snapshotter = Snapshotter(Executor(home, Stuck()), store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(snapshotter.serve_removals)
            for key in ("a", "b", "kept"):
                await answer(snapshotter, store, ("Prepare", key, ""))
            for key in ("a", "b"):
                await answer(snapshotter, store, ("Remove", key, ""))
            nursery.cancel_scope.cancel()
        assert len(devices_of(home)) == 3
    with opened(tmp_path / "home") as (home, store, snapshotter):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(snapshotter.serve_removals)
            await snapshotter.begin()
            await snapshotter.cleanup(message_class("CleanupRequest")())
            nursery.cancel_scope.cancel()
        (kept,) = store.all()
        assert (kept.key, devices_of(home)) == ("kept", {kept.device})
