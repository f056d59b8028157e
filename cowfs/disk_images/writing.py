"""Writing the image of a disk, from its beginning to its end."""

from __future__ import annotations

import os
from typing import Protocol

from cowfs.blockdev import FLUSH_COPY_BYTES, Buffer, FileDevice, FlushAhead
from cowfs.disk_images.disk import not_zeros
from cowfs.disk_images.formats import Format


class _Layout(Protocol):
    def write(self, offset: int, data: Buffer) -> None: ...

    def finish(self, disk_bytes: int) -> None: ...


class DiskWriter:
    """An image in an empty file, without what is zeros.

    Args:
        kind: raw, where zeros are holes, or qcow2.
    """

    def __init__(self, file: FileDevice, kind: Format) -> None:
        self._layout = _layout(file, kind)
        self._ahead = FlushAhead(file, FLUSH_COPY_BYTES)

    def write(self, offset: int, data: bytes) -> None:
        """Put data at a place on the disk: a multiple of 64 KiB, after all that was written before."""
        for at, length in not_zeros(data):
            self._layout.write(offset + at, data if length == len(data) else data[at : at + length])
        self._ahead.wrote(len(data))

    def finish(self, disk_bytes: int) -> None:
        """Make it the image of a disk of so many bytes."""
        self._layout.finish(disk_bytes)


def _layout(file: FileDevice, kind: Format) -> _Layout:
    if kind == "raw":
        return _Raw(file)
    from cowfs.disk_images.qcow2_writing import Qcow2Writer

    return Qcow2Writer(file)


class _Raw:
    def __init__(self, file: FileDevice) -> None:
        self._file = file

    def write(self, offset: int, data: Buffer) -> None:
        self._file.pwrite(offset, data)

    def finish(self, disk_bytes: int) -> None:
        os.ftruncate(self._file.fd, disk_bytes)
