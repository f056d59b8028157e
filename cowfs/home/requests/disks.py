"""Bringing whole disks in and out as ranges of data.

A range is two pieces: its offset in 8 bytes, little endian, and then its data. What no range covers is zeros.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Final

import msgspec

from cowfs.blockdev import FLUSH_COPY_BYTES, FlushAhead
from cowfs.devices.pools.contents import PROBED_BYTES, kind_of
from cowfs.errors import ArchiveError, CopyError, OutOfDataSpace, OutOfMetadataSpace, UsageError
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.requests.request import StreamIn, StreamOut
from cowfs.pool import ThinDevice, ThinStatus
from cowfs.units import SECTOR_BYTES

OFFSET_BYTES: Final = 8
RANGE_BYTES: Final = 512 << 10


class Imported(msgspec.Struct, frozen=True):
    """A device that was made of data from elsewhere. `problems`: files that were not copied, of which the first 100."""

    name: str
    id: int
    size_bytes: int
    mapped_bytes: int
    problems: list[str] = []


class Exported(msgspec.Struct, frozen=True):
    """What was written: the size of the device, or of the archive, and the bytes of data in it."""

    name: str
    size_bytes: int
    data_bytes: int


class ImportDisk(StreamIn[Imported], frozen=True, tag="import_disk"):
    """Make a device of a disk's content, all of it or nothing; what is not sent reads as zeros and maps nothing.

    Raises:
        UsageError: a name or size that cannot be, or a range outside the disk.
        DeviceExists: the name is taken.
        OutOfDataSpace, OutOfMetadataSpace: the pool is full; nothing is left.
    """

    name: str
    size_bytes: int

    def run(self, home: OpenHome) -> Generator[bool, bytes, Imported]:
        with home.devices.imports.importing(self.name, self.size_bytes) as thin:
            ahead = FlushAhead(thin, FLUSH_COPY_BYTES)
            while piece := (yield True):
                offset, data = int.from_bytes(piece, "little"), (yield True)
                if len(piece) != OFFSET_BYTES or not data or offset + len(data) > self.size_bytes:
                    raise UsageError(f"a range of {len(data)} bytes at {offset} is not in a disk of {self.size_bytes}")
                thin.pwrite(offset, data)
                ahead.wrote(len(data))
            if holds_layer(thin):
                home.devices.imports.note_layer(self.name)
        return imported(home, self.name)


class ExportDisk(StreamOut[Exported], frozen=True, tag="export_disk"):
    """The content of a device as it is now, as ranges of what it maps, in order. Raises UnknownDevice, DeviceBusy."""

    name: str

    reads = ("name",)

    def run(self, home: OpenHome) -> Generator[bytes | None, None, Exported]:
        with home.devices.snapshots.reading(self.name) as thin:
            sent = 0
            for extent in thin.extents():
                begin = extent.vblock * thin.block_bytes
                end = min(begin + extent.length * thin.block_bytes, thin.size_bytes)
                for offset in range(begin, end, RANGE_BYTES):
                    data = thin.pread(offset, min(RANGE_BYTES, end - offset))
                    sent += len(data)
                    yield offset.to_bytes(OFFSET_BYTES, "little")
                    yield data
            return Exported(self.name, thin.size_bytes, sent)


@contextmanager
def importing(path: str) -> Iterator[None]:
    """Say of an import that ended half way, such as in a full pool, of what it was, and that nothing is left of it."""
    try:
        yield
    except ArchiveError as error:
        raise error.of(path) from error
    except (OutOfDataSpace, OutOfMetadataSpace, CopyError) as error:
        ended = type(error)(f"cannot import {path}: {error}; nothing was made")
        ended.errno = error.errno
        raise ended from error


def holds_layer(thin: ThinDevice) -> bool:
    """Whether a disk is that of a layer which was used."""
    if kind_of(thin.pread(0, min(PROBED_BYTES, thin.size_bytes))) != "ext4":
        return False
    from cowfs.ext4.volume import Volume
    from cowfs.layers.roots import find_root

    try:
        with closing(Volume.open(thin, read_only=True)) as volume:
            return find_root(volume).inode != 0
    except OSError:  # an ext4 that is not read
        return False


def imported(home: OpenHome, name: str) -> Imported:
    """What was made."""
    record = home.devices.record(name)
    status = home.devices.pool.thin_status(record.device_id)
    mapped_sectors = status.mapped_sectors if isinstance(status, ThinStatus) else 0
    return Imported(record.name, record.device_id, record.size_bytes, mapped_sectors * SECTOR_BYTES)
