"""Volumes with inline_data: read as e2fsprogs wrote them, changed in the inode, and moved to blocks when they grow."""

from __future__ import annotations

import errno
import itertools
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from cowfs.errors import FilesystemError
from cowfs.ext4.tools import commands as tools
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE
from tests.ext4.conftest import MIB, Image, make_file, names

SIZES = (0, 1, 59, 60, 61, 100, 150, 700)
KINDS = {
    "default": ["-I", "256"],
    "large-inodes": ["-I", "1024"],
    "no-index": ["-I", "256", "-O", "^dir_index,^filetype"],
    "ext3-maps": ["-I", "512", "-O", "^extents,^64bit,^metadata_csum"],
    "ea-inode": ["-I", "256", "-O", "ea_inode"],
}


def content(size: int) -> bytes:
    return (b"%d bytes, " % size * 100)[:size]


@pytest.fixture(params=list(KINDS))
def inline(request: pytest.FixtureRequest, make_image: Callable[..., Image], tmp_path: Path) -> Image:
    """Files f0, f1..., links, and a directory d with names n0 to n7, a link and a directory e."""
    options = KINDS[request.param]
    image = make_image(options=["-O", "inline_data", *options])
    script = tmp_path / "script"
    lines = ["mkdir d", "mkdir d/e", f"symlink s {'t' * 100}", f"symlink d/s {'s' * 20}"]
    for size in SIZES:
        (tmp_path / f"f{size}").write_bytes(content(size))
        lines.append(f"write {tmp_path}/f{size} f{size}")
    lines += [f"write {tmp_path}/f1 d/n{number}" for number in range(2)]
    script.write_text("\n".join([*lines, "ea_set f61 user.name value"]))
    assert tools.run("debugfs", ["-w", "-f", str(script), str(image.path)])[0] == 0
    add_to_the_value(image, {b"n%d" % number: b"f1" for number in range(2, 6)})
    image.require_clean()
    return image


def add_to_the_value(image: Image, links: dict[bytes, bytes]) -> None:
    """More names for the directory d, as the kernel puts them into the value when the first 60 bytes are full."""
    volume = image.volume
    directory = volume._inodes.get(inode_of(volume, b"d"))
    kind = 1 if volume._fs.has_file_types else 0
    region = bytearray()
    for name, target in links.items():
        inode = volume._inodes.get(inode_of(volume, target))
        inode.links += 1
        region += struct.pack("<IHBB", inode.number, 12, len(name), kind) + name.ljust(4, b"\0")
    volume._xattrs._store(directory, b"system.data", bytes(region))
    directory.size = 60 + len(region)
    volume._guard.begin_change()
    image.close()


def inode_of(volume: Volume, name: bytes, parent: int = ROOT_INODE) -> int:
    return volume.lookup(parent, name).inode


def is_inline(image: Image, name: str) -> bool:
    return int(image.stat(name)["Flags"], 16) & 0x10000000 != 0


def test_reading(inline: Image) -> None:
    assert all(is_inline(inline, name) for name in ("f1", "f60", "d", "d/e", "s"))
    volume = inline.open(read_only=True)
    for size in SIZES:
        inode = inode_of(volume, b"f%d" % size)
        assert volume.attributes(inode).size_bytes == size
        assert volume.read(inode, 0, 10_000) == content(size)
        assert volume.read(inode, 50, 20) == content(size)[50:70]
        assert volume.read(inode, size, 1) == b""
        assert volume.find_data(inode, size) is None
        if size:
            assert volume.find_data(inode, size - 1) == (size - 1, size)
    assert volume.read_symlink(inode_of(volume, b"s")) == b"t" * 100
    assert volume.list_xattrs(inode_of(volume, b"f61")) == [b"user.name"]
    top = inode_of(volume, b"d")
    assert names(volume, top) == {b"e", b"s", *(b"n%d" % number for number in range(6))}
    assert volume.lookup(top, b"..").inode == ROOT_INODE
    assert volume.lookup(inode_of(volume, b"e", top), b"..").inode == top
    assert volume.read_symlink(inode_of(volume, b"s", top)) == b"s" * 20
    listed = list(volume.list_directory(top))
    for position, entry in enumerate(listed, 1):
        assert list(volume.list_directory(top, entry.cookie)) == listed[position:]
    with pytest.raises(FileNotFoundError):
        volume.lookup(top, b"n6")


def test_writing_moves_a_file_to_blocks(inline: Image) -> None:
    volume = inline.volume
    volume.write(inode_of(volume, b"f60"), 10, b"changed")
    volume.write(inode_of(volume, b"f100"), 9000, b"end")
    volume.write(inode_of(volume, b"f0"), 0, b"first")
    volume.set_attributes(inode_of(volume, b"f61"), size_bytes=5000)
    volume = inline.reopen()
    assert volume.read(inode_of(volume, b"f60"), 0, 99) == content(60)[:10] + b"changed" + content(60)[17:]
    assert volume.read(inode_of(volume, b"f100"), 0, 9999) == content(100) + bytes(8900) + b"end"
    assert volume.read(inode_of(volume, b"f0"), 0, 99) == b"first"
    assert volume.read(inode_of(volume, b"f61"), 0, 9999) == content(61) + bytes(4939)
    assert volume.get_xattr(inode_of(volume, b"f61"), b"user.name") == b"value"
    inline.close()
    assert not any(is_inline(inline, name) for name in ("f60", "f100", "f0", "f61"))


