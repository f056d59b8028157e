"""A clock for tests, which does not run until it is moved; what a home does by the clock is then done at once."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from cowfs.steps import Steps


class VirtualClock:
    """Called, it returns its time [seconds].

    Attributes:
        at_work: how many of those that were woken have not come to their next pause yet; time waits for them.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self.at_work = 0

    def __call__(self) -> float:
        return self._now

    def call_at(self, time: float, action: Callable[[], object]) -> None:
        """Have something done once, when the time has come. It must not raise."""
        heapq.heappush(self._due, (time, next(self._numbers), action))

    def advance(self, seconds: float) -> Steps[float]:
        """Let time pass; the time that it is then."""
        end = self._now + seconds
        while self._due and self._due[0][0] <= end:
            self._now, _, action = heapq.heappop(self._due)
            action()
            while self.at_work:
                yield
        self._now = end
        yield
        return end
