"""Devices marked for deletion: what was removed while it was in use, tried again until it is gone.

The queue is the records themselves (`deleted`), so it outlives every process. `retry` is called when the home opens and
then every so often by whoever serves it; how long a device that could not be deleted sits out is counted in rounds of
these calls, and forgotten with the process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from cowfs.devices.on_disk.names import BASE
from cowfs.devices.on_disk.store import DeviceStore
from cowfs.errors import CowfsError

_log = logging.getLogger(__name__)
_MAX_ROUNDS_OUT: Final = 19  # ten minutes, at a round every 30 s


@dataclass(slots=True)
class _Failures:
    count: int = 0
    rounds_out: int = 0


class Deletions:
    """The queue of one home.

    Args:
        remove: removes a device that is not active.
        is_active: whether a device is in use in this process, and must wait for its last user.
    """

    def __init__(self, store: DeviceStore, remove: Callable[[str], None], is_active: Callable[[str], bool]) -> None:
        self._store = store
        self._remove = remove
        self._is_active = is_active
        self._failures: dict[str, _Failures] = {}

    def names(self) -> list[str]:
        """Devices that are marked, in order. A base device that was marked is made anew instead."""
        return sorted(name for name, record in self._store.items() if record.deleted and name != BASE)

    def mark(self, name: str) -> None:
        record = self._store.require(name)
        if not record.deleted:
            self._store.save(name, msgspec.structs.replace(record, deleted=True))

    def retry(self) -> int:
        """Try to delete what is marked; returns how many are left.

        Each failure of a device doubles the rounds that it sits out.
        """
        if self._store.read_only:
            return len(self.names())
        left = 0
        for name in self.names():
            failures = self._failures.get(name)
            if failures is not None and failures.rounds_out:
                failures.rounds_out -= 1
                left += 1
            elif not self.delete(name):
                left += 1
        return left

    def delete(self, name: str) -> bool:
        """Try to delete a marked device now; whether it is gone. A failure is logged and tried again later."""
        if self._is_active(name):
            return False
        try:
            self._remove(name)
        except CowfsError as error:
            failures = self._failures.setdefault(name, _Failures())
            failures.rounds_out = min(2**failures.count - 1, _MAX_ROUNDS_OUT)
            failures.count += 1
            _log.warning("device %r, marked for deletion, is still there: %s", name, error)
            return False
        self._failures.pop(name, None)
        return True
