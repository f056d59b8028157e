"""Bitmaps and group descriptors that are wrong: what lies in such a group stays as it is, and the rest works on."""

from __future__ import annotations

import contextlib
import errno
import logging
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from cowfs.blockdev import FileDevice
from cowfs.errors import FilesystemError
from cowfs.ext4.library.filesystem import Filesystem
from cowfs.ext4.tools import fsck
from cowfs.ext4.tools.growth import grow_filesystem
from cowfs.filetree import ROOT_INODE
from tests.ext4.conftest import MIB, Image, make_file, names

# Groups of 8 MiB. With and without checksums, and with metadata in its own group or all in the first one.
KINDS = {
    "checksums": [],
    "no-checksums": ["-O", "^metadata_csum,^uninit_bg"],
    "uninit_bg": ["-O", "^metadata_csum,uninit_bg"],
    "apart": ["-O", "^flex_bg,^metadata_csum"],
}
FILES = 60


def content(number: int) -> bytes:
    return bytes([number]) * 60_000


@pytest.fixture(params=list(KINDS))
def filled(request: pytest.FixtureRequest, make_image: Callable[..., Image]) -> Image:
    """Four groups; the first one is nearly full of files, the third and fourth are empty."""
    image = make_image(size_bytes=32 * MIB, options=["-b", "1024", "-N", "1024", *KINDS[request.param]])
    for number in range(FILES):
        make_file(image.volume, b"f%d" % number, content(number))
    image.close()
    return image


@contextmanager
def looked_at(image: Image) -> Iterator[Filesystem]:
    with closing(FileDevice(image.path, read_only=True)) as device:
        fs = Filesystem(device, read_only=True, now_ns=lambda: 0)
        try:
            yield fs
        finally:
            fs.free()


def wipe_block(image: Image, block: int) -> None:
    with closing(FileDevice(image.path)) as device:
        device.pwrite(block * 1024, bytes(1024))


def wipe_block_bitmap(image: Image, group: int) -> None:
    with looked_at(image) as fs:
        block = fs.descriptors.block_bitmap(group)
    wipe_block(image, block)


def wipe_inode_bitmap(image: Image, group: int) -> None:
    with looked_at(image) as fs:
        block = fs.descriptors.inode_bitmap(group)
    wipe_block(image, block)


def require_files(image: Image) -> None:
    """What was there is there, as it was; and once more after a repair."""
    for _ in range(2):
        image.close()
        volume = image.open(read_only=True)
        for number in range(FILES):
            with contextlib.suppress(FileNotFoundError):
                found = volume.lookup(ROOT_INODE, b"f%d" % number)
                assert volume.read(found.inode, 0, MIB) == content(number), number
        image.close()
        with closing(FileDevice(image.path)) as device:
            assert fsck.check_volume(device, repair=True).usable


