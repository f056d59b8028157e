"""The clock of a test's homes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cowfs.home.api.home import Home


class Clock:
    """What the fixture `cow_clock` gives: one clock for all homes of a test. It does not run until it is moved.

    Attributes:
        seconds: how much time has passed since the test began.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._homes: list[Home] = []

    def follow(self, home: Home) -> None:
        """Have a home go by this clock, one that was opened with `virtual_clock`."""
        self._homes.append(home)

    def advance(self, seconds: float) -> None:
        """Let time pass; what is due meanwhile in the homes of the test is done when this returns.

        Writes that wait for space fail with ENOSPC after `HomeOptions.no_space_timeout_seconds`, by default 60; a pool
        commits a second after its last change; what is mounted is synced every five seconds; and deletions that wait
        for the users of a device are tried every thirty.
        """
        for home in self._homes:
            home.advance_clock(seconds)
        self.seconds += seconds
