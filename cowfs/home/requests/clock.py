"""Moving the clock of a home that was opened for tests."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cowfs.errors import UsageError
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.requests.request import Request
from cowfs.steps import Steps

if TYPE_CHECKING:
    from cowfs.home.opened.virtual_clock import VirtualClock


class AdvanceClock(Request[float], frozen=True, tag="advance_clock"):
    """Let time pass for a home that was opened with `virtual_clock`; what is due meanwhile is done, in its order.

    That is the commit of the pool, the end of waiting for space, the sync of what is mounted, and deletions that
    wait for users to end.

    Args:
        seconds: how much time; 0 or more.

    Returns:
        The home's time [seconds] since it was opened, by the same clock.

    Raises:
        UsageError: the home's clock is the real one.
    """

    seconds: float

    def check(self, home: OpenHome) -> None:
        self._clock(home)

    def run(self, home: OpenHome) -> Steps[float]:
        now = yield from self._clock(home).advance(self.seconds)
        if not home.is_serving:  # else a task did it at its times
            home.devices.pool.tick()
        return now

    def _clock(self, home: OpenHome) -> VirtualClock:
        if not 0 <= self.seconds < math.inf:
            raise UsageError(f"{self.seconds} s is not a time that can pass; take 0 or more seconds")
        if home.clock is None:
            raise UsageError(
                f"the clock of the home {home.path} cannot be moved, since it is the real one; open the home with "
                "virtual_clock=True"
            )
        return home.clock
