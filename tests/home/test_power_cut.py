"""Power cuts of a device that is mounted: what was synced is there, the journal is replayed, e2fsck finds nothing."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import cowfs
from cowfs.errors import UsageError

OPTIONS = cowfs.HomeOptions(data_size_bytes=128 << 20, metadata_size_bytes=4 << 20, base_size_bytes=32 << 20)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[cowfs.Home]:
    with cowfs.open_home(tmp_path / "home", create=True, options=OPTIONS, durable=False, virtual_clock=True) as home:
        home.create("web")
        yield home


def write_and_sync(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@pytest.mark.fuse
@pytest.mark.parametrize("device", [None, "web"], ids=["home", "device"])
def test_what_was_not_synced_is_lost_and_what_was_is_not(home: cowfs.Home, device: str | None) -> None:
    with home.mount(device) as tree:
        files = tree / "web" if device is None else tree
        with (files / "old").open("w") as file:
            home.watch_unsynced("web")
            file.write("stays open")
        (files / "old").unlink()
        write_and_sync(files / "synced", b"s" * 10000)
        (files / "not synced").write_bytes(b"n" * 10000)
        with (files / "synced").open("r+b", buffering=0) as file:
            file.write(b"t" * 5000)
            assert home.power_cut("web").lost_bytes >= 15000
            with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
                file.write(b"later")
        assert sorted(os.listdir(files)) == ["lost+found", "synced"]
        assert (files / "synced").read_bytes() == b"s" * 10000
        (files / "next").write_bytes(b"next")
        home.power_cut("web")
        assert not (files / "next").exists()
        home.snapshot("web", "monday")  # which brings all of it to the disk
        (files / "synced").unlink()
        home.advance_clock(6)  # as time does
        home.power_cut("web", seed=1)
        assert sorted(os.listdir(files)) == ["lost+found"]


@pytest.mark.fuse
def test_every_choice_is_a_file_system(home: cowfs.Home, tmp_path: Path) -> None:
    """In which names that replaced others are either, and what was synced before is whole."""
    outcomes = set()
    with home.mount() as tree:
        home.watch_unsynced("web")
        files = tree / "web"
        for seed in range(16):
            write_and_sync(files / "old", b"o" * 20000)
            (files / "new").write_bytes(b"n" * 20000)
            os.rename(files / "new", files / "old")
            (files / str(seed)).write_bytes(b"x" * 3000)
            lost = home.power_cut("web", seed=seed).lost_bytes
            content = (files / "old").read_bytes()
            assert content in (b"o" * 20000, b"n" * 20000), seed
            outcomes.add((content[:1], lost > 0))
            image = tmp_path / "image"
            home.export_image("web", image, format="raw", force=True)
            judged = subprocess.run(["/sbin/e2fsck", "-fn", image], capture_output=True, text=True, check=False)
            assert judged.returncode == 0, f"seed {seed}: {judged.stdout}"
    assert {(b"o", True), (b"n", False)} <= outcomes


@pytest.mark.fuse
def test_a_watched_device_meets_faults_and_what_a_lost_flush_promised_is_lost(home: cowfs.Home) -> None:
    with home.mount("web") as files:
        write_and_sync(files / "before", b"b" * 10000)
        lost = home.faults.lose("flush", on="device")
        home.watch_unsynced("web")
        write_and_sync(files / "synced", b"s" * 10000)
        with home.faults.fail("read", on="device") as unreadable, pytest.raises(OSError, match=os.strerror(errno.EIO)):
            (files / "before").read_bytes()
        assert unreadable.hits
        assert lost.hits
        home.power_cut("web")
        assert sorted(os.listdir(files)) == ["before", "lost+found"]
        lost.clear()
        write_and_sync(files / "synced", b"s" * 10000)
        home.power_cut("web")
        assert (files / "synced").read_bytes() == b"s" * 10000


@pytest.mark.fuse
def test_a_disk_has_no_files_to_watch_or_to_record(home: cowfs.Home) -> None:
    with home.mount("web", raw=True) as tree:
        message = (
            rf"^device 'web' is mounted at {tree} as a disk \(--raw\), and .* is of files; mount the device without"
        )
        with pytest.raises(UsageError, match=message):
            home.watch_unsynced("web")
        with pytest.raises(UsageError, match=message):
            home.power_cut("web")
        with pytest.raises(UsageError, match=message):
            home.recordings.start("web", "origin")
    assert [row.name for row in home.devices()] == ["base", "web"]


def test_a_seed_is_a_number(home: cowfs.Home) -> None:
    home.watch_unsynced("web")
    with pytest.raises(UsageError, match=r"^power_cut\('web', seed='x'\): the seed must be a whole number, or None$"):
        home.power_cut("web", seed="x")  # type: ignore[arg-type]


def test_only_what_is_watched(home: cowfs.Home) -> None:
    with pytest.raises(UsageError, match=r"'web' has not synced is not known; call Home\.watch_unsynced"):
        home.power_cut("web")
    home.watch_unsynced("web")
    assert home.power_cut("web").lost_bytes == 0
