"""On a thin device: space is taken and freed with the files, and a snapshot of a quiesced volume is a clean volume."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cowfs.blockdev import Buffer, FileDevice
from cowfs.ext4.journal.journal_file import JournalFile
from cowfs.ext4.library.filesystem import Filesystem
from cowfs.ext4.tools import commands as tools
from cowfs.ext4.tools import fsck
from cowfs.ext4.tools.mkfs import make_filesystem
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE
from cowfs.pool import Pool, ThinDevice
from cowfs.pool.table import PoolTable
from cowfs.units import SECTOR_BYTES, Sectors
from cowfs_emulated import BACKEND
from tests.ext4.conftest import MIB, Image, make_file, names

THIN_SECTORS = (10 << 30) // SECTOR_BYTES


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    sizes = {"data": 512 * MIB, "metadata": 8 * MIB}
    for name, size_bytes in sizes.items():
        with (tmp_path / name).open("wb") as file:
            file.truncate(size_bytes)
    table = PoolTable(
        length_sectors=Sectors(sizes["data"] // SECTOR_BYTES),
        metadata_device=str(tmp_path / "metadata"),
        data_device=str(tmp_path / "data"),
        block_sectors=Sectors(128),
    )
    opened = BACKEND.open_pool("pool", table)
    yield opened
    opened.close()


@pytest.fixture
def thin(pool: Pool) -> ThinDevice:
    pool.create_thin(1)
    device = pool.activate("base", 1, THIN_SECTORS)
    make_filesystem(device)
    return device


def mapped_bytes(thin: ThinDevice) -> int:
    return sum(extent.length for extent in thin.extents()) * thin.block_bytes


def test_an_empty_volume_is_small(thin: ThinDevice) -> None:
    assert mapped_bytes(thin) < 8 * MIB
    assert fsck.check_volume(thin).clean


def test_removed_files_give_their_space_back(thin: ThinDevice) -> None:
    before = mapped_bytes(thin)
    volume = Volume.open(thin)
    make_file(volume, b"f", os.urandom(32 * MIB))
    volume.sync()
    assert mapped_bytes(thin) >= before + 32 * MIB
    volume.unlink(ROOT_INODE, b"f")
    volume.close()
    assert mapped_bytes(thin) <= before + MIB
    assert fsck.check_volume(thin).clean


def test_a_snapshot_of_a_quiesced_volume(pool: Pool, thin: ThinDevice) -> None:
    volume = Volume.open(thin)
    inode = make_file(volume, b"f", b"then" * 10_000)
    volume.quiesce()
    pool.create_snap(2, 1)
    volume.write(inode, 0, b"now!" * 10_000)
    make_file(volume, b"g")
    volume.sync()
    snapshot = pool.activate("snapshot", 2, THIN_SECTORS)
    assert not fsck.needs_check(snapshot)
    assert fsck.check_volume(snapshot).clean
    copy = Volume.open(snapshot)
    assert names(copy) == {b"f"}
    assert copy.read(inode, 0, 99_999) == b"then" * 10_000
    copy.close()
    volume.close()
    assert fsck.check_volume(thin).clean


def test_a_snapshot_of_a_busy_volume_needs_a_replay(pool: Pool, thin: ThinDevice) -> None:
    volume = Volume.open(thin)
    make_file(volume, b"f", b"x" * 5000)
    volume.sync()
    pool.create_snap(2, 1)
    with closing(pool.activate("snapshot", 2, THIN_SECTORS)) as snapshot:
        assert fsck.needs_check(snapshot)
        assert fsck.prepare_for_mount(snapshot) is None
        with closing(Volume.open(snapshot)) as copy:
            assert names(copy) == {b"f"}
        assert fsck.check_volume(snapshot).clean
    volume.close()


def test_a_snapshot_of_a_busy_volume_without_a_journal_needs_a_check(pool: Pool, thin: ThinDevice) -> None:
    volume = Volume.open(thin, journaled=False)
    make_file(volume, b"f", b"x" * 5000)
    volume.sync()
    pool.create_snap(2, 1)
    snapshot = pool.activate("snapshot", 2, THIN_SECTORS)
    assert fsck.needs_check(snapshot)
    result = fsck.prepare_for_mount(snapshot)
    assert result is not None
    assert result.usable
    assert result.written_bytes <= 16_384
    copy = Volume.open(snapshot)
    assert names(copy) == {b"f"}
    copy.close()
    volume.close()


def test_a_volume_without_a_journal_is_written_as_it_is_filled(
    thin: ThinDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when it is closed, which would take as long as it has files, in one piece."""
    written: list[int] = []
    write_inode = Filesystem.write_inode

    def noted(fs: Filesystem, number: int, raw: Any) -> None:
        written.append(number)
        write_inode(fs, number, raw)

    monkeypatch.setattr(Filesystem, "write_inode", noted)
    volume = Volume.open(thin, journaled=False)
    for number in range(1000):
        volume.restore(ROOT_INODE, b"%d" % number, 0o100644, 0, 0, content=b"x" * number)
    before = len(written)
    volume.close()
    assert before >= 800
    assert len(written) - before <= 200
    assert before <= 1100, "a directory is not written for each file in it"
    assert fsck.check_volume(thin).clean
    with closing(Volume.open(thin)) as volume:
        assert names(volume) == {b"%d" % number for number in range(1000)}
        assert volume.read(volume.lookup(ROOT_INODE, b"999").inode, 0, 2000) == b"x" * 999


