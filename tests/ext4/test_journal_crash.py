"""Power cuts at every moment of random operations: each is there or not, what was synced is there, e2fsck agrees."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cowfs.ext4.journal import journal
from cowfs.ext4.journal.journal_format import INCOMPAT_FAST_COMMIT
from cowfs.ext4.journal.recovery import needs_recovery
from cowfs.ext4.library import metadata_cache
from cowfs.ext4.tools.fsck import needs_check
from cowfs.ext4.volume import Volume
from cowfs.faults.disk import FaultyDevice
from cowfs.filetree import ROOT_INODE
from cowfs.recording.journal import Journal, RecordingDevice
from cowfs.testing.blockdev import memory_device
from tests.conftest import session_seed
from tests.ext4.conftest import FEATURE_SETS, MIB, Image, make_file, names
from tests.ext4.crash_world import CrashWorld, fsck, make_image, read_state

WIDTH = int(os.environ.get("COWFS_TEST_CRASHES", "1"))  # how many times as many seeds and crash points

SMALL_BLOCKS = ["-b", "1024"]


@pytest.mark.parametrize("case", ["", "small transactions", "faults"])
@pytest.mark.parametrize("features", ["1k-blocks", "no-checksums", "no-extents-1k", "default"])
@pytest.mark.parametrize("number", range(WIDTH))
def test_power_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: str, number: int, case: str) -> None:
    """Also where operations are committed before a sync is asked for, and where the disk fails now and then."""
    monkeypatch.setattr(journal, "_LOG_BYTES", 128 << 10)  # so that the log begins anew now and then
    if case == "small transactions":
        monkeypatch.setattr(journal, "_TRANSACTION_BYTES", 20 << 10)
    options = FEATURE_SETS[features]
    size = 4 * MIB if "1024" in options else 16 * MIB
    blocks = [] if "-b" in options else ["-b", "4096"]
    image = make_image(tmp_path / "volume.img", [*blocks, *options], size)
    world = CrashWorld(image, f"{session_seed()} {features} {number} {case}", has_faults=case == "faults")
    world.run(200)
    every = max(len(world.journal.entries) // (60 * WIDTH), 1)
    for index, (what, position, crashed) in enumerate(world.crashes(every=every)):
        judge(world, what, position, crashed, tmp_path, thoroughly=index % 9 == 0)


def test_blocks_that_the_library_frees_are_not_used_before_the_commit(image: Image) -> None:
    """The attribute block of a file that is removed, and the next write, which would take the first free block."""
    volume = image.volume
    inode = make_file(volume, b"f")
    volume.set_xattr(inode, b"user.x", b"v" * 3000)
    volume.sync()
    block = volume._inodes.get(inode).raw.i_file_acl
    assert block
    volume.unlink(ROOT_INODE, b"f")
    for name in (b"g", b"h"):
        volume._allocator._cursor = block
        other = make_file(volume, name, b"x" * 4096)
        assert volume.data_segments(other)[0].physical != block
        assert crashed(image).get_xattr(inode, b"user.x") == b"v" * 3000
    volume.sync()
    volume._allocator._cursor = block
    other = make_file(volume, b"i", b"y" * 4096)
    assert volume.data_segments(other)[0].physical == block
    volume.sync()
    assert crashed(image).read(other, 0, 4096) == b"y" * 4096
    assert names(crashed(image)) == {b"g", b"h", b"i"}


def test_a_freed_block_that_gets_the_same_content_again(
    make_image: Callable[..., Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block of pointers comes to its place in the commit that frees it, is discarded, and is needed as it was."""
    monkeypatch.setattr(journal, "_LOG_BYTES", 16 << 10)
    image = make_image(options=FEATURE_SETS["no-extents-1k"])
    volume = image.volume
    pointers = []
    for content in (b"1", b"2", b"3"):
        volume._allocator._cursor = 0
        inode = make_file(volume, b"f", content * 20_000)
        pointers.append((volume.data_segments(inode), volume._inodes.get(inode).nodes))
        volume.sync()
        assert crashed(image).read(inode, 0, 20_000) == content * 20_000
        volume.unlink(ROOT_INODE, b"f")
        volume.sync()
    assert pointers[0] == pointers[1]


