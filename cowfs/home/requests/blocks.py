"""Changes of devices block by block, as bytes: a `CHANGE`, and its data.

The changes between two devices are the same bytes wherever both hold the same, whatever data blocks they map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final, TypeAlias

from cowfs.blockdev import BlockDevice
from cowfs.errors import UsageError
from cowfs.home.requests.disks import RANGE_BYTES
from cowfs.pool import Pool, ThinDevice
from cowfs.thinmeta.delta import DeltaKind, changed_ranges

CHANGE: Final = Struct("<BQI")
"""Before a change: 1 for data and 0 for a range that is unmapped, offset and length in bytes."""

Range: TypeAlias = tuple[bool, int, int]
"""Whether there is data, the first virtual block, how many."""


def all_changes(thin: ThinDevice) -> Iterator[bytes]:
    """All that a device maps."""
    return _changes_in(thin, ((True, extent.vblock, extent.length) for extent in thin.extents()))


def changes_since(pool: Pool, origin: ThinDevice, thin: ThinDevice) -> Iterator[bytes]:
    """The changes that make a device of another one."""
    return _changes_in(thin, delta_ranges(pool, origin, thin))


def delta_ranges(pool: Pool, origin: ThinDevice, thin: ThinDevice) -> list[Range]:
    """Where a device maps other blocks than another one."""

    def read(device: BlockDevice, held: bool) -> list[Range]:
        ranges = changed_ranges(device, origin.thin_id, thin.thin_id, held=held)
        return [(found.kind is not DeltaKind.LEFT_ONLY, found.vblock, found.length) for found in ranges]

    return pool.read_metadata(read)


def _changes_in(thin: ThinDevice, ranges: Iterable[Range]) -> Iterator[bytes]:
    """What a device holds in some ranges, each piece at most RANGE_BYTES of data."""
    for has_data, vblock, length in _joined(ranges):
        begin = vblock * thin.block_bytes
        end = min(begin + length * thin.block_bytes, thin.size_bytes)
        for offset in range(begin, end, RANGE_BYTES):
            size = min(RANGE_BYTES, end - offset)
            yield CHANGE.pack(has_data, offset, size) + (thin.pread(offset, size) if has_data else b"")


def write_change(thin: ThinDevice, piece: bytes, problem: str) -> None:
    """Change a device. Raises UsageError, which begins with `problem`, for what is no change of it."""
    if len(piece) < CHANGE.size:
        raise UsageError(f"{problem}: a change of {len(piece)} bytes")
    has_data, offset, length = CHANGE.unpack_from(piece)
    data = memoryview(piece)[CHANGE.size :]
    if length == 0 or offset + length > thin.size_bytes or len(data) != (length if has_data else 0):
        raise UsageError(f"{problem}: a change of '{thin.name}' at {offset} is not in the device")
    if has_data:
        thin.pwrite(offset, data)
    else:
        thin.discard(offset, length)


def _joined(ranges: Iterable[Range]) -> Iterator[Range]:
    """Ranges that follow each other as one: where they are split depends on the data blocks."""
    last: Range | None = None
    for has_data, vblock, length in ranges:
        if last is not None and last[0] == has_data and last[1] + last[2] == vblock:
            last = (has_data, last[1], last[2] + length)
            continue
        if last is not None:
            yield last
        last = (has_data, vblock, length)
    if last is not None:
        yield last
