"""Homes that go by the clock of a test: time stands still until it is moved, here and in the server of a mount."""

from __future__ import annotations

import errno
import math
import select
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import cowfs
from cowfs.errors import OutOfDataSpace, UsageError
from cowfs.home.opened.virtual_clock import VirtualClock
from cowfs.steps import finish

MIB = 1 << 20
OPTIONS = cowfs.HomeOptions(
    data_size_bytes=16 * MIB, metadata_size_bytes=4 * MIB, base_size_bytes=16 * MIB, min_free_percent=0
)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[cowfs.Home]:
    with cowfs.open_home(tmp_path / "home", create=True, options=OPTIONS, durable=False, virtual_clock=True) as home:
        yield home


@pytest.fixture
def real_home(tmp_path: Path) -> Iterator[cowfs.Home]:
    with cowfs.open_home(tmp_path / "real", create=True, options=OPTIONS, durable=False) as home:
        yield home


def wait_until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        select.select([], [], [], 0.002)


def test_what_is_due_is_done_in_its_order_and_at_its_time() -> None:
    clock = VirtualClock()
    done: list[tuple[str, float]] = []

    def act(name: str) -> None:
        done.append((name, clock()))
        if name == "a":
            clock.call_at(2, partial(act, "b"))

    clock.call_at(3, partial(act, "c"))
    clock.call_at(1, partial(act, "a"))
    assert finish(clock.advance(2)) == 2
    assert done == [("a", 1), ("b", 2)]
    assert finish(clock.advance(0.5)) == clock() == 2.5
    finish(clock.advance(0.5))
    assert done[-1] == ("c", 3)


def test_time_waits_for_those_that_it_has_woken() -> None:
    clock = VirtualClock()
    clock.call_at(1, lambda: setattr(clock, "at_work", 1))
    steps = clock.advance(5)
    for _ in range(10):
        next(steps)
        assert clock() == 1
    clock.at_work = 0
    assert finish(steps) == 5


def test_a_pool_in_this_process_commits_when_time_has_passed(home: cowfs.Home) -> None:
    home.create("web")
    with home.device("web") as disk:
        disk.pwrite(MIB, b"x")
        commits = [home.io().pool.commits or 0]
        for seconds in (1, 0.5):
            home.advance_clock(seconds)
            commits.append(home.io().pool.commits or 0)
        assert commits == [commits[0], commits[0], commits[0] + 1]


def test_waiting_for_space_ends_when_time_has_passed(home: cowfs.Home) -> None:
    home.create("web", size_bytes=64 * MIB)
    with home.device("web") as disk:
        with pytest.raises(OutOfDataSpace):
            disk.pwrite(0, bytes(32 * MIB))
        home.advance_clock(59)
        assert home.status().no_space == "queue"
        home.advance_clock(2)
        assert home.status().no_space == "error"


@pytest.mark.fuse
def test_a_server_goes_by_the_clock_too(home: cowfs.Home) -> None:
    home.create("web", size_bytes=64 * MIB)
    problems: list[int | None] = []

    def fill(path: Path) -> None:
        try:
            with path.open("wb", buffering=0) as file:
                for _ in range(64):
                    file.write(bytes(MIB))
        except OSError as error:
            problems.append(error.errno)

    with home.mount() as tree:
        home.create("other")
        with (tree / "other" / "file").open("w"):
            assert home.remove("other", deferred=True) is False
        assert home.status().deleted_devices == 1
        assert home.advance_clock(31) == 31
        assert home.status().deleted_devices == 0

        writer = threading.Thread(target=fill, args=[tree / "web" / "file"])
        writer.start()
        wait_until(lambda: home.status().mode == "out_of_data_space")
        home.advance_clock(59)
        assert writer.is_alive()
        assert home.status().no_space == "queue"
        home.advance_clock(2)
        writer.join()
        assert problems == [errno.ENOSPC]
        home.resize_pool(data_size_bytes=32 * MIB)  # room for what the server writes at its end
    assert home.advance_clock(1) == 1  # opened again


@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan])
def test_only_a_time_can_pass(home: cowfs.Home, seconds: float) -> None:
    with pytest.raises(UsageError, match="is not a time that can pass"):
        home.advance_clock(seconds)


def test_a_real_clock_is_not_moved(real_home: cowfs.Home) -> None:
    with pytest.raises(UsageError, match=r"cannot be moved, since it is the real one; open the home with virtual"):
        real_home.advance_clock(1)


def test_the_kernels_clock_is_refused(home: cowfs.Home) -> None:
    home.close()
    with pytest.raises(UsageError, match="the backend 'dmthin' has a clock that cannot be moved"):
        cowfs.open_home(home.path, backend="dmthin", virtual_clock=True)
