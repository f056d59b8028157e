"""Open volumes of a home: one per device, counted, checked before, consistent in snapshots, nothing left active."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from cowfs.devices import opening
from cowfs.devices.deviceset import DeviceSet
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.errors import DeviceBusy, FilesystemError, OutOfDataSpace, UnknownDevice, UsageError
from cowfs.ext4.tools import commands as tools
from cowfs.ext4.tools.fsck import check_volume, needs_check
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE, FileTree
from cowfs.pool import load_backend
from cowfs.steps import finish
from cowfs.volumes import Volumes

MIB = 1 << 20
BACKEND = load_backend("emulated")
SMALL = HomeOptions(data_size_bytes=256 * MIB, metadata_size_bytes=4 * MIB, base_size_bytes=16 * MIB, durable=False)


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[DeviceSet]:
    with opening.make_home(tmp_path / "home", BACKEND, SMALL) as devices:
        devices.create("a")
        devices.create("b")
        yield devices


@pytest.fixture
def volumes(devices: DeviceSet) -> Iterator[Volumes]:
    volumes = Volumes(devices)
    yield volumes
    volumes.close_all()


def write_file(volume: FileTree, name: bytes, content: bytes) -> None:
    inode = volume.make_node(ROOT_INODE, name, 0o100644, 0, 0).inode
    volume.write(inode, 0, content)


def read_file(volume: FileTree, name: bytes) -> bytes:
    return volume.read(volume.lookup(ROOT_INODE, name).inode, 0, 1 << 20)


def abandon(devices: DeviceSet, name: str) -> None:
    """Leave a volume as a process that died leaves it."""
    volume = Volume.open(devices.active.activate(name))
    write_file(volume, b"left", b"behind")
    volume.sync()
    devices.active.deactivate(name)


def is_marked(devices: DeviceSet, name: str) -> bool:
    thin = devices.active.activate(name)
    marked = needs_check(thin)
    devices.active.deactivate(name)
    return marked


def digests(home: Path) -> dict[str, str]:
    files = ("devicemapper/data", "devicemapper/metadata")
    return {name: hashlib.sha256((home / name).read_bytes()).hexdigest() for name in files}


def test_one_volume_per_device_until_its_last_user_closes_it(devices: DeviceSet, volumes: Volumes) -> None:
    volume = volumes.open("a")
    assert volumes.open("a") is volume
    other = volumes.open("b")
    assert other is not volume
    assert volumes.names() == ["a", "b"]
    write_file(volume, b"f", b"content")
    volumes.close("a")
    assert volumes.is_open("a")
    assert read_file(volume, b"f") == b"content"
    volumes.close("a")
    assert not volumes.is_open("a")
    assert set(devices.active.thins()) == {"b"}
    with volumes.opened("a") as again:
        assert again is not volume
        assert read_file(again, b"f") == b"content"
    volumes.close("b")
    assert devices.active.thins() == {}
    with pytest.raises(UsageError, match="device 'b' is not open"):
        volumes.close("b")


def test_a_volume_that_is_not_changed_writes_nothing(devices: DeviceSet) -> None:
    home = devices.home
    devices.close()
    with opening.open_home(home, BACKEND, opening.OpenOptions(durable=False)) as again:
        before = digests(home)
        volumes = Volumes(again)
        volume = volumes.open("a")
        assert [entry.name for entry in volume.list_directory(ROOT_INODE)] == [b".", b"..", b"lost+found"]
        volume.quiesce()
        volumes.close("a")
        assert digests(home) == before
    assert digests(home) == before


def test_a_snapshot_of_an_open_volume_holds_everything_and_needs_no_check(devices: DeviceSet, volumes: Volumes) -> None:
    write_file(volumes.open("a"), b"f", b"x" * 100_000)
    devices.create("later", parent="a")
    assert not is_marked(devices, "later")
    with volumes.opened("later") as snapshot:
        assert read_file(snapshot, b"f") == b"x" * 100_000
    assert check_volume(devices.active.activate("later")).clean
    devices.active.deactivate("later")
    volumes.close("a")
    devices.create("last", parent="a")  # its quiescer is gone with it
    assert not is_marked(devices, "last")


def test_what_is_not_trusted_any_more_stays_marked(devices: DeviceSet, volumes: Volumes) -> None:
    volume = volumes.open("a")
    write_file(volume, b"f", b"content")
    volume.distrust()
    devices.create("later", parent="a")
    volumes.close("a")
    assert is_marked(devices, "a")
    assert is_marked(devices, "later")
    with volumes.opened("a") as checked:
        assert read_file(checked, b"f") == b"content"
    assert not is_marked(devices, "a")


def test_an_unclean_volume_is_checked_first(devices: DeviceSet, volumes: Volumes) -> None:
    abandon(devices, "a")
    with volumes.opened("a") as volume:
        assert read_file(volume, b"left") == b"behind"
        assert not needs_check(devices.active.thins()["a"])
    abandon(devices, "b")
    with_read_only = Volumes(devices, read_only=True)
    with with_read_only.opened("b") as volume:
        assert volume.read_only
        assert read_file(volume, b"left") == b"behind"
        assert needs_check(devices.active.thins()["b"])  # a volume that is read is not written, not even repaired


@pytest.mark.parametrize("read_only", [False, True])
def test_volumes_that_are_only_read(devices: DeviceSet, read_only: bool) -> None:
    """Because it was asked for, or because the home is open that way."""
    home = devices.home
    devices.close()
    with opening.open_home(home, BACKEND, opening.OpenOptions(read_only=read_only, durable=False)) as again:
        volumes = Volumes(again, read_only=True)
        with volumes.opened("a") as volume, pytest.raises(OSError, match="Read-only") as caught:
            write_file(volume, b"f", b"content")
        assert caught.value.errno == errno.EROFS


def test_what_cannot_be_opened_leaves_nothing_active(devices: DeviceSet, volumes: Volumes) -> None:
    devices.active.activate("a").pwrite(0, bytes(65536))
    devices.active.deactivate("a")
    with pytest.raises(FilesystemError, match="device 'a'"):
        volumes.open("a")
    with pytest.raises(UnknownDevice):
        volumes.open("nobody")
    assert volumes.names() == []
    assert devices.active.thins() == {}
    devices.remove("a")


def test_damage_is_repaired_only_when_that_is_asked_for(devices: DeviceSet, volumes: Volumes) -> None:
    thin = devices.active.activate("a")
    with tools.temporary_image(thin.size_bytes) as image:
        tools.copy_mapped(thin, image)
        for request in ("clri <2>", "ssv state 2"):  # no root directory, and the note that something is wrong
            tools.run("debugfs", ["-w", "-R", request, image.path])
        tools.copy_changes(image, thin)
    devices.active.deactivate("a")
    with pytest.raises(FilesystemError, match=r"device 'a': .*mount --repair"):
        volumes.open("a")
    assert devices.active.thins() == {}
    assert volumes.open("a", repair=True).lookup(ROOT_INODE, b"lost+found")
    volumes.close("a")
    assert not is_marked(devices, "a")


def test_all_are_closed_whatever_fails(devices: DeviceSet, volumes: Volumes, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = volumes.open("a"), volumes.open("b")
    write_file(first, b"f", b"lost")
    write_file(second, b"f", b"kept")

    def fail() -> None:
        raise OSError(errno.EIO, "no more writing")

    monkeypatch.setattr(first, "sync", fail)
    with pytest.raises(OSError, match="no more writing"):
        volumes.close_all()
    assert volumes.names() == []
    assert devices.active.thins() == {}
    with volumes.opened("b") as volume:
        assert read_file(volume, b"f") == b"kept"


def test_what_is_not_written_of_a_device_that_is_being_removed_is_only_logged(
    devices: DeviceSet, volumes: Volumes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "no more writing")

    def open_that_fails(name: str) -> None:
        volume = volumes.open(name)
        write_file(volume, b"f", b"lost")
        monkeypatch.setattr(volume, "sync", fail)

    open_that_fails("a")
    open_that_fails("b")
    volumes.give_up("a")
    volumes.close("a")
    assert "device 'a', which is being removed: [Errno 5] no more writing" in caplog.text
    with pytest.raises(OSError, match="no more writing"):
        volumes.close("b")
    assert devices.active.thins() == {}
    open_that_fails("a")  # given up is what was open
    with pytest.raises(OSError, match="no more writing"):
        volumes.close("a")


def test_open_volumes_share_what_one_may_cache(
    devices: DeviceSet, volumes: Volumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cowfs.ext4.files.inodes._CACHED_INODES_MAX", 120)
    monkeypatch.setattr("cowfs.ext4.files.inodes._CACHED_INODES_MIN", 10)
    monkeypatch.setattr("cowfs.ext4.library.metadata_cache._CLEAN_BYTES_MAX", 64 << 10)
    monkeypatch.setattr("cowfs.ext4.library.metadata_cache._BYTES_MIN", 4 << 10)
    opened = [volumes.open(name) for name in ("a", "b")]

    def use(volume: FileTree) -> None:
        for entry in volume.list_directory(ROOT_INODE):
            volume.attributes(entry.inode)

    def cached(volume: FileTree) -> tuple[int, int]:
        assert isinstance(volume, Volume)
        cache = volume._fs.cache
        return len(volume._inodes._cache), len(cache._clean) * cache.block_bytes

    for volume in opened:
        for number in range(200):
            write_file(volume, b"%d" % number, b"content")
        volume.quiesce()
        use(volume)
    volumes.rebalance()
    for volume in opened:
        inodes, clean_bytes = cached(volume)
        assert 10 < inodes <= 60
        assert 4 << 10 < clean_bytes <= 32 << 10
    use(opened[0])
    volumes.rebalance()
    assert cached(opened[1])[0] <= 10
    assert cached(opened[1])[1] <= 4 << 10
    use(opened[0])
    assert 60 < cached(opened[0])[0] <= 120
    for name, volume in zip(("a", "b"), opened, strict=True):
        assert read_file(volume, b"199") == b"content"
        volumes.close(name)


# --- trimming


def dirty_free_space(devices: DeviceSet, name: str) -> None:
    """Leave 8 MiB mapped that no file has any more, as a file system without discards does."""
    with Volumes(devices).opened(name) as volume:
        write_file(volume, b"large", b"x" * (8 * MIB))
        volume.sync()
        assert isinstance(volume, Volume)
        volume._allocator._discards = False
        volume.unlink(ROOT_INODE, b"large")


def test_a_trim_gives_back_what_no_file_has(devices: DeviceSet, volumes: Volumes) -> None:
    dirty_free_space(devices, "a")
    with volumes.opened("a") as volume:
        write_file(volume, b"kept", b"y" * MIB)
    before = devices.reports.status().data_used_bytes
    unmapped, freed = finish(volumes.trim("a"))
    assert unmapped == freed == before - devices.reports.status().data_used_bytes
    assert 6 * MIB < freed <= 8 * MIB
    assert devices.reports.inspect("a").mapped_bytes < 2 * MIB
    with volumes.opened("a") as volume:
        assert read_file(volume, b"kept") == b"y" * MIB
    thin = devices.active.activate("a", read_only=True)
    assert check_volume(thin).clean
    assert finish(volumes.trim("b")) == (0, 0)


def test_a_trim_of_what_others_share_gives_nothing_back(devices: DeviceSet, volumes: Volumes) -> None:
    dirty_free_space(devices, "a")
    devices.create("child", parent="a")
    unmapped, freed = finish(volumes.trim("a"))
    assert unmapped > 6 * MIB
    assert freed == 0
    assert devices.reports.inspect("child").exclusive_bytes > 6 * MIB
    assert finish(volumes.trim("child")).freed_bytes > 6 * MIB


def test_a_trim_that_notes_damage_reports_nothing_below_zero(
    devices: DeviceSet, volumes: Volumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark in a snapshot's superblock takes a separate block, and here more of it than the trim frees."""

    def trim(volume: Volume, *_range: int) -> int:
        volume._fs.note_damage("a bitmap")
        volume.sync()
        return 0

    monkeypatch.setattr(Volume, "trim", trim)
    before = devices.reports.status().data_used_bytes
    assert finish(volumes.trim("a")) == (0, 0)
    assert devices.reports.status().data_used_bytes > before


