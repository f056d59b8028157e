"""One process at a time holds a home."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cowfs.devices.on_disk.lock import HomeLock
from cowfs.errors import HomeBusy, HomeError
from tests.devices.home_fakes import FakeBackend, make_home, open_home

HOLDER = """
import sys
from cowfs.devices.on_disk.lock import HomeLock
lock = HomeLock.acquire(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(home: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_error_names_the_holder_and_its_command(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(HomeBusy) as caught:
            HomeLock.acquire(str(tmp_path))
        assert caught.value.holder_pid == process.pid
        assert f"is held by process {process.pid} ({sys.executable} -c ?import sys" in str(caught.value)
        assert "\n" not in str(caught.value)
        process.send_signal(signal.SIGKILL)
        process.wait()
        HomeLock.acquire(str(tmp_path)).release()


def test_an_open_home_is_held_until_it_is_closed(tmp_path: Path) -> None:
    backend = FakeBackend()
    devices = make_home(tmp_path / "home", backend)
    for read_only in (False, True):
        with pytest.raises(HomeBusy, match=f"process {os.getpid()} "):
            open_home(tmp_path / "home", backend, read_only=read_only)
    devices.close()
    devices.close()
    open_home(tmp_path / "home", backend).close()


def test_the_lock_file_stays_and_is_private(tmp_path: Path) -> None:
    lock = HomeLock.acquire(str(tmp_path))
    path = tmp_path / "cowfs.lock"
    assert path.read_text() == f"{os.getpid()}\n"
    assert path.stat().st_mode & 0o777 == 0o600
    inode = path.stat().st_ino
    lock.release()
    lock.release()
    assert path.stat().st_ino == inode
    HomeLock.acquire(str(tmp_path)).release()
    assert path.stat().st_ino == inode


def test_the_lock_is_not_inherited_by_programs(tmp_path: Path) -> None:
    lock = HomeLock.acquire(str(tmp_path))
    process = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        lock.release()
        HomeLock.acquire(str(tmp_path)).release()
    finally:
        process.kill()
        process.wait()


def test_a_stale_or_senseless_pid_is_not_named(tmp_path: Path) -> None:
    path = tmp_path / "cowfs.lock"
    for content in ("", "abc", "-5", "999999999", "1" * 500):
        path.write_text(content)
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(HomeBusy, match="held by another process") as caught:
                HomeLock.acquire(str(tmp_path))
            assert caught.value.holder_pid == 0


def test_a_link_in_place_of_the_lock_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "cowfs.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(HomeError) as caught:
        HomeLock.acquire(str(tmp_path))
    assert caught.value.errno == errno.ELOOP
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize("has_file", [True, False])
def test_a_home_on_a_read_only_medium_is_locked_through_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_file: bool
) -> None:
    if has_file:
        HomeLock.acquire(str(tmp_path)).release()
    real_open = os.open

    def read_only_open(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real_open(path, flags, mode)

    monkeypatch.setattr(os, "open", read_only_open)
    with pytest.raises(HomeError, match="Read-only file system; it can only be opened for reading") as caught:
        HomeLock.acquire(str(tmp_path))
    assert caught.value.errno == errno.EROFS
    lock = HomeLock.acquire(str(tmp_path), read_only=True)
    assert lock.is_shared
    other = HomeLock.acquire(str(tmp_path), read_only=True)
    monkeypatch.setattr(os, "open", real_open)
    if has_file:
        with pytest.raises(HomeBusy):
            HomeLock.acquire(str(tmp_path))
    lock.release()
    other.release()
    HomeLock.acquire(str(tmp_path)).release()
