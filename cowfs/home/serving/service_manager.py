"""What a service manager such as systemd and a service tell each other: a socket that is passed, and readiness.

Source: systemd, sd_listen_fds(3) and sd_notify(3).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

from cowfs.errors import UsageError

_log = logging.getLogger(__name__)
_FIRST_FD: Final = 3
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def passed_listener(environment: MutableMapping[str, str]) -> socket.socket | None:
    """The socket that the service manager listens on for this process; None where it passed none.

    The variables that say so are removed: they are not for programs that this one starts.

    Raises:
        UsageError: more than one was passed, or something else than a Unix stream socket that listens.
    """
    pid, count = environment.get("LISTEN_PID", ""), environment.get("LISTEN_FDS", "")
    if pid != str(os.getpid()):
        return None
    for name in _VARIABLES:
        environment.pop(name, None)
    if count != "1":
        raise UsageError(f"the service manager passed {count or 'no'} sockets; one ListenStream= is needed")
    try:
        listener = socket.socket(fileno=_FIRST_FD)
    except OSError as error:
        raise UsageError(f"the service manager passed no socket as descriptor {_FIRST_FD}: {error.strerror}") from None
    is_listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM or not is_listening:
        raise UsageError("the service manager passed a socket that is not a Unix stream socket which listens")
    os.set_inheritable(_FIRST_FD, False)
    return listener


def require_same_path(listener: socket.socket, path: Path) -> None:
    """Raises UsageError where a passed socket is at another path than this."""
    name = listener.getsockname()
    passed = os.fsdecode(name)
    if not passed or os.path.realpath(passed) != os.path.realpath(path):
        raise UsageError(
            f"the service manager listens on {passed!r}, and the socket must be {str(path)!r}; name one place only"
        )


def tell_ready(address: str) -> None:
    """Tell the service manager that this process serves what it was started for.

    Args:
        address: of the manager's socket, from NOTIFY_SOCKET; one that begins with @ is abstract.
    """
    name = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)) as sender:
        try:
            sender.sendto(b"READY=1", name)
        except OSError as error:
            _log.warning("cannot tell the service manager at %s that this service is ready: %s", address, error)
