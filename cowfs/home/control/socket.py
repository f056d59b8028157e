"""The control socket of a home: its path, its peers, and files passed over it.

It is in the home, or where the home cannot be written, in the home's runtime directory (`cowfs.home.opened.runtime`).
The path of a Unix socket is limited to 107 bytes and that of a directory is not, so the directory is opened and the
socket addressed as `/proc/self/fd/N/cowfs.sock`; the working directory stays as it is.
"""

from __future__ import annotations

import array
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from cowfs.errors import HomeError
from cowfs.home.control.protocol import SOCKET_NAME
from cowfs.home.control.unix_socket import listen_privately

_BACKLOG: Final = 512
_FIRST_PAUSE_SECONDS: Final = 0.01
_LONGEST_PAUSE_SECONDS: Final = 0.2
_UCRED: Final = struct.Struct("3i")
MAX_FILES: Final = 4
ANCILLARY_BYTES: Final = socket.CMSG_SPACE(MAX_FILES * array.array("i").itemsize)
RECEIVE_FLAGS: Final = socket.MSG_CMSG_CLOEXEC


@contextmanager
def _address(directory: Path) -> Iterator[str]:
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET_NAME}"
    finally:
        os.close(fd)


def listen(directory: Path) -> socket.socket:
    """A listening control socket, open to its owner only. The caller holds the directory's lock.

    Holding the lock is what makes an existing socket stale: it is replaced. Anything else under that name is an error.
    """
    with _address(directory) as address:
        _remove_stale(address, directory)
        return listen_privately(address, _BACKLOG)


def _remove_stale(address: str, directory: Path) -> None:
    try:
        mode = os.lstat(address).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise HomeError(
            f"{directory / SOCKET_NAME} is not a socket; move it away, the home's control socket must be there"
        )
    os.unlink(address)


def unlink(directory: Path) -> None:
    """Remove the control socket from a directory whose lock the caller holds."""
    with _address(directory) as address:
        _remove_stale(address, directory)


def dial(directory: Path, timeout_seconds: float) -> socket.socket:
    """A connection to the control socket in a directory.

    Raises:
        OSError: nothing listens there; TimeoutError: as many clients as can wait did so all the time.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        client.settimeout(timeout_seconds)
        with _address(directory) as address:
            _connect(client, address, timeout_seconds)
    except BaseException:
        client.close()
        raise
    return client


def _connect(client: socket.socket, address: str, timeout_seconds: float) -> None:
    """Connect, and again while the backlog is full: a socket with a timeout gets EAGAIN at once then."""
    deadline = time.monotonic() + timeout_seconds
    pause_seconds = _FIRST_PAUSE_SECONDS
    while True:
        try:
            client.connect(address)
        except BlockingIOError:
            if time.monotonic() + pause_seconds > deadline:
                raise TimeoutError(f"too many clients wait at {SOCKET_NAME} to be accepted") from None
        else:
            return
        time.sleep(pause_seconds)
        pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)


class _HasOptions(Protocol):
    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


def is_hung_up(connection: socket.socket) -> bool:
    """Whether the other end has closed, with nothing left to read."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0)) and not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)


def peer_of(connection: _HasOptions) -> tuple[int, int]:
    """Process id and user id of the other end, as the kernel saw them when it connected or listened."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _gid = _UCRED.unpack(raw)
    return pid, uid


def file_message(fd: int) -> list[tuple[int, int, bytes]]:
    """Ancillary data that carries one open file."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]).tobytes())]


def receive(connection: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """Bytes and open files that arrived; the caller owns the files."""
    data, ancillary, flags, _address = connection.recvmsg(size, ANCILLARY_BYTES, RECEIVE_FLAGS)
    return data, files_in(ancillary, flags)


def files_in(ancillary: list[tuple[int, int, bytes]], flags: int) -> list[int]:
    """The open files that came with a message. Raises HomeError when there were more than there may be."""
    files = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            files.frombytes(data[: len(data) - len(data) % files.itemsize])
    if flags & socket.MSG_CTRUNC:
        for fd in files:
            os.close(fd)
        raise HomeError("the other end of the control socket sent more open files than it should")
    return list(files)
