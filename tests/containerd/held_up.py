"""A snapshotter of this process whose engine is held up by a disk that does not answer, for as long as a test wants.

The engine has a thread, and so has the front, whose clock stands still until the test lets it jump: a call is given up
when the test says so, and never sooner.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from cowfs.containerd.diff import DiffService
from cowfs.containerd.front import Front
from cowfs.containerd.grpc import Code
from cowfs.containerd.snapshots import Snapshotter
from cowfs.containerd.store import SnapshotStore
from cowfs.home.control.unix_socket import listening
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.snapshot_keys import DEVICE_PREFIX
from tests.containerd.grpc_client import CallFailed, GrpcClient
from tests.containerd.killed_snapshotter import opened, removing

PATIENCE_SECONDS = 60  # of a test that fails


class Gate:
    """Where the engine stops, once, while it is closed."""

    def __init__(self) -> None:
        self._is_closed = False
        self.is_reached = threading.Event()
        self._is_open = threading.Event()
        self._is_open.set()

    def close(self) -> None:
        self.is_reached.clear()
        self._is_open.clear()
        self._is_closed = True

    def open(self) -> None:
        self._is_closed = False
        self._is_open.set()

    def pass_through(self, *_: object) -> None:
        if self._is_closed:
            self.is_reached.set()
            assert self._is_open.wait(PATIENCE_SECONDS)


class HeldUp:
    """Made by `snapshotter`.

    Attributes:
        disk: before each flush of a file, as a slow disk has it.
        injected: in the place of the waiting of an injected delay.
        database: after each transaction of the store is durable, and before its caller knows.
    """

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = path
        self.socket = path / "s"
        self.containerd = path / "containerd"
        self.disk, self.injected, self.database = Gate(), Gate(), Gate()
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, partial(self._flush, getattr(os, name)))
        self._is_ready = threading.Event()
        self._clock = trio.testing.MockClock()
        self._engine_clock = trio.testing.MockClock(rate=1)
        self._front: trio.lowlevel.TrioToken | None = None
        self._engine: trio.lowlevel.TrioToken | None = None
        self.home: OpenHome
        self.store: SnapshotStore

    def _flush(self, flush: Callable[[int], None], fd: int) -> None:
        self.disk.pass_through()
        flush(fd)

    def run(self) -> None:
        """The engine's thread."""
        try:
            with opened(self._path / "home") as (home, store, snapshotter), listening(self.socket) as listener:
                self.home, self.store = home, store
                home.faults._means = replace(home.faults._means, sleep=self.injected.pass_through)
                write = store._write

                def held_write(*arguments: Any) -> None:
                    write(*arguments)
                    self.database.pass_through()

                setattr(store, "_write", held_write)  # noqa: B010
                diff = DiffService(snapshotter, self.containerd, home.path, lambda: 0.0)
                methods = {**snapshotter.methods(), **diff.methods()}
                front = Front(listener, snapshotter.reads(), methods, home="the home", run=self._run_front)
                trio.run(self._serve, snapshotter, front, clock=self._engine_clock)
        finally:
            self._is_ready.set()

    async def _serve(self, snapshotter: Snapshotter, front: Front) -> None:
        self._engine = trio.lowlevel.current_trio_token()
        self._end = trio.Event()
        async with removing(snapshotter), trio.open_nursery() as nursery:
            await nursery.start(snapshotter.serve_usage)
            nursery.start_soon(front.serve)
            self._is_ready.set()
            await self._end.wait()
            nursery.cancel_scope.cancel()

    def _run_front(self, main: Callable[[], Awaitable[None]]) -> None:
        async def noted() -> None:
            self._front = trio.lowlevel.current_trio_token()
            await main()

        trio.run(noted, clock=self._clock)

    # ------------------------------------------------------------------ for tests

    def connected(self) -> GrpcClient:
        assert self._is_ready.wait(PATIENCE_SECONDS)
        return GrpcClient(self.socket)

    def let_time_pass(self) -> None:
        """Once the front waits for all that it was asked, have a second pass there."""

        async def jump() -> None:
            await trio.testing.wait_all_tasks_blocked()
            self._clock.jump(1)

        trio.from_thread.run(jump, trio_token=self._front)

    def given_up(self, client: GrpcClient, method: str, at: Gate | None = None, **fields: Any) -> str:
        """The text of a call that is not answered in time; `at`: the gate that it stops at."""
        client.send(method, **fields)
        assert at is None or at.is_reached.wait(PATIENCE_SECONDS), f"{method} does not come by this gate"
        self.let_time_pass()
        with pytest.raises(CallFailed) as caught:
            client.received(method)
        assert caught.value.code is Code.UNAVAILABLE, caught.value
        assert "\n" not in caught.value.message
        return caught.value.message

    def settle(self) -> None:
        """Wait until the engine has done all that it was asked, and what waited for a pause between calls."""

        async def settle() -> None:
            await trio.testing.wait_all_tasks_blocked()
            self._engine_clock.jump(1)  # which is a pause
            await trio.testing.wait_all_tasks_blocked()

        trio.from_thread.run(settle, trio_token=self._engine)

    def state(self) -> dict[str, tuple[str, dict[str, str]]]:
        """Parent and labels of each snapshot; raises AssertionError for a device without one, or the other way."""
        self.settle()
        snapshots = self.store.all()
        owned = {snapshot.device for snapshot in snapshots if snapshot.owns_device}
        records = trio.from_thread.run_sync(self.home.devices.records, trio_token=self._engine)
        assert owned == {record.name for record in records if record.name.startswith(DEVICE_PREFIX)}
        return {snapshot.key: (snapshot.parent, dict(snapshot.labels)) for snapshot in snapshots}

    def in_engine(self, function: Callable[[], Any]) -> Any:
        return trio.from_thread.run_sync(function, trio_token=self._engine)

    def end(self) -> None:
        for gate in (self.disk, self.injected, self.database):
            gate.open()
        assert self._is_ready.wait(PATIENCE_SECONDS)
        if self._engine is not None:
            self._engine.run_sync_soon(self._end.set)


@contextmanager
def snapshotter(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldUp]:
    held_up = HeldUp(path, monkeypatch)
    thread = threading.Thread(target=held_up.run, name="engine")
    thread.start()
    try:
        yield held_up
    finally:
        held_up.end()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