def test_only_what_is_mapped_is_copied(thin: ThinDevice, tmp_path: Path) -> None:
    with tools.temporary_image(thin.size_bytes) as image:
        tools.copy_mapped(thin, image)
        assert os.stat(image.path).st_blocks * SECTOR_BYTES <= mapped_bytes(thin)
        assert tools.copy_changes(image, thin) == 0


def test_the_pool_seldom_commits_for_a_longer_journal(
    pool: Pool, thin: ThinDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is given space ahead, ever more of it, and gives it back."""
    volume = Volume.open(thin)
    inode = make_file(volume, b"f", bytes(MIB))
    volume.quiesce()
    before = mapped_bytes(thin)
    flushed: list[str] = []
    flush = FileDevice.flush

    def note(device: FileDevice) -> None:
        flushed.append(device.path)
        flush(device)

    monkeypatch.setattr(FileDevice, "flush", note)
    for number in range(300):
        volume.write(inode, number * 4096 % MIB, b"x" * 4096)
        volume.sync()
    of_the_pool = sum(path.endswith("metadata") for path in flushed)
    assert len(flushed) >= 300
    assert 1 <= of_the_pool <= 30, "each is two flushes; one block of the pool is five transactions long"
    assert mapped_bytes(thin) > before + 3 * MIB
    volume.quiesce()
    assert mapped_bytes(thin) <= before + pool.table().block_sectors * SECTOR_BYTES
    volume.close()
    assert fsck.check_volume(thin).clean


def test_what_is_written_ahead_of_the_journal_may_fail(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = image.open()
    inode = make_file(volume, b"f", bytes(MIB))
    volume.quiesce()
    write = JournalFile.write

    def refuse_zeros(file: JournalFile, block: int, data: Buffer) -> None:
        if not any(bytes(data)):
            raise OSError(errno.ENOSPC, "full")
        write(file, block, data)

    monkeypatch.setattr(JournalFile, "write", refuse_zeros)
    for number in range(100):
        volume.write(inode, number * 4096, bytes([number + 1]) * 4096)
        volume.sync()
    shutil.copyfile(image.path, tmp_path / "after a crash")
    with closing(FileDevice(tmp_path / "after a crash")) as device, closing(Volume.open(device)) as copy:
        assert copy.read(inode, 0, MIB)[: 100 * 4096 : 4096] == bytes(range(1, 101))
