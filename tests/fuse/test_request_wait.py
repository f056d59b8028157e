"""Workers that wait for requests, on a pipe in place of the FUSE device: each byte in it is a request."""

from __future__ import annotations

import itertools
import os
import random
import select
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from cowfs.fuse.request_wait import ROUND_SECONDS, RequestWait

STEP_SECONDS = 0.001


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def stepping_clock(step_seconds: float) -> RequestWait:
    """A wait for which each look at the clock is a step later than the one before."""
    return RequestWait(clock=itertools.count(0.0, step_seconds).__next__)


async def serve(wait: RequestWait, fd: int, served: list[int], suspended: random.Random | None = None) -> None:
    """One worker, until the device closes. Some of its handlers wait for something else, when told to."""
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
    """Nobody would take the next request if the handler of this one had to wait."""
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
    """The eager worker gives up its wait, and the request that comes later finds somebody."""
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
