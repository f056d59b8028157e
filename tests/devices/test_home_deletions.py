"""Deletions that wait: the queue of devices that were removed while something used them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cowfs.errors import DeviceBusy, DeviceExists, PoolIoError, PoolModeError, ThinBusy
from cowfs.home.serving.deletions import RETRY_SECONDS, deletion_service
from tests.devices.home_fakes import FakeBackend, assert_whole, make_home, names, open_home

BUSY = ThinBusy("thin 2 is active")


def test_it_works_from_the_first_run_of_a_home_on(tmp_path: Path, backend: FakeBackend) -> None:
    with make_home(tmp_path / "home", backend) as devices:
        devices.create("a")
        backend.fail = {"delete": [BUSY, BUSY]}
        assert devices.remove("a", deferred=True) is False
        assert devices.reports.status().deleted_devices == 1
        assert devices.deletions.retry() == 1
        assert devices.deletions.retry() == 0
        assert names(devices) == ["base"]
        assert_whole(devices)


def test_a_marked_device_can_be_seen_and_nothing_else(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        backend.fail = {"delete": [BUSY]}
        devices.remove("a", deferred=True)
        assert "a" in devices
        assert devices.record("a").deleted
        refusals: list[tuple[type[OSError], str, Callable[[], object]]] = [
            (DeviceExists, r"device 'a' exists already \(thin 2, marked for deletion\)", lambda: devices.create("a")),
            (DeviceBusy, "device 'a' .* marked for deletion", lambda: devices.create("b", parent="a")),
            (DeviceBusy, "device 'a' .* marked for deletion", lambda: devices.active.activate("a")),
        ]
        for error, text, action in refusals:
            with pytest.raises(error, match=text):
                action()
        assert names(devices) == ["a", "base"]


def test_a_device_that_fails_again_and_again_sits_out_more_and_more_rounds(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        backend.fail = {"delete": [BUSY] * 8}
        devices.remove("a", deferred=True)
        backend.events.clear()
        tries = []
        for round_number in range(100):
            before = len(backend.events)
            left = devices.deletions.retry()
            if len(backend.events) > before:
                tries.append(round_number)
            if not left:
                break
        assert [after - before for before, after in itertools.pairwise(tries)] == [1, 2, 4, 8, 16, 20, 20]
        assert names(devices) == ["base"]


def test_a_new_process_tries_at_once(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        backend.fail = {"delete": [BUSY] * 5}
        devices.remove("a", deferred=True)
        for _ in range(6):
            assert devices.deletions.retry() == 1
    backend.fail = {}
    with open_home(home, backend) as devices:
        assert names(devices) == ["base"]


@pytest.mark.parametrize("error", [BUSY, PoolIoError("the disk is gone"), PoolModeError("read-only")])
def test_a_deletion_that_fails_keeps_no_home_from_opening(home: Path, backend: FakeBackend, error: OSError) -> None:
    with open_home(home, backend) as devices:
        devices.active.activate("a")
        devices.remove("a", deferred=True)
    backend.fail = {"delete": [error]}
    with open_home(home, backend) as devices:
        assert devices.record("a").deleted
        devices.create("b")
        assert devices.deletions.retry() == 0
        assert_whole(devices)


def test_nothing_is_deleted_in_a_home_that_is_only_read(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        devices.active.activate("a")
        devices.remove("a", deferred=True)
    with open_home(home, backend, read_only=True) as devices:
        assert devices.deletions.retry() == 1
        assert names(devices) == ["a", "base"]


def test_a_device_whose_thin_another_program_deleted_is_deleted(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        backend.fail = {"delete": [BUSY]}
        devices.remove("a", deferred=True)
        devices.pool.delete(2)
        assert devices.deletions.retry() == 0
        assert names(devices) == ["base"]
        assert_whole(devices)


def test_the_last_user_may_find_the_thin_busy_elsewhere(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        devices.active.activate("a")
        devices.remove("a", deferred=True)
        assert devices.deletions.retry() == 1
        backend.fail = {"delete": [BUSY]}
        devices.active.deactivate("a")
        assert devices.record("a").deleted
        assert devices.deletions.retry() == 0


def test_a_device_whose_node_is_held_stays_active(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        thin = devices.active.activate("a")
        backend.fail = {"close": [ThinBusy("process 4711 has it open")]}
        with pytest.raises(ThinBusy, match="process 4711"):
            devices.active.deactivate("a")
        assert devices.active.thins() == {"a": thin}
        with pytest.raises(DeviceBusy):
            devices.remove("a")
        devices.active.deactivate("a")
        devices.remove("a")


def test_new_content_does_not_unmark_a_device(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        with devices.replacing("a") as thin:
            thin.pwrite(0, b"new content")
            assert devices.remove("a", deferred=True) is False
        assert devices.record("a").deleted
        assert devices.deletions.retry() == 0
        assert_whole(devices)


async def test_a_served_home_deletes_what_waits_for_it(
    home: Path, backend: FakeBackend, autojump_clock: MockClock
) -> None:
    with open_home(home, backend) as devices:
        backend.fail = {"delete": [BUSY, BUSY, RuntimeError("a defect")]}
        devices.remove("a", deferred=True)
        async with trio.open_nursery() as nursery:
            await nursery.start(deletion_service(devices))
            begin = trio.current_time()
            while "a" in devices:
                await trio.sleep(1)
            seconds = trio.current_time() - begin
            nursery.cancel_scope.cancel()
        assert 3 * RETRY_SECONDS <= seconds <= 3 * RETRY_SECONDS + 1
        assert_whole(devices)
