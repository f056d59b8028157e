"""Writing a qcow2 image from a disk's data in order.

    header | data, each L2 table after the last of its clusters | L1 table | refcount blocks | refcount table

The header is written last, so that an unfinished file is not an image. Every cluster of the file is used once.
"""

from __future__ import annotations

import sys
from array import array
from typing import Final

from cowfs.blockdev import BlockDevice, Buffer
from cowfs.disk_images.qcow2_format import ENTRY_BYTES, HEADER, HEADER_OF_VERSION_3, MAGIC, USED_ONCE

_CLUSTER_BITS: Final = 16
_CLUSTER_BYTES: Final = 1 << _CLUSTER_BITS
_TABLE_ENTRIES: Final = _CLUSTER_BYTES // ENTRY_BYTES
_REFCOUNT_ORDER: Final = 4
_REFCOUNTS_PER_BLOCK: Final = _CLUSTER_BYTES // 2
_END_OF_EXTENSIONS: Final = bytes(8)


class Qcow2Writer:
    """One image, in an empty file.

    Args:
        file: written at its end, whatever its size is.
    """

    def __init__(self, file: BlockDevice) -> None:
        self._file = file
        self._clusters = 1  # of the file so far, the header included
        self._l1: dict[int, int] = {}
        self._l2 = array("Q", bytes(_CLUSTER_BYTES))
        self._l2_number = 0

    def write(self, offset: int, data: Buffer) -> None:
        """Put data at a place on the disk.

        Args:
            offset: a multiple of 64 KiB, after all that was written before, the rest of its 64 KiB included.
        """
        number, count = offset // _CLUSTER_BYTES, -(-len(data) // _CLUSTER_BYTES)
        begin = 0
        while count:
            table, index = divmod(number, _TABLE_ENTRIES)
            self._turn_to(table)
            length = min(count, _TABLE_ENTRIES - index)
            place = self._append(memoryview(data)[begin : begin + length * _CLUSTER_BYTES])
            for i in range(length):
                self._l2[index + i] = (place + i * _CLUSTER_BYTES) | USED_ONCE
            number, count, begin = number + length, count - length, begin + length * _CLUSTER_BYTES

    def finish(self, disk_bytes: int) -> None:
        """Write what makes an image of the data."""
        self._turn_to(-1)
        l1 = array("Q", bytes(-(-disk_bytes // (_TABLE_ENTRIES * _CLUSTER_BYTES)) * ENTRY_BYTES))
        for number, place in self._l1.items():
            l1[number] = place | USED_ONCE
        l1_place = self._append(_big_endian(l1))
        refcount_place, refcount_clusters = self._write_refcounts()
        header = HEADER.pack(
            *(MAGIC, 3, 0, 0, _CLUSTER_BITS, disk_bytes, 0, len(l1), l1_place),
            *(refcount_place, refcount_clusters, 0, 0),
        )
        length = HEADER.size + HEADER_OF_VERSION_3.size
        header += HEADER_OF_VERSION_3.pack(0, 0, 0, _REFCOUNT_ORDER, length)
        self._file.pwrite(0, header + _END_OF_EXTENSIONS)

    def _turn_to(self, table: int) -> None:
        if table == self._l2_number:
            return
        if any(self._l2):
            self._l1[self._l2_number] = self._append(_big_endian(self._l2))
            self._l2 = array("Q", bytes(_CLUSTER_BYTES))
        self._l2_number = table

    def _append(self, data: Buffer) -> int:
        """Write whole clusters, the last of them filled up with zeros; returns their place."""
        place = self._clusters * _CLUSTER_BYTES
        if data:
            self._file.pwrite(place, data)
        self._clusters += -(-len(data) // _CLUSTER_BYTES)
        return place

    def _write_refcounts(self) -> tuple[int, int]:
        """One for every cluster of the file, those of the counts included; place and clusters of their table."""
        blocks = tables = 0
        while True:
            total = self._clusters + blocks + tables
            needed = -(-total // _REFCOUNTS_PER_BLOCK)
            tables_needed = -(-needed * ENTRY_BYTES // _CLUSTER_BYTES)
            if (needed, tables_needed) == (blocks, tables):
                break
            blocks, tables = needed, tables_needed
        table = array("Q")
        for begin in range(0, total, _REFCOUNTS_PER_BLOCK):
            counts = b"\0\1" * min(_REFCOUNTS_PER_BLOCK, total - begin)
            table.append(self._append(counts))
        place = self._append(_big_endian(table).ljust(tables * _CLUSTER_BYTES, b"\0"))
        return place, tables


def _big_endian(entries: array[int]) -> bytes:
    if sys.byteorder == "little":
        entries = entries[:]
        entries.byteswap()
    return entries.tobytes()
