"""The process that holds a home ends in the middle of an answer: what only reads is asked again, nothing else is."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

import cowfs
from cowfs.devices.on_disk.lock import HomeLock
from cowfs.errors import HolderEnded
from cowfs.home import own_session, session
from cowfs.home.control import socket as control_socket
from cowfs.home.executor import Executor
from cowfs.home.opened.opening import open_here
from cowfs.home.opened.spec import HomeSpec
from cowfs.home.requests.comparing import ChangedFiles, Changes
from cowfs.home.requests.counters import Io, Metrics
from cowfs.home.requests.decoding import REQUESTS
from cowfs.home.requests.devices import CopyMetadata, Inspect, ListDevices, Status, Table, TargetStatus
from cowfs.home.requests.disks import ExportDisk
from cowfs.home.requests.faults import ListFaults
from cowfs.home.requests.files import CopyOut, ListFiles, ReadFile, ReadFiles, WantedFile
from cowfs.home.requests.images import ExportArchive, ExportChain
from cowfs.home.requests.layers import (
    Info,
    LayerArchive,
    LayerChanges,
    LayerDiff,
    LayerExists,
    LayerMetadata,
    LayerOwnUsage,
    LayerSize,
    ListLayers,
)
from cowfs.home.requests.new_layers import LayerSeal, ReadLayerBlocks
from cowfs.home.requests.request import AnyRequest, Listing, OpenFile, Request, StreamOut
from cowfs.home.requests.space import Usage
from cowfs.home.session import metadata_of
from cowfs.thinmeta.check import check
from tests.conftest import REPOSITORY
from tests.home.conftest import PATIENCE_SECONDS, serving

GREETING = b'{"cowfs":1,"pid":4711,"version":"0.1.0"}\n'


class EndingHolder:
    """Holds a home, and ends when it was asked and has sent a part of its answer; `held` while it does."""

    def __init__(self, home: Path, part: bytes) -> None:
        self._home = home
        self._part = part
        self._lock = HomeLock.acquire(str(home))
        self._listener = control_socket.listen(home)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rb") as lines:
            connection.sendall(GREETING)
            assert lines.readline().endswith(b"\n")
            connection.sendall(self._part)
            self._listener.close()
            control_socket.unlink(self._home)
            self._lock.release()

    def join(self) -> None:
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()


@contextmanager
def ending_holder(home: Path, part: bytes = b'{"resu') -> Iterator[None]:
    holder = EndingHolder(home, part)
    yield
    holder.join()


def metadata(home: Path) -> bool:
    with metadata_of(home, "emulated") as found:
        return check(found).clean


READING: dict[str, Callable[[cowfs.Home], object]] = {
    "one answer": lambda home: home.status().devices,
    "the rows of a listing": lambda home: [row.name for row in home.devices()],
    "a sequence": lambda home: [file.name for file in home.list_files("web")],
    "layers": lambda home: list(home.layers.list()),
    "a file": lambda home: home.check().clean,
    "a file, and then more": lambda home: home.dump(io.StringIO()),
    "blocks": lambda home: list(home.block_ranges("web", "base")),
}


@pytest.mark.parametrize("act", READING)
def test_what_only_reads_is_asked_again(home: Path, act: str) -> None:
    with cowfs.open_home(home) as opened:
        expected = READING[act](opened)
    with ending_holder(home), cowfs.open_home(home) as opened:
        assert opened.holder_pid == 4711
        assert READING[act](opened) == expected
        assert opened.holder_pid is None  # the home was free


def test_the_next_holder_is_asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = EndingHolder(home, b'{"resu')
    with cowfs.open_home(home) as opened:

        def connect_later(spec: HomeSpec) -> Any:
            holder.join()
            successor.__enter__()
            return session.connect(spec)

        successor = serving(home)
        monkeypatch.setattr(own_session, "connect", connect_later)
        try:
            assert [row.name for row in opened.devices()] == ["base", "web"]
            assert opened.holder_pid == os.getpid()
        finally:
            opened.close()
            successor.__exit__(None, None, None)


def test_metadata_alone_is_asked_for_again(home: Path) -> None:
    with ending_holder(home):
        assert metadata(home)


def test_a_change_is_not_asked_for_again(home: Path) -> None:
    with ending_holder(home), cowfs.open_home(home) as opened:
        with pytest.raises(HolderEnded, match="ended before the answer was complete"):
            opened.create("new")
        assert [row.name for row in opened.devices()] == ["base", "web"]


def begun_listing(home: Path, request: Listing[Any]) -> bytes:
    """What a holder sends that ends after the first piece of a listing."""
    with Executor(open_here(HomeSpec(home, durable=False))) as executor:
        piece = next(executor.iterate(request))
    return b'{"piece":' + msgspec.json.encode(piece) + b'}\n{"pie'


def test_a_sequence_of_which_a_part_was_given_is_not_asked_for_again(home: Path) -> None:
    part = begun_listing(home, ListFiles("web", b"/"))
    with ending_holder(home, part), cowfs.open_home(home) as opened:
        files = opened.list_files("web")
        assert next(files).name
        with pytest.raises(HolderEnded):
            next(files)


def test_a_sequence_that_is_given_as_a_whole_is_asked_for_again_from_its_begin(home: Path) -> None:
    part = begun_listing(home, ListDevices())
    with ending_holder(home, part), cowfs.open_home(home) as opened:
        assert [row.name for row in opened.devices()] == ["base", "web"]


def test_holders_that_end_one_after_the_other_are_not_asked_for_ever(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Ending(Executor):
        def call(self, request: Request[Any]) -> Any:
            asked.append(request)
            raise HolderEnded("ended")

    monkeypatch.setattr(own_session, "connect", lambda spec: Ending(open_here(spec)))
    opened = cowfs.open_home(home)
    with pytest.raises(HolderEnded):
        opened.status()
    assert 1 < len(asked) < 10


HOLDER = """
import sys
from pathlib import Path
from tests.home.conftest import serving
with serving(Path(sys.argv[1])):
    print("serving", flush=True)
    sys.stdin.read()
