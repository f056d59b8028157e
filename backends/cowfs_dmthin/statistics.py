"""What the kernel counts of a block device, since there is one: /sys/dev/block/MAJOR:MINOR/stat.

Source of the columns: Linux, Documentation/block/stat.rst.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple, Self

from cowfs.pool import ThinCounters
from cowfs.units import SECTOR_BYTES

_COLUMNS: Final = 17  # with those of flushes, since Linux 5.5


class Statistics(NamedTuple):
    """Requests that were completed, and their sectors of 512 bytes."""

    reads: int = 0
    read_sectors: int = 0
    writes: int = 0
    written_sectors: int = 0
    discards: int = 0
    discarded_sectors: int = 0
    flushes: int = 0

    @classmethod
    def of(cls, device_number: int) -> Self:
        """Raises OSError where the kernel has no such device, or reports nothing about it."""
        path = f"/sys/dev/block/{os.major(device_number)}:{os.minor(device_number)}/stat"
        with open(path, encoding="ascii") as file:
            columns = [int(word) for word in file.read().split()]
        columns += [0] * (_COLUMNS - len(columns))
        return cls(columns[0], columns[2], columns[4], columns[6], columns[11], columns[13], columns[15])

    def since(self, earlier: Statistics) -> Statistics:
        return Statistics(*(now - before for now, before in zip(self, earlier, strict=True)))

    def counters(self) -> ThinCounters:
        return ThinCounters(
            reads=self.reads,
            read_bytes=self.read_sectors * SECTOR_BYTES,
            writes=self.writes,
            written_bytes=self.written_sectors * SECTOR_BYTES,
            discards=self.discards,
            discarded_bytes=self.discarded_sectors * SECTOR_BYTES,
            flushes=self.flushes,
        )
