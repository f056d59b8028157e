"""A limit of what files take, judged by e2fsck and read by debugfs."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from cowfs.errors import FilesystemError
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE
from tests.ext4.conftest import FEATURE_SETS, Image, make_file

MIB = 1 << 20
WITH_EXTENTS = sorted(name for name in FEATURE_SETS if "extents" not in name and name != "ext2")


def fill(volume: Volume, inode: int) -> int:
    """Write until there is no space; how much there was."""
    size_bytes = 0
    try:
        while True:
            size_bytes += volume.write(inode, size_bytes, b"x" * 65536)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    return size_bytes


@pytest.mark.parametrize("features", WITH_EXTENTS)
def test_files_take_no_more_than_a_limit(make_image: Callable[..., Image], features: str) -> None:
    """Also after it is opened again; and all of the volume once the limit is lifted."""
    image = make_image(size_bytes=300 * MIB, options=FEATURE_SETS[features])
    volume = image.open()
    kept = make_file(volume, b"kept", b"k" * MIB)
    all_of_it = volume.statistics()
    volume.limit_space(20 * MIB)
    found = volume.statistics()
    assert abs(found.blocks * found.block_bytes - 20 * MIB) <= 256 * 1024  # the tree of the blocks that are kept
    assert found.blocks - found.blocks_free == all_of_it.blocks - all_of_it.blocks_free
    image.close()
    image.require_clean()
    volume = image.open()
    assert volume.statistics() == found
    file = make_file(volume, b"file", b"")
    assert 18 * MIB <= fill(volume, file) <= 19 * MIB
    image.close()
    image.require_clean()
    volume = image.open()
    volume.lift_limit()
    volume.sync()
    assert volume.statistics().blocks == all_of_it.blocks
    assert volume.write(file, 100 * MIB, b"y" * MIB * 50) == 50 * MIB
    assert volume.read(kept, 0, 2 * MIB) == b"k" * MIB
    image.close()
    image.require_clean()


def test_a_limit_replaces_another_one(make_image: Callable[..., Image]) -> None:
    image = make_image(size_bytes=300 * MIB)
    volume = image.open()
    for limit in (20 * MIB, 40 * MIB, 10 * MIB):
        volume.limit_space(limit)
        assert abs(volume.statistics().blocks * 4096 - limit) <= 256 * 1024
    volume.limit_space(1 << 40)  # more than there is
    volume.sync()
    image.close()
    image.require_clean()
    assert "Blockcount: 0" in image.debugfs("stat <5>")


def test_a_limit_below_what_is_there_is_refused(make_image: Callable[..., Image]) -> None:
    image = make_image(size_bytes=100 * MIB)
    volume = image.open()
    make_file(volume, b"file", b"x" * 5 * MIB)
    with pytest.raises(OSError) as caught:
        volume.limit_space(4 * MIB)
    assert caught.value.errno == errno.ENOSPC
    assert make_file(volume, b"more", b"x" * 5 * MIB)


@pytest.mark.parametrize("features", ["no-extents", "ext2"])
def test_a_volume_without_extents_has_no_limit(make_image: Callable[..., Image], features: str) -> None:
    volume = make_image(size_bytes=100 * MIB, options=FEATURE_SETS[features]).open()
    with pytest.raises(FilesystemError) as caught:
        volume.limit_space(20 * MIB)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_no_file_reaches_what_is_kept(make_image: Callable[..., Image]) -> None:
    volume = make_image(size_bytes=100 * MIB).open()
    volume.limit_space(20 * MIB)
    assert {entry.name for entry in volume.list_directory(ROOT_INODE)} == {b".", b"..", b"lost+found"}