def test_a_bad_block_bitmap_is_left_alone(
    filled: Image, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    wipe_block_bitmap(filled, 0)
    volume = filled.open()
    big = make_file(volume, b"big", b"B" * 15 * MIB)
    for number in range(0, FILES, 2):
        volume.unlink(ROOT_INODE, b"f%d" % number)
    volume.sync()
    volume.trim()
    assert volume.read(big, 0, 16 * MIB) == b"B" * 15 * MIB
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1, warnings
    assert "block bitmap of group 0" in warnings[0]
    assert capfd.readouterr().err == ""
    require_files(filled)
    assert names(filled.volume) == {b"big", *(b"f%d" % number for number in range(1, FILES, 2))}
    assert filled.volume.read(big, 0, 16 * MIB) == b"B" * 15 * MIB


def test_the_next_mount_checks_what_was_found(filled: Image) -> None:
    wipe_block_bitmap(filled, 0)
    make_file(filled.volume, b"new", b"x" * MIB)
    filled.close()
    with pytest.raises(FilesystemError) as caught:
        filled.open()
    assert caught.value.errno == errno.EUCLEAN
    assert filled.device is not None
    assert fsck.prepare_for_mount(filled.device) is not None
    filled.close()
    assert b"new" in names(filled.open())


@pytest.mark.parametrize("group", range(4))
def test_a_trim_of_groups_with_bad_bitmaps(filled: Image, group: int) -> None:
    wipe_block_bitmap(filled, group)
    filled.volume.trim()
    require_files(filled)


def test_counts_leave_out_a_bad_group(filled: Image) -> None:
    before = filled.volume.statistics()
    filled.close()
    wipe_block_bitmap(filled, 0)
    volume = filled.open()
    assert volume.statistics() == before
    volume.trim()
    after = volume.statistics()
    assert 0 < after.blocks_free <= before.blocks_free
    with pytest.raises(OSError) as caught:
        make_file(volume, b"much", bytes(64 * MIB))
    assert caught.value.errno == errno.ENOSPC
    while volume.statistics().blocks_free > 300:
        make_file(volume, b"much-%d" % volume.statistics().blocks_free, bytes(200_000))
    require_files(filled)


def test_a_bitmap_that_calls_used_blocks_free(filled: Image) -> None:
    """One that marks the metadata, and not the files: its count gives it away, or its checksum."""
    with looked_at(filled) as fs:
        block, system = fs.descriptors.block_bitmap(0), fs.descriptors.system_blocks.bits(1, 8192)
    with closing(FileDevice(filled.path)) as device:
        device.pwrite(block * 1024, system.to_bytes(1024, "little"))
    make_file(filled.volume, b"big", b"B" * 12 * MIB)
    filled.volume.trim()
    require_files(filled)


@pytest.mark.parametrize("group", [0, 1])
def test_a_bad_inode_bitmap_hands_out_no_inode_in_use(
    filled: Image, group: int, caplog: pytest.LogCaptureFixture
) -> None:
    directory = 0
    while not 257 <= directory <= 512:  # an inode of the second group: the first one has no free inode
        directory = filled.volume.make_directory(ROOT_INODE, b"d%d" % directory, 0o755, 0, 0).inode
    inside = make_file(filled.volume, b"inside", b"I" * 5000, directory)
    filled.close()
    wipe_inode_bitmap(filled, group)
    volume = filled.open()
    for number in range(100):
        make_file(volume, b"new%d" % number, b"N" * 3000, directory)
    volume.unlink(ROOT_INODE, b"f1")
    volume.unlink(directory, b"inside" if group == 1 else b"new1")
    assert sum(record.levelno >= logging.WARNING for record in caplog.records) == 1
    assert volume.statistics().inodes_free < 1024 - 350
    if group == 0:
        assert volume.read(inside, 0, 9999) == b"I" * 5000
    require_files(filled)
    assert len(names(filled.volume, directory)) == 100


def test_an_inode_with_links_is_not_handed_out(make_image: Callable[..., Image]) -> None:
    """The bitmap and the count agree, so only the inode itself shows it."""
    image = make_image(options=KINDS["no-checksums"])
    for number in range(FILES):
        make_file(image.volume, b"f%d" % number, content(number))
    victim = image.volume.lookup(ROOT_INODE, b"f7").inode
    image.close()
    with looked_at(image) as fs:
        offset = fs.descriptors.inode_bitmap(0) * fs.block_bytes + (victim - 1) // 8
        count_offset = fs.block_bytes + 0x0E
        free = fs.descriptors.free_inodes(0)
    with closing(FileDevice(image.path)) as device:
        device.pwrite(offset, bytes([device.pread(offset, 1)[0] & ~(1 << (victim - 1) % 8)]))
        device.pwrite(count_offset, struct.pack("<H", free + 1))
    with pytest.raises(OSError) as caught:
        make_file(image.volume, b"new")
    assert caught.value.errno == errno.ENOSPC  # there is only this group
    require_files(image)


def test_many_bad_bitmaps_are_one_warning(filled: Image, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with looked_at(filled) as fs:
        groups = [group for group in range(fs.groups) if not fs.descriptors.has_unused_blocks(group)]
    for group in groups:
        wipe_block_bitmap(filled, group)
    filled.open().trim()
    levels = [record.levelno for record in caplog.records if "block bitmap of group" in record.message]
    assert levels == [logging.WARNING] + [logging.INFO] * (len(groups) - 1)
    require_files(filled)


def test_blocks_in_use_that_a_bitmap_calls_free(
    make_image: Callable[..., Image], caplog: pytest.LogCaptureFixture
) -> None:
    image = make_image(options=KINDS["no-checksums"])
    for number in range(FILES):
        make_file(image.volume, b"f%d" % number, content(number))
    block = image.volume.data_segments(image.volume.lookup(ROOT_INODE, b"f7").inode)[0].physical
    image.close()
    with looked_at(image) as fs:
        offset = fs.descriptors.block_bitmap(0) * fs.block_bytes + block // 8
        count_offset = fs.block_bytes + 0x0C
        free = fs.descriptors.free_blocks(0)
    with closing(FileDevice(image.path)) as device:
        device.pwrite(offset, bytes([device.pread(offset, 1)[0] & ~(1 << block % 8)]))
        device.pwrite(count_offset, struct.pack("<H", free + 1))
    volume = image.open()
    volume.unlink(ROOT_INODE, b"f7")
    volume.sync()
    assert [record for record in caplog.records if f"calls block {block} free" in record.message]
    require_files(image)


# Descriptors.

DESCRIPTOR_DAMAGE: dict[str, tuple[int, int]] = {
    "block bitmap outside": (0x00, 0x7FFFFFFF),
    "inode bitmap outside": (0x04, 0xFFFFFFFF),
    "inode table outside": (0x08, 32 * 1024 - 3),
    "block bitmap on the superblock": (0x00, 1),
    "inode bitmap on the descriptors": (0x04, 2),
    "block bitmap at 0": (0x00, 0),
    "block bitmap in an inode table": (0x00, -1),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DESCRIPTOR_DAMAGE)
def test_pointers_to_wrong_places_are_refused(make_image: Callable[..., Image], kind: str, damage: str) -> None:
    image = make_image(size_bytes=32 * MIB, options=["-b", "1024", "-N", "1024", *KINDS[kind]])
    make_file(image.volume, b"f", b"x" * MIB)
    image.close()
    good = image.path.read_bytes()
    field, value = DESCRIPTOR_DAMAGE[damage]
    with looked_at(image) as fs:
        value = fs.descriptors.inode_table(1) + 1 if value < 0 else value
    with closing(FileDevice(image.path)) as device:
        device.pwrite(2048 + field, struct.pack("<I", value))
    damaged = image.path.read_bytes()
    with pytest.raises(FilesystemError) as caught:
        image.open()
    assert caught.value.errno == errno.EUCLEAN
    image.close()
    assert image.path.read_bytes() == damaged
    with contextlib.suppress(OSError), closing(image.open(read_only=True)) as volume:
        assert volume.statistics().blocks > 0
    image.volume_or_none = None
    image.close()
    image.path.write_bytes(good)


@pytest.mark.parametrize("kind", ["checksums", "uninit_bg"])
def test_a_descriptor_with_a_wrong_checksum_is_refused(make_image: Callable[..., Image], kind: str) -> None:
    image = make_image(size_bytes=32 * MIB, options=["-b", "1024", *KINDS[kind]])
    good = image.path.read_bytes()
    with closing(FileDevice(image.path)) as device:
        device.pwrite(2048 + 0x0C, struct.pack("<H", 77))
    with pytest.raises(FilesystemError, match="descriptor of group 0 has a wrong checksum"):
        image.open()
    image.close()
    image.path.write_bytes(good)


def test_a_file_that_claims_metadata_is_not_written(make_image: Callable[..., Image]) -> None:
    image = make_image(options=["-O", "^metadata_csum"])
    inode = make_file(image.volume, b"f", b"x" * 4096)
    other = make_file(image.volume, b"g", b"y" * 4096)
    image.close()
    with looked_at(image) as fs:
        table = fs.descriptors.inode_table(0)
        offset = table * fs.block_bytes + (inode - 1) * fs.inode_bytes + 0x28 + 20
    good = image.path.read_bytes()
    with closing(FileDevice(image.path)) as device:
        device.pwrite(offset, struct.pack("<I", table))
    volume = image.open()
    for attempt in (lambda: volume.write(inode, 0, b"z"), lambda: volume.unlink(ROOT_INODE, b"f")):
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == errno.EUCLEAN
    assert volume.read(other, 0, 9) == b"y" * 9
    assert not volume.read_only
    image.close()
    image.path.write_bytes(good)


# Growth.


def test_growth_repairs_bad_bitmaps_first(filled: Image) -> None:
    wipe_block_bitmap(filled, 0)
    wipe_inode_bitmap(filled, 1)
    with filled.path.open("r+b") as file:
        file.truncate(48 * MIB)
    with closing(FileDevice(filled.path)) as device:
        assert grow_filesystem(device)
    filled.require_clean()
    for number in range(FILES):
        found = filled.volume.lookup(ROOT_INODE, b"f%d" % number)
        assert filled.volume.read(found.inode, 0, MIB) == content(number)


# The library.


def test_the_library_says_nothing_on_standard_error(image: Image, capfd: pytest.CaptureFixture[str]) -> None:
    """It complains about a block that does not exist; the reader of standard error looks for our lines."""
    fs = image.volume._fs
    fs.c.ext2fs_block_alloc_stats_range(fs.fs, fs.blocks + 5, 1, 1)
    assert capfd.readouterr().err == ""


def test_new_groups_of_inodes_are_begun(make_image: Callable[..., Image]) -> None:
    """Groups whose bitmaps were never written, each in turn."""
    image = make_image(size_bytes=32 * MIB, options=["-b", "1024", "-N", "256"])
    for number in range(240):
        make_file(image.volume, b"f%d" % number, b"x" * 2000)
    image.reopen()
    assert len(names(image.volume)) == 240
    made = 240
    with contextlib.suppress(OSError):
        while True:
            make_file(image.volume, b"f%d" % made)
            made += 1
    assert made == 256 - 11


def test_a_run_of_free_blocks_across_groups(make_image: Callable[..., Image]) -> None:
    image = make_image(size_bytes=32 * MIB, options=["-b", "1024", "-O", "^has_journal", "-G", "8"])
    inode = make_file(image.volume, b"f", b"x" * 20 * MIB)
    assert len(image.volume.data_segments(inode)) <= 3
