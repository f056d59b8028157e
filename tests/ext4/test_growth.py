"""Growing: whatever the features, the volume is clean, larger, and holds what it held; and the data is not read."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from cowfs.blockdev import FileDevice
from cowfs.errors import FilesystemError
from cowfs.ext4.format import layout
from cowfs.ext4.tools import growth
from cowfs.ext4.tools.growth import grow_filesystem
from tests.ext4.conftest import FEATURE_SETS, MIB, Image, make_file, names

FEATURES = FEATURE_SETS | {
    "no-resize-inode": ["-O", "^resize_inode"],
    "uninit-without-flex": ["-O", "^flex_bg,^metadata_csum,^uninit_bg"],
    "small-flex": ["-G", "4"],
    "sparse-super2": ["-O", "sparse_super2,^resize_inode"],
    "bigalloc": ["-O", "bigalloc"],
    "quota": ["-O", "quota"],
}
PIECE = b"x" * MIB  # again and again: memory that is new costs more than what is written from it
CONTENTS = {b"file-%d" % number: bytes([number]) * (number * 9973) for number in range(1, 40)}


class Counting(FileDevice):
    """Counts the bytes that are read."""

    read_bytes = 0

    def pread(self, offset: int, length: int) -> bytes:
        self.read_bytes += length
        return super().pread(offset, length)


def spoil_free_space(image: Image) -> None:
    """Fill what is free with what a file system may have left there."""
    with image.path.open("r+b") as file:
        for run in image.volume._allocator.free_runs():
            file.seek(run.physical * image.volume._fs.block_bytes)
            file.write(b"\xa5" * (run.length * image.volume._fs.block_bytes))


def grow(image: Image, size_bytes: int, *, spoiled: bool = False) -> Counting:
    old_bytes = image.path.stat().st_size
    os.truncate(image.path, size_bytes)
    if spoiled:
        with image.path.open("r+b") as file:
            file.seek(old_bytes)
            file.write(b"\x5a" * (16 * MIB))
    device = Counting(image.path)
    try:
        grow_filesystem(device)
    finally:
        device.close()
    return device


def size_of(image: Image) -> int:
    device = FileDevice(image.path, read_only=True)
    try:
        return layout.read_superblock(device).size_bytes
    finally:
        device.close()


@pytest.mark.parametrize(("features", "spoiled"), [("default", False), *((name, True) for name in FEATURES)])
def test_whatever_the_features(make_image: Callable[..., Image], features: str, spoiled: bool) -> None:
    image = make_image(options=FEATURES[features])
    is_ours = features not in ("bigalloc", "quota")
    if is_ours:
        for name, content in CONTENTS.items():
            make_file(image.volume, name, content)
        if spoiled:
            image.volume.sync()
            spoil_free_space(image)
        image.close()
    for size_bytes in (100 * MIB, 300 * MIB):
        grow(image, size_bytes, spoiled=spoiled)
        image.require_clean()
        assert 0 <= size_bytes - size_of(image) < MIB
    if is_ours:
        assert names(image.volume) == set(CONTENTS)
        for name, content in CONTENTS.items():
            inode = image.volume.lookup(2, name).inode
            assert image.volume.read(inode, 0, len(content) + 1) == content
        more = make_file(image.volume, b"more")
        for offset in range(0, 200 * MIB, MIB):
            assert image.volume.write(more, offset, PIECE) == MIB


def test_the_data_is_not_read(image: Image) -> None:
    make_file(image.volume, b"file", b"x" * (48 * MIB))
    image.close()
    assert grow(image, 1 << 30).read_bytes < 8 * MIB
    assert size_of(image) == 1 << 30


def test_where_data_must_move_all_of_it_is_copied(image: Image) -> None:
    """More descriptors than there is room for."""
    make_file(image.volume, b"file", b"x" * (8 * MIB))
    device = FileDevice(image.path)
    assert growth._metadata(device, 1 << 30) is not None
    assert growth._metadata(device, 1 << 40) is None
    device.close()


def test_a_volume_that_was_not_unmounted_is_checked_first(image: Image) -> None:
    make_file(image.volume, b"file", b"kept")
    image.volume.sync()  # marked as in use
    image.volume_or_none = None
    grow(image, 100 * MIB)
    assert size_of(image) == 100 * MIB
    assert image.volume.lookup(2, b"file").size_bytes == 4


def test_what_fills_its_device_is_left_alone(image: Image) -> None:
    before = image.path.read_bytes()
    device = FileDevice(image.path)
    assert grow_filesystem(device) is False
    device.close()
    assert image.path.read_bytes() == before


def test_what_cannot_be_grown(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(image.path, 100 * MIB)
    device: Any = FileDevice(image.path)
    monkeypatch.setattr(
        "cowfs.ext4.tools.commands.run", lambda command, _arguments: (1, f"{command} 1.0\nit is too late\n")
    )
    with pytest.raises(FilesystemError, match="resize2fs cannot make it 104857600 bytes large: it is too late"):
        grow_filesystem(device)
    monkeypatch.undo()
    device.pwrite(1024, bytes(1024))
    with pytest.raises(FilesystemError, match="no ext4"):
        grow_filesystem(device)
    device.close()
    os.truncate(image.path, 64 * MIB)
    image.path.write_bytes(b"")  # nothing to judge
    image.__init__(image.path, 64 * MIB)  # type: ignore[misc]
