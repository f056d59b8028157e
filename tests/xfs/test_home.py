"""Devices that hold xfs in a home: read as others are, refused where they would be changed."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowfs.blockdev import FileDevice
from cowfs.devices import opening
from cowfs.devices.deviceset import DeviceSet
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.ending import ending_with
from cowfs.errors import FilesystemError
from cowfs.filetree import ROOT_INODE
from cowfs.layers.changes import find_path_changes
from cowfs.layers.driver import LayerDriver
from cowfs.pool import load_backend
from cowfs.steps import finish
from cowfs.volumes import Volumes
from cowfs.xfs.format.superblock import read_superblock
from tests.xfs.images import IMAGE_BYTES, make_image

MIB = 1 << 20
OPTIONS = HomeOptions(data_size_bytes=512 * MIB, metadata_size_bytes=4 * MIB, base_size_bytes=16 * MIB, durable=False)


@pytest.fixture
def devices(tmp_path: Path, needs_mkfs_xfs: None) -> Iterator[DeviceSet]:
    (tmp_path / "content").write_bytes(b"content")
    image = make_image(tmp_path / "image", tree=f"file ---644 0 0 {tmp_path}/content\n")
    with opening.make_home(tmp_path / "home", load_backend("emulated"), OPTIONS) as devices:
        disk = FileDevice(image, read_only=True)
        with ending_with(disk.close), devices.imports.importing("old", IMAGE_BYTES) as thin:
            for begin, end in _data(disk):
                thin.pwrite(begin, disk.pread(begin, end - begin))
        devices.create("new", parent="old")
        yield devices


def _data(disk: FileDevice) -> Iterator[tuple[int, int]]:
    for begin in range(0, disk.size_bytes, MIB):
        if disk.pread(begin, MIB).strip(b"\0"):
            yield begin, begin + MIB


@pytest.fixture
def volumes(devices: DeviceSet) -> Iterator[Volumes]:
    volumes = Volumes(devices)
    yield volumes
    volumes.close_all()


def test_files_are_read_and_compared(devices: DeviceSet, volumes: Volumes) -> None:
    driver = LayerDriver(devices, volumes)
    with driver.reading("old") as root:
        file = root.tree.lookup(ROOT_INODE, b"file")
        assert root.tree.read(file.inode, 0, 100) == b"content"
    volumes.open("new")
    volumes.rebalance()
    with driver.comparing("new", "old") as pair:  # of what is open a snapshot is read
        assert finish(find_path_changes(pair.root, pair.other, pair.thins)) == []
    volumes.close("new")


def test_changes_are_refused_in_one_line(devices: DeviceSet, volumes: Volumes) -> None:
    driver = LayerDriver(devices, volumes)

    def change() -> None:
        with driver.changing("old"):
            pass

    def replace() -> None:
        with volumes.replacing("old"):
            pass

    asked: list[Callable[[], object]] = [change, replace, lambda: finish(volumes.trim("old"))]
    for ask in asked:
        with pytest.raises(FilesystemError, match=r"device 'old'.*holds xfs, whose files are only read") as caught:
            ask()
        assert caught.value.errno == errno.EROFS
    with pytest.raises(FilesystemError, match="xfs, which e2fsck cannot repair"):
        volumes.open("old", repair=True)
    assert not devices.active.thins()


def test_a_damaged_log_is_left_out_where_that_is_asked_for(devices: DeviceSet, volumes: Volumes) -> None:
    thin = devices.active.activate("old")
    sb = read_superblock(thin)
    begin = sb.offset_of(sb.log_start)
    assert begin is not None
    thin.pwrite(begin, b"no log" * 200)
    devices.active.deactivate("old")
    with pytest.raises(
        FilesystemError, match=r"log cannot be replayed: no record.*'mount --read-only' shows"
    ) as caught:
        volumes.open("old")
    assert caught.value.errno == errno.EUCLEAN
    rescuing = Volumes(devices, read_only=True)
    with rescuing.opened("old") as volume:
        assert "log cannot be replayed" in volume.problems[0]
        assert volume.read(volume.lookup(ROOT_INODE, b"file").inode, 0, 7) == b"content"
