"""Nodes exactly as an archive gives them, and where the data of a file is."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

import pytest

from cowfs.blockdev import BlockDevice
from cowfs.ext4.files import acl
from cowfs.ext4.tools import commands as tools
from cowfs.ext4.volume import Volume
from cowfs.faults.disk import FaultyDevice
from cowfs.filetree import ROOT_INODE
from tests.ext4.conftest import MIB, Image, make_file, names
from tests.ext4.test_xattrs import NAMED, fails

TIME_NS = 1_234_567_890_123_456_789


def ranges(volume: Volume, inode: int) -> list[tuple[int, int]]:
    found, offset = [], 0
    while (data := volume.find_data(inode, offset)) is not None:
        found.append(data)
        offset = data[1]
    return found


def test_every_kind_is_restored_as_given(any_image: Image) -> None:
    volume = any_image.volume
    seconds_only = volume.lookup(ROOT_INODE, b".").crtime_ns == 0  # inodes of 128 bytes
    kinds: dict[bytes, tuple[int, dict[str, Any]]] = {
        b"file": (stat.S_IFREG | 0o4640, {"content": b"content" * 1000}),
        b"empty": (stat.S_IFREG | 0o444, {}),
        b"dir": (stat.S_IFDIR | 0o1777, {}),
        b"link": (stat.S_IFLNK | 0o777, {"target": b"../elsewhere"}),
        b"long": (stat.S_IFLNK | 0o777, {"target": b"x" * 900}),
        b"fifo": (stat.S_IFIFO | 0o600, {}),
        b"char": (stat.S_IFCHR | 0o666, {"rdev": os.makedev(5, 1)}),
        b"block": (stat.S_IFBLK | 0o660, {"rdev": os.makedev(259, 70000)}),
    }
    for name, (mode, rest) in kinds.items():
        inode = volume.restore(ROOT_INODE, name, mode, 70000, 5, mtime_ns=TIME_NS, **rest)
        assert volume.lookup(ROOT_INODE, name).inode == inode
    volume = any_image.reopen()
    for name, (mode, rest) in kinds.items():
        found = volume.lookup(ROOT_INODE, name)
        assert (found.mode, found.uid, found.gid, found.rdev) == (mode, 70000, 5, rest.get("rdev", 0))
        assert found.mtime_ns == found.atime_ns == (TIME_NS // 10**9 * 10**9 if seconds_only else TIME_NS)
        assert found.ctime_ns > TIME_NS
        assert found.nlink == (2 if name == b"dir" else 1)
    assert volume.read(volume.lookup(ROOT_INODE, b"file").inode, 0, 10_000) == b"content" * 1000
    assert volume.read_symlink(volume.lookup(ROOT_INODE, b"long").inode) == b"x" * 900


def test_nothing_is_inherited(volume: Volume) -> None:
    top = volume.make_directory(ROOT_INODE, b"top", 0o2755, 1, 42).inode
    volume.set_xattr(top, acl.DEFAULT, NAMED)
    for name, kind in ((b"dir", stat.S_IFDIR), (b"file", stat.S_IFREG)):
        inode = volume.restore(top, name, kind | 0o751, 7, 8)
        found = volume.attributes(inode)
        assert (found.mode, found.uid, found.gid) == (kind | 0o751, 7, 8)
        assert volume.list_xattrs(inode) == []


def test_what_cannot_be_restored_leaves_nothing(make_image: Callable[..., Image]) -> None:
    volume = make_image(16 * MIB).volume
    make_file(volume, b"there")
    volume.sync()
    before = volume.statistics()
    regular, link = stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777
    fails(errno.EEXIST, volume.restore, ROOT_INODE, b"there", regular, 0, 0)
    fails(errno.EINVAL, volume.restore, ROOT_INODE, b"new", link, 0, 0)
    fails(errno.EINVAL, volume.restore, ROOT_INODE, b"new", 0o644, 0, 0)
    fails(errno.ENOTDIR, volume.restore, volume.lookup(ROOT_INODE, b"there").inode, b"new", regular, 0, 0)
    for mode in (link, stat.S_IFDIR | 0o755, stat.S_IFIFO):
        with pytest.raises(OSError, match="Invalid"):
            volume.restore(ROOT_INODE, b"new", mode, 0, 0, target=b"t", content=b"not a file's")
    with pytest.raises(OSError, match="No space") as caught:
        volume.restore(ROOT_INODE, b"new", regular, 0, 0, content=bytes(20 * MIB))
    assert caught.value.errno == errno.ENOSPC
    volume.sync()
    assert volume.statistics() == before
    assert names(volume) == {b"there"}


def test_the_last_block_of_a_restored_file_shows_nothing_of_the_past(image: Image) -> None:
    """On a device that keeps what was discarded."""

    def keeping(device: BlockDevice) -> BlockDevice:
        faulty = FaultyDevice(device)
        faulty.fail("discard", errno="EOPNOTSUPP")
        return faulty

    volume = image.open(wrap=keeping)
    make_file(volume, b"old", b"\xff" * 40 * MIB)
    volume.quiesce()
    used = set(image.debugfs("blocks old").split())
    volume.unlink(ROOT_INODE, b"old")
    volume.sync()
    for number in range(2000):
        volume.restore(ROOT_INODE, b"%d" % number, stat.S_IFREG | 0o644, 0, 0, content=b"new" * 1500)
    image.close()
    blocks = image.debugfs("blocks 1999").split()
    assert len(blocks) == 2
    assert set(blocks) <= used
    with image.path.open("rb") as file:
        file.seek(int(blocks[1]) * 4096)
        assert file.read(4096) == (b"new" * 1500)[4096:].ljust(4096, b"\0")


def test_data_is_found_between_holes(any_image: Image) -> None:
    volume = any_image.volume
    block = volume.statistics().block_bytes
    inode = make_file(volume, b"f")
    assert ranges(volume, inode) == []
    volume.write(inode, 3 * block + 5, b"x")
    volume.write(inode, 7 * block, b"y" * (block + 1))
    volume.set_attributes(inode, size_bytes=20 * block + 17)
    expected = [(3 * block, 4 * block), (7 * block, 9 * block)]
    assert ranges(volume, inode) == expected
    assert volume.find_data(inode, 7 * block + 9) == (7 * block + 9, 9 * block)
    volume.write(inode, 20 * block, b"z")
    expected.append((20 * block, 20 * block + 17))
    assert ranges(any_image.reopen(), inode) == expected
    assert any_image.volume.find_data(inode, 20 * block + 17) is None


def test_pieces_that_lie_apart_are_one_range(volume: Volume) -> None:
    one, other = make_file(volume, b"one"), make_file(volume, b"other")
    for number in range(40):
        volume.write(one, number * 4096, b"1" * 4096)
        volume.write(other, number * 8192, b"2" * 4096)
    assert ranges(volume, one) == [(0, 40 * 4096)]
    assert ranges(volume, other) == [(number * 8192, number * 8192 + 4096) for number in range(40)]


def test_reserved_blocks_are_no_data(image: Image) -> None:
    inode = make_file(image.volume, b"f", b"x" * 4096 * 20)
    image.close()
    for request in ("punch f 4 15", "fallocate f 2 9"):
        status, output = tools.run("debugfs", ["-w", "-R", request, str(image.path)])
        assert status == 0, output
    volume = image.open()
    assert ranges(volume, inode) == [(0, 4 * 4096), (16 * 4096, 20 * 4096)]
    fails(errno.EISDIR, volume.find_data, ROOT_INODE, 0)
