"""How servers end: signals before, in and after the main loop, stacks in the log, errors on the way out."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator

import pytest
import trio

from cowfs.ending import ending_with
from cowfs.errors import HomeError
from cowfs.fuse.ending import END_SIGNALS, Ending
from cowfs.fuse.stacks import describe_stacks


class Passed(Exception):
    """What the handler of a command raises."""


@pytest.fixture(autouse=True)
def command() -> Iterator[None]:
    """Signals are handled as in a command."""

    def handler(number: int, _frame: object) -> None:
        raise Passed(number)

    earlier = {number: signal.signal(number, handler) for number in END_SIGNALS}
    yield
    for number, previous in earlier.items():
        signal.signal(number, previous)


@pytest.mark.parametrize("number", END_SIGNALS)
def test_signals_reach_the_server_in_order_whenever_they_come(number: signal.Signals) -> None:
    async def serve(ending: Ending) -> list[signal.Signals]:
        seen = [await ending.wait_signal()]
        signal.raise_signal(number)
        seen.append(await ending.wait_signal())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, os.kill, os.getpid(), number)
            seen.append(await ending.wait_signal())
        ending.is_ready = True
        signal.raise_signal(number)  # without a handler
        return seen

    with Ending() as ending:
        ending.is_ready = True
        ending.note_signals()
        signal.raise_signal(signal.SIGTERM)
        assert trio.run(serve, ending) == [signal.SIGTERM, number, number]
        signal.raise_signal(number)  # while everything is closed
    with pytest.raises(Passed):
        signal.raise_signal(number)


def test_a_signal_before_the_server_is_ready_ends_the_command() -> None:
    def serve() -> None:
        with Ending() as ending:
            ending.note_signals()
            signal.raise_signal(signal.SIGTERM)
            assert trio.run(ending.wait_signal) == signal.SIGTERM

    with pytest.raises(Passed):
        serve()


def test_a_signal_hides_no_error() -> None:
    def serve() -> None:
        with Ending() as ending:
            ending.note_signals()
            signal.raise_signal(signal.SIGTERM)
            raise HomeError("the true one")

    with pytest.raises(HomeError):
        serve()


def test_a_server_that_does_not_end_logs_every_task_and_thread(caplog: pytest.LogCaptureFixture) -> None:
    logged = threading.Event()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.set()

    async def stuck_task() -> None:
        await trio.sleep_forever()

    async def serve(ending: Ending) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stuck_task)
            await trio.testing.wait_all_tasks_blocked()
            ending.has_begun()
            await trio.to_thread.run_sync(logged.wait, 60)
            nursery.cancel_scope.cancel()

    logger, handler = logging.getLogger("cowfs.fuse.stacks"), Handler()
    logger.addHandler(handler)
    try:
        with Ending(patience_seconds=0.01) as ending:
            trio.run(serve, ending)
    finally:
        logger.removeHandler(handler)
    assert "still at work" in caplog.text
    assert "in stuck_task" in caplog.text
    assert "thread MainThread:" in caplog.text
    assert "logged.wait" in caplog.text  # the worker thread


def test_a_server_that_ends_in_time_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def serve(ending: Ending) -> None:
        ending.has_begun()
        ending.has_begun()

    with Ending(patience_seconds=3600) as ending:
        trio.run(serve, ending)
    assert caplog.text == ""
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_stacks_can_be_taken_without_trio() -> None:
    assert "test_stacks_can_be_taken_without_trio" in describe_stacks(None)


def test_an_error_on_the_way_out_hides_no_earlier_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def fail() -> None:
        raise HomeError("the later one")

    with pytest.raises(HomeError, match="the first one"), ending_with(fail):
        raise HomeError("the first one")
    assert "the later one" in caplog.text
    with pytest.raises(HomeError, match="the later one"), ending_with(fail):
        pass
