"""Trees that others wrote, and trees that others read."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE, Attributes
from tests.ext4.conftest import FEATURE_SETS, Image

MIB = 1 << 20


def build_tree(top: Path) -> None:
    """A bit of everything that an ordinary user can make."""
    top.mkdir()
    (top / "empty").touch()
    (top / "text").write_bytes(b"hello\n")
    (top / "big").write_bytes(bytes(range(256)) * 5000)
    with (top / "sparse").open("wb") as file:
        file.seek(5 * MIB)
        file.write(b"end")
    directory = top / "directory"
    directory.mkdir()
    for number in range(500):
        (directory / f"file-{number}-{'n' * (number % 150)}").write_bytes(b"%d" % number)
    (directory / "deep").mkdir()
    (directory / "deep" / "er").mkdir()
    (top / "short link").symlink_to("text")
    (top / "long link").symlink_to("x" * 300)
    os.link(top / "text", directory / "hard link")
    os.mkfifo(top / "fifo")
    (top / "text").chmod(0o4751)
    os.utime(top / "big", ns=(1_234_567_890_123_456_789, 987_654_321_012_345_678))
    (top / os.fsdecode(b"odd \xff\n name")).touch()


def walk(volume: Volume, inode: int = ROOT_INODE, path: bytes = b"") -> Iterator[tuple[bytes, Attributes]]:
    for entry in volume.list_directory(inode):
        if entry.name in (b".", b"..") or (inode == ROOT_INODE and entry.name == b"lost+found"):
            continue
        name = path + entry.name
        attributes = volume.attributes(entry.inode)
        assert stat.S_IFMT(attributes.mode) == entry.mode
        yield name, attributes
        if stat.S_ISDIR(attributes.mode):
            yield from walk(volume, entry.inode, name + b"/")


@pytest.mark.parametrize("features", ["default", "no-extents", "small-inodes", "1k-blocks", "ext2"])
def test_a_tree_written_by_mke2fs(make_image: Callable[..., Image], tmp_path: Path, features: str) -> None:
    top = tmp_path / "tree"
    build_tree(top)
    volume = make_image(options=[*FEATURE_SETS[features], "-d", str(top)]).open(read_only=True)
    found = dict(walk(volume))
    root = os.fsencode(top)
    listed = {os.path.join(where, name) for where, inner, files in os.walk(root) for name in inner + files}
    assert {os.path.join(root, name) for name in found} == listed
    for name, attributes in found.items():
        path = os.path.join(root, name)
        real = os.lstat(path)
        assert attributes.mode == real.st_mode
        assert (attributes.uid, attributes.gid) == (real.st_uid, real.st_gid)
        assert attributes.nlink == real.st_nlink
        # mke2fs copies whole seconds in some versions.
        assert attributes.mtime_ns in (real.st_mtime_ns, real.st_mtime_ns // 10**9 * 10**9)
        if stat.S_ISREG(attributes.mode):
            assert volume.read(attributes.inode, 0, 10 * MIB) == Path(os.fsdecode(path)).read_bytes()
        elif stat.S_ISLNK(attributes.mode):
            assert volume.read_symlink(attributes.inode) == os.readlink(path)


def test_a_tree_read_by_debugfs(image: Image, tmp_path: Path) -> None:
    volume = image.volume
    top = volume.make_directory(ROOT_INODE, b"top", 0o755, 0, 0).inode
    contents = {f"file-{number}": os.urandom(number * 997) for number in range(60)}
    for name, content in contents.items():
        inode = volume.make_node(top, name.encode(), stat.S_IFREG | 0o604, 0, 0).inode
        if content:
            volume.write(inode, 0, content)
        volume.set_attributes(inode, mtime_ns=1_600_000_000_000_000_000)
    volume.make_symlink(top, b"link", b"file-1", 0, 0)
    image.close()
    target = tmp_path / "out"
    target.mkdir()
    image.debugfs(f"rdump /top {target}")
    for name, content in contents.items():
        path = target / "top" / name
        assert path.read_bytes() == content
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
        assert int(path.stat().st_mtime) == 1_600_000_000
    assert (target / "top" / "link").readlink() == Path("file-1")
