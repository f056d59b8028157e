"""The mark of a volume that is in use: cowfs writes it into the superblock itself, where nothing else may change."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cowfs.blockdev import FileDevice
from cowfs.ext4.format import layout
from cowfs.ext4.format.checksums import crc32c
from cowfs.ext4.library.filesystem import Filesystem
from cowfs.ext4.tools import commands as tools
from cowfs.ext4.volume import Volume
from tests.ext4.conftest import FEATURE_SETS, Clock, Image, make_file, names

CHECKSUM = 0x3FC
STATE = 0x3A
INCOMPAT = 0x60
MOUNT_COUNT = 0x34


def superblock(image: Image) -> bytes:
    with image.path.open("rb") as file:
        file.seek(layout.SUPERBLOCK_OFFSET)
        return file.read(layout.SUPERBLOCK_BYTES)


def number(raw: bytes, offset: int, form: str = "<H") -> int:
    value: int = struct.unpack_from(form, raw, offset)[0]
    return value


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bytes]]:
    """The superblock on the device before each mark, and after it."""
    found = []
    mark_in_use = Filesystem.mark_in_use

    def mark(self: Filesystem) -> None:
        before = self.device.pread(layout.SUPERBLOCK_OFFSET, layout.SUPERBLOCK_BYTES)
        mark_in_use(self)
        after = self.device.pread(layout.SUPERBLOCK_OFFSET, layout.SUPERBLOCK_BYTES)
        if after != before:
            found.append((bytes(before), bytes(after)))

    monkeypatch.setattr(Filesystem, "mark_in_use", mark)
    return found


@pytest.mark.parametrize("journaled", [True, False])
def test_a_mark_is_all_that_is_written(any_image: Image, marks: list[tuple[bytes, bytes]], journaled: bool) -> None:
    volume = any_image.open(journaled=journaled)
    is_replayed = volume._fs.is_journaled
    make_file(volume, b"file")
    volume.sync()
    (before, after), *more = marks
    assert not more
    allowed = {INCOMPAT} if is_replayed else {STATE}
    if volume._fs.has_metadata_csum:
        allowed |= set(range(CHECKSUM, CHECKSUM + 4))
        assert number(after, CHECKSUM, "<I") == crc32c(0xFFFFFFFF, after[:CHECKSUM])
    assert {offset for offset in range(len(after)) if after[offset] != before[offset]} <= allowed
    assert bool(number(after, INCOMPAT, "<I") & layout.INCOMPAT_RECOVER) == is_replayed
    assert bool(number(after, STATE) & layout.STATE_VALID) == is_replayed


@pytest.mark.parametrize("features", ["default", "no-checksums"])
@pytest.mark.parametrize("journaled", [True, False])
@pytest.mark.parametrize("count", [0, 0x7FFE, 0x7FFF, 0xFFFE, 0xFFFF])
def test_the_count_of_mounts_begins_anew_after_its_last(
    make_image: Callable[..., Image], tmp_path: Path, features: str, journaled: bool, count: int
) -> None:
    """At each of the 65 536 counts a volume can be used, is clean afterwards, and after a crash of the process."""
    image = make_image(options=FEATURE_SETS[features])
    tools.run("debugfs", ["-w", "-R", f"set_super_value mnt_count {count}", str(image.path)])
    assert number(superblock(image), MOUNT_COUNT) == count
    volume = image.open(journaled=journaled)
    make_file(volume, b"file")
    volume.sync()
    assert number(superblock(image), MOUNT_COUNT) in (count, (count + 1) % 0x10000)
    crashed = tmp_path / "crashed.img"
    shutil.copyfile(image.path, crashed)
    image.close()
    image.require_clean()
    assert number(superblock(image), MOUNT_COUNT) == (count + 1) % 0x10000

    if not journaled:
        assert tools.run("e2fsck", ["-fp", str(crashed)])[0] in (0, 1)
    with closing(FileDevice(crashed)) as device:
        volume = Volume.open(device, now_ns=Clock())
        assert names(volume) == {b"file"}
        volume.close()
    status, output = tools.run("e2fsck", ["-fn", str(crashed)])
    assert status == 0, output
