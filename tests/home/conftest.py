"""A small home, and a home served by a thread as a mount would serve it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

import cowfs
from cowfs.devices import opening
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.home.control.server import ControlServer, Limits
from cowfs.home.executor import Executor, Views
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.opened.opening import open_here
from cowfs.home.opened.spec import HomeSpec
from cowfs.pool import load_backend

SMALL = HomeOptions(data_size_bytes=256 << 20, metadata_size_bytes=4 << 20, base_size_bytes=16 << 20, durable=False)
PATIENCE_SECONDS = 60.0
DEFAULT_LIMITS = Limits()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that no process holds, with the devices base and web."""
    path = tmp_path / "home"
    with opening.make_home(path, load_backend("emulated"), SMALL) as devices:
        devices.create("web")
    return path


@contextmanager
def serving(
    home: Path,
    *,
    limits: Limits = DEFAULT_LIMITS,
    views: Views | None = None,
    prepare: Callable[[OpenHome], None] = lambda opened: None,
) -> Iterator[ControlServer]:
    """Hold a home in another thread and answer on its control socket, for the length of a `with` block."""
    outcome: queue.Queue[object] = queue.Queue()

    async def main() -> None:
        with open_here(HomeSpec(home, durable=False)) as opened:
            opened.is_serving = True
            prepare(opened)
            server = ControlServer(Executor(opened, views), limits=limits)
            async with trio.open_nursery() as nursery:
                await nursery.start(server.serve)
                outcome.put((trio.lowlevel.current_trio_token(), nursery.cancel_scope, server))
                await trio.sleep_forever()

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:
            outcome.put(error)
        else:
            outcome.put(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started = outcome.get(timeout=PATIENCE_SECONDS)
    if not isinstance(started, tuple):
        raise AssertionError(f"the server did not start: {started!r}")
    token, scope, server = started
    try:
        yield server
    finally:
        token.run_sync_soon(scope.cancel)
        thread.join(PATIENCE_SECONDS)
        ended = outcome.get(timeout=PATIENCE_SECONDS)
        if isinstance(ended, BaseException):
            raise AssertionError("the server failed") from ended


@pytest.fixture
def served(home: Path) -> Iterator[Path]:
    """The home, held by a thread that answers."""
    with serving(home):
        yield home


@pytest.fixture(params=["here", "through the holder"])
def opened(request: pytest.FixtureRequest, home: Path) -> Iterator[cowfs.Home]:
    """The same home, opened in both ways."""
    if request.param == "here":
        with cowfs.open_home(home, durable=False) as opened:
            assert opened.holder_pid is None
            yield opened
    else:
        with serving(home), cowfs.open_home(home) as opened:
            assert opened.holder_pid is not None
            yield opened
