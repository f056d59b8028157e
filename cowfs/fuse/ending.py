"""How a server comes to its end: the signals that ask it to, and what is logged when it does not.

A command is ended by an error that its handler of SIGTERM raises wherever it happens to be. Neither trio nor a home
that is being closed would withstand that, so a server only notes the signals, and a separate task acts on them.

    with Ending() as ending:
        open everything                     a signal ends this as it ends any command
        ending.note_signals()
        trio.run(...)                       await ending.wait_signal()
        close everything                    a signal changes nothing any more

At the end of the block, a signal that came before the server was ready is passed on to the handler before.
"""

from __future__ import annotations

import contextlib
import signal
from collections import deque
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final, Self, TypeAlias

import trio

from cowfs.fuse.stacks import StackWatch

END_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PATIENCE_SECONDS: Final = 10.0

_Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | None


class Ending:
    """In the main thread, once per server. `is_ready` is set by the server when it serves what it was started for."""

    def __init__(self, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.is_ready = False
        self._first = 0
        self._noted: deque[int] = deque()
        self._arrived = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._earlier: dict[signal.Signals, _Handler] = {}
        self._watch = StackWatch(patience_seconds)

    def __enter__(self) -> Self:
        return self

    def note_signals(self) -> None:
        """From now on, until the `with` block ends, signals are noted and nothing else."""
        self._earlier = {number: signal.signal(number, self._note) for number in END_SIGNALS}

    def _note(self, number: int, _frame: object) -> None:
        if not self.is_ready and not self._first:
            self._first = number
        self._noted.append(number)
        if self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._wake)

    def _wake(self) -> None:
        self._arrived.set()

    async def wait_signal(self) -> signal.Signals:
        """The next signal that was noted, in order. One task at a time."""
        self._token = trio.lowlevel.current_trio_token()
        while not self._noted:
            self._arrived = trio.Event()
            await self._arrived.wait()
        return signal.Signals(self._noted.popleft())

    def has_begun(self) -> None:
        """Called in a task when the server is to end: it logs what it does if it is still there after a while."""
        self._watch.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._watch.stop()
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        if self._first and error is None:
            signal.raise_signal(self._first)
