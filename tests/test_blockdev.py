"""Flushes: what is begun before they are asked for, and when they have nothing to do; writes that are gathered."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowfs.blockdev import (
    FLUSH_AHEAD_BYTES,
    Buffer,
    FileDevice,
    FlushAhead,
    GatheringDevice,
    MemoryDevice,
    writer_through,
)
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


class Watched(Disk):
    """Notes writes, and fails those that are asked to."""

    def __init__(self, size_bytes: int = 8 * MIB) -> None:
        super().__init__(size_bytes)
        self.writes: list[tuple[int, int]] = []
        self.is_full = False

    def pwrite(self, offset: int, data: Buffer) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.writes.append((offset, len(data)))
        super().pwrite(offset, data)


def test_writes_that_continue_each_other_are_one() -> None:
    disk = Watched()
    gathering = GatheringDevice(disk)
    for number in range(300):
        gathering.pwrite(4096 * number, bytes([number % 251]) * 4096)
    assert disk.writes == [(0, MIB)]
    gathering.flush()
    assert disk.writes == [(0, MIB), (MIB, 44 * 4096)]
    assert disk.pread(0, 300 * 4096) == b"".join(bytes([number % 251]) * 4096 for number in range(300))
    gathering.pwrite(5 * MIB, bytes(2 * MIB))
    assert disk.writes[2:] == [(5 * MIB, 2 * MIB)]
    gathering.start_flush()
    assert disk.begun == 1


def test_a_gathered_write_that_fails_is_not_forgotten() -> None:
    disk = Watched()
    gathering = GatheringDevice(disk)
    gathering.pwrite(0, b"first")
    disk.is_full = True
    for ask in (lambda: gathering.pwrite(100, b"second"), gathering.flush, lambda: gathering.pread(2, 1)):
        with pytest.raises(OSError, match="No space left"):
            ask()
    disk.is_full = False
    gathering.flush()
    assert disk.writes == [(0, 5)]
    assert disk.pread(0, 5) == b"first"


def test_gathered_writes_are_seen_by_whatever_follows(rng: random.Random) -> None:
    disk, model = Watched(1 << 16), MemoryDevice(1 << 16)
    gathering = GatheringDevice(disk)
    end = 0
    for number in range(2000):
        begin = end if rng.random() < 0.6 else rng.randrange(1 << 16)
        length = min(rng.randrange(1, 3000), (1 << 16) - begin)
        if length <= 0:
            end = 0
            continue
        what = rng.choice(["pwrite"] * 6 + ["pread", "zero", "discard", "copy"])
        if what == "pwrite":
            for device in (gathering, model):
                device.pwrite(begin, bytes([number % 256]) * length)
            end = begin + length
        elif what == "copy":
            half = length // 2
            for device in (gathering, model):
                device.copy(begin, begin + half, half)
        elif what == "pread":
            assert gathering.pread(begin, length) == model.pread(begin, length)
        else:
            for device in (gathering, model):
                getattr(device, what)(begin, length)
    gathering.close()
    assert disk.pread(0, 1 << 16) == model.pread(0, 1 << 16)


class Calls:
    """What a file is asked of the system; `failure` is raised by the next write that is to be durable."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.failure: OSError | None = None
        self.most_bytes = MIB
        pwrite, pwritev, fdatasync = os.pwrite, os.pwritev, os.fdatasync

        def write(fd: int, data: Buffer, offset: int) -> int:
            self.made.append("write")
            return pwrite(fd, data, offset)

        def write_durably(fd: int, buffers: list[Buffer], offset: int, flags: int) -> int:
            assert flags == os.RWF_DSYNC
            self.made.append("durable write")
            if self.failure is not None:
                raise self.failure
            return pwritev(fd, [buffers[0][: self.most_bytes]], offset, flags)

        def sync(fd: int) -> None:
            self.made.append("sync")
            fdatasync(fd)

        for name, call in (("pwrite", write), ("pwritev", write_durably), ("fdatasync", sync)):
            monkeypatch.setattr(os, name, call)

    def during(self, action: Callable[[], object]) -> list[str]:
        self.made.clear()
        action()
        return list(self.made)


@pytest.fixture
def flushed(tmp_path: Path) -> Iterator[FileDevice]:
    """A file, everything in which is on the disk."""
    (tmp_path / "image").write_bytes(bytes(MIB))
    device = FileDevice(tmp_path / "image")
    device.flush()
    yield device
    device.close()


def test_a_write_with_a_flush_is_one_call_only_where_nothing_else_waits(
    flushed: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    assert calls.during(lambda: flushed.pwrite_and_flush(4096, b"a" * 4096)) == ["durable write"]
    assert calls.during(flushed.flush) == []
    flushed.pwrite(0, b"b" * 4096)
    assert calls.during(lambda: flushed.pwrite_and_flush(8192, b"c" * 4096)) == ["write", "sync"]
    assert calls.during(lambda: flushed.pwrite_and_flush(8192, b"d" * 4096)) == ["durable write"]
    assert flushed.pread(0, 12288) == b"b" * 4096 + b"a" * 4096 + b"d" * 4096


def test_a_durable_write_that_ends_early_or_fails_leaves_something_to_flush(
    flushed: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    calls.most_bytes = 512
    assert calls.during(lambda: flushed.pwrite_and_flush(0, b"a" * 4096)) == ["durable write", "write", "sync"]
    assert flushed.pread(0, 4096) == b"a" * 4096
    calls.failure = OSError(errno.EIO, "no")
    with pytest.raises(OSError, match="no"):
        flushed.pwrite_and_flush(0, b"b" * 4096)
    assert calls.during(flushed.flush) == ["sync"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_the_system_has_no_durable_write_it_is_a_write_and_a_flush(
    flushed: FileDevice, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    calls = Calls(monkeypatch)
    calls.failure = OSError(number, os.strerror(number))
    assert calls.during(lambda: flushed.pwrite_and_flush(0, b"a")) == ["durable write", "write", "sync"]
    assert calls.during(lambda: flushed.pwrite_and_flush(0, b"b")) == ["write", "sync"]
    assert flushed.pread(0, 1) == b"b"


def test_a_device_that_cannot_write_durably_is_written_and_flushed() -> None:
    disk = Watched()
    flushes: list[int] = []
    disk.flush = lambda: flushes.append(len(disk.writes))  # type: ignore[method-assign]
    writer_through(disk)(4096, b"a")
    assert (disk.writes, flushes) == ([(4096, 1)], [1])