@pytest.mark.parametrize("size", [0, 30, 70])
def test_cutting_off_stays_in_the_inode(inline: Image, size: int) -> None:
    volume = inline.volume
    inode = inode_of(volume, b"f100")
    was_inline = is_inline(inline, "f100")
    volume.set_attributes(inode, size_bytes=size)
    assert volume.read(inode, 0, 999) == content(100)[:size]
    inline.close()
    assert is_inline(inline, "f100") == was_inline
    inline.require_clean()
    volume = inline.open()
    volume.set_attributes(inode, size_bytes=100)
    assert volume.read(inode, 0, 999) == content(100)[:size].ljust(100, b"\0")


def test_names_are_removed_and_replaced_in_the_inode(inline: Image) -> None:
    volume = inline.volume
    top = inode_of(volume, b"d")
    moved = inode_of(volume, b"n1", top)
    volume.unlink(top, b"n0")
    volume.unlink(top, b"n3")
    volume.rename(top, b"n1", top, b"n5")
    volume.rename(top, b"n2", ROOT_INODE, b"out")
    inner = inode_of(volume, b"e", top)
    volume.rename(top, b"e", ROOT_INODE, b"e")
    assert volume.lookup(inner, b"..").inode == ROOT_INODE
    inline.close()
    assert is_inline(inline, "d")
    assert is_inline(inline, "e")
    inline.require_clean()
    volume = inline.open()
    assert names(volume, top) == {b"s", b"n4", b"n5"}
    assert inode_of(volume, b"n5", top) == moved
    assert volume.lookup(inner, b"..").inode == ROOT_INODE


def test_a_directory_that_grows_moves_to_blocks(inline: Image) -> None:
    volume = inline.volume
    top = inode_of(volume, b"d")
    listing = volume.list_directory(top)
    begun = [entry.name for entry in itertools.islice(listing, 5)]
    cookie = {entry.name: entry.cookie for entry in volume.list_directory(top)}[begun[-1]]
    for number in range(300):
        make_file(volume, b"another-%d" % number, b"x", top)
    rest = [entry.name for entry in volume.list_directory(top, cookie)]
    volume = inline.reopen()
    expected = {b"e", b"s"} | {b"n%d" % number for number in range(6)}
    assert expected <= {*begun, *rest}
    assert names(volume, top) == expected | {b"another-%d" % number for number in range(300)}
    inline.close()
    assert not is_inline(inline, "d")


def test_everything_can_be_removed(inline: Image) -> None:
    volume = inline.volume

    def clear(directory: int) -> None:
        for entry in list(volume.list_directory(directory)):
            if entry.name in (b".", b"..", b"lost+found"):
                continue
            if entry.mode == stat.S_IFDIR:
                clear(entry.inode)
                volume.remove_directory(directory, entry.name)
            else:
                volume.unlink(directory, entry.name)

    clear(ROOT_INODE)
    assert names(inline.reopen()) == set()


def test_a_full_volume(make_image: Callable[..., Image], tmp_path: Path) -> None:
    """What grows finds no block and is left as it was; what shrinks needs none."""
    image = make_image(options=["-O", "inline_data,^has_journal"], size_bytes=4 * MIB)
    (tmp_path / "small").write_bytes(content(50))
    for request in ("mkdir d", f"write {tmp_path}/small d/f", f"write {tmp_path}/small d/g"):
        assert tools.run("debugfs", ["-w", "-R", request, str(image.path)])[0] == 0
    volume = image.volume
    filler = make_file(volume, b"filler")
    for number in range(volume.statistics().blocks_free):
        with suppress(OSError):
            volume.write(filler, number * 4096, bytes(4096))
    top = inode_of(volume, b"d")
    file = inode_of(volume, b"f", top)
    for change in (
        lambda: volume.write(file, 0, b"x"),
        lambda: volume.set_attributes(file, size_bytes=51),
        lambda: make_file(volume, b"new", b"", top),
    ):
        with pytest.raises(OSError, match="space") as caught:
            change()
        assert caught.value.errno == errno.ENOSPC
    assert volume.read(file, 0, 99) == content(50)
    volume.unlink(top, b"g")
    volume.set_attributes(file, size_bytes=7)
    volume = image.reopen()
    assert names(volume, top) == {b"f"}
    assert volume.read(file, 0, 99) == content(50)[:7]


def test_damage(make_image: Callable[..., Image], tmp_path: Path) -> None:
    image = make_image(options=["-O", "inline_data,^metadata_csum"])
    (tmp_path / "small").write_bytes(content(50))
    for request in ("mkdir d", f"write {tmp_path}/small d/f", f"write {tmp_path}/small g"):
        assert tools.run("debugfs", ["-w", "-R", request, str(image.path)])[0] == 0
    good = image.path.read_bytes()
    for request in ("set_inode_field d block[2] 0xffffffff", "set_inode_field g size 1000"):
        assert tools.run("debugfs", ["-w", "-R", request, str(image.path)])[0] == 0
    volume = image.open(read_only=True)
    for action in (
        lambda: list(volume.list_directory(inode_of(volume, b"d"))),
        lambda: volume.read(inode_of(volume, b"g"), 0, 10),
    ):
        with pytest.raises(FilesystemError) as caught:
            action()
        assert caught.value.errno == errno.EUCLEAN
    image.close()
    image.path.write_bytes(good)
