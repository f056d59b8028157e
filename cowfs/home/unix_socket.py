"""Listening on a Unix socket that its owner alone can reach."""

from __future__ import annotations

import os
import socket


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