def test_an_idle_volume_is_not_written_by_a_trim(devices: DeviceSet, volumes: Volumes) -> None:
    """A write would take a separate block in a device that shares everything."""
    finish(volumes.trim("a"))
    assert devices.reports.inspect("a").exclusive_bytes == 0


def test_files_go_on_being_written_between_the_steps_of_a_trim(tmp_path: Path) -> None:
    options = replace(SMALL, base_size_bytes=4 << 30)
    with opening.make_home(tmp_path / "home", BACKEND, options) as devices:
        devices.create("a")
        dirty_free_space(devices, "a")
        volumes = Volumes(devices)
        with volumes.opened("a") as volume:
            steps = volumes.trim("a")
            for number, _ in enumerate(steps):
                write_file(volume, b"%d" % number, bytes([number]) * MIB)
            assert number == 3
            for other in range(number + 1):
                assert read_file(volume, b"%d" % other) == bytes([other]) * MIB
        assert check_volume(devices.active.activate("a")).clean


def test_a_trim_that_has_no_room_for_what_was_changed_says_what_helps(tmp_path: Path) -> None:
    """A file that fills the pool is removed: the pool has no block for that either, until it grows."""
    options = replace(SMALL, data_size_bytes=4 * MIB, error_if_no_space=True)
    with opening.make_home(tmp_path / "small", BACKEND, options) as small:
        small.create("a")
        volumes = Volumes(small)
        volume = volumes.open("a")
        with pytest.raises(OutOfDataSpace):
            write_file(volume, b"large", b"x" * 8 * MIB)
        volume.unlink(ROOT_INODE, b"large")
        with pytest.raises(OutOfDataSpace, match=r"^device 'a' cannot be trimmed before .* larger .* trim it again: "):
            finish(volumes.trim("a"))
        small.resize_pool(data_size_bytes=5 * MIB)
        assert finish(volumes.trim("a")).freed_bytes > 2 * MIB
        volumes.close_all()


def test_what_cannot_be_trimmed(devices: DeviceSet, volumes: Volumes) -> None:
    with pytest.raises(UnknownDevice):
        finish(volumes.trim("x"))
    devices.active.activate("a")
    with pytest.raises(DeviceBusy, match="is in use, so it cannot be trimmed"):
        finish(volumes.trim("a"))
    devices.active.activate("b").pwrite(0, bytes(4096))
    devices.active.deactivate("b")
    with pytest.raises(FilesystemError, match="'b': no ext4 or xfs, its disk holds something unknown; 'mount"):
        finish(volumes.trim("b"))
    devices.active.activate("b").pwrite(510, b"\x55\xaa")
    devices.active.deactivate("b")
    with pytest.raises(FilesystemError, match="device 'b': no ext4 or xfs, its disk holds partitions; "):
        finish(volumes.trim("b"))
    assert volumes.names() == []
