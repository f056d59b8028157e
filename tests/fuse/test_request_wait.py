"""Workers that wait for requests, on a pipe in place of the FUSE device: each byte in it is a request."""

from __future__ import annotations

import itertools
import os
import random
import select
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from cowfs.fuse.greeting import HANDLE_KILLPRIV_V2, Terms
from cowfs.fuse.request_wait import ROUND_SECONDS, BusyPolling, RequestWait, _WaitedSeconds

STEP_SECONDS = 0.001
SHORT_SECONDS = 5e-5
LONG_SECONDS = 1e-3


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def stepping_clock(step_seconds: float) -> RequestWait:
    """A wait for which each look at the clock is a step later than the one before."""
    return RequestWait(clock=itertools.count(0.0, step_seconds).__next__, busy_polling=polling(processors=1))


class Waited:
    """How long others had the processor, as a test says."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class AlwaysQuicker(BusyPolling):
    """For which no comparison says that sleeping were better."""

    def _is_quicker(self, now: float) -> bool:
        return True


def polling(waited: Waited | None = None, processors: int = 2) -> BusyPolling:
    return AlwaysQuicker(processors=lambda: processors, waited_seconds=waited or Waited())


def busy(polling: BusyPolling, now: float = 0.0) -> BusyPolling:
    """Make it busy, as requests do that follow each other at once."""
    for _ in range(BusyPolling.MAX_SCORE - BusyPolling.MIN_SCORE):
        assert (polling.seconds(now) > 0) is (polling._score > 0)
        polling.note(SHORT_SECONDS)
    assert polling.seconds(now)
    return polling


async def serve(wait: RequestWait, fd: int, served: list[int], suspended: random.Random | None = None) -> None:
    """One worker, until the device closes. Some of its handlers wait for something else, on request."""
    while True:
        try:
            await wait.wait_readable(fd)
        except trio.ClosedResourceError:
            return
        assert select.select([fd], [], [], 0)[0], "told to read where reading blocks"
        served += os.read(fd, 1)
        if suspended is not None and suspended.random() < 0.2:
            for _ in range(suspended.randrange(1, 10)):
                await trio.lowlevel.checkpoint()


async def until_served(served: list[int], count: int) -> int:
    """The turns the event loop gave to this task until then."""
    for turns in itertools.count():  # ends with the last request, or by the timeout
        if len(served) >= count:
            return turns
        await trio.lowlevel.checkpoint()
    raise AssertionError


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_each_request_is_served_once_and_in_order(pipe: tuple[int, int], workers: int, rng: random.Random) -> None:
    reader, writer = pipe
    sent = list(rng.randbytes(2000))
    served: list[int] = []

    async def main() -> None:
        wait = RequestWait()
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(workers):
                    nursery.start_soon(serve, wait, reader, served, rng)
                left = bytes(sent)
                while left:
                    count = rng.randrange(1, 30)
                    os.write(writer, left[:count])
                    left = left[count:]
                    await trio.lowlevel.checkpoint()
                await until_served(served, len(sent))
                wait.notify_closing(reader)

    trio.run(main)
    assert served == sent


def test_a_busy_device_leaves_turns_to_the_rest_of_the_loop(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    requests = 4000
    os.write(writer, bytes(requests))

    async def main() -> int:
        wait = stepping_clock(STEP_SECONDS)
        served: list[int] = []
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(serve, wait, reader, served)
                turns = await until_served(served, requests)
                wait.notify_closing(reader)
        return turns

    per_round = ROUND_SECONDS / STEP_SECONDS
    # A round is one patient request and the eager ones after it; it takes a few turns of the loop.
    assert requests / (per_round + 2) <= trio.run(main) <= 4 * requests / per_round


def test_a_worker_alone_never_stops_the_loop(pipe: tuple[int, int]) -> None:
    """No worker would take the next request if the handler of this one had to wait."""
    reader, writer = pipe
    requests = 100
    os.write(writer, bytes(requests))

    async def main() -> int:
        wait = stepping_clock(0.0)
        served: list[int] = []
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, wait, reader, served)
                turns = await until_served(served, requests)
                wait.notify_closing(reader)
        return turns

    assert trio.run(main) >= requests


def test_closing_ends_those_who_wait_and_those_in_line(pipe: tuple[int, int]) -> None:
    reader, _ = pipe

    async def main() -> None:
        wait = RequestWait()
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(serve, wait, reader, [])
                await trio.testing.wait_all_tasks_blocked()
                wait.notify_closing(reader)

    trio.run(main)


def test_a_request_that_an_eager_worker_took_first(pipe: tuple[int, int], rng: random.Random) -> None:
    """It comes while one worker is busy elsewhere, and wakes both: the other one must not read what is gone."""
    reader, writer = pipe
    requests = 1000

    async def main() -> None:
        wait = stepping_clock(0.0)  # eager for ever
        served: list[int] = []
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(serve, wait, reader, served, rng)
                for count in range(requests):
                    os.write(writer, b"x")
                    await until_served(served, count + 1)
                wait.notify_closing(reader)

    trio.run(main)


def test_an_idle_device_stops_the_loop_for_a_moment_only(pipe: tuple[int, int]) -> None:
    """The eager worker gives up its wait, and the request that comes later finds a worker."""
    reader, writer = pipe

    async def main() -> list[int]:
        wait = stepping_clock(0.0)  # eager for ever
        served: list[int] = []
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(serve, wait, reader, served)
                for request in range(3):
                    await trio.testing.wait_all_tasks_blocked()
                    os.write(writer, bytes([request]))
                    await until_served(served, request + 1)
                wait.notify_closing(reader)
        return served

    assert trio.run(main) == [0, 1, 2]


# Busy polling.


def test_a_mount_that_was_idle_is_not_polled_busily() -> None:
    assert not polling().seconds(0.0)


def test_requests_that_come_seldom_end_busy_polling() -> None:
    """However fast they came before, after a few long waits polling sleeps, and some short waits do not change that."""
    asked = busy(polling())
    misses = 0
    while asked.seconds(0.0):
        asked.note(LONG_SECONDS, missed=True)
        misses += 1
    assert misses == BusyPolling.MAX_SCORE / BusyPolling.MISS_COST
    for _ in range(100):  # pairs of requests with a pause between the pairs
        asked.note(SHORT_SECONDS)
        asked.note(LONG_SECONDS)
        assert not asked.seconds(0.0)


@pytest.mark.parametrize("usual_seconds", [1e-5, 5e-5, 7e-5, 2e-4])
def test_polling_is_as_long_as_waits_are(usual_seconds: float) -> None:
    """Twice the usual wait, within bounds, whatever it was before; and a machine that becomes slower is followed."""
    asked = busy(polling())
    for usual in (usual_seconds, 2e-5, usual_seconds):
        for _ in range(50):
            asked.note(usual)
        assert asked.seconds(0.0) == pytest.approx(
            min(max(2 * usual, BusyPolling.MIN_SECONDS), BusyPolling.MAX_SECONDS), rel=0.05
        )


def test_no_busy_polling_with_one_processor() -> None:
    asked = polling(processors=1)
    for _ in range(100):
        asked.note(SHORT_SECONDS)
    assert not asked.seconds(0.0)


def test_busy_polling_gives_way_to_others() -> None:
    """When another thread had the processor for more than a tenth of a round, polling sleeps for a while."""
    waited = Waited()
    asked = busy(polling(waited))
    waited.seconds += 0.0004
    asked.look_around(ROUND_SECONDS)
    assert asked.seconds(1.0), "only a short thing has run"
    waited.seconds += 0.0006
    asked.look_around(1.0 + ROUND_SECONDS)
    end = 1.0 + ROUND_SECONDS + BusyPolling.PAUSE_SECONDS
    assert not asked.seconds(1.0 + ROUND_SECONDS)
    assert not asked.seconds(end - 0.001)
    waited.seconds += 1  # while it slept: says nothing of what busy polling takes from others
    asked.look_around(end - 0.0005)
    assert asked.seconds(end)
    asked.look_around(end + ROUND_SECONDS)
    assert asked.seconds(end + ROUND_SECONDS)


def test_how_long_this_thread_has_waited() -> None:
    waited_seconds = _WaitedSeconds()
    before = waited_seconds()
    assert 0 <= before <= waited_seconds()


class ScriptedPoll:
    """A device on which a request comes at given times, and its clock; every look takes a while."""

    LOOK_SECONDS = 1e-6
    WAKE_SECONDS = 5e-5

    def __init__(self, *gaps_seconds: float) -> None:
        self.now = 0.0
        self.slept = 0
        self.looks = 0
        self._gaps = iter(gaps_seconds)
        self._due = next(self._gaps)

    def clock(self) -> float:
        return self.now

    def look(self, _timeout_ms: int) -> list[None]:
        self.now += self.LOOK_SECONDS
        self.looks += 1
        return [None] if self._due <= self.now else []

    def sleep(self) -> bool:
        if not self.look(0):
            self.slept += 1
            self.now = min(self._due + self.WAKE_SECONDS, self.now + ROUND_SECONDS)
        return self._due <= self.now

    def read(self) -> None:
        self._due = self.now + next(self._gaps, 1e9)


def eager_waits(device: ScriptedPoll, count: int, asked: BusyPolling | None = None) -> None:
    """Let a worker wait for so many requests, without the turns of the loop between."""
    wait = RequestWait(clock=device.clock, busy_polling=asked or polling())
    for _ in range(count):
        while not wait._wait_eagerly(device, device.now):
            pass
        device.read()


def test_requests_in_a_row_are_served_without_sleeping() -> None:
    device = ScriptedPoll(*[2e-5] * 1000)
    eager_waits(device, 1000)
    assert device.slept == 1 - BusyPolling.MIN_SCORE


def polled_seconds(device: ScriptedPoll, count: int, asked: BusyPolling) -> float:
    """How long the next waits ask without sleeping, all together."""
    slept, looks = device.slept, device.looks
    eager_waits(device, count, asked)
    sleeping = device.slept - slept  # each looks once
    return (device.looks - looks - sleeping) * device.LOOK_SECONDS


def test_what_the_end_of_a_row_of_requests_costs() -> None:
    row, trickle = 100, 1000
    device = ScriptedPoll(*[2e-5] * row, *[LONG_SECONDS] * trickle)
    asked = polling()
    eager_waits(device, row, asked)
    misses = BusyPolling.MAX_SCORE / BusyPolling.MISS_COST
    assert (
        polled_seconds(device, trickle, asked) <= misses * BusyPolling.MAX_SECONDS + 2 * trickle * device.LOOK_SECONDS
    )


@pytest.mark.parametrize("gap_seconds", [1.6e-4, 1.9e-4, 2.4e-4, 3e-4])
def test_what_a_trickling_mount_costs(gap_seconds: float) -> None:
    """Requests that come a little later than polling lasts: it is tried in one wait of sixteen."""
    trickle = 2000
    device = ScriptedPoll(*[gap_seconds] * trickle)
    assert polled_seconds(device, trickle, polling()) <= trickle * (
        BusyPolling.MAX_SECONDS / 16 + 2 * device.LOOK_SECONDS
    )


def test_a_slow_machine_is_polled_longer() -> None:
    """Where a client takes long to wake up, requests are found all the same, once the first ones were slept for."""
    device = ScriptedPoll(*[1e-4] * 1000)
    eager_waits(device, 1000)
    assert device.slept <= 20


class TwoWaysPoll(ScriptedPoll):
    """A request comes after one time where the server sleeps at once, after another one where it looks busily."""

    asleep_seconds = awake_seconds = 0.0

    def __init__(self, asleep_seconds: float, awake_seconds: float) -> None:
        super().__init__(0.0)
        self.asleep_seconds, self.awake_seconds = asleep_seconds, awake_seconds
        self.read()

    def read(self) -> None:
        self._begin = self.now
        self._due = self.now + self.awake_seconds

    def sleep(self) -> bool:
        self.slept += 1
        if self.now == self._begin:
            self._due = self.now + self.asleep_seconds
        self.now = max(self._due, self.now)
        return True


@pytest.mark.parametrize("quicker", ["asleep", "awake"])
def test_what_is_quicker_is_found_by_trying_both(quicker: str) -> None:
    """And found again when it changes. The trials are a small part of a busy mount's waits."""
    quick, slow = 3e-5, 8e-5
    device = TwoWaysPoll(quick, slow) if quicker == "asleep" else TwoWaysPoll(slow, quick)
    asked = BusyPolling(processors=lambda: 2, waited_seconds=Waited())
    for slept_more in (quicker == "asleep", quicker != "asleep", quicker == "asleep"):
        until = device.now + BusyPolling.COMPARED_SECONDS
        while device.now < until:  # what was compared before the change no longer counts then
            eager_waits(device, 100, asked)
        before, waits = device.slept, 2 * round(BusyPolling.COMPARED_SECONDS / quick)
        eager_waits(device, waits, asked)
        share_asleep = (device.slept - before) / waits
        assert share_asleep > 0.98 if slept_more else share_asleep < 0.02
        device.asleep_seconds, device.awake_seconds = device.awake_seconds, device.asleep_seconds


