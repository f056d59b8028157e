"""Listening on a Unix socket that its owner alone can reach."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from cowfs.errors import HomeError, UsageError
from cowfs.forking import close_in_children, close_socket, origin

_BACKLOG: Final = 64


def listen_privately(address: str, backlog: int) -> socket.socket:
    """A socket of mode 0600, listening at a path where nothing is. Raises OSError.

    The process' umask is changed for a moment: not for use beside other threads that make files.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        previous = os.umask(0o177)
        try:
            listener.bind(address)
        finally:
            os.umask(previous)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A socket that only this user can reach, in an existing directory; removed at the end.

    A socket without a listener is left from a process that was killed, and is replaced.
    """
    address = os.fspath(path)
    _require_free(address)
    try:
        listener = listen_privately(address, _BACKLOG)
    except OSError as error:
        raise HomeError(f"cannot listen on {address}: {error.strerror or error}", errno=error.errno) from error
    with listener:
        close_in_children(listener, close_socket)
        is_same_process = origin()
        made = os.lstat(address).st_ino
        try:
            yield listener
        finally:
            with suppress(FileNotFoundError):
                if is_same_process() and os.lstat(address).st_ino == made:
                    os.unlink(address)


def _require_free(address: str) -> None:
    try:
        mode = os.lstat(address).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"{address} is not a socket; choose another path for the socket, or move that file away")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            os.unlink(address)
        except OSError as error:
            raise HomeError(f"cannot inspect {address}: {error.strerror or error}", errno=error.errno) from error
        else:
            raise HomeError(f"another process listens on {address} already; end it first", errno=errno.EADDRINUSE)
