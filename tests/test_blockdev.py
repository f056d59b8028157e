"""Flushes: what is begun before they are asked for, and when they have nothing to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cowfs.blockdev import FLUSH_AHEAD_BYTES, FileDevice, FlushAhead, MemoryDevice
from cowfs.ext4.tools.mkfs import make_filesystem
from cowfs.ext4.volume import Volume
from cowfs.fuse.raw_view import RawView
from tests.ext4.conftest import MIB, make_file

WRITES = FLUSH_AHEAD_BYTES // MIB


class Disk(MemoryDevice):
    """Counts the flushes that were begun."""

    def __init__(self, size_bytes: int = MIB) -> None:
        super().__init__(size_bytes)
        self.begun = 0

    def start_flush(self) -> None:
        self.begun += 1


def test_a_flush_is_begun_each_time_that_much_was_written() -> None:
    disk = Disk()
    ahead = FlushAhead(disk)
    ahead.wrote(FLUSH_AHEAD_BYTES - 1)
    assert disk.begun == 0
    ahead.wrote(1)
    assert disk.begun == 1
    for _ in range(2 * WRITES):
        ahead.wrote(MIB)
    assert disk.begun == 3
    FlushAhead(disk, MIB).wrote(MIB)
    assert disk.begun == 4


def test_a_beginning_that_fails_fails_no_write() -> None:
    class Broken(Disk):
        def start_flush(self) -> None:
            super().start_flush()
            raise OSError(errno.EIO, "no")

    disk = Broken()
    FlushAhead(disk).wrote(FLUSH_AHEAD_BYTES)
    assert disk.begun == 1


def test_a_device_that_cannot_begin() -> None:
    FlushAhead(MemoryDevice(MIB)).wrote(FLUSH_AHEAD_BYTES)


def test_files_can_begin(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(MIB))
    device = FileDevice(path)
    device.pwrite(0, os.urandom(MIB))
    device.start_flush()
    device.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        device.start_flush()


async def test_writing_to_a_raw_view_counts() -> None:
    disk = Disk()
    view = RawView(disk, "disk")
    for _ in range(WRITES):
        assert await view.write(5, 0, bytes(MIB)) == MIB
    assert disk.begun == 1


def test_writing_to_a_file_counts() -> None:
    disk = Disk(FLUSH_AHEAD_BYTES + 16 * MIB)
    make_filesystem(disk)
    volume = Volume.open(disk)
    inode = make_file(volume, b"f")
    assert disk.begun == 0
    for index in range(WRITES):
        volume.write(inode, index * MIB, bytes(MIB))
    assert disk.begun == 1
    volume.close()


CHANGES: dict[str, Callable[[FileDevice], object]] = {
    "pwrite": lambda device: device.pwrite(0, b"x"),
    "zero": lambda device: device.zero(0, MIB),
    "discard": lambda device: device.discard(0, MIB),
    "copy": lambda device: device.copy(0, MIB // 2, MIB // 2),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_is_synced_once_for_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[FileDevice], object]
) -> None:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(MIB))
    device = FileDevice(path)
    synced: list[int] = []
    failures = [OSError(errno.EIO, "no")]

    def sync(fd: int) -> None:
        if change_is_made and failures:
            raise failures.pop()
        synced.append(fd)

    change_is_made = False
    monkeypatch.setattr(os, "fdatasync", sync)
    device.flush()  # who had the file before may not have synced it
    device.flush()
    assert len(synced) == 1
    change_is_made = True
    change(device)
    with pytest.raises(OSError, match="no"):
        device.flush()
    device.flush()
    device.flush()
    assert len(synced) == 2
    device.close()
