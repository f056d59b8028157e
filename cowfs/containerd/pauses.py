"""Calls before everything else: what is left to do after a call is done in a pause between calls, and what takes long
lets them go first.

The engine does one thing at a time. What begins just after one call was answered is what the next one waits for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

_PAUSE_SECONDS: Final = 0.05  # without a call, after which the next one is not expected at once
_GIVE_WAY_SECONDS: Final = 0.02  # what takes long goes on after it, however many calls there are


class Pauses:
    """The calls that are in hand, and the pauses between them."""

    def __init__(self) -> None:
        self._calls = 0
        self._ended_at = -math.inf
        self._has_none = trio.Event()

    @contextmanager
    def call(self) -> Iterator[None]:
        """A call, from when it is begun until its answer."""
        if not self._calls:
            self._has_none = trio.Event()
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._ended_at = trio.current_time()
                self._has_none.set()

    async def wait(self) -> None:
        """Wait for a pause, which may take for ever; its caller has a deadline."""
        while True:
            if self._calls:
                await self._has_none.wait()
            seconds = self._ended_at + _PAUSE_SECONDS - trio.current_time()
            if seconds <= 0:
                return
            await trio.sleep(seconds)

    async def give_way(self) -> None:
        """Between two steps of what takes long: let the calls end that are in hand, where that is soon."""
        if self._calls:
            with trio.move_on_after(_GIVE_WAY_SECONDS):
                await self._has_none.wait()
