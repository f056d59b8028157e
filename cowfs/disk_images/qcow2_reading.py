"""Reading the tables of a qcow2 image.

The tables are untrusted: everything that they say is checked before it is used. Reference counts are not read, since
nothing that is read depends on them; an image whose counts are wrong is read as qemu itself reads it.
"""

from __future__ import annotations

import sys
from array import array
from itertools import pairwise
from typing import Final, NamedTuple

from cowfs.blockdev import FileDevice
from cowfs.disk_images.qcow2_format import (
    COMPRESSED,
    ENTRY_BYTES,
    HEADER,
    HEADER_OF_VERSION_3,
    PLACE,
    USED_ONCE,
    ZEROS,
)
from cowfs.errors import UsageError

_CLUSTER_BITS: Final = range(9, 22)
_MAX_L1_BYTES: Final = 32 << 20
_NOT_CLOSED: Final = 1  # the feature bit of an image whose reference counts may be behind its tables


class Run(NamedTuple):
    """`length` bytes of a disk from `offset` on, and where in the file they are."""

    offset: int
    place: int
    length: int


class Tables(NamedTuple):
    """A disk's size in bytes, and its data in order; the rest is zeros."""

    size_bytes: int
    runs: list[Run]


def read_tables(file: FileDevice) -> Tables | None:
    """Where a qcow2 image has its disk's data.

    Returns:
        None for an image that is not plain: it has a backing or data file, is encrypted or compressed, has tables of
        another layout, or no header of version 2 or 3.

    Raises:
        UsageError: the tables are damaged.
    """
    if file.size_bytes < HEADER.size + HEADER_OF_VERSION_3.size:
        return None
    head = file.pread(0, HEADER.size + HEADER_OF_VERSION_3.size)
    _, version, backing, _, cluster_bits, size_bytes, encryption, l1_count, l1_place, *_ = HEADER.unpack_from(head)
    features = HEADER_OF_VERSION_3.unpack_from(head, HEADER.size)[0] if version == 3 else 0
    if version not in (2, 3) or backing or encryption or features & ~_NOT_CLOSED:
        return None
    if cluster_bits not in _CLUSTER_BITS:
        raise _damaged(file, f"its clusters have 2 to the power of {cluster_bits} bytes")
    return _Reader(file, version, 1 << cluster_bits).tables(size_bytes, l1_place, l1_count)


class _Reader:
    def __init__(self, file: FileDevice, version: int, cluster_bytes: int) -> None:
        self._file = file
        self._version = version
        self._cluster_bytes = cluster_bytes
        self._used = [(0, cluster_bytes)]  # (begin, end) of what the tables say is in use, the header first

    def tables(self, size_bytes: int, l1_place: int, l1_count: int) -> Tables | None:
        table_span = self._cluster_bytes // ENTRY_BYTES * self._cluster_bytes  # of the disk, by one L2 table
        needed = -(-size_bytes // table_span)
        if not needed <= l1_count <= _MAX_L1_BYTES // ENTRY_BYTES:
            raise _damaged(self._file, f"its L1 table has {l1_count} entries for a disk of {size_bytes} bytes")
        runs: list[Run] = []
        for number, entry in enumerate(self._entries("the L1 table", l1_place, needed) if needed else ()):
            if entry & ~(PLACE | USED_ONCE):
                raise _damaged(self._file, f"entry {number} of its L1 table is {entry:#x}")
            if entry & PLACE and not self._add_runs(runs, number * table_span, entry & PLACE):
                return None
        self._check_used_once(runs)
        return Tables(size_bytes, [_clipped(run, size_bytes, self._file.size_bytes) for run in runs])

    def _add_runs(self, runs: list[Run], offset: int, place: int) -> bool:
        """Add what one L2 table has; False when it has something that is compressed."""
        cluster_bytes = self._cluster_bytes
        known = PLACE | USED_ONCE | (ZEROS if self._version == 3 else 0)
        for entry in self._entries("an L2 table", place, cluster_bytes // ENTRY_BYTES):
            if entry:
                if entry & COMPRESSED:
                    return False
                found = entry & PLACE
                if entry & ~known or found % cluster_bytes or found >= self._file.size_bytes:
                    raise _damaged(self._file, f"the entry of the disk's byte {offset:#x} in its tables is {entry:#x}")
                if found and not entry & ZEROS:
                    last = runs[-1] if runs else Run(0, 0, 0)
                    if last.offset + last.length == offset and last.place + last.length == found:
                        runs[-1] = Run(last.offset, last.place, last.length + cluster_bytes)
                    else:
                        runs.append(Run(offset, found, cluster_bytes))
            offset += cluster_bytes
        return True

    def _entries(self, what: str, place: int, count: int) -> array[int]:
        length = count * ENTRY_BYTES
        if place % self._cluster_bytes or place + length > self._file.size_bytes:
            raise _damaged(self._file, f"{what} of {length} bytes at {place:#x} is not in it")
        self._used.append((place, place + length))
        entries = array("Q", self._file.pread(place, length))
        if sys.byteorder == "little":
            entries.byteswap()
        return entries

    def _check_used_once(self, runs: list[Run]) -> None:
        used = sorted([*self._used, *((run.place, run.place + run.length) for run in runs)])
        for (_, end), (begin, _) in pairwise(used):
            if begin < end:
                raise _damaged(self._file, f"its tables use the cluster at {begin:#x} more than once")


def _clipped(run: Run, disk_bytes: int, file_bytes: int) -> Run:
    """Without what is past the end of the disk, or of the file, where a last cluster reads as zeros."""
    return run._replace(length=min(run.length, disk_bytes - run.offset, file_bytes - run.place))


def _damaged(file: FileDevice, what: str) -> UsageError:
    return UsageError(f"the image {file.path} is damaged, or breaks off: {what}")
