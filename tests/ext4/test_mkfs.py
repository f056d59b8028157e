"""Making file systems, probing, checking, repairing."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from cowfs.blockdev import FileDevice, MemoryDevice
from cowfs.errors import FilesystemError, MissingRequirement, UsageError
from cowfs.ext4.tools import commands as tools
from cowfs.ext4.tools import fsck
from cowfs.ext4.tools.fsck import CheckStatus
from cowfs.ext4.tools.mkfs import make_filesystem, probe_filesystem, read_uuid
from cowfs.ext4.volume import Volume
from cowfs.faults.disk import FaultyDevice
from cowfs.filetree import ROOT_INODE
from cowfs.recording.journal import Journal, RecordingDevice
from tests.ext4.conftest import MIB, Image, make_file, names

UUID = "01234567-89ab-cdef-0123-456789abcdef"


def test_a_new_volume(tmp_path: Path) -> None:
    path = tmp_path / "device"
    with path.open("wb") as file:
        file.truncate(10 << 30)
    device = FileDevice(path)
    make_filesystem(device, uuid=UUID, label="cowfs", root_owner=(5, 6))
    assert path.stat().st_blocks * 512 < 8 * MIB
    assert read_uuid(device) == uuid.UUID(UUID)
    assert probe_filesystem(device) == "ext4"
    assert not fsck.needs_check(device)
    assert fsck.check_volume(device).clean
    volume = Volume.open(device)
    root = volume.attributes(ROOT_INODE)
    assert (root.uid, root.gid, root.mode) == (5, 6, 0o40755)
    assert names(volume) == set()
    make_file(volume, b"f", b"x" * MIB)
    volume.close()
    device.close()
    status, output = tools.run("dumpe2fs", ["-h", str(path)])
    assert status == 0
    assert "volume name:   cowfs" in output


def test_in_memory_over_old_content() -> None:
    device = MemoryDevice(32 * MIB)
    device.pwrite(0, b"\xee" * 32 * MIB)
    make_filesystem(device, extra_args=["-b", "4096", "-m", "0"])
    assert fsck.check_volume(device).clean
    volume = Volume.open(device)
    assert volume.statistics().blocks_available == volume.statistics().blocks_free
    volume.close()


def test_bad_requests() -> None:
    with pytest.raises(UsageError):
        make_filesystem(MemoryDevice(MIB), uuid="not one")
    with pytest.raises(FilesystemError) as caught:
        make_filesystem(MemoryDevice(MIB), extra_args=["-b", "777"])
    assert "mke2fs failed" in str(caught.value)
    assert "invalid block size" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_tool_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    tools.find.cache_clear()
    try:
        with pytest.raises(MissingRequirement) as caught:
            make_filesystem(MemoryDevice(MIB))
    finally:
        tools.find.cache_clear()
    assert "apt-get install e2fsprogs" in str(caught.value)


@pytest.mark.parametrize(
    ("offset", "magic", "name"),
    [(0x10040, b"_BHRfS_M", "btrfs"), (0x438, b"\x53\xef", "ext4"), (0, b"XFSB", "xfs"), (5, b"XFSB", None)],
)
def test_probing(offset: int, magic: bytes, name: str | None) -> None:
    device = MemoryDevice(MIB)
    device.pwrite(offset, magic)
    assert probe_filesystem(device) == name
    assert probe_filesystem(MemoryDevice(100)) is None


def test_uuid_of_nothing() -> None:
    with pytest.raises(FilesystemError) as caught:
        read_uuid(MemoryDevice(MIB))
    assert caught.value.errno == errno.EINVAL


def test_the_superblock_says_whether_it_is_mounted(image: Image) -> None:
    volume = image.volume
    assert image.device is not None
    assert not fsck.needs_check(image.device)
    make_file(volume, b"f")
    assert not fsck.needs_check(image.device), "nothing was written yet"
    volume.sync()
    assert fsck.needs_check(image.device)
    volume.quiesce()
    assert not fsck.needs_check(image.device)
    image.require_clean()
    make_file(volume, b"g")
    volume.sync()
    assert fsck.needs_check(image.device)
    volume.close()
    assert not fsck.needs_check(image.device)


def test_mounting_without_a_change_writes_nothing(image: Image) -> None:
    image.close()
    before = image.path.read_bytes()
    volume = image.open()
    volume.sync()
    assert image.path.read_bytes() == before
    image.close()
    assert image.path.read_bytes() == before


def test_the_mark_is_durable_before_anything_else() -> None:
    device = MemoryDevice(32 * MIB)
    make_filesystem(device)
    journal = Journal()
    volume = Volume.open(RecordingDevice(device, journal, "device"))
    volume.make_directory(ROOT_INODE, b"d", 0o755, 0, 0)
    assert journal.entries == []
    volume.sync()
    first, second = journal.entries[:2]
    assert (first.operation, first.offset, first.length) == ("write", 1024, 1024)
    assert second.operation == "flush"
    volume.close()


class TestPrepare:
    def crashed(self, image: Image, *, journaled: bool = False) -> FileDevice:
        """A volume whose process died after a sync; its device."""
        volume = image.open(journaled=journaled)
        make_file(volume, b"f", b"x" * 5000)
        volume.sync()
        volume._fs.free()
        image.volume_or_none = None
        assert image.device is not None
        return image.device

    def test_a_clean_volume_costs_one_read(self, image: Image) -> None:
        image.close()
        device = FaultyDevice(FileDevice(image.path))
        reads = device.fail("read", times=0)
        assert fsck.prepare_for_mount(device) is None
        assert reads.seen == 1
        device.close()

    def test_after_a_crash(self, image: Image) -> None:
        device = self.crashed(image)
        assert fsck.needs_check(device)
        result = fsck.prepare_for_mount(device)
        assert result is not None
        assert result.usable
        assert 0 < result.written_bytes <= 16384
        assert not fsck.needs_check(device)
        device.close()
        assert names(image.reopen()) == {b"f"}

    def test_after_a_crash_with_a_journal(self, image: Image) -> None:
        device = self.crashed(image, journaled=True)
        assert fsck.needs_check(device)
        assert fsck.prepare_for_mount(device) is None
        assert not fsck.needs_check(device)
        device.close()
        image.require_clean()
        assert names(image.reopen()) == {b"f"}

    def test_a_damaged_journal_is_left_to_e2fsck(self, image: Image) -> None:
        device = self.crashed(image, journaled=True)
        journal = int(image.debugfs("blocks <8>").split()[0])
        device.pwrite(journal * 4096, b"\xff" * 4096)
        with pytest.raises(FilesystemError) as caught:
            fsck.prepare_for_mount(device, read_only=True)
        assert caught.value.errno == errno.EROFS
        result = fsck.prepare_for_mount(device, repair=True)
        assert result is not None
        assert result.usable
        assert fsck.check_volume(device).clean

    def test_damage_needs_leave_to_repair(self, image: Image) -> None:
        device = self.crashed(image)
        inode_table = int(image.debugfs("imap f").split("at block ")[1].split(",")[0])
        device.pwrite(inode_table * 4096, b"\xff" * 4096)
        with pytest.raises(FilesystemError) as caught:
            fsck.prepare_for_mount(device)
        assert caught.value.errno == errno.EUCLEAN
        assert "repair" in str(caught.value)
        assert fsck.needs_check(device)
        result = fsck.prepare_for_mount(device, repair=True)
        assert result is not None
        assert result.usable
        assert fsck.check_volume(device).clean

    def test_read_only(self, image: Image) -> None:
        device = self.crashed(image)
        before = image.path.read_bytes()
        assert fsck.prepare_for_mount(device, read_only=True) is None
        assert image.path.read_bytes() == before
        tools.run("debugfs", ["-w", "-R", "feature needs_recovery", str(image.path)])
        before = image.path.read_bytes()
        assert fsck.prepare_for_mount(device, read_only=True) is None
        assert image.path.read_bytes() == before
        result = fsck.prepare_for_mount(device)
        assert result is not None
        assert result.usable


def test_check_finds_and_repair_mends(make_image: Callable[..., Image]) -> None:
    image = make_image()
    inode = make_file(image.volume, b"f", b"x" * 50_000)
    image.close()
    assert tools.run("debugfs", ["-w", "-R", "set_inode_field f links_count 7", str(image.path)])[0] == 0
    device = FileDevice(image.path)
    found = fsck.check_volume(device)
    assert found.status == CheckStatus.UNCORRECTED
    assert not found.usable
    assert f"Inode {inode} ref count is 7" in found.output
    assert str(image.path) not in found.output
    assert found.written_bytes == 0
    mended = fsck.check_volume(device, repair=True)
    assert mended.usable
    assert not mended.clean
    assert 0 < mended.written_bytes < 100_000
    assert fsck.check_volume(device).clean
    device.close()


def test_a_check_of_nonsense_is_an_error() -> None:
    with pytest.raises(FilesystemError):
        fsck.check_volume(MemoryDevice(MIB))


def test_copying_back_what_became_zeros(tmp_path: Path) -> None:
    def file(name: str) -> FileDevice:
        path = tmp_path / name
        with path.open("wb") as handle:
            handle.truncate(8 * MIB)
        return FileDevice(path)

    device, copied = file("device"), file("copy")
    for offset in (0, MIB + 4096, 5 * MIB):
        device.pwrite(offset, b"x" * 10_000)
    tools.copy_mapped(device, copied)
    assert copied.pread(0, 8 * MIB) == device.pread(0, 8 * MIB)
    assert tools.copy_changes(copied, device) == 0
    copied.zero(MIB, MIB)
    copied.pwrite(5 * MIB + 1, b"y")
    copied.pwrite(7 * MIB, b"z")
    written = tools.copy_changes(copied, device)
    assert 0 < written <= MIB + 3 * 4096
    assert copied.pread(0, 8 * MIB) == device.pread(0, 8 * MIB)
