"""File contents: holes, cutting, growing, running out of space, and unwritten extents."""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from cowfs.blockdev import FileDevice
from cowfs.ext4.tools import commands as tools
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE
from tests.ext4.conftest import MIB, Image, make_file


def test_written_data_is_what_debugfs_reads(image: Image, tmp_path: Path, rng: random.Random) -> None:
    volume = image.volume
    content = rng.randbytes(5 * MIB + 321)
    inode = make_file(volume, b"f")
    for offset in range(0, len(content), 100_000):
        volume.write(inode, offset, content[offset : offset + 100_000])
    assert volume.read(inode, 0, 10 * MIB) == content
    assert volume.read(inode, 4_999_999, 17) == content[4_999_999 : 4_999_999 + 17]
    assert volume.read(inode, len(content), 10) == b""
    assert volume.read(inode, len(content) - 3, 10) == content[-3:]
    image.close()
    assert image.dump("f", tmp_path / "dump") == content


def test_holes_read_as_zeros(image: Image) -> None:
    volume = image.volume
    inode = make_file(volume, b"f")
    volume.write(inode, 100_000, b"middle")
    volume.write(inode, 1_000_000, b"end")
    expected = bytearray(1_000_003)
    expected[100_000:100_006] = b"middle"
    expected[1_000_000:] = b"end"
    assert volume.read(inode, 0, 2_000_000) == expected
    assert volume.attributes(inode).blocks == 2 * 8
    volume.write(inode, 99_000, b"x" * 3000)
    expected[99_000:102_000] = b"x" * 3000
    assert image.reopen().read(inode, 0, 2_000_000) == expected


def test_what_was_cut_off_does_not_come_back(volume: Volume) -> None:
    inode = make_file(volume, b"f", b"x" * 10_000)
    volume.set_attributes(inode, size_bytes=5000)
    volume.set_attributes(inode, size_bytes=10_000)
    assert volume.read(inode, 0, 10_000) == b"x" * 5000 + bytes(5000)
    volume.set_attributes(inode, size_bytes=100)
    volume.write(inode, 8000, b"y")
    assert volume.read(inode, 0, 10_000) == b"x" * 100 + bytes(7900) + b"y"


