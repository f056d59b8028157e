"""Pauses of a server's services on the clock of a test."""

from __future__ import annotations

from collections.abc import Callable

import trio

from cowfs.fuse.server import Service, Sleep
from cowfs.home.opened.virtual_clock import VirtualClock


class VirtualSleep:
    """`trio.sleep` for one task. The clock does not run from the end of a pause until the next one begins."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._is_at_work = False

    async def __call__(self, seconds: float) -> None:
        is_over = trio.Event()

        def wake() -> None:
            self._is_at_work = True
            self._clock.at_work += 1
            is_over.set()

        self.rest()
        self._clock.call_at(self._clock() + seconds, wake)
        await is_over.wait()

    def rest(self) -> None:
        """Nothing is under way that time has to wait for."""
        if self._is_at_work:
            self._is_at_work = False
            self._clock.at_work -= 1


def pausing(service: Callable[[Sleep], Service], clock: VirtualClock | None) -> Service:
    """A service that pauses on a clock, or on the real one without."""
    if clock is None:
        return service(trio.sleep)

    async def serve(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        sleep = VirtualSleep(clock)
        try:
            await service(sleep)(task_status=task_status)
        finally:
            sleep.rest()

    return serve
