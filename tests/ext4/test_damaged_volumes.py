"""Damage of any kind: what is damaged fails with an error, everything else works, and nothing crashes.

What the kernel says of the same bytes is in tests/uml/test_damage.py.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest

from cowfs.errors import FilesystemError
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE
from cowfs.testing.blockdev import memory_device
from tests.conftest import session_seed
from tests.ext4.conftest import FEATURE_SETS
from tests.ext4.damage import BLOCK, MANY, SampleImage

KINDS = {
    "plain": FEATURE_SETS["no-checksums"],
    "old": ["-O", "^metadata_csum,^flex_bg,^extents,^64bit"],
    "checksums": [],
}
CASES = 24  # of each kind: a few seconds

R = TypeVar("R")


@pytest.fixture(scope="module", params=list(KINDS))
def any_image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SampleImage:
    return SampleImage(tmp_path_factory.mktemp("sample") / "image", KINDS[request.param])


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleImage:
    return SampleImage(tmp_path_factory.mktemp("sample") / "image", KINDS["plain"])


@contextlib.contextmanager
def opened(image: bytes, *, read_only: bool = False) -> Iterator[Volume]:
    with closing(Volume.open(memory_device(image), read_only=read_only)) as volume:
        yield volume


def names_of(volume: Volume, inode: int) -> set[bytes]:
    """Those that are listed, also if an error comes at the end."""
    found = set()
    with contextlib.suppress(FilesystemError):
        for entry in volume.list_directory(inode):
            found.add(entry.name)
    return found


def require_error(action: Callable[[], object], *numbers: int) -> None:
    with pytest.raises(OSError) as caught:
        action()
    assert caught.value.errno in (numbers or (errno.EUCLEAN,))


# One damaged inode.

INODE_DAMAGE = {
    "size over 2^63": (0x6C, 4, 0x80000000),
    "no links": (0x1A, 2, 0),
    "no mode": (0x00, 2, 0),
    "an unknown type": (0x00, 2, 0o070644),
    "too many extra bytes": (0x80, 2, 1000),
    "attributes outside": (0x68, 4, 0x7FFFFFFF),
    "attributes in an inode table": (0x68, 4, 0),  # see below
    "a value inode": (0x20, 4, 0x00280000),
    "inline data without the feature": (0x20, 4, 0x10000000),
}


@pytest.mark.parametrize("damage", INODE_DAMAGE)
def test_a_damaged_inode_is_listed_and_fails_alone(sample: SampleImage, damage: str) -> None:
    offset, width, value = INODE_DAMAGE[damage]
    if "inode table" in damage:
        value = sample.offsets[b"/"] // BLOCK
    inode = sample.inodes[b"file-7"]
    with opened(sample.with_inode(b"file-7", offset, width, value)) as volume:
        top = sample.inodes[b"top"]
        listed = list(volume.list_directory(top))
        assert {entry.name for entry in listed} >= {b"file-%d" % number for number in range(60)}
        require_error(lambda: volume.attributes(inode), errno.EUCLEAN, errno.ESTALE)
        require_error(lambda: volume.lookup(top, b"file-7"))
        require_error(lambda: volume.unlink(top, b"file-7"))
        require_error(lambda: volume.rename(top, b"file-8", top, b"file-7"))
        assert volume.read(volume.lookup(top, b"file-8").inode, 0, 999) == b"x" * 400
        volume.unlink(top, b"file-9")
        assert not volume.read_only


def test_a_name_without_type_of_a_damaged_inode(tmp_path: Path) -> None:
    sample = SampleImage(tmp_path / "image", ["-O", "^metadata_csum,^filetype"])
    with opened(sample.with_inode(b"file-7", 0x00, 2, 0)) as volume:
        listed = {entry.name: entry.mode for entry in volume.list_directory(sample.inodes[b"top"])}
    assert listed[b"file-7"] == 0
    assert listed[b"file-8"] == stat.S_IFREG


def test_a_wrong_checksum_of_an_inode(tmp_path: Path) -> None:
    sample = SampleImage(tmp_path / "image", KINDS["checksums"])
    with opened(sample.with_inode(b"file-7", 0x04, 4, 99)) as volume:
        require_error(lambda: volume.lookup(sample.inodes[b"top"], b"file-7"))
        assert b"file-7" in names_of(volume, sample.inodes[b"top"])


def test_figures_of_a_volume_whose_journal_claims_to_be_huge(sample: SampleImage) -> None:
    with opened(sample.good) as volume:
        journal = volume.inode_tables().geometry.offset(8)
    with opened(sample.with_bytes(journal + 0x6C, (1 << 31).to_bytes(4, "little")), read_only=True) as volume:
        figures = volume.statistics()
    assert 0 <= figures.blocks_free <= figures.blocks <= 16384


# Directories.


def test_a_damaged_block_hides_only_its_names(any_image: SampleImage) -> None:
    """All others are listed, then the error comes; and none of the names in it is said to be absent."""
    good = any_image.good
    many = any_image.inodes[b"many"]
    block = any_image.directory_blocks[b"many"][5]
    image = good[: block * BLOCK] + bytes(BLOCK) + good[(block + 1) * BLOCK :]
    with opened(image) as volume:
        found = names_of(volume, many)
        assert MANY - 30 < len(found) < MANY + 2
        with pytest.raises(FilesystemError):
            list(volume.list_directory(many))
        every = [b"name-%d-%s" % (number, b"l" * 40) for number in range(MANY)]
        for name in every:
            if name in found:
                volume.lookup(many, name)
            else:
                require_error(lambda name=name: volume.lookup(many, name))  # type: ignore[misc]
        assert not volume.read_only


def test_names_before_the_damage_of_a_block(sample: SampleImage) -> None:
    """They are found, and stay as they are: the block cannot be written."""
    many = sample.inodes[b"many"]
    block = sample.directory_blocks[b"many"][2]
    good = sample.good[block * BLOCK : (block + 1) * BLOCK]
    first = good[8 : 8 + good[6]]
    place = int.from_bytes(good[4:6], "little")
    with opened(sample.with_bytes(block * BLOCK + place + 4, b"\x03\x00")) as volume:
        assert first in names_of(volume, many)
        assert volume.lookup(many, first).inode == int.from_bytes(good[:4], "little")
        require_error(lambda: volume.unlink(many, first))
        require_error(lambda: volume.rename(many, first, ROOT_INODE, b"moved"))
        assert not volume.read_only


@pytest.mark.parametrize("name", [b"a/b", b"\0ile"])
def test_a_name_that_cannot_be(sample: SampleImage, name: bytes) -> None:
    top = sample.inodes[b"top"]
    place = sample.good.index(b"file-7", sample.directory_blocks[b"top"][0] * BLOCK)
    with opened(sample.with_bytes(place, name)) as volume:
        assert len(names_of(volume, top)) == 62
        with pytest.raises(FilesystemError):
            list(volume.list_directory(top))


def test_a_directory_without_blocks_is_not_removed(sample: SampleImage) -> None:
    """What it has lies beyond its size."""
    with opened(sample.with_inode(b"sub", 0x04, 4, 0)) as volume:
        top, sub = sample.inodes[b"top"], sample.inodes[b"sub"]
        require_error(lambda: volume.remove_directory(top, b"sub"))
        require_error(lambda: volume.make_directory(sub, b"new", 0o755, 0, 0))
        assert not volume.read_only


def test_a_directory_that_claims_to_be_huge(sample: SampleImage) -> None:
    with opened(sample.with_inode(b"top", 0x04, 4, 0xFFFFFC00)) as volume:
        assert names_of(volume, sample.inodes[b"top"]) >= {b"file-7", b"sub"}


# A damaged index.

INDEX_DAMAGE = {
    "hash version": (28, b"\x77"),
    "levels": (30, b"\x09"),
    "limit": (32, b"\xff\xff"),
    "count": (34, b"\x00\x00"),
    "block": (36, b"\xff\xff\xff\x00"),
    "order": (40, b"\xfe\xff\xff\xff"),
    "everything": (0, bytes(BLOCK)),
}


@pytest.mark.parametrize("damage", INDEX_DAMAGE)
def test_a_damaged_index_hides_nothing(any_image: SampleImage, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    offset, data = INDEX_DAMAGE[damage]
    many = any_image.inodes[b"many"]
    block = any_image.directory_blocks[b"many"][0]
    every = {b"name-%d-%s" % (number, b"l" * 40) for number in range(MANY)}
    with opened(any_image.with_bytes(block * BLOCK + offset, data)) as volume:
        assert {entry.name for entry in volume.list_directory(many)} == {*every, b".", b".."}
        half = itertools.islice(volume.list_directory(many), 100)
        cookie = [entry.cookie for entry in half][-1]
        assert len(list(volume.list_directory(many, cookie))) == MANY + 2 - 100
        for name in every:
            volume.lookup(many, name)
        require_error(lambda: volume.lookup(many, b"absent"), errno.ENOENT)
        require_error(lambda: volume.make_directory(many, b"new", 0o755, 0, 0))
        require_error(lambda: volume.rename(ROOT_INODE, b"big", many, b"new"))
        require_error(lambda: volume.rename(ROOT_INODE, b"many", any_image.inodes[b"top"], b"many"))
        require_error(lambda: volume.remove_directory(ROOT_INODE, b"many"), errno.ENOTEMPTY)
        gone = sorted(every)[:10]
        for name in gone:
            volume.unlink(many, name)
        volume.rename(many, sorted(every)[10], ROOT_INODE, b"moved")
        volume.sync()
        assert names_of(volume, many) == {*every, b".", b".."} - {*gone, sorted(every)[10]}
        assert sum("index of directory" in record.message for record in caplog.records) == 1


def test_the_index_flag_of_a_directory_that_has_none(sample: SampleImage) -> None:
    flags = int.from_bytes(sample.good[sample.offsets[b"sub"] + 0x20 :][:4], "little")
    with opened(sample.with_inode(b"sub", 0x20, 4, flags | 0x1000)) as volume:
        sub = sample.inodes[b"sub"]
        assert names_of(volume, sub) == {b".", b"..", b"deep"}
        assert volume.lookup(sub, b"deep").inode == sample.inodes[b"deep"]
        require_error(lambda: volume.remove_directory(sample.inodes[b"top"], b"sub"), errno.ENOTEMPTY)


# Anything.


@pytest.mark.parametrize("chunk", range(4))
def test_any_damage(any_image: SampleImage, chunk: int) -> None:
    """Each operation answers, or raises OSError; looking never ends the writing."""
    for case in range(CASES // 4):
        seed = f"{session_seed()}-{chunk}-{case}"
        rng = random.Random(seed)
        image, what = any_image.damaged(rng)
        for read_only in (True, False):
            try:
                survive(image, any_image, rng, read_only=read_only)
            except Exception as error:
                if isinstance(error, OSError) and error.errno:
                    continue
                raise AssertionError(f"seed {seed}, {what}, read_only={read_only}") from error


def survive(image: bytes, sample: SampleImage, rng: random.Random, *, read_only: bool) -> None:
    volume = Volume.open(memory_device(image), read_only=read_only)
    look(volume)
    if not read_only:
        assert not volume.read_only, "looking ended the writing"
        for _ in range(4):
            change(volume, sample, rng)
        look(volume)
    volume.close()


def tried(action: Callable[..., R], *arguments: object, **named: object) -> R | None:
    try:
        return action(*arguments, **named)
    except OSError as error:
        if not error.errno:
            raise
        return None


def look(volume: Volume) -> None:
    todo, seen = [ROOT_INODE], {ROOT_INODE}
    while todo:
        directory = todo.pop()
        with contextlib.suppress(OSError):
            for entry in volume.list_directory(directory):
                look_at(volume, directory, entry.name, entry.inode)
                if entry.inode not in seen and len(seen) < 500:
                    seen.add(entry.inode)
                    todo.append(entry.inode)
    figures = volume.statistics()
    assert 0 <= figures.blocks_free <= figures.blocks < 2**48
    assert 0 <= figures.blocks_available <= figures.blocks
    assert 0 <= figures.inodes_free <= 2**32


def look_at(volume: Volume, directory: int, name: bytes, inode: int) -> None:
    about = tried(volume.attributes, inode)
    if about is not None:
        assert max(about.size_bytes, about.blocks) < 2**63
        assert all(abs(time) < 2**63 for time in (about.atime_ns // 10**9, about.mtime_ns // 10**9))
    tried(volume.lookup, directory, name)
    for attribute in tried(volume.list_xattrs, inode) or []:
        tried(volume.get_xattr, inode, attribute)
    for offset in (0, 1 << 40):
        tried(volume.read, inode, offset, 1 << 16)
    tried(volume.find_data, inode, 0)
    tried(volume.read_symlink, inode)


def change(volume: Volume, sample: SampleImage, rng: random.Random) -> None:
    directories = [sample.inodes[name] for name in (b"/", b"top", b"many", b"sub")]
    names = [*list(sample.inodes)[1:], b"name-%d-%s" % (rng.randrange(MANY), b"l" * 40)]
    directory, other = rng.choice(directories), rng.choice(directories)
    inode = rng.choice(list(sample.inodes.values()))
    number = b"%d" % rng.getrandbits(32)
    made = tried(volume.make_node, directory, b"new-" + number, stat.S_IFREG | 0o644, 0, 0)
    if made is not None:
        tried(volume.write, made.inode, 0, b"z" * 3000)
    tried(volume.make_directory, directory, b"dir-" + number, 0o755, 0, 0)
    tried(volume.unlink, directory, rng.choice(names))
    tried(volume.remove_directory, directory, b"sub")
    tried(volume.rename, directory, rng.choice(names), other, b"moved-" + number)
    tried(volume.link, inode, other, b"link-" + number)
    tried(volume.write, inode, rng.choice([0, 1000, 2**31, 2**40]), b"w" * 2000)
    tried(volume.set_attributes, inode, size_bytes=rng.choice([0, 100, 2**33, 2**62]))
    tried(volume.set_attributes, inode, mode=0o640, mtime_ns=rng.choice([0, -(2**70), 2**80]))
    tried(volume.set_xattr, inode, b"user.new", b"q" * rng.choice([1, 300, 900]))
    tried(volume.remove_xattr, inode, b"user.large")
    tried(volume.trim)
    tried(volume.sync)
