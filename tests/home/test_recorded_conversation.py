"""The control protocol and the files of a home as an earlier cowfs had them: both are kept.

tests/data/README.md says how the home and the conversation were made. For each request, the conversation holds the line
that the client sent and the lines that the server answered.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
import pytest

import cowfs
from cowfs.errors import CowfsError
from tests.home.conftest import PATIENCE_SECONDS, serving

DATA = Path(__file__).resolve().parent.parent / "data"
HOME_ARCHIVE = DATA / "cowfs-home-1.tar.xz"
CONVERSATION = DATA / "control-conversation-1.jsonl"

# What differs between two runs on the same home: processes, places, free space outside; and the wording of errors.
_VOLATILE = [
    (re.compile(r'"message":"(?:[^"\\]|\\.)*"'), '"message":""'),
    (re.compile(r'"(fd|holder_pid|host_free_bytes|data_file_allocated_bytes)":\d+'), r'"\1":0'),
    (re.compile(r'"library_version":"[^"]*"'), '"library_version":""'),
    (re.compile(r"docker-\d+:\d+-\d+-"), "docker-PREFIX-"),
]


def archive() -> io.BytesIO:
    """A layer's archive, the same each time."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, text in (("etc/motd", b"welcome\n"), ("etc/.wh.hello", b"")):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    file.seek(0)
    return file


ACTS: list[Callable[[cowfs.Home], object]] = [
    lambda home: home.status(),
    lambda home: home.devices(),
    lambda home: home.inspect("web"),
    lambda home: home.inspect("nope"),
    lambda home: home.create("new"),
    lambda home: home.create("larger", parent="web", size_bytes=32 << 20),
    lambda home: home.create("web"),
    lambda home: home.snapshot("web", "web-1"),
    lambda home: home.remove("new"),
    lambda home: home.remove("larger", deferred=True),
    lambda home: home.trim("web"),
    lambda home: home.resize("web-1", 32 << 20),
    lambda home: home.resize_pool(data_size_bytes=512 << 20),
    lambda home: home.usage(),
    lambda home: home.message("create_thin 77"),
    lambda home: home.message("make_coffee"),
    lambda home: home.table(),
    lambda home: home.target_status(),
    lambda home: home.check(),
    lambda home: home.layers.create("two", "one", {"size": "32M"}),
    lambda home: home.layers.create("three", "one"),
    lambda home: home.layers.create("four", None, {"colour": "blue"}),
    lambda home: home.layers.exists("two"),
    lambda home: home.layers.metadata("two"),
    lambda home: home.layers.apply("three", archive()),
    lambda home: list(home.layers.changes("three", "one")),
    lambda home: home.layers.diff("three", "one").close(),
    lambda home: home.layers.size("three", "one"),
    lambda home: home.layers.get("three"),
    lambda home: home.layers.put("three"),
    lambda home: home.layers.info(),
    lambda home: home.layers.remove("two"),
    lambda home: home.remove("web-1"),
    lambda home: home.remove("web"),
    lambda home: list(home.layers.list()),
]


class Exchange(msgspec.Struct, frozen=True):
    """A request and its answer, line by line; whether an open file came beside each of the two."""

    sent: str
    sent_file: bool
    answer: list[dict[str, Any]]
    answered_file: bool


@dataclass
class Tee:
    """The client's socket, with a record of its bytes."""

    socket: socket.socket
    sent: bytearray
    received: bytearray
    files: list[bool]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.socket, name)

    def sendall(self, data: bytes) -> None:
        self.sent += data
        self.socket.sendall(data)

    def sendmsg(self, buffers: list[bytes], ancillary: Any = ()) -> int:
        count = self.socket.sendmsg(buffers, ancillary)
        self.sent += b"".join(buffers)[:count]
        self.files[0] = bool(ancillary)
        return count

    def recvmsg(self, size: int, ancillary_size: int, flags: int) -> Any:
        data, ancillary, *rest = self.socket.recvmsg(size, ancillary_size, flags)
        self.received += data
        self.files[1] = self.files[1] or bool(ancillary)
        return (data, ancillary, *rest)