"""


def test_a_holder_that_is_killed(home: Path) -> None:
    """A process that has read nothing of the request, when it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, os.fspath(home)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process, ThreadPoolExecutor(1) as threads:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"serving\n"
            with cowfs.open_home(home) as opened:
                assert opened.status().holder_pid == process.pid
                process.send_signal(signal.SIGSTOP)
                answer = threads.submit(opened.status)
                wait_until_sent(opened._session._session._socket)  # type: ignore[attr-defined]
                process.kill()
                assert answer.result(PATIENCE_SECONDS).devices == 1
                assert opened.holder_pid is None
        finally:
            process.kill()


def wait_until_sent(connection: socket.socket) -> None:
    """Until bytes are on their way that the other end has not read."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0]:
        assert time.monotonic() < deadline
        time.sleep(0.001)


EXAMPLES: tuple[AnyRequest, ...] = (
    *(Status(), Inspect("web"), ListDevices(), Table(), TargetStatus(), CopyMetadata(), Io(), Metrics(), Usage()),
    *(ListFaults(), Changes("web", "base"), ChangedFiles("web", "base"), ListFiles("web", b"/")),
    *(ReadFile("web", b"/file"), ReadFiles("web", [WantedFile(b"/file", 7)]), CopyOut("web", b"/file")),
    *(ExportDisk("web"), ExportArchive("web"), ExportChain("web"), ReadLayerBlocks("layer"), LayerSeal("layer")),
    *(Info(), ListLayers(), LayerExists("layer"), LayerMetadata("layer"), LayerChanges("layer"), LayerDiff("layer")),
    *(LayerArchive("layer"), LayerSize("layer"), LayerOwnUsage("layer")),
)


def answer(executor: Executor, request: AnyRequest) -> None:
    if isinstance(request, Listing):
        assert list(executor.iterate(request)) is not None
    elif isinstance(request, StreamOut):
        executor.receive(request, lambda piece: None)
    else:
        assert isinstance(request, Request)
        found = executor.call(request)
        if isinstance(found, OpenFile):
            os.close(found.fd)


def test_what_is_said_to_only_read_changes_nothing(home: Path, tmp_path: Path) -> None:
    """Devices, their content and their records are the same after every such request, asked twice."""
    assert {type(request) for request in EXAMPLES if not request.is_local} == {
        kind for kind in REQUESTS if kind.only_reads
    }
    (tmp_path / "file").write_bytes(b"content")
    with cowfs.open_home(home) as opened:
        opened.copy_in(tmp_path / "file", "web", "/file")
        opened.layers.create("layer")
    with Executor(open_here(HomeSpec(home, durable=False))) as executor:

        def state() -> object:
            rows = list(executor.iterate(ListDevices()))
            records = {path.name: path.read_bytes() for path in (home / "metadata").iterdir()}
            return rows, [executor.call(LayerSeal(row.name)) for row in rows], records

        before = state()
        for request in EXAMPLES:
            assert request.only_reads
            answer(executor, request)
            answer(executor, request)
            assert state() == before, request
