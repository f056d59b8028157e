"""Threads that wait for the kernel, and are left alone when nothing waits for them any more.

A thread in a system call cannot be interrupted. A caller that is cancelled stops waiting, and the thread ends when the
kernel is done. So that those who try again and again leave no more threads, there is one for each purpose at most.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

import outcome
import trio


class LeftAlone:
    """Work that waits for the kernel, one thread for each key.

    Args:
        name: of the threads.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._running: dict[Hashable, _Running] = {}

    async def run(self, key: Hashable, prepare: Callable[[], Callable[[], object] | None]) -> None:
        """Do work in a thread, beginning after this call, and wait for its end. Raises what the work raises.

        Earlier work of the same key is waited for first: it may have begun before what this caller wants to be done.
        Callers that wait for the same earlier work share what follows.

        Args:
            prepare: gives the work, when it is about to begin; None where there is nothing to do.
        """
        if (earlier := self._running.get(key)) is not None:
            await earlier.has_ended.wait()
        running = self._running.get(key)
        if running is None:
            work = prepare()
            if work is None:
                return
            running = self._running[key] = _Running()
            self._begin(key, work, running)
        await running.has_ended.wait()
        if running.error is not None:
            raise running.error

    def _begin(self, key: Hashable, work: Callable[[], object], running: _Running) -> None:
        loop = trio.lowlevel.current_trio_token()

        def note(found: outcome.Outcome[Any]) -> None:
            running.error = found.error if isinstance(found, outcome.Error) else None
            del self._running[key]
            running.has_ended.set()

        def tell(found: outcome.Outcome[Any]) -> None:
            with suppress(trio.RunFinishedError):
                loop.run_sync_soon(note, found)

        trio.lowlevel.start_thread_soon(work, tell, name=self._name)


class _Running:
    def __init__(self) -> None:
        self.has_ended = trio.Event()
        self.error: BaseException | None = None
