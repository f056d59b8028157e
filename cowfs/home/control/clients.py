"""What servers on a socket share: taking clients in, and saying what is wrong with them without filling a log."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import trio

_SILENT_SECONDS: Final = 60.0  # of what happens again and again
_RETRY_SECONDS: Final = 0.1


class Reports:
    """Says what clients do wrong: at once, and then at most once a minute, with how often it happened.

    Args:
        what: the beginning of each line, for example "a client broke HTTP/2".
        say: is given a line.
    """

    def __init__(self, what: str, say: Callable[[str], object]) -> None:
        self._what = what
        self._say = say
        self._unsaid = 0
        self._silent_until = -math.inf

    def note(self, reason: object) -> None:
        now = trio.current_time()
        if now < self._silent_until:
            self._unsaid += 1
            return
        others = f" ({self._unsaid} more since the last such line)" if self._unsaid else ""
        self._say(f"{self._what}{others}: {reason}")
        self._unsaid = 0
        self._silent_until = now + _SILENT_SECONDS


async def accepted(listener: trio.socket.SocketType, on_failure: Callable[[OSError], object]) -> trio.socket.SocketType:
    """The next client; waits while there is none that can be taken, as where this process is out of descriptors.

    Args:
        on_failure: called for each attempt that fails, also with a client that has ended already.
    """
    while True:
        try:
            socket, _ = await listener.accept()
        except OSError as error:
            on_failure(error)
            await trio.sleep(_RETRY_SECONDS)
        else:
            return socket