def unpack(directory: Path) -> Path:
    subprocess.run(["tar", "-S", "-xJf", str(HOME_ARCHIVE), "--no-same-owner"], cwd=directory, check=True)
    return directory / "home"


def normal(line: str, home: Path) -> str:
    line = line.replace(str(home), "HOME")
    for pattern, replacement in _VOLATILE:
        line = pattern.sub(replacement, line)
    return line


def converse(home: Path) -> Iterator[Exchange]:
    """Do everything through the client of this program, and note what it says and hears."""
    with serving(home), cowfs.open_home(home) as opened:
        client: Any = opened._session._session
        tee = client._socket = Tee(client._socket, bytearray(), bytearray(), [False, False])
        for act in ACTS:
            with suppress(CowfsError):
                act(opened)
            sent, received = (normal(text.decode(), home) for text in (tee.sent, tee.received))
            yield Exchange(sent, tee.files[0], list(map(json.loads, received.splitlines())), tee.files[1])
            tee.sent.clear()
            tee.received.clear()
            tee.files[:] = [False, False]


def recorded() -> list[Exchange]:
    return [msgspec.json.decode(line, type=Exchange) for line in CONVERSATION.read_bytes().splitlines()]


def record(directory: Path) -> None:
    """Write the conversation anew: for a new version of the protocol, and only then."""
    lines = [msgspec.json.encode(exchange) + b"\n" for exchange in converse(unpack(directory))]
    CONVERSATION.write_bytes(b"".join(lines))


@pytest.fixture
def old_home(tmp_path: Path) -> Path:
    return unpack(tmp_path)


def holds(now: object, before: object) -> bool:
    """Whether an answer says what an earlier one said; a client ignores fields that it does not know."""
    if isinstance(before, dict) and isinstance(now, dict):
        return all(key in now and holds(now[key], value) for key, value in before.items())
    if isinstance(before, list) and isinstance(now, list):
        return len(now) == len(before) and all(map(holds, now, before))
    return now == before


def test_the_client_says_what_it_said(old_home: Path) -> None:
    for now, before in itertools.zip_longest(converse(old_home), recorded()):
        assert now.sent == before.sent
        assert (now.sent_file, now.answered_file) == (before.sent_file, before.answered_file)
        assert holds(now.answer, before.answer), (now, before)


def test_the_server_answers_an_earlier_client_as_before(old_home: Path) -> None:
    """The recorded bytes themselves are sent."""
    with serving(old_home), socket.socket(socket.AF_UNIX) as client, archive_file() as upload:
        client.settimeout(PATIENCE_SECONDS)
        client.connect(str(old_home / "cowfs.sock"))
        with client.makefile("rb") as lines:
            assert json.loads(lines.readline())["cowfs"] == 1
            for exchange in recorded():
                answer: list[object] = []
                for request in exchange.sent.encode().splitlines(keepends=True):
                    sent = socket.send_fds(client, [request], [upload] if exchange.sent_file else [])
                    client.sendall(request[sent:])
                    answer += answer_to_one(lines, old_home)
                assert holds(answer, exchange.answer), (answer, exchange)


def answer_to_one(lines: IO[bytes], home: Path) -> Iterator[dict[str, Any]]:
    while True:
        line = json.loads(normal(lines.readline().decode(), home))
        yield line
        if "piece" not in line:
            return


@contextmanager
def archive_file() -> Iterator[int]:
    fd = os.memfd_create("archive")
    try:
        os.pwrite(fd, archive().getvalue(), 0)
        yield fd
    finally:
        os.close(fd)


def test_an_earlier_home_opens_and_is_sound(old_home: Path) -> None:
    with cowfs.open_home(old_home, durable=False) as home:
        assert [(row.name, row.id, row.parent) for row in home.devices()] == [
            ("base", 1, None),
            ("one", 4, "base"),
            ("web", 2, "base"),
        ]
        report = home.status()
        assert (report.problems, report.orphan_thin_ids, report.data_total_bytes) == ([], [], 256 << 20)
        with home.device("web", read_only=True) as disk:
            assert disk.pread(8 << 20, 6) == b"before"
        assert [change.path for change in home.layers.changes("one")] == ["/etc", "/etc/hello"]
        assert home.check().clean
