"""Calls before everything else: what is left to do is done between them, and what takes long lets them go first."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from cowfs.containerd.grpc import Asked
from cowfs.containerd.messages import SNAPSHOTS, message_class
from cowfs.containerd.pauses import Pauses
from cowfs.containerd.snapshots import Snapshotter
from cowfs.ext4.volume import Volume
from cowfs.home.executor import Executor, Views
from tests.containerd.killed_snapshotter import answer, opened, removing
from tests.containerd.test_removals import devices_of


async def call(snapshotter: Snapshotter, method: str, /, **fields: str) -> None:
    """As the front has the engine do it."""
    message = message_class(f"{method}SnapshotRequest")(**fields).SerializeToString()
    await snapshotter.methods()[f"/{SNAPSHOTS}/{method}"].run(Asked(message, {}), lambda _answer: True)


async def test_a_pause_begins_some_time_after_the_last_call(autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    pauses = Pauses()
    found: list[float] = []

    async def wait() -> None:
        await pauses.wait()
        found.append(trio.current_time())

    await pauses.wait()  # no call has been there
    async with trio.open_nursery() as nursery:
        begin = trio.current_time()
        with pauses.call():
            nursery.start_soon(wait)
            await trio.sleep(1)
        await trio.sleep(0.04)
        with pauses.call(), pauses.call():
            await trio.sleep(1)
        end = trio.current_time()
    assert found == [pytest.approx(end + 0.05)]
    assert end == pytest.approx(begin + 2.04)


async def test_what_takes_long_goes_on_between_calls_without_end(autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    pauses = Pauses()
    begin = trio.current_time()
    await pauses.give_way()
    assert trio.current_time() == begin
    with pauses.call():
        await pauses.give_way()
    assert trio.current_time() - begin == pytest.approx(0.02)


async def test_what_a_commit_leaves_waits_for_a_pause(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """As long as one call follows another, but for five seconds at most."""
    del autojump_clock
    with opened(tmp_path / "home") as (home, store, snapshotter):
        async with removing(snapshotter), trio.open_nursery() as nursery:
            await nursery.start(snapshotter.serve_usage)
            await call(snapshotter, "Prepare", key="a")
            await call(snapshotter, "Commit", key="a", name="base")
            left = devices_of(home)
            await call(snapshotter, "Prepare", key="b", parent="base")
            assert len(left) == 2, "the device of the active snapshot is there yet"
            assert left < devices_of(home)
            assert not store.find("base").is_measured  # type: ignore[union-attr]  # it is there
            await trio.sleep(0.06)
            assert devices_of(home) == {snapshot.device for snapshot in store.all()}
            assert store.find("base").is_measured  # type: ignore[union-attr]  # it is there

            await call(snapshotter, "Commit", key="b", name="top")
            committed = trio.current_time()
            while devices_of(home) != {snapshot.device for snapshot in store.all()}:
                assert trio.current_time() < committed + 5.1
                await call(snapshotter, "View", key=str(trio.current_time()), parent="top")
                await trio.sleep(0.04)
            assert trio.current_time() > committed + 4.9, "not before one call followed another for long"
            nursery.cancel_scope.cancel()


async def test_who_waits_for_a_removal_does_not_wait_for_a_pause(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    with opened(tmp_path / "home") as (home, store, snapshotter):
        async with removing(snapshotter):
            await call(snapshotter, "Prepare", key="a")
            begin = trio.current_time()
            await call(snapshotter, "Remove", key="a")
            assert (trio.current_time(), devices_of(home)) == (begin, set())
            for key, name in (("b", "base"), ("c", "top")):
                await call(snapshotter, "Prepare", key=key)
                await call(snapshotter, "Commit", key=key, name=name)
            left = len(devices_of(home))
            await call(snapshotter, "Remove", key="top")
            assert (trio.current_time(), len(devices_of(home))) == (begin, left - 1), "and not for those before it"
            await snapshotter.cleanup(message_class("CleanupRequest")())
            assert trio.current_time() == begin
            assert devices_of(home) == {snapshot.device for snapshot in store.all()}


class Looking(Views):
    """Views that look for what programs have written, which takes several turns."""

    async def write_back(self, device: str) -> None:
        for _ in range(5):
            await trio.lowlevel.checkpoint()


async def test_no_step_of_an_apply_comes_between_the_parts_of_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call lets others have their turn several times; an archive that is unpacked meanwhile waits until its end."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for number in range(400):
            tar.addfile(tarfile.TarInfo(f"f{number}"))
    archive.seek(0)
    made: list[bool] = []  # files of the archive, and whether a call was in hand
    is_in_hand = False
    restore = Volume.restore

    def noted(*arguments: Any, **named: Any) -> int:
        made.append(is_in_hand)
        return restore(*arguments, **named)

    monkeypatch.setattr(Volume, "restore", noted)
    with opened(tmp_path / "home") as (home, store, _):
        snapshotter = Snapshotter(Executor(home, Looking()), store)
        await answer(snapshotter, store, ("Prepare", "a", ""))
        active = store.find("a")
        assert active is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(snapshotter.unpack, active, archive)
            while not made:
                await trio.lowlevel.checkpoint()
            one_step = len(made)
            for number in range(3):
                is_in_hand = True
                await call(snapshotter, "Prepare", key=str(number), parent="")
                is_in_hand = False
        assert len(made) == 400
        assert made.count(True) <= 3 * one_step, "a step that was begun may end"
