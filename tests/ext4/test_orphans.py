"""Inodes without a name: alive while they are open, freed at the last release, at unmount, or at the next mount."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from cowfs.errors import FilesystemError
from cowfs.ext4.tools import commands as tools
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE
from tests.ext4.conftest import FEATURE_SETS, Image, make_file


def test_freed_at_the_last_release(image: Image) -> None:
    volume = image.volume
    before = volume.statistics()
    inode = make_file(volume, b"f", b"x" * 100_000)
    volume.open_inode(inode)
    volume.open_inode(inode)
    volume.unlink(ROOT_INODE, b"f")
    assert volume.read(inode, 0, 5) == b"xxxxx"
    volume.write(inode, 100_000, b"more")
    assert volume.attributes(inode).nlink == 0
    with pytest.raises(OSError) as caught:
        volume.link(inode, ROOT_INODE, b"back")
    assert caught.value.errno == errno.ENOENT
    volume.release_inode(inode)
    assert volume.attributes(inode).size_bytes == 100_004
    volume.release_inode(inode)
    with pytest.raises(OSError):
        volume.attributes(inode)
    assert volume.statistics() == before


def test_released_in_any_order(image: Image) -> None:
    volume = image.volume
    inodes = [make_file(volume, b"f%d" % number, b"x" * 5000) for number in range(6)]
    directory = volume.make_directory(ROOT_INODE, b"d", 0o755, 0, 0).inode
    for number, inode in enumerate(inodes):
        volume.open_inode(inode)
        volume.unlink(ROOT_INODE, b"f%d" % number)
    volume.open_inode(directory)
    volume.remove_directory(ROOT_INODE, b"d")
    assert volume._fs.super.s_last_orphan == directory
    for which in (2, 0, 5, 3, 1, 4):
        volume.sync()
        volume.release_inode(inodes[which])
    volume.release_inode(directory)
    assert volume._fs.super.s_last_orphan == 0


def test_freed_at_unmount(image: Image) -> None:
    volume = image.volume
    before = volume.statistics()
    for number in range(3):
        inode = make_file(volume, b"f%d" % number, b"x" * 5000)
        volume.open_inode(inode)
        volume.unlink(ROOT_INODE, b"f%d" % number)
    assert image.reopen().statistics() == before


@pytest.mark.parametrize("features", ["default", "no-checksums", "orphan-file"])
def test_left_by_a_snapshot_and_freed_at_its_mount(make_image: Callable[..., Image], features: str) -> None:
    """A snapshot of a quiesced volume has the orphans on its list, and is clean otherwise."""
    image = make_image(options=FEATURE_SETS[features])
    volume = image.volume
    before = volume.statistics()
    inodes = [make_file(volume, b"f%d" % number, b"x" * 5000) for number in range(3)]
    for number, inode in enumerate(inodes):
        volume.open_inode(inode)
        volume.unlink(ROOT_INODE, b"f%d" % number)
    volume.quiesce()
    snapshot = make_image(options=FEATURE_SETS[features])
    snapshot.path.write_bytes(image.path.read_bytes())
    copied = snapshot.open()
    assert copied.statistics() == before
    for inode in inodes:
        with pytest.raises(OSError):
            copied.attributes(inode)
    snapshot.close()
    snapshot.require_clean()
    assert volume.read(inodes[0], 0, 3) == b"xxx"


def test_e2fsck_frees_them_too(make_image: Callable[..., Image]) -> None:
    image = make_image()
    volume = image.volume
    inode = make_file(volume, b"f", b"x" * 5000)
    volume.open_inode(inode)
    volume.unlink(ROOT_INODE, b"f")
    volume.sync()
    snapshot = make_image()
    snapshot.path.write_bytes(image.path.read_bytes())
    status, output = tools.run("e2fsck", ["-p", str(snapshot.path)])
    assert status == 0
    assert "recovering journal" in output
    assert "Clearing orphaned inode" in output


def test_a_truncation_that_was_cut_short_is_finished(image: Image) -> None:
    """The kernel lists a file that still has links while it cuts it: the rest beyond its size must go."""
    inode = make_file(image.volume, b"f", b"x" * 40_960)
    image.close()
    for request in (f"set_super_value last_orphan {inode}", "set_inode_field f size 5000"):
        assert tools.run("debugfs", ["-w", "-R", request, str(image.path)])[0] == 0
    volume = image.open()
    assert volume.attributes(inode).blocks == 2 * 8
    volume.set_attributes(inode, size_bytes=8192)
    assert volume.read(inode, 0, 9000) == b"x" * 5000 + bytes(3192)


@pytest.mark.parametrize("target", ["9", "4000000", "13"])
def test_a_list_that_leads_astray_is_refused(make_image: Callable[..., Image], target: str) -> None:
    image = make_image()
    make_file(image.volume, b"f")
    assert make_file(image.volume, b"g") == 13
    image.close()
    good = image.path.read_bytes()
    requests = [f"set_super_value last_orphan {target}", "set_inode_field g dtime 13"]
    for request in requests:
        assert tools.run("debugfs", ["-w", "-R", request, str(image.path)])[0] == 0
    with pytest.raises(FilesystemError) as caught:
        image.open()
    assert caught.value.errno == errno.EUCLEAN
    assert "orphan list" in str(caught.value)
    image.close()
    image.path.write_bytes(good)


def test_pins_do_not_outlive_the_cache(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open inodes may leave the cache; those without a name may not."""
    monkeypatch.setattr("cowfs.ext4.files.inodes._CACHED_INODES_MAX", 20)
    volume: Volume = image.volume
    inodes = [make_file(volume, b"f%d" % number, b"%d" % number) for number in range(200)]
    for inode in inodes:
        volume.open_inode(inode)
    for number in range(0, 200, 2):
        volume.unlink(ROOT_INODE, b"f%d" % number)
    for number, inode in enumerate(inodes):
        assert volume.read(inode, 0, 9) == b"%d" % number
    assert len(volume._inodes._cache) < 200
    for inode in inodes:
        volume.release_inode(inode)
