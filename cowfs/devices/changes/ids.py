"""Device ids: 24-bit numbers, given out in rising order from the last one, around the end to 0."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cowfs.errors import HomeError
from cowfs.units import MAX_THIN_ID

_HALF: Final = MAX_THIN_ID >> 1


def last_given(noted: int, taken: Iterable[int]) -> int:
    """The last id given out, from the one that was noted and those of the devices: one that is ahead of it came later.

    Ids go around, so those up to half of all away are ahead.
    """
    return noted + max((ahead for taken_id in taken if (ahead := taken_id - noted & MAX_THIN_ID) <= _HALF), default=0)


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