def test_a_transaction_that_does_not_fit_is_written_without_the_journal(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the volume is marked for a check, as one without a journal is, until it is clean the next time."""
    volume = image.volume
    make_file(volume, b"first", b"1" * 5000)
    volume.sync()
    assert crashed(image).lookup(ROOT_INODE, b"first")
    with monkeypatch.context() as small:
        small.setattr(journal.Journal, "_capacity", 5)
        for number in range(3):
            make_file(volume, b"large-%d" % number, b"2" * 5000)
            volume.sync()
            left = memory_device(image.path.read_bytes())
            assert needs_check(left)
            assert not needs_recovery(left)
            assert len(names(Volume.open(left, read_only=True))) == 2 + number
    make_file(volume, b"still")
    volume.sync()
    assert not needs_recovery(memory_device(image.path.read_bytes()))
    volume.quiesce()
    image.require_clean()
    make_file(volume, b"again", b"3" * 5000)
    volume.sync()
    left = memory_device(image.path.read_bytes())
    assert needs_recovery(left)
    with closing(Volume.open(left)) as recovered:
        assert names(recovered) == {b"first", b"large-0", b"large-1", b"large-2", b"still", b"again"}


def test_a_volume_that_could_not_be_marked_as_clean_is_marked_again(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the superblock says that there is nothing to replay when a checkpoint has brought it to its place."""
    recorded = Journal()
    make_file(image.volume, b"first")
    image.close()
    disk = FaultyDevice(memory_device(image.path.read_bytes()))
    volume = Volume.open(RecordingDevice(disk, recorded, "disk"))
    make_file(volume, b"second")
    volume.sync()
    monkeypatch.setattr(metadata_cache, "_BYTES_MIN", 4096)
    volume.limit_memory(0)  # so that the superblock has to be read again
    disk.fail("read", times=1, errno="EIO")
    with pytest.raises(OSError, match="Input/output error"):
        volume.quiesce()
    make_file(volume, b"third")
    volume.sync()
    begin = len(recorded.entries)
    volume.close()
    for _, left in recorded.images("disk", begin):
        assert names(Volume.open(memory_device(left), read_only=True)) == {b"first", b"second", b"third"}


def test_a_journal_of_another_kind_is_not_written(make_image: Callable[..., Image]) -> None:
    """With fast commits a journal has a part that we know nothing of."""
    image = make_image(options=["-O", "fast_commit"])
    journal_block = int(image.debugfs("blocks <8>").split()[0])
    with image.path.open("r+b") as file:  # as the kernel leaves it
        file.seek(journal_block * 4096 + 0x28)
        file.write(INCOMPAT_FAST_COMMIT.to_bytes(4, "big"))
    before = image.path.read_bytes()[journal_block * 4096 :][:4096]
    make_file(image.volume, b"f", b"1" * 5000)
    image.volume.sync()
    left = memory_device(image.path.read_bytes())
    assert needs_check(left)
    assert not needs_recovery(left)
    assert left.pread(journal_block * 4096, 4096) == before
    image.close()
    image.require_clean()


def test_space_that_waits_is_used_when_nothing_else_is_left(image: Image) -> None:
    """By a commit between two operations; a crash just after it finds either of them."""
    volume = image.volume
    size = volume.statistics().blocks_available * 4096 - (2 << 20)
    make_file(volume, b"old", b"o" * size)
    volume.sync()
    volume.unlink(ROOT_INODE, b"old")
    new = make_file(volume, b"new")
    assert volume.write(new, 0, b"n" * size) == size
    left = crashed(image)
    assert names(left) == {b"new"}
    assert left.attributes(new).size_bytes == 0
    volume.sync()
    assert crashed(image).read(new, size - 10, 20) == b"n" * 10


def crashed(image: Image) -> Volume:
    """What opens after a crash at this moment."""
    return Volume.open(memory_device(image.path.read_bytes()), read_only=True)


def judge(
    world: CrashWorld, what: str, position: int, crashed: bytearray, directory: Path, *, thoroughly: bool
) -> None:
    disk = memory_device(crashed)
    if thoroughly:
        with closing(Volume.open(disk, read_only=True)) as volume:
            shown = read_state(volume)
        assert disk.pread(0, disk.size_bytes) == crashed
    with closing(Volume.open(disk)) as volume:
        found = read_state(volume)
        world.judge(what, position, found)
    if not thoroughly:
        return
    assert shown == found
    status, output, _ = fsck(disk.pread(0, disk.size_bytes), "-fn", directory)
    assert status == 0, f"{world.seed} {what}: {output}"
    status, output, repaired = fsck(crashed, "-fy", directory)
    assert status in (0, 1), f"{world.seed} {what}: {output}"
    with closing(Volume.open(repaired, read_only=True)) as volume:
        assert read_state(volume) == found
