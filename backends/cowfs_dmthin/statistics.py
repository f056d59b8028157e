"""What the kernel counts of a block device, since there is one: /sys/dev/block/MAJOR:MINOR/stat.

Source of the columns: Linux, Documentation/block/stat.rst.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple, Self

import msgspec

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

    def counters(self, provisioned_blocks: int | None = 0) -> ThinCounters:
        """Those of a thin device.

        Args:
            provisioned_blocks: by how many the blocks that it maps became more, None where that is not known.
        """
        is_known = not self.discards and provisioned_blocks is not None
        return ThinCounters(
            reads=self.reads,
            read_bytes=self.read_sectors * SECTOR_BYTES,
            writes=self.writes,
            written_bytes=self.written_sectors * SECTOR_BYTES,
            discards=self.discards,
            discarded_bytes=self.discarded_sectors * SECTOR_BYTES,
            flushes=self.flushes,
            provisioned_blocks=provisioned_blocks if is_known else None,
            unmapped_blocks=None if self.discards else 0,
        )


def breakdown(asked: ThinCounters, data: Statistics) -> ThinCounters:
    """What requests to a pool cost, as far as it follows from what the kernel counts.

    A block that is copied is read and written whole, one that is made zeros is written whole; what else is written to
    the data device was asked for. So how much was copied is known where no block was new, or where nothing else was
    read. What discards have unmapped is not counted, and then none of this is known.

    Args:
        asked: of all thins; what is known is added to it.
        data: of the data device, meanwhile.
    """
    excess_bytes = data.written_sectors * SECTOR_BYTES - (asked.written_bytes or 0)
    if asked.provisioned_blocks is None:
        return asked
    if asked.provisioned_blocks == 0:
        copied_bytes = excess_bytes
    elif not asked.reads:
        copied_bytes = data.read_sectors * SECTOR_BYTES
    else:
        return asked
    if not 0 <= copied_bytes <= excess_bytes:  # requests are under way
        return asked
    return msgspec.structs.replace(asked, copied_bytes=copied_bytes, zeroed_bytes=excess_bytes - copied_bytes)
