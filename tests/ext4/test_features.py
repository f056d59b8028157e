"""One story on volumes of every kind, and the kinds that are refused."""

from __future__ import annotations

import errno
import random
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cowfs.blockdev import FileDevice
from cowfs.errors import FilesystemError, MissingRequirement
from cowfs.ext4.library import libext2fs, libext2fs_abi
from cowfs.ext4.tools import commands as tools
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE
from tests.ext4.conftest import MIB, Image, make_file, names


def test_the_same_story_everywhere(any_image: Image, tmp_path: Path, rng: random.Random) -> None:
    image = any_image
    volume = image.volume
    top = volume.make_directory(ROOT_INODE, b"top", 0o755, 1, 2).inode
    content = rng.randbytes(3 * MIB + 77)
    big = make_file(volume, b"big", b"", top)
    for offset in range(0, len(content), 65_536):
        volume.write(big, offset, content[offset : offset + 65_536])
    sparse = make_file(volume, b"sparse", b"", top)
    for offset in (20 * MIB, 0, 15 * MIB + 13, 300 * 1024):
        volume.write(sparse, offset, b"here")
    files = {b"file-%d" % number: rng.randbytes(number * 13) for number in range(400)}
    for name, data in files.items():
        make_file(volume, name, data, top)
    volume.make_symlink(top, b"fast", b"target", 0, 0)
    volume.make_symlink(top, b"slow", b"t" * 500, 0, 0)
    volume.make_node(top, b"null", stat.S_IFCHR | 0o666, 0, 0, 0x103)
    volume.link(big, ROOT_INODE, b"again")
    volume.set_xattr(big, b"user.name", b"value")
    for number in range(0, 400, 3):
        volume.unlink(top, b"file-%d" % number)
        del files[b"file-%d" % number]
    for number in range(1, 400, 30):
        volume.rename(top, b"file-%d" % number, ROOT_INODE, b"moved-%d" % number)
        files[b"moved-%d" % number] = files.pop(b"file-%d" % number)
    volume.set_attributes(big, size_bytes=2 * MIB + 5)
    volume.set_attributes(sparse, size_bytes=16 * MIB)

    volume = image.reopen()
    assert volume.read(big, 0, 9 * MIB) == content[: 2 * MIB + 5]
    expected = bytearray(16 * MIB)
    for offset in (0, 15 * MIB + 13, 300 * 1024):
        expected[offset : offset + 4] = b"here"
    assert volume.read(sparse, 0, 99 * MIB) == expected
    assert volume.read_symlink(volume.lookup(top, b"slow").inode) == b"t" * 500
    assert volume.get_xattr(big, b"user.name") == b"value"
    assert names(volume, top) | names(volume) == {
        *files,
        b"top",
        b"big",
        b"sparse",
        b"fast",
        b"slow",
        b"null",
        b"again",
    }
    modes = {entry.name: entry.mode for entry in volume.list_directory(top)}
    assert (modes[b"null"], modes[b"fast"], modes[b"big"]) == (stat.S_IFCHR, stat.S_IFLNK, stat.S_IFREG)
    for name, data in files.items():
        parent = ROOT_INODE if name.startswith(b"moved") else top
        assert volume.read(volume.lookup(parent, name).inode, 0, 10_000) == data
    image.close()
    assert image.dump("top/big", tmp_path / "dump") == content[: 2 * MIB + 5]
    assert image.dump("top/sparse", tmp_path / "dump") == expected


@pytest.mark.parametrize(
    ("options", "number", "word"),
    [
        (["-O", "casefold"], errno.EOPNOTSUPP, "casefold"),
        (["-O", "encrypt"], errno.EOPNOTSUPP, "encrypt"),
        (["-O", "bigalloc"], errno.EROFS, "bigalloc"),
        (["-O", "quota"], errno.EROFS, "quota"),
        (["-O", "mmp"], errno.EOPNOTSUPP, "mmp"),
        (["-b", "65536"], errno.EOPNOTSUPP, "2^16"),
    ],
    ids=lambda value: str(value[1]) if isinstance(value, list) else "",
)
def test_unsupported_features_are_named(
    make_image: Callable[..., Image], options: list[str], number: int, word: str
) -> None:
    image = make_image(options=options)
    with pytest.raises(FilesystemError) as caught:
        image.open()
    assert caught.value.errno == number
    assert word in str(caught.value)
    image.close()
    if number == errno.EROFS:
        assert image.open(read_only=True).lookup(ROOT_INODE, b"lost+found").nlink == 2


def test_a_short_link_with_attributes_in_a_cluster(make_image: Callable[..., Image]) -> None:
    """With bigalloc a block of attributes counts as a cluster; such a link has its target in its inode all the same."""
    image = make_image(options=["-O", "bigalloc", "-I", "128"])
    for request in ("symlink link target", "ea_set link user.name value", "set_inode_field link block[14] 0"):
        tools.run("debugfs", ["-w", "-R", request, str(image.path)])
    assert int(image.stat("link")["Blockcount"]) > 8
    volume = image.open(read_only=True)
    inode = volume.lookup(ROOT_INODE, b"link").inode
    assert volume.read_symlink(inode) == b"target"
    assert volume.get_xattr(inode, b"user.name") == b"value"


