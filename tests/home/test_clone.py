"""A copy of a home: whole or not made, of one moment, here or through the holder."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

import cowfs
from cowfs import blockdev, errors
from cowfs.devices import cloning
from cowfs.devices.on_disk.files import HomeFiles
from tests.conftest import Account
from tests.home.conftest import SMALL, serving


@pytest.fixture(params=["here", "through the holder"])
def opened(request: pytest.FixtureRequest, home: Path) -> Iterator[cowfs.Home]:
    with cowfs.open_home(home, durable=False) as opened, opened.device("web") as disk:
        disk.pwrite(8 << 20, b"x" * 100_000)
    with serving(home) if request.param != "here" else nullcontext(), cowfs.open_home(home, durable=False) as opened:
        yield opened


def content(path: Path) -> tuple[object, bytes]:
    with cowfs.open_home(path, durable=False) as home:
        assert home.check().clean
        assert not home.status().problems
        with home.device("web", read_only=True) as disk:
            return home.devices(), disk.pread(8 << 20, 100_000)


def test_a_copy_is_a_home_of_its_own(opened: cowfs.Home, tmp_path: Path) -> None:
    opened.snapshot("web", "monday")
    copy = opened.clone(tmp_path / "copy")
    assert (copy.home, copy.origin) == (str(tmp_path / "copy"), str(opened.path))
    assert 0 < copy.allocated_bytes < 16 << 20
    opened.remove("monday")
    rows, data = content(tmp_path / "copy")
    assert [row.name for row in rows] == ["base", "monday", "web"]  # type: ignore[attr-defined]
    assert data == b"x" * 100_000
    with cowfs.open_home(copy.home) as home, home.device("web") as disk:
        disk.pwrite(8 << 20, b"y")
        home.create("other")
    assert [row.name for row in opened.devices()] == ["base", "web"]
    left = {name for name in os.listdir(copy.home) if name != "mnt"}
    assert left == {"cowfs.json", "cowfs.lock", "cowfs.parents", "devicemapper", "metadata"}
    assert os.stat(copy.home).st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in Path(copy.home).rglob("*"))


def test_a_home_without_flushes_can_be_copied_before_it_is_closed(home: Path, tmp_path: Path) -> None:
    with cowfs.open_home(home, durable=False) as opened, opened.device("web") as disk:
        disk.pwrite(8 << 20, b"x" * 100_000)
        opened.clone(tmp_path / "copy")  # with a disk that is open
    assert content(tmp_path / "copy")[1] == b"x" * 100_000


def test_what_is_there_is_not_touched(opened: cowfs.Home, tmp_path: Path) -> None:
    for name in ("directory", "file", "other home"):
        path = tmp_path / name
        if name == "directory":
            path.mkdir()
        elif name == "file":
            path.write_text("mine")
        else:
            cowfs.open_home(path, create=True, options=SMALL).close()
        with pytest.raises(errors.HomeError, match="it exists; name a directory that does not") as caught:
            opened.clone(path)
        assert caught.value.errno == errno.EEXIST
    assert (tmp_path / "file").read_text() == "mine"
    assert os.listdir(tmp_path / "directory") == []
    with pytest.raises(errors.HomeError, match="cannot make the directory"):
        opened.clone(tmp_path / "none" / "copy")
    with pytest.raises(errors.UsageError, match="is in the home"):
        opened.clone(opened.path / "copy")
    assert not (opened.path / "copy").exists()


@pytest.mark.parametrize("fails", ["copy_contents", "sync_everything"])
def test_nothing_is_left_of_a_copy_that_fails(
    opened: cowfs.Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cloning if fails == "copy_contents" else HomeFiles, fails, full)
    with pytest.raises(
        errors.CowfsError, match=r"cannot copy the home .*: No space left.*; nothing was left"
    ) as caught:
        opened.clone(tmp_path / "copy")
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "copy").exists()
    monkeypatch.undo()
    opened.clone(tmp_path / "copy")


def test_a_copy_that_was_killed_is_no_home_and_is_replaced(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cowfs.open_home(home, durable=False) as opened:
        with monkeypatch.context() as patched:
            patched.setattr(shutil, "rmtree", lambda *_, **__: None)
            patched.setattr(HomeFiles, "sync_everything", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                opened.clone(tmp_path / "copy")
        with pytest.raises(errors.NotAHome, match="incomplete"):
            cowfs.open_home(tmp_path / "copy")
        opened.clone(tmp_path / "copy")
    content(tmp_path / "copy")


def test_holes_stay_holes(tmp_path: Path) -> None:
    """Where the disk can copy by reference or not."""
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"x" * 4096)
    device = blockdev.FileDevice(source, read_only=True)
    with target.open("w+b") as file:
        file.truncate(64 << 20)
        blockdev.copy_contents(device, file.fileno())
    device.close()
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < 1 << 20


@pytest.mark.fuse
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mkfs.xfs") is None or "xfs" not in Path("/proc/filesystems").read_text().split(),
    reason="needs root to mount a loop device, a kernel with xfs, and mkfs.xfs; run: apt-get install xfsprogs",
)
def test_by_reference_where_the_disk_can(tmp_path: Path) -> None:
    disk, mounted = tmp_path / "disk", tmp_path / "mounted"
    mounted.mkdir()
    with disk.open("wb") as file:
        file.truncate(320 << 20)  # xfs takes no less than 300 MiB
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", disk], check=True, timeout=60)
    subprocess.run(["mount", "-o", "loop,nosuid,nodev", disk, mounted], check=True, timeout=60)
    try:
        with cowfs.open_home(mounted / "home", create=True, options=SMALL) as home:
            home.create("web")
            with home.device("web") as opened:
                opened.pwrite(8 << 20, b"x" * 100_000)
                opened.pwrite(12 << 20, os.urandom(4 << 20))
            free_before = os.statvfs(mounted).f_bfree
            copy = home.clone(mounted / "copy")
            assert copy.by_reference
            assert free_before - os.statvfs(mounted).f_bfree < (1 << 20) // 4096
            with home.device("web") as opened:
                opened.pwrite(8 << 20, b"y" * 100_000)
        _, data = content(mounted / "copy")
        assert data == b"x" * 100_000
        _, data = content(mounted / "home")
        assert data == b"y" * 100_000
    finally:
        subprocess.run(["umount", mounted], check=True, timeout=60)


def test_a_home_that_is_mounted(account: Account, needs_fuse: None) -> None:
    """What was written is in the copy, synced or not; a place in the mount is refused before the server looks there."""
    home = ["cowfs", "--home", "home"]
    account.run([*home, "init", "--data-size", "256M", "--metadata-size", "4M", "--base-size", "16M"])
    account.run([*home, "create", "web"])
    account.run([*home, "create", "data"])
    account.mkdir("mnt")
    account.run([*home, "mount", "mnt"])
    try:
        account.run(["sh", "-c", "echo one > mnt/web/file && echo two > mnt/data/file"])
        account.run(["cowfs", "clone-home", "home", "copy"])
        refused = account.run(["cowfs", "clone-home", "home", "mnt/web/copy"], check=False)
        assert refused.returncode == 2
        assert "is in a mount of the home" in refused.stderr
        account.run(["sh", "-c", "echo later > mnt/web/file"])
    finally:
        account.run([*home, "umount", "--all"])
    account.run(["cowfs", "--home", "copy", "mount", "mnt"])
    try:
        assert account.run(["cat", "mnt/web/file", "mnt/data/file"]).stdout == "one\ntwo\n"
    finally:
        account.run(["cowfs", "umount", "mnt"])
    assert account.run(["cowfs", "--home", "copy", "pool", "check"]).stdout.startswith("clean")
