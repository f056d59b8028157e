"""The raw view's handlers, without a mount."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio
from pyfuse3 import FileHandleT

from cowfs.blockdev import FileDevice, MemoryDevice
from cowfs.fuse.raw import START_FLUSH_BYTES, RawView

MIB = 1 << 20
HANDLE = FileHandleT(5)


class Disk(MemoryDevice):
    """Notes what was asked of it."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.asked: list[str] = []

    def start_flush(self) -> None:
        self.asked.append("start_flush")

    def flush(self) -> None:
        self.asked.append("flush")


def write(view: RawView, *lengths: int) -> None:
    async def main() -> None:
        for length in lengths:
            assert await view.write(HANDLE, 0, bytes(length)) == length

    trio.run(main)


def test_the_disk_begins_before_a_flush_has_much_to_wait_for() -> None:
    disk = Disk(MIB)
    view = RawView(disk, "disk")
    writes = START_FLUSH_BYTES // MIB
    write(view, *[MIB] * (writes - 1))
    assert disk.asked == []
    write(view, MIB - 4096)
    assert disk.asked == []
    write(view, 4096)
    assert disk.asked == ["start_flush"]
    write(view, *[MIB] * 2 * writes)
    assert disk.asked == ["start_flush"] * 3


def test_what_was_flushed_is_not_begun_again() -> None:
    disk = Disk(MIB)
    view = RawView(disk, "disk")
    write(view, *[MIB] * (START_FLUSH_BYTES // MIB - 1))
    trio.run(view.fsync, HANDLE, True)
    write(view, MIB)
    assert disk.asked == ["flush"]


def test_a_beginning_that_fails_fails_no_write() -> None:
    """The data was taken; whether it can be kept is what a flush tells."""

    class Broken(Disk):
        def start_flush(self) -> None:
            raise OSError(errno.EIO, "no")

    write(RawView(Broken(MIB), "disk"), *[MIB] * (START_FLUSH_BYTES // MIB))


def test_a_disk_that_cannot_begin_early() -> None:
    write(RawView(MemoryDevice(MIB), "disk"), *[MIB] * (START_FLUSH_BYTES // MIB))


def test_files_can(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(MIB))
    device = FileDevice(path)
    device.pwrite(0, os.urandom(MIB))
    device.start_flush()
    device.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        device.start_flush()