def test_an_unclean_volume_is_refused(image: Image) -> None:
    image.close()
    assert tools.run("debugfs", ["-w", "-R", "dirty -clean", str(image.path)])[0] in (0, 1)
    assert tools.run("debugfs", ["-w", "-R", "set_super_value state 0", str(image.path)])[0] == 0
    with pytest.raises(FilesystemError) as caught:
        image.open()
    assert caught.value.errno == errno.EUCLEAN
    image.close()
    assert image.open(read_only=True).lookup(ROOT_INODE, b"lost+found").inode == 11
    image.close()
    tools.run("debugfs", ["-w", "-R", "set_super_value state 1", str(image.path)])


def test_a_journal_that_cannot_be_replayed_is_refused(image: Image) -> None:
    image.close()
    good = image.path.read_bytes()
    assert tools.run("debugfs", ["-w", "-R", "feature needs_recovery", str(image.path)])[0] == 0
    assert tools.run("debugfs", ["-w", "-R", "set_inode_field <8> links_count 0", str(image.path)])[0] == 0
    for read_only in (False, True):
        with pytest.raises(FilesystemError) as caught:
            image.open(read_only=read_only)
        assert caught.value.errno == errno.EUCLEAN
        assert "journal" in str(caught.value)
        image.close()
    image.path.write_bytes(good)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (["feature needs_recovery", "set_inode_field <8> links_count 0"], "journal cannot be replayed"),
        (["set_super_value state 2"], "marked as damaged; it was not cleanly unmounted"),
        ([], ""),
    ],
    ids=["journal", "state", "clean"],
)
def test_what_can_be_read_of_a_damaged_volume(image: Image, damage: list[str], words: str) -> None:
    inode = make_file(image.volume, b"f", b"content")
    image.close()
    good = image.path.read_bytes()
    for request in damage:
        assert tools.run("debugfs", ["-w", "-R", request, str(image.path)])[0] == 0
    before = image.path.read_bytes()
    with closing(Volume.open(FileDevice(image.path, read_only=True), read_only=True, rescue=True)) as volume:
        assert volume.read(inode, 0, 99) == b"content"
        assert words in "; ".join(volume.problems)
        assert bool(words) == bool(volume.problems)
        with pytest.raises(OSError) as caught:
            volume.unlink(ROOT_INODE, b"f")
        assert caught.value.errno == errno.EROFS
    assert image.path.read_bytes() == before
    image.path.write_bytes(good)


def test_a_wrong_checksum_of_the_superblock(image: Image) -> None:
    inode = make_file(image.volume, b"f", b"content")
    image.close()
    good = image.path.read_bytes()
    image.path.write_bytes(good[:2044] + b"\0\0\0\0" + good[2048:])
    device = FileDevice(image.path, read_only=True)
    with pytest.raises(FilesystemError):
        Volume.open(device, read_only=True)
    with closing(Volume.open(device, read_only=True, rescue=True)) as volume:
        assert volume.read(inode, 0, 99) == b"content"
        assert volume.problems == ["its superblock has a wrong checksum"]
    image.path.write_bytes(good)


@pytest.mark.parametrize("request_", ["clri <2>", "set_inode_field <2> mode 0100644", "set_inode_field <2> checksum 1"])
def test_a_damaged_root_is_named(image: Image, request_: str) -> None:
    image.close()
    good = image.path.read_bytes()
    assert tools.run("debugfs", ["-w", "-R", request_, str(image.path)])[0] == 0
    for read_only, rescue in ((False, False), (True, False), (True, True)):
        with pytest.raises(FilesystemError, match=r"the root.*inode 2") as caught:
            Volume.open(FileDevice(image.path, read_only=read_only), read_only=read_only, rescue=rescue)
        assert caught.value.errno == errno.EUCLEAN
    image.path.write_bytes(good)


def test_no_ext4_and_a_short_device(image: Image) -> None:
    image.close()
    good = image.path.read_bytes()
    image.path.write_bytes(good[: 10 * MIB])
    with closing(Volume.open(FileDevice(image.path, read_only=True), read_only=True, rescue=True)) as volume:
        assert b"lost+found" in [entry.name for entry in volume.list_directory(ROOT_INODE)]
        assert volume.problems == ["it has 67108864 bytes, and its device only 10485760"]
    for content, number in ((bytes(MIB), errno.EINVAL), (b"", errno.EINVAL), (good[: 10 * MIB], errno.EUCLEAN)):
        image.path.write_bytes(content)
        with pytest.raises(FilesystemError) as caught:
            image.open()
        assert caught.value.errno == number
        image.close()
    image.path.write_bytes(good)


def test_the_library_is_checked() -> None:
    assert libext2fs._parse_version("1.47.0") == (1, 47)
    assert libext2fs._parse_version("1.48-WIP-20240101") == (1, 48)
    assert libext2fs._parse_version("2") == (2,)
    assert libext2fs.load().version.startswith("1.")


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        sizeof = libext2fs_abi.ffi.sizeof

        @staticmethod
        def dlopen(name: str) -> None:
            raise OSError(f"cannot load library '{name}'")

    monkeypatch.setattr(libext2fs_abi, "ffi", Refusing)
    libext2fs.load.cache_clear()
    try:
        with pytest.raises(MissingRequirement) as caught:
            libext2fs.load()
    finally:
        libext2fs.load.cache_clear()
    assert "apt-get install e2fsprogs" in str(caught.value)