def test_an_eager_wait_ends_with_its_round(pipe: tuple[int, int]) -> None:
    """The timer of the round ends it, and another one may look at once."""
    reader, writer = pipe
    wait = RequestWait()
    device = wait._open(reader)
    wait._timer.start()
    begin = time.monotonic()
    assert not device.sleep()
    assert time.monotonic() - begin >= ROUND_SECONDS
    assert not device.sleep(), "until the next round starts"
    os.write(writer, b"x")
    assert device.sleep(), "a request counts, the end of the round or not"
    os.read(reader, 1)
    wait._timer.start()
    assert not select.select([wait._timer.fd], [], [], 0)[0], "the next round has begun"


def test_another_thread_ends_an_eager_wait(pipe: tuple[int, int]) -> None:
    """So that the event loop has its turn now, and once."""
    reader, writer = pipe
    wait = RequestWait()
    device = wait._open(reader)
    thread = threading.Thread(target=wait.interruption.ask)
    thread.start()
    assert not device.sleep(), "the timer does not run, so nothing else ends this"
    thread.join()
    wait._timer.start()
    begin = time.monotonic()
    assert not device.sleep()
    assert time.monotonic() - begin >= ROUND_SECONDS, "it ended one wait, and not the next one"
    wait.interruption.ask()
    os.write(writer, b"x")
    assert device.sleep(), "a request counts, interrupted or not"


