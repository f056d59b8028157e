"""Device ids: 24-bit numbers, given out in rising order from the last one, around the end to 0."""

from __future__ import annotations

from collections.abc import Iterable

from cowfs.errors import HomeError
from cowfs.units import MAX_THIN_ID


class ThinIds:
    """Which ids are taken, and the last one given out (`last`). The first id ever is 1."""

    def __init__(self, last: int, *taken: Iterable[int]) -> None:
        self.last = last & MAX_THIN_ID
        self._taken = set[int]().union(*taken)

    def take(self) -> int:
        """The next free id, taken from now on."""
        if len(self._taken) > MAX_THIN_ID:
            raise HomeError("no device id is free: all 16777216 are taken; remove devices")
        candidate = self.last
        while True:
            candidate = candidate + 1 & MAX_THIN_ID
            if candidate not in self._taken:
                self.last = candidate
                self._taken.add(candidate)
                return candidate

    def reserve(self, thin_id: int) -> None:
        self._taken.add(thin_id)

    def release(self, thin_id: int) -> None:
        self._taken.discard(thin_id)
