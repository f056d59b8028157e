"""A clock that tests move by hand."""

from __future__ import annotations


class ManualClock:
    """Called, it returns the time [seconds], which changes only by `advance`."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