def test_the_device_is_never_read_blocking(pipe: tuple[int, int]) -> None:
    reader, _ = pipe

    async def main() -> None:
        wait = RequestWait()
        with trio.move_on_after(0):
            await wait.wait_readable(reader)

    trio.run(main)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)


def test_whether_there_are_requests(pipe: tuple[int, int]) -> None:
    reader, writer = pipe

    async def main() -> None:
        wait = RequestWait()
        assert not wait.has_requests(), "nothing was waited for yet"
        os.write(writer, b"x")
        await wait.wait_readable(reader)
        assert wait.has_requests()
        os.read(reader, 1)
        assert not wait.has_requests()

    trio.run(main)


def test_an_unmount_before_the_greeting_is_left_to_libfuse(tmp_path: Path, needs_fuse: None) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, which alone mounts a descriptor; run: sudo make test")
    fd = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
        subprocess.run(["mount", "-i", "-t", "fuse", "-o", options, "x", tmp_path], pass_fds=[fd], check=True)
        subprocess.run(["umount", "--lazy", tmp_path], check=True)
        trio.run(RequestWait(terms=Terms(HANDLE_KILLPRIV_V2)).wait_readable, fd)
        with pytest.raises(OSError, match="No such device"):
            os.read(fd, 1 << 20)
    finally:
        os.close(fd)