def test_reused_blocks_show_nothing_of_the_past(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """New blocks that are written only in part are zero elsewhere, whatever they held before."""

    def refuse(_self: FileDevice, _offset: int, _length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(FileDevice, "discard", refuse)
    volume = image.volume
    inode = make_file(volume, b"old")

    def fill() -> None:
        for offset in itertools.count(0, MIB):
            volume.write(inode, offset, b"\xee" * MIB)

    with pytest.raises(OSError, match="No space left"):
        fill()
    volume.unlink(ROOT_INODE, b"old")
    volume.sync()
    inode = make_file(volume, b"new")
    for number in range(2000):
        volume.write(inode, number * 8192 + 1000, b"z")
    for number in range(2000):
        assert volume.read(inode, number * 8192, 8192).strip(b"\0") == b"z"


def test_files_over_four_gib(make_image: Callable[..., Image]) -> None:
    image = make_image(size_bytes=64 * MIB)
    volume = image.volume
    inode = make_file(volume, b"f")
    for offset in (0, 2**31 - 2, 2**32 - 3, 5 * 2**30, 2**43):
        volume.write(inode, offset, b"12345")
    assert volume.attributes(inode).size_bytes == 2**43 + 5
    volume = image.reopen()
    for offset in (0, 2**31 - 2, 2**32 - 3, 5 * 2**30, 2**43):
        assert volume.read(inode, offset, 5) == b"12345"
    with pytest.raises(OSError) as caught:
        volume.write(inode, 2**44 - 4, b"12345")
    assert caught.value.errno == errno.EFBIG
    with pytest.raises(OSError) as caught:
        volume.set_attributes(inode, size_bytes=2**44)
    assert caught.value.errno == errno.EFBIG


def test_a_fragmented_file_gets_a_deep_tree(make_image: Callable[..., Image], tmp_path: Path) -> None:
    """Every other block of a long range, in an order that nothing can merge; then the gaps; then cut."""
    image = make_image(options=["-b", "1024"])
    volume = image.volume
    inode = make_file(volume, b"f")
    order = list(range(0, 12_000, 2))
    random.Random(5).shuffle(order)
    for number in order:
        volume.write(inode, number * 1024, b"%010d" % number)
    volume = image.reopen()
    image.close()
    assert "2/ 2" in image.debugfs("dump_extents f")
    image.require_clean()
    volume = image.open()
    for number in order[:500]:
        assert volume.read(inode, number * 1024, 10) == b"%010d" % number
    for number in range(1, 12_000, 2):
        volume.write(inode, number * 1024, b"%010d" % number)
    content = image.reopen().read(inode, 0, 12_000 * 1024)
    image.close()
    assert image.dump("f", tmp_path / "dump") == content
    image.require_clean()
    volume = image.open()
    volume.set_attributes(inode, size_bytes=1024 * 3000 + 5)
    assert image.reopen().read(inode, 0, 12_000 * 1024) == content[: 1024 * 3000 + 5]


def full(function: Callable[..., object], *arguments: object) -> bool:
    """Call; whether there was no space for it."""
    try:
        function(*arguments)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return True
    return False


def append_until_full(volume: Volume, inode: int, piece: bytes) -> int:
    """Write pieces to the end of a file until one does not fit; returns its size."""
    offset = volume.attributes(inode).size_bytes
    while not full(volume.write, inode, offset, piece):
        offset += len(piece)
    return offset


def test_full_volume(make_image: Callable[..., Image]) -> None:
    image = make_image(size_bytes=16 * MIB)
    volume = image.volume
    inode = make_file(volume, b"f")
    whole = append_until_full(volume, inode, b"x" * MIB)
    assert volume.attributes(inode).size_bytes == whole
    append_until_full(volume, inode, b"x" * 4096)
    assert volume.statistics().blocks_free < 3
    volume.write(inode, 0, b"y" * MIB)  # overwriting needs nothing
    for number in range(10_000):
        if full(make_file, volume, b"%0200d" % number):
            break
    else:
        pytest.fail("the directory grew without blocks")
    image.reopen()
    image.close()
    image.require_clean()
    volume = image.open()
    volume.unlink(ROOT_INODE, b"f")
    inode = make_file(volume, b"g", b"z" * MIB)  # takes what waits for the next sync
    assert volume.read(inode, 0, MIB) == b"z" * MIB


def test_fragmented_full_volume(make_image: Callable[..., Image]) -> None:
    """Running out of blocks for the extent tree in the middle of a write."""
    image = make_image(size_bytes=8 * MIB, options=["-b", "1024", "-O", "^has_journal"])
    volume = image.volume
    filler, inode = make_file(volume, b"filler"), make_file(volume, b"f")
    written = {}
    for number in itertools.count():
        content = b"%01024d" % number
        if full(volume.write, filler, number * 1024, b"a" * 1024) or full(volume.write, inode, number * 2048, content):
            break
        written[number * 2048] = content
    assert len(written) > 1000
    volume = image.reopen()
    for offset, content in written.items():
        assert volume.read(inode, offset, 1024) == content


def test_no_place_is_long_enough_and_the_last_blocks_are_used(make_image: Callable[..., Image]) -> None:
    """A large write fills many holes."""
    image = make_image(size_bytes=8 * MIB, options=["-b", "1024", "-O", "^has_journal"])
    volume = image.volume
    names = [b"f%d" % number for number in range(1, 2000)]
    for name in names:
        make_file(volume, name, b"x" * 3072)
    append_until_full(volume, make_file(volume, b"rest"), b"y" * 1024)
    for name in names[::2]:
        volume.unlink(ROOT_INODE, name)
    volume.sync()
    inode = make_file(volume, b"large", b"z" * 100_000)
    assert volume.read(inode, 0, 100_000) == b"z" * 100_000
    assert full(volume.write, inode, 100_000, b"z" * 8 * MIB)
    end = append_until_full(volume, inode, b"z" * 10_000)
    assert end > 2 * MIB
    assert image.reopen().read(inode, 0, end) == b"z" * end


def test_no_inodes_left(make_image: Callable[..., Image]) -> None:
    image = make_image(size_bytes=16 * MIB, options=["-N", "32"])
    volume = image.volume
    assert any(full(make_file, volume, b"f%d" % number) for number in range(100))
    volume.unlink(ROOT_INODE, b"f0")
    make_file(volume, b"again")


def test_unwritten_extents(image: Image) -> None:
    """What fallocate reserves reads as zeros, and turns into data block by block."""
    inode = make_file(image.volume, b"f", b"x" * 4096 * 20)
    image.close()
    status, output = tools.run("debugfs", ["-w", "-R", "punch f 4 15", str(image.path)])
    assert status == 0, output
    status, output = tools.run("debugfs", ["-w", "-R", "fallocate f 2 40", str(image.path)])
    assert status == 0, output
    assert "Uninit" in image.debugfs("dump_extents f")
    volume = image.open()
    expected = bytearray(b"x" * 4096 * 4 + bytes(4096 * 12) + b"x" * 4096 * 4)
    assert volume.read(inode, 0, 10**6) == expected
    volume.write(inode, 4096 * 6 + 100, b"y" * 5000)
    expected[4096 * 6 + 100 : 4096 * 6 + 5100] = b"y" * 5000
    assert volume.read(inode, 0, 10**6) == expected
    volume.write(inode, 4096 * 25 + 10, b"z")
    expected += bytes(4096 * 5 + 10) + b"z"
    assert volume.read(inode, 0, 10**6) == expected
    assert image.reopen().read(inode, 0, 10**6) == expected
    image.close()
    image.require_clean()
    volume = image.open()
    volume.set_attributes(inode, size_bytes=len(expected))
    assert volume.attributes(inode).blocks == 26 * 8 + 8  # and a block of the extent tree


def test_writing_many_files_in_turn(image: Image, rng: random.Random) -> None:
    volume = image.volume
    inodes = [make_file(volume, b"f%d" % number) for number in range(8)]
    contents = [bytearray() for _ in inodes]
    for _ in range(300):
        which = rng.randrange(8)
        piece = rng.randbytes(rng.randrange(1, 20_000))
        volume.write(inodes[which], len(contents[which]), piece)
        contents[which] += piece
    volume = image.reopen()
    for inode, content in zip(inodes, contents, strict=True):
        assert volume.read(inode, 0, 10 * MIB) == content


def test_runs_across_block_groups(make_image: Callable[..., Image]) -> None:
    """Groups of 8 MiB: taking and freeing runs that reach into several of them changes all their bitmaps."""
    image = make_image(options=["-b", "1024"])
    volume = image.volume
    inode = make_file(volume, b"f", b"x" * 30 * MIB)
    image.reopen()
    image.close()
    image.require_clean()
    volume = image.open()
    make_file(volume, b"g", b"y" * 10 * MIB)
    volume.unlink(ROOT_INODE, b"f")
    image.reopen()
    image.close()
    image.require_clean()
    volume = image.open()
    with pytest.raises(OSError):
        volume.attributes(inode)
    volume.set_attributes(volume.lookup(ROOT_INODE, b"g").inode, size_bytes=3)


def test_any_buffer_can_be_written(volume: Volume) -> None:
    inode = make_file(volume, b"f")
    volume.write(inode, 0, bytearray(b"one"))
    volume.write(inode, 3, memoryview(b"two"))
    assert volume.write(inode, 6, b"") == 0
    assert volume.read(inode, 0, 99) == b"onetwo"
    with pytest.raises(OSError) as caught:
        volume.read(ROOT_INODE, 0, 1)
    assert caught.value.errno == errno.EISDIR


def test_freed_space_is_discarded_after_the_sync(image: Image) -> None:
    volume = image.volume
    inode = make_file(volume, b"f", os.urandom(8 * MIB))
    volume.sync()
    used = os.stat(image.path).st_blocks * 512
    volume.unlink(ROOT_INODE, b"f")
    assert os.stat(image.path).st_blocks * 512 == used
    volume.sync()
    assert os.stat(image.path).st_blocks * 512 <= used - 8 * MIB + (64 << 10)  # the journal takes a little
    volume.quiesce()
    assert os.stat(image.path).st_blocks * 512 <= used - 8 * MIB
    inode = make_file(volume, b"g", os.urandom(MIB))
    volume.sync()
    assert volume.trim() == volume.statistics().blocks_free * 4096
    assert len(volume.read(inode, 0, MIB).strip(b"\0")) > MIB // 2
