"""The kernel's greeting, with a socket in place of the FUSE device."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from cowfs.fuse.greeting import HANDLE_KILLPRIV_V2, MAX_BACKGROUND, Greeting, Terms

INIT, LOOKUP = 26, 1
OTHER_FLAGS = 1 | 1 << 22


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Of the kernel and of libfuse."""
    kernel, libfuse = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, libfuse:
        yield kernel, libfuse


def request(opcode: int, flags: int) -> bytes:
    body = struct.pack("=IIII", 7, 45, 1 << 17, flags) + bytes(48)
    return struct.pack("=IIQQIIIHH", 40 + len(body), opcode, 2, 0, 0, 0, 0, 0, 0) + body


def answer(flags: int, error: int = 0) -> bytes:
    body = struct.pack("=IIII", 7, 38, 1 << 17, flags) + b"the rest" * 6
    return struct.pack("=IiQ", 16 + len(body), error, 2) + body


@pytest.mark.parametrize(
    ("asked", "answered", "expected"),
    [
        pytest.param(
            request(INIT, OTHER_FLAGS | HANDLE_KILLPRIV_V2),
            answer(OTHER_FLAGS),
            answer(OTHER_FLAGS | HANDLE_KILLPRIV_V2),
            id="agreed",
        ),
        pytest.param(request(INIT, OTHER_FLAGS), answer(1), answer(1), id="not offered"),
        pytest.param(request(LOOKUP, HANDLE_KILLPRIV_V2), answer(1), answer(1), id="another request"),
        pytest.param(request(INIT, -1 & 0xFFFFFFFF), answer(0, -71)[:16], answer(0, -71)[:16], id="error"),
        pytest.param(request(INIT, -1 & 0xFFFFFFFF), answer(0, -71), answer(0, -71), id="long error"),
        pytest.param(request(INIT, 0)[:52], answer(1)[:24], answer(1)[:24], id="before there were flags"),
    ],
)
def test_what_is_agreed_to(
    ends: tuple[socket.socket, socket.socket], asked: bytes, answered: bytes, expected: bytes
) -> None:
    kernel, libfuse = ends
    descriptors = len(os.listdir("/proc/self/fd"))
    kernel.send(asked)
    greeting = Greeting(libfuse.fileno(), Terms(HANDLE_KILLPRIV_V2))
    assert os.read(libfuse.fileno(), 4096) == asked
    os.write(libfuse.fileno(), answered)
    greeting.answer()
    assert kernel.recv(4096) == expected
    kernel.send(b"the next request")
    assert os.read(libfuse.fileno(), 4096) == b"the next request"
    assert not os.get_inheritable(libfuse.fileno())
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_how_much_may_be_under_way(ends: tuple[socket.socket, socket.socket]) -> None:
    kernel, libfuse = ends
    kernel.send(request(INIT, OTHER_FLAGS))
    greeting = Greeting(libfuse.fileno(), Terms(max_background=MAX_BACKGROUND))
    os.read(libfuse.fileno(), 4096)
    os.write(libfuse.fileno(), answer(OTHER_FLAGS))
    greeting.answer()
    expected = bytearray(answer(OTHER_FLAGS))
    expected[32:36] = b"\xff" * 4
    assert kernel.recv(4096) == expected
