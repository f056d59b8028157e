"""What other users may do with a home: nothing, whatever the mode of its directory was."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from cowfs.devices.on_disk import files
from cowfs.devices.on_disk.files import HomeFiles
from cowfs.errors import HomeError
from tests.devices.home_fakes import FakeBackend, make_home, open_home


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("before", "after"), [(0o755, 0o755), (0o775, 0o755), (0o777, 0o755), (0o710, 0o710)])
def test_a_directory_that_becomes_a_home_is_closed_to_writers(tmp_path: Path, before: int, after: int) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(before)
    make_home(home, FakeBackend()).close()
    assert mode_of(home) == after


def test_nothing_in_a_home_is_open_to_others(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(0o755)
    previous = os.umask(0)
    try:
        with make_home(home, FakeBackend()) as devices:
            devices.create("a")
    finally:
        os.umask(previous)
    assert (home / "mnt").is_dir()
    assert {str(path): oct(mode_of(path)) for path in home.rglob("*") if mode_of(path) & 0o077} == {}


def test_a_shared_directory_becomes_no_home(tmp_path: Path) -> None:
    """As /dev/shm is: its mode is not one user's to change."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o1777)
    with pytest.raises(HomeError, match="others may write into the home") as caught:
        make_home(home, FakeBackend())
    assert caught.value.errno == errno.EPERM
    assert mode_of(home) == 0o1777
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_home_that_others_may_write_into_is_refused(home: Path, backend: FakeBackend, mode: int) -> None:
    home.chmod(mode)
    with pytest.raises(HomeError) as caught:
        open_home(home, backend)
    assert caught.value.errno == errno.EPERM
    assert str(caught.value) == (
        f"others may write into the home {home} (mode {mode:04o}), so they can replace its files; if they have not, "
        f"run: chmod go-w {home}"
    )
    with open_home(home, backend, read_only=True) as devices:
        assert "a" in devices
    home.chmod(mode & ~0o022)
    open_home(home, backend).close()


def test_the_directory_of_mounts_is_mended(home: Path) -> None:
    """Docker made it 0755, below a home of 0700."""
    mounts = home / "mnt"
    mounts.chmod(0o755)
    HomeFiles(str(home)).make_mounts()
    assert mode_of(mounts) == 0o700
    HomeFiles(str(home)).make_mounts(os.getegid())
    assert (mode_of(mounts), mounts.stat().st_gid) == (0o710, os.getegid())


def test_a_link_is_not_the_directory_of_mounts(home: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(0o755)
    (home / "mnt").rmdir()
    (home / "mnt").symlink_to(elsewhere)
    with pytest.raises(HomeError, match="restrict access to the directory"):
        HomeFiles(str(home)).make_mounts()
    assert mode_of(elsewhere) == 0o755


def test_a_home_of_another_user_is_not_for_the_plugin(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.require_owned(str(home))
    owner = home.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner != 0:
        with pytest.raises(HomeError, match=f"belongs to the user {owner}, .* run: chown -R {owner + 1} "):
            files.require_owned(str(home))
    else:
        files.require_owned(str(home))
