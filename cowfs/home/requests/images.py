"""Bringing whole devices in and out: disks as ranges of data, trees as archives or records of files.

A range is a piece of its own: its offset in 8 bytes, little endian, and its data. What no range covers is zeros.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import msgspec

from cowfs.copying.records import Node, records_in
from cowfs.copying.sinks import Copied
from cowfs.copying.tree import Destination, TreeSink
from cowfs.devices.on_disk.names import BASE
from cowfs.errors import UsageError
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE
from cowfs.home.open_home import OpenHome
from cowfs.home.requests.request import StreamIn, StreamOut, Upload
from cowfs.layers.archive.pack import write_archive
from cowfs.layers.archive.unpack import apply_archive
from cowfs.layers.interface import LayerRoot
from cowfs.steps import Steps

OFFSET_BYTES: Final = 8
RANGE_BYTES: Final = 512 << 10
_RECORDS_PER_STEP: Final = 32


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
        with home.devices.importing(self.name, self.size_bytes) as thin:
            while piece := (yield True):
                offset = int.from_bytes(piece[:OFFSET_BYTES], "little")
                data = memoryview(piece)[OFFSET_BYTES:]
                if not data or offset + len(data) > self.size_bytes:
                    raise UsageError(f"a range of {len(data)} bytes at {offset} is not in a disk of {self.size_bytes}")
                thin.pwrite(offset, data)
        return _imported(home, self.name)


class ImportFiles(StreamIn[Copied], frozen=True, tag="import_files"):
    """Make an ext4 device of batches of records of files, all of them or nothing.

    Args:
        size_bytes: that of the base device when None.

    Raises:
        As `ImportDisk`; CopyError: something cannot be copied.
    """

    name: str
    size_bytes: int | None = None

    def run(self, home: OpenHome) -> Generator[bool, bytes, Copied]:
        with _new_volume(home, self.name, self.size_bytes) as root:
            records = records_in((yield True))
            if not records or not isinstance(records[0], Node) or not records[0].is_directory:
                raise UsageError("not a batch of files: it does not begin with a directory")
            sink = TreeSink(root.tree, Destination(ROOT_INODE, b"", b""), self.name)
            try:
                while records:
                    for count, record in enumerate(records, 1):
                        sink.take(record)
                        if count % _RECORDS_PER_STEP == 0:
                            yield False
                    batch = yield True
                    records = records_in(batch) if batch else []
                return sink.finish()
            finally:
                sink.close()


class ImportArchive(Upload[Imported], frozen=True, tag="import_archive"):
    """Make an ext4 device of an uncompressed tar archive, all of it or nothing.

    Args:
        size_bytes: that of the base device when None.

    Raises:
        As `ImportDisk`; ArchiveError, BreakoutError: the archive is damaged, or leads out of the device.
    """

    name: str
    size_bytes: int | None = None

    def run(self, home: OpenHome) -> Steps[Imported]:
        with _new_volume(home, self.name, self.size_bytes) as root:
            yield from apply_archive(root, self.file)
        return _imported(home, self.name)


class ExportDisk(StreamOut[Exported], frozen=True, tag="export_disk"):
    """The content of a device as it is now, as ranges of what it maps, in order. Raises UnknownDevice, DeviceBusy."""

    name: str

    def devices_read(self) -> tuple[str, ...]:
        return (self.name,)

    def run(self, home: OpenHome) -> Generator[bytes | None, None, Exported]:
        with home.devices.reading(self.name) as thin:
            sent = 0
            for extent in thin.extents():
                begin = extent.vblock * thin.block_bytes
                end = min(begin + extent.length * thin.block_bytes, thin.size_bytes)
                for offset in range(begin, end, RANGE_BYTES):
                    data = thin.pread(offset, min(RANGE_BYTES, end - offset))
                    sent += len(data)
                    yield offset.to_bytes(OFFSET_BYTES, "little") + data
            return Exported(self.name, thin.size_bytes, sent)


class ExportArchive(StreamOut[Exported], frozen=True, tag="export_archive"):
    """The files of a device as an uncompressed tar archive, in pieces.

    Raises:
        UnknownDevice, DeviceBusy; FilesystemError: the device has no ext4, or a file cannot be read.
    """

    name: str

    def devices_read(self) -> tuple[str, ...]:
        return (self.name,)

    def run(self, home: OpenHome) -> Generator[bytes | None, None, Exported]:
        sent = 0
        with home.driver.reading(self.name) as root:
            for piece in write_archive(root, None, sparse=True) if root.inode else ():
                sent += len(piece)
                for begin in range(0, len(piece), RANGE_BYTES):
                    yield piece[begin : begin + RANGE_BYTES]
        return Exported(self.name, sent, sent)


@contextmanager
def _new_volume(home: OpenHome, name: str, size_bytes: int | None) -> Iterator[LayerRoot]:
    """The root of an empty file system, which is there under its name when the block ends."""
    with home.devices.importing(name, size_bytes, parent=BASE) as thin:
        volume = Volume.open(thin, journaled=False, name=f"device {name!r}")
        try:
            yield LayerRoot(volume, ROOT_INODE)
        except BaseException:
            with suppress(OSError):
                volume.close()
            raise
        volume.close()


def _imported(home: OpenHome, name: str) -> Imported:
    report = home.devices.inspect(name)
    return Imported(report.name, report.id, report.size_bytes, report.mapped_bytes)


IMAGE_REQUESTS: Final = (ImportDisk, ImportFiles, ImportArchive, ExportDisk, ExportArchive)
