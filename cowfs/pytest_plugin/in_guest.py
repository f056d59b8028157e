"""The pytest in a guest: runs the tests that it is asked to, one by one, and sends their reports (see `guests`).

Requests are lines with the id of a test, as JSON. What it sends are lines of JSON: `READY`, then for each test its
reports, and its id when it is done. They go over the streams that pytest was started with, and nothing else does: to
import this takes the streams, so no other process may.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from typing import Any, Final

import pytest

from cowfs.pytest_plugin.guests import READY


class _Rest(pytest.Item):
    """Stands for tests to come: what belongs to the session stays, and nothing else does."""

    def runtest(self) -> None:
        raise AssertionError("it never runs")


class Server:
    """The plugin of a pytest that is in a guest.

    Args:
        requests, answers: descriptors, which stay the caller's.
    """

    def __init__(self, config: pytest.Config, requests: int, answers: int) -> None:
        self._config = config
        self._requests = requests
        self._answers = answers
        self._asked: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._is_running = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        rest = _Rest.from_parent(session, name="tests to come")
        threading.Thread(target=self._receive, daemon=True).start()
        self._send(READY)
        while (nodeid := self._asked.get()) is not None:
            self._is_running = True
            if nodeid in items:
                self._config.hook.pytest_runtest_protocol(item=items[nodeid], nextitem=rest)
            self._is_running = False
            self._send(nodeid)
        return True

    def _receive(self) -> None:
        """In a thread: a test may run for ever, and is not wanted any more when the one who asks has ended."""
        with open(self._requests, "rb", closefd=False) as requests:
            for line in requests:
                self._asked.put(json.loads(line))
        self._asked.put(None)
        if self._is_running:
            os._exit(1)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._send(self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    def _send(self, message: Any) -> None:
        line = json.dumps(message, default=str).encode() + b"\n"
        while line:
            line = line[os.write(self._answers, line) :]


def _take_streams() -> tuple[int, int]:
    """Standard input and output, before pytest captures them; the output of pytest itself is not shown."""
    streams = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)
    return streams


_STREAMS: Final = _take_streams()


def pytest_configure(config: pytest.Config) -> None:
    config.option.cow_keep = None  # all of it goes with the guest
    config.pluginmanager.register(Server(config, *_STREAMS), "cowfs in a guest")
