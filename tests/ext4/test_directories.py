"""Large directories, their hash index, and listings while they change."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import pytest

from cowfs.ext4.format.directory_block import DamagedBlock, DirectoryBlock, Entry, checksum_fits
from cowfs.ext4.tools import commands as tools
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE
from tests.ext4.conftest import FEATURE_SETS, MIB, Image, make_file, names


def fill(volume: Volume, directory: int, wanted: list[bytes]) -> int:
    """All names as links to one file, so that it is quick."""
    inode = make_file(volume, wanted[0], b"", directory)
    volume._inodes.get(inode).links = len(wanted)
    parent = volume._inodes.get(directory)
    for name in wanted[1:]:
        volume._names.directories.add(parent, name, inode, 0o100644)
    return inode


def mixed_names(count: int, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    return [b"%d-" % number + bytes(rng.choices(b"abcdefgh\xff", k=rng.randrange(0, 200))) for number in range(count)]


def test_twenty_thousand_names(image: Image) -> None:
    volume = image.volume
    top = volume.make_directory(ROOT_INODE, b"top", 0o755, 0, 0).inode
    wanted = [b"name-%d" % number for number in range(20_000)]
    inode = fill(volume, top, wanted)
    assert names(volume, top) == set(wanted)
    for name in wanted[::97]:
        assert volume.lookup(top, name).inode == inode
    volume = image.reopen()
    assert names(volume, top) == set(wanted)
    image.close()
    assert "Number of entries (count)" in image.debugfs("htree_dump top")
    image.require_clean()
    volume = image.open()
    for name in wanted[:15_000]:
        volume.unlink(top, name)
    assert names(volume, top) == set(wanted[15_000:])
    for name in wanted[:100]:
        volume.link(inode, top, name)
    assert names(volume, top) == set(wanted[15_000:] + wanted[:100])


@pytest.mark.parametrize("features", ["1k-blocks", "no-checksums", "no-index", "no-extents-1k", "large-dir", "ext2"])
def test_names_of_all_lengths(make_image: Callable[..., Image], features: str) -> None:
    image = make_image(options=FEATURE_SETS[features])
    volume = image.volume
    top = volume.make_directory(ROOT_INODE, b"top", 0o755, 0, 0).inode
    wanted = mixed_names(6000 if features != "no-index" else 1500, seed=1)
    inode = fill(volume, top, wanted)
    assert names(volume, top) == set(wanted)
    image.reopen()
    image.close()
    image.require_clean()
    volume = image.open()
    for name in wanted[::2]:
        volume.unlink(top, name)
    for name in wanted[1::2]:
        assert volume.lookup(top, name).inode == inode


def test_a_third_level_needs_large_dir(make_image: Callable[..., Image]) -> None:
    """With 1 KiB blocks two levels hold some 50 thousand long names; large_dir has a third level."""
    image = make_image(size_bytes=128 * MIB, options=[*FEATURE_SETS["large-dir"], "-O", "large_dir"])
    volume = image.volume
    top = volume.make_directory(ROOT_INODE, b"top", 0o755, 0, 0).inode
    wanted = [b"%0240d" % number for number in range(45_000)]
    volume._fs.super.s_def_hash_version = 2  # TEA
    inode = fill(volume, top, wanted)
    assert volume._inodes.get(top).index.levels == 2  # type: ignore[union-attr]
    assert volume.lookup(top, wanted[33_333]).inode == inode
    assert len(names(image.reopen(), top)) == len(wanted)


def test_directories_indexed_by_e2fsck(make_image: Callable[..., Image]) -> None:
    """The trees of others: linear directories without dir_index, then packed and indexed by `e2fsck -D`."""
    image = make_image(options=["-O", "^dir_index", "-b", "1024"])
    volume = image.volume
    top = volume.make_directory(ROOT_INODE, b"top", 0o755, 0, 0).inode
    wanted = mixed_names(2000, seed=2)
    inode = fill(volume, top, wanted)
    image.close()
    assert tools.run("tune2fs", ["-O", "dir_index", str(image.path)])[0] == 0
    status, output = tools.run("e2fsck", ["-fyD", str(image.path)])
    assert status in (0, 1), output
    volume = image.open()
    assert volume._inodes.get(top).flags & 0x1000
    assert names(volume, top) == set(wanted)
    for name in wanted[::7]:
        assert volume.lookup(top, name).inode == inode
    more = [b"more-%d" % number for number in range(1000)]
    for name in more:
        volume.link(inode, top, name)
    for name in wanted[::3]:
        volume.unlink(top, name)
    assert names(volume, top) == {name for number, name in enumerate(wanted) if number % 3} | set(more)


def test_an_index_without_the_feature_is_dropped_by_a_change(image: Image) -> None:
    volume = image.volume
    top = volume.make_directory(ROOT_INODE, b"top", 0o755, 0, 0).inode
    wanted = [b"name-%d" % number for number in range(1000)]
    inode = fill(volume, top, wanted)
    image.close()
    tools.run("tune2fs", ["-O", "^dir_index,^metadata_csum", str(image.path)])
    tools.run("e2fsck", ["-fy", str(image.path)])
    volume = image.open()
    assert names(volume, top) == set(wanted)
    volume.link(inode, top, b"one more")
    assert names(volume, top) == {*wanted, b"one more"}


@pytest.mark.parametrize("features", ["default", "no-index"])
def test_a_listing_survives_changes(make_image: Callable[..., Image], features: str) -> None:
    """What is there from the beginning to the end of a listing comes exactly once, whatever else happens."""
    image = make_image(options=FEATURE_SETS[features])
    volume = image.volume
    top = volume.make_directory(ROOT_INODE, b"top", 0o755, 0, 0).inode
    stay = [b"stay-%d" % number for number in range(40)]
    inode = fill(volume, top, stay)
    seen: list[bytes] = []
    cookie, number = 0, 0
    while True:
        chunk = []
        for entry in volume.list_directory(top, cookie):
            chunk.append(entry)
            if len(chunk) == 7:
                break
        if not chunk:
            break
        seen += [entry.name for entry in chunk]
        cookie = chunk[-1].cookie
        for _ in range(40 if number < 2000 else 0):
            volume.link(inode, top, b"come-%d" % number)
            if number > 20:
                volume.unlink(top, b"come-%d" % (number - 20))
            number += 1
    assert sorted(name for name in seen if name.startswith(b"stay")) == sorted(stay)
    assert len(seen) == len(set(seen))
    assert seen[:2] == [b".", b".."]


def test_an_iterator_survives_changes(volume: Volume) -> None:
    top = volume.make_directory(ROOT_INODE, b"top", 0o755, 0, 0).inode
    wanted = [b"name-%d" % number for number in range(3000)]
    fill(volume, top, wanted)
    seen = []
    for entry in volume.list_directory(top):
        if entry.name not in (b".", b".."):
            seen.append(entry.name)
            volume.unlink(top, entry.name)
    assert sorted(seen) == sorted(wanted)
    assert names(volume, top) == set()
    volume.remove_directory(ROOT_INODE, b"top")


def test_equal_hashes(image: Image) -> None:
    """More names of one hash than a block holds: the next block continues, and all are found and listed."""
    volume = image.volume
    top = volume.make_directory(ROOT_INODE, b"top", 0o755, 0, 0).inode
    directories = volume._names.directories
    genuine = directories._hash_of

    def colliding(version: int, name: bytes) -> tuple[int, int]:
        return (0x1234 if name.startswith(b"same") else genuine(version, name)[0]), genuine(version, name)[1]

    directories._hash_of = colliding
    wanted = [b"same-%0150d" % number for number in range(100)] + [b"other-%0150d" % number for number in range(200)]
    inode = fill(volume, top, wanted)
    for name in wanted:
        assert volume.lookup(top, name).inode == inode
    listed = [entry.name for entry in volume.list_directory(top)][2:]
    assert sorted(listed) == sorted(wanted)
    chunks, cookie = [], 0
    while chunk := [entry for entry, _ in zip(volume.list_directory(top, cookie), range(5), strict=False)]:
        chunks += [entry.name for entry in chunk]
        cookie = chunk[-1].cookie
    assert sorted(chunks[2:]) == sorted(wanted)
    for name in wanted:
        volume._names.directories.remove(volume._inodes.get(top), name)
    volume._inodes.get(inode).links = 0
    volume._names.destroy(volume._inodes.get(inode))
    # The false hashes must not reach e2fsck.
    assert volume._names.directories.is_empty(volume._inodes.get(top))
    volume.remove_directory(ROOT_INODE, b"top")


class TestBlock:
    @pytest.mark.parametrize("has_tail", [False, True])
    def test_random_changes(self, rng: random.Random, has_tail: bool) -> None:
        block = DirectoryBlock.empty(1024, has_tail=has_tail)
        model: dict[bytes, Entry] = {}
        for step in range(2000):
            name = bytes(rng.choices(b"abc", k=rng.randrange(1, 60)))
            if name in model:
                block.remove(name)
                del model[name]
            else:
                entry = Entry(name, step + 1, 1)
                if block.add(entry):
                    model[name] = entry
            assert {entry.name: entry for entry in block.entries()} == model
            again = DirectoryBlock(block.checksummed(7), has_tail=has_tail)
            assert not has_tail or checksum_fits(bytes(again.data), 7)
            assert sorted(again.entries()) == sorted(model.values())

    @pytest.mark.parametrize(
        ("offset", "data"), [(4, b"\0\0"), (4, b"\x07\0"), (4, b"\xff\xff"), (6, b"\xff"), (1020, b"\0\0\0\0")]
    )
    def test_damage_is_seen(self, offset: int, data: bytes) -> None:
        good = bytearray(
            DirectoryBlock.packed([Entry(b"x", 1, 1), Entry(b"y", 2, 1)], 1024, has_tail=True).checksummed(1)
        )
        good[offset : offset + len(data)] = data
        with contextlib.suppress(DamagedBlock):
            assert not checksum_fits(bytes(DirectoryBlock(good, has_tail=True).data), 1)
