"""Clients that come again and again, and cannot be served: what is said about them."""

from __future__ import annotations

import errno
import logging
import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from cowfs.home.control import socket as control_socket
from cowfs.home.control.clients import Reports, accepted
from tests.home.conftest import PATIENCE_SECONDS, serving
from tests.home.test_control_socket import assert_serves

CLIENTS = 50


def test_clients_that_disconnect_fill_no_log(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of those that end before their answer, one line is written."""
    caplog.set_level(logging.INFO, logger="cowfs")
    with serving(home):
        for _ in range(CLIENTS):
            control_socket.dial(home, PATIENCE_SECONDS).close()  # with a greeting that is not read
        assert_serves(home)
    said = [record.getMessage() for record in caplog.records if "disconnected" in record.getMessage()]
    assert len(said) == 1, said


async def test_reports_say_how_many_were_left_out(autojump_clock: trio.testing.MockClock) -> None:
    said: list[str] = []
    reports = Reports("a client left", said.append)
    for number in range(CLIENTS):
        reports.note(f"reason {number}")
    assert said == ["a client left: reason 0"]
    autojump_clock.jump(61)
    reports.note("too slow")
    reports.note("too slow")
    assert said[1:] == [f"a client left ({CLIENTS - 1} more since the last such line): too slow"]


async def test_a_client_is_taken_in_once_there_are_descriptors(autojump_clock: trio.testing.MockClock) -> None:
    """Each attempt that fails is noted, and followed by a wait."""
    del autojump_clock
    ours, theirs = socket.socketpair()
    failures: list[OSError] = []

    class Listener:
        async def accept(self) -> tuple[socket.socket, str]:
            if len(failures) < CLIENTS:
                raise OSError(errno.EMFILE, "Too many open files")
            return theirs, ""

    with ours, theirs:
        begin = trio.current_time()
        assert await accepted(Listener(), failures.append) is theirs  # type: ignore[arg-type,comparison-overlap]
        assert [error.errno for error in failures] == [errno.EMFILE] * CLIENTS
        assert trio.current_time() - begin >= CLIENTS * 0.1 - 1e-6
