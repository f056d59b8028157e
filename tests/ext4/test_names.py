"""Names and links: creating, removing and renaming, with the rules of a kernel file system."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

import pytest

from cowfs.ext4.volume import Volume
from cowfs.filetree import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, ROOT_INODE
from tests.ext4.conftest import Image, make_file, names


def fails(number: int, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    with pytest.raises(OSError) as caught:
        function(*arguments, **options)
    assert caught.value.errno == number, caught.value


def make_directory(volume: Volume, name: bytes, parent: int = ROOT_INODE) -> int:
    return volume.make_directory(parent, name, 0o755, 0, 0).inode


def links(volume: Volume, inode: int = ROOT_INODE) -> int:
    return volume.attributes(inode).nlink


def test_make_and_look_up_every_kind(image: Image) -> None:
    volume = image.volume
    kinds = {
        b"file": (stat.S_IFREG | 0o640, 0),
        b"fifo": (stat.S_IFIFO | 0o600, 0),
        b"socket": (stat.S_IFSOCK | 0o755, 0),
        b"char": (stat.S_IFCHR | 0o666, os.makedev(1, 3)),
        b"block": (stat.S_IFBLK | 0o660, os.makedev(259, 70000)),
    }
    for name, (mode, rdev) in kinds.items():
        made = volume.make_node(ROOT_INODE, name, mode, 1000, 70000, rdev)
        assert (made.mode, made.rdev, made.nlink, made.uid, made.gid) == (mode, rdev, 1, 1000, 70000)
    directory = volume.make_directory(ROOT_INODE, b"dir", 0o1777, 5, 6)
    assert (directory.mode, directory.nlink) == (stat.S_IFDIR | 0o1777, 2)
    volume = image.reopen()
    for name, (mode, rdev) in kinds.items():
        found = volume.lookup(ROOT_INODE, name)
        assert (found.mode, found.rdev) == (mode, rdev)
    listed = {entry.name: entry.mode for entry in volume.list_directory(ROOT_INODE)}
    assert listed[b"char"] == stat.S_IFCHR
    assert listed[b"dir"] == stat.S_IFDIR
    assert volume.lookup(directory.inode, b"..").inode == ROOT_INODE
    assert volume.lookup(directory.inode, b".").inode == directory.inode
    image.close()
    shown = image.debugfs("stat char")
    assert "Type: character special" in shown
    assert "Device major/minor number: 01:03" in shown
    assert "Device major/minor number: 259:70000" in image.debugfs("stat block")


def test_names_are_checked(volume: Volume) -> None:
    make_file(volume, b"x" * 255)
    assert volume.lookup(ROOT_INODE, b"x" * 255).nlink == 1
    fails(errno.ENAMETOOLONG, make_file, volume, b"x" * 256)
    fails(errno.ENAMETOOLONG, volume.lookup, ROOT_INODE, b"x" * 256)
    fails(errno.EINVAL, make_file, volume, b"a/b")
    fails(errno.EINVAL, make_file, volume, b"a\0b")
    fails(errno.EINVAL, make_file, volume, b"")
    fails(errno.EEXIST, make_file, volume, b".")
    fails(errno.ENOENT, volume.lookup, ROOT_INODE, b"absent")
    assert volume.find_name(ROOT_INODE, b"absent") is None
    fails(errno.ENOTDIR, volume.lookup, make_file(volume, b"f"), b"x")
    fails(errno.EEXIST, make_file, volume, b"f")
    fails(errno.ESTALE, volume.attributes, 5000)
    fails(errno.ESTALE, volume.attributes, 10**9)


def test_symbolic_links(image: Image) -> None:
    volume = image.volume
    targets = [b"a", b"b" * 59, b"c" * 60, b"d" * 4095, b"../x\xff y"]
    for number, target in enumerate(targets):
        made = volume.make_symlink(ROOT_INODE, b"l%d" % number, target, 1, 2)
        assert (made.mode, made.size_bytes) == (stat.S_IFLNK | 0o777, len(target))
    fails(errno.ENAMETOOLONG, volume.make_symlink, ROOT_INODE, b"long", b"x" * 4096, 0, 0)
    fails(errno.EINVAL, volume.read_symlink, ROOT_INODE)
    volume = image.reopen()
    for number, target in enumerate(targets):
        assert volume.read_symlink(volume.lookup(ROOT_INODE, b"l%d" % number).inode) == target
    image.close()
    assert 'Fast link dest: "a"' in image.debugfs("stat l0")
    assert "Fast link" not in image.debugfs("stat l2")
    image.open().unlink(ROOT_INODE, b"l3")


def test_hard_links(volume: Volume) -> None:
    inode = make_file(volume, b"one", b"content")
    directory = make_directory(volume, b"d")
    assert volume.link(inode, directory, b"two").nlink == 2
    fails(errno.EEXIST, volume.link, inode, directory, b"two")
    fails(errno.EPERM, volume.link, directory, ROOT_INODE, b"three")
    volume.unlink(ROOT_INODE, b"one")
    assert volume.lookup(directory, b"two").inode == inode
    assert volume.read(inode, 0, 100) == b"content"
    volume.unlink(directory, b"two")
    fails(errno.ESTALE, volume.attributes, inode)


def test_directory_links(volume: Volume) -> None:
    before = links(volume)
    top = make_directory(volume, b"top")
    inner = make_directory(volume, b"inner", top)
    assert (links(volume), links(volume, top), links(volume, inner)) == (before + 1, 3, 2)
    fails(errno.ENOTEMPTY, volume.remove_directory, ROOT_INODE, b"top")
    fails(errno.EISDIR, volume.unlink, ROOT_INODE, b"top")
    fails(errno.EINVAL, volume.remove_directory, top, b".")
    fails(errno.ENOTEMPTY, volume.remove_directory, inner, b"..")
    volume.remove_directory(top, b"inner")
    assert links(volume, top) == 2
    volume.remove_directory(ROOT_INODE, b"top")
    assert links(volume) == before
    make_file(volume, b"f")
    fails(errno.ENOTDIR, volume.remove_directory, ROOT_INODE, b"f")


def test_nothing_is_made_in_a_removed_directory(volume: Volume) -> None:
    gone = make_directory(volume, b"gone")
    volume.open_inode(gone)
    volume.remove_directory(ROOT_INODE, b"gone")
    fails(errno.ENOENT, make_file, volume, b"x", b"", gone)
    fails(errno.ENOENT, volume.lookup, gone, b"x")
    assert list(volume.list_directory(gone)) == []
    assert links(volume, gone) == 0
    volume.release_inode(gone)


def test_link_limit(volume: Volume) -> None:
    inode = make_file(volume, b"f")
    volume._inodes.get(inode).links = 65000
    fails(errno.EMLINK, volume.link, inode, ROOT_INODE, b"more")
    volume._inodes.get(inode).links = 1
    top = make_directory(volume, b"top")
    volume._inodes.get(top).links = 65000
    fails(errno.EMLINK, make_directory, volume, b"more", top)
    volume._inodes.get(top).links = 2


def test_many_subdirectories_of_an_indexed_directory_count_as_one(make_image: Callable[..., Image]) -> None:
    """The limit of 65000 with dir_nlink: the count turns to 1 and stays; e2fsck agrees with the result."""
    image = make_image(size_bytes=400 << 20, options=["-N", "70000", "-b", "1024"])
    volume = image.volume
    top = make_directory(volume, b"top")
    for number in range(300):
        make_directory(volume, b"d%d" % number, top)
    entry = volume._inodes.get(top)
    assert entry.flags & 0x1000
    entry.links = 65000  # as if there were so many: the recount must not be tried on this image
    make_directory(volume, b"one too many", top)
    assert links(volume, top) == 1
    make_directory(volume, b"another", top)
    volume.remove_directory(top, b"another")
    assert links(volume, top) == 1
    entry.links = 303


class TestRename:
    def test_plain(self, image: Image) -> None:
        volume = image.volume
        inode = make_file(volume, b"a", b"data")
        directory = make_directory(volume, b"d")
        volume.rename(ROOT_INODE, b"a", directory, b"b")
        assert names(volume) == {b"d"}
        assert volume.lookup(directory, b"b").inode == inode
        volume.rename(directory, b"b", directory, b"c" * 200)
        assert names(volume, directory) == {b"c" * 200}
        fails(errno.ENOENT, volume.rename, ROOT_INODE, b"a", directory, b"x")
        fails(errno.EBUSY, volume.rename, ROOT_INODE, b".", directory, b"x")
        fails(errno.EINVAL, volume.rename, ROOT_INODE, b"d", ROOT_INODE, b"e", 8)
        fails(errno.EINVAL, volume.rename, ROOT_INODE, b"d", ROOT_INODE, b"e", RENAME_EXCHANGE | RENAME_NOREPLACE)

    def test_over_a_file(self, volume: Volume) -> None:
        old, new = make_file(volume, b"old", b"1"), make_file(volume, b"new", b"22")
        volume.rename(ROOT_INODE, b"new", ROOT_INODE, b"old")
        assert volume.lookup(ROOT_INODE, b"old").inode == new
        fails(errno.ESTALE, volume.attributes, old)
        assert names(volume) == {b"old"}

    def test_two_names_of_one_inode_stay(self, volume: Volume) -> None:
        inode = make_file(volume, b"a")
        volume.link(inode, ROOT_INODE, b"b")
        volume.rename(ROOT_INODE, b"a", ROOT_INODE, b"b")
        assert names(volume) == {b"a", b"b"}
        assert links(volume, inode) == 2

    def test_kinds_must_agree(self, volume: Volume) -> None:
        make_file(volume, b"f")
        directory = make_directory(volume, b"d")
        fails(errno.EISDIR, volume.rename, ROOT_INODE, b"f", ROOT_INODE, b"d")
        fails(errno.ENOTDIR, volume.rename, ROOT_INODE, b"d", ROOT_INODE, b"f")
        make_directory(volume, b"e")
        make_file(volume, b"x", b"", directory)
        fails(errno.ENOTEMPTY, volume.rename, ROOT_INODE, b"e", ROOT_INODE, b"d")
        volume.rename(ROOT_INODE, b"d", ROOT_INODE, b"e")
        assert names(volume) == {b"e", b"f"}
        assert names(volume, directory) == {b"x"}

    def test_directories_take_their_parent_along(self, image: Image) -> None:
        volume = image.volume
        one, two = make_directory(volume, b"one"), make_directory(volume, b"two")
        moved = make_directory(volume, b"moved", one)
        volume.rename(one, b"moved", two, b"there")
        assert (links(volume, one), links(volume, two)) == (2, 3)
        assert volume.lookup(moved, b"..").inode == two
        make_directory(volume, b"again", one)
        volume.rename(one, b"again", two, b"there")
        assert (links(volume, one), links(volume, two)) == (2, 3)
        fails(errno.ESTALE, volume.attributes, moved)

    def test_not_below_itself(self, volume: Volume) -> None:
        top = make_directory(volume, b"top")
        inner = make_directory(volume, b"inner", top)
        deep = make_directory(volume, b"deep", inner)
        fails(errno.EINVAL, volume.rename, ROOT_INODE, b"top", deep, b"x")
        fails(errno.EINVAL, volume.rename, ROOT_INODE, b"top", top, b"x")
        fails(errno.ENOTEMPTY, volume.rename, inner, b"deep", ROOT_INODE, b"top")
        fails(errno.EINVAL, volume.rename, inner, b"deep", ROOT_INODE, b"top", RENAME_EXCHANGE)

    @pytest.mark.parametrize("over", [False, True])
    def test_a_whiteout_is_left_behind(self, image: Image, over: bool) -> None:
        volume = image.volume
        top = volume.make_directory(ROOT_INODE, b"top", 0o2755, 3, 44).inode
        inode = make_file(volume, b"a", b"moved", top)
        if over:
            make_file(volume, b"b", b"replaced")
        volume.rename(top, b"a", ROOT_INODE, b"b", RENAME_WHITEOUT, 5, 6)
        volume = image.reopen()
        left = volume.lookup(top, b"a")
        assert (left.mode, left.rdev, left.nlink, left.uid, left.gid) == (stat.S_IFCHR, 0, 1, 5, 44)
        assert {entry.name: entry.mode for entry in volume.list_directory(top)}[b"a"] == stat.S_IFCHR
        assert volume.lookup(ROOT_INODE, b"b").inode == inode
        assert volume.read(inode, 0, 99) == b"moved"

    def test_a_whiteout_is_freed_when_the_rename_fails(self, image: Image) -> None:
        volume = image.volume
        make_file(volume, b"a")
        directory = make_directory(volume, b"full")
        make_file(volume, b"x", b"", directory)
        make_directory(volume, b"d")
        before = volume.statistics()
        fails(errno.ENOTEMPTY, volume.rename, ROOT_INODE, b"d", ROOT_INODE, b"full", RENAME_WHITEOUT)
        fails(errno.EEXIST, volume.rename, ROOT_INODE, b"a", ROOT_INODE, b"d", RENAME_WHITEOUT | RENAME_NOREPLACE)
        fails(errno.EINVAL, volume.rename, ROOT_INODE, b"a", ROOT_INODE, b"d", RENAME_WHITEOUT | RENAME_EXCHANGE)
        assert volume.statistics() == before
        assert names(volume) == {b"a", b"d", b"full"}

    def test_noreplace(self, volume: Volume) -> None:
        make_file(volume, b"a")
        make_file(volume, b"b")
        fails(errno.EEXIST, volume.rename, ROOT_INODE, b"a", ROOT_INODE, b"b", RENAME_NOREPLACE)
        volume.rename(ROOT_INODE, b"a", ROOT_INODE, b"c", RENAME_NOREPLACE)
        assert names(volume) == {b"b", b"c"}

    def test_exchange(self, volume: Volume) -> None:
        one, two = make_directory(volume, b"one"), make_directory(volume, b"two")
        directory, file = make_directory(volume, b"x", one), make_file(volume, b"y", b"z", two)
        volume.rename(one, b"x", two, b"y", RENAME_EXCHANGE)
        assert volume.lookup(one, b"x").inode == file
        assert volume.lookup(two, b"y").inode == directory
        assert volume.lookup(directory, b"..").inode == two
        assert (links(volume, one), links(volume, two)) == (2, 3)
        fails(errno.ENOENT, volume.rename, one, b"x", two, b"absent", RENAME_EXCHANGE)
        listed = {entry.name: entry.mode for entry in volume.list_directory(two)}
        assert listed[b"y"] == stat.S_IFDIR


def test_setgid_directories_pass_on_their_group(volume: Volume) -> None:
    top = volume.make_directory(ROOT_INODE, b"top", 0o2755, 1, 42).inode
    inner = volume.make_directory(top, b"inner", 0o755, 7, 8)
    assert (inner.gid, inner.mode) == (42, stat.S_IFDIR | 0o2755)
    file = volume.make_node(top, b"file", stat.S_IFREG | 0o644, 7, 8)
    assert (file.gid, file.mode) == (42, stat.S_IFREG | 0o644)


def test_read_only(image: Image) -> None:
    make_file(image.volume, b"f", b"x")
    image.close()
    before = image.path.read_bytes()
    volume = image.open(read_only=True)
    inode = volume.lookup(ROOT_INODE, b"f").inode
    assert volume.read_only
    assert volume.read(inode, 0, 9) == b"x"
    for attempt in (
        lambda: make_file(volume, b"g"),
        lambda: volume.unlink(ROOT_INODE, b"f"),
        lambda: volume.write(inode, 0, b"y"),
        lambda: volume.set_attributes(inode, mode=0),
        lambda: volume.rename(ROOT_INODE, b"f", ROOT_INODE, b"g"),
        lambda: volume.set_xattr(inode, b"user.a", b"b"),
        lambda: volume.link(inode, ROOT_INODE, b"g"),
    ):
        fails(errno.EROFS, attempt)
    volume.sync()
    image.close()
    assert image.path.read_bytes() == before


def test_a_closed_volume_refuses_everything(image: Image) -> None:
    """Nothing of the library's memory is touched any more."""
    inode = make_file(image.volume, b"f", b"x")
    volume = image.reopen()
    image.close()
    volume.close()
    for attempt in (
        lambda: volume.lookup(ROOT_INODE, b"f"),
        lambda: volume.attributes(inode),
        lambda: make_file(volume, b"g"),
        lambda: volume.set_attributes(ROOT_INODE, mode=0),
        lambda: volume.unlink(ROOT_INODE, b"f"),
        lambda: volume.set_xattr(ROOT_INODE, b"user.a", b""),
        volume.statistics,
        volume.sync,
        volume.quiesce,
    ):
        fails(errno.ESHUTDOWN, attempt)
