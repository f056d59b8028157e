"""What is mounted below a directory of a mount, by mount tables as the kernel writes them."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trio.testing

from cowfs.fuse import kernel_cache, request_wait
from cowfs.fuse.kernel_cache import KernelCache, drop_unused_names, is_mounted_below, may_be_mounted_below
from cowfs.fuse.open_devices import OpenDevice, OpenDevices
from cowfs.fuse.tree_view import TreeView
from cowfs.mounts.mountinfo import parse_mountinfo

SERVED = b"42 30 0:39 / /srv/m rw - fuse.cowfs cowfs:/h: rw,user_id=0\n"
BOUND = b"43 30 0:39 /a/rootfs /X rw - fuse.cowfs cowfs:/h: rw,user_id=0\n"


@pytest.mark.parametrize(
    ("table", "below"),
    [
        (SERVED + BOUND, ""),
        (SERVED + b"46 42 0:40 / /srv/m/a/sub rw - tmpfs none rw\n", "a"),
        (SERVED + b"46 42 0:40 / /srv/m/a rw - tmpfs none rw\n", "a"),
        (SERVED + b"46 42 0:40 / /srv/m rw - tmpfs none rw\n", ""),
        (SERVED + BOUND + b"46 43 0:40 / /X/proc rw - proc proc rw\n", "a"),
        (SERVED + BOUND + b"46 43 0:40 / /X rw - tmpfs none rw\n", "a"),
        (b"43 30 0:39 /a / rw - fuse.cowfs cowfs:/h: rw\n46 43 0:40 / /proc rw - proc proc rw\n", "a"),
        (SERVED + b"46 42 0:40 / /srv/m/ab rw - tmpfs none rw\n", ""),
        (SERVED + b"46 42 0:40 / /srv/m/b/a rw - tmpfs none rw\n", "b"),
        (SERVED + b"46 30 0:40 / /srv/other rw - tmpfs none rw\n47 46 0:41 / /srv/other/a rw - tmpfs n rw\n", ""),
        # A copy of the mount itself, below which is something.
        (b"50 30 0:39 / /copy rw - fuse.cowfs cowfs:/h: rw\n46 50 0:40 / /copy/a/x rw - tmpfs none rw\n", "a"),
    ],
)
def test_what_is_mounted_below(table: bytes, below: str) -> None:
    mounts = parse_mountinfo(table)
    assert [name for name in ("a", "b") if is_mounted_below(mounts, "0:39", "/" + name)] == list(below)


def process(proc: Path, number: int, namespace: str, table: bytes | None, user_id: int = 1000) -> None:
    """A process in a /proc of our own; without a table it has ended."""
    directory = proc / str(number)
    (directory / "ns").mkdir(parents=True)
    (directory / "uid_map").write_text("0 0 4294967295\n")
    (directory / "status").write_text(f"Name:\tsleep\nUid:\t{user_id}\t{user_id}\t{user_id}\t{user_id}\n")
    (directory / "ns" / "mnt").symlink_to(namespace)
    if table is not None:
        (directory / "mountinfo").write_bytes(table)


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kernel_cache, "_PROC", tmp_path)
    monkeypatch.setattr(kernel_cache, "topmost_at", lambda _: parse_mountinfo(SERVED)[0])
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "uid_map").write_text("0 0 4294967295\n")
    process(tmp_path, 1, "mnt:[1]", SERVED)
    return tmp_path


def test_every_mount_namespace_is_asked(proc: Path) -> None:
    assert not may_be_mounted_below("/srv/m", "/a")
    process(proc, 2, "mnt:[2]", SERVED + BOUND + b"46 43 0:40 / /X/proc rw - proc proc rw\n")
    assert may_be_mounted_below("/srv/m", "/a")
    assert not may_be_mounted_below("/srv/m", "/b")


def test_a_namespace_that_cannot_be_read_counts(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another user namespace, that is: without one, an ordinary user has no mount namespace of its own.

    One of another user does not count, a sandbox of root, which may be there for ever: no process in it can enter the
    mount of an ordinary user.
    """
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "mountinfo" and path.parent.name in {"2", "3"}:
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for number, user_id in ((2, 1000), (3, 0)):
        process(proc, number, f"mnt:[{number}]", None, user_id)
        assert not may_be_mounted_below("/srv/m", "/a")
    (proc / "3" / "uid_map").write_text("0 0 1\n")
    assert not may_be_mounted_below("/srv/m", "/a")
    (proc / "2" / "uid_map").write_text("0 1000 1\n")
    assert may_be_mounted_below("/srv/m", "/a")


def test_a_process_that_has_ended_does_not_count(proc: Path) -> None:
    process(proc, 2, "mnt:[2]", None)
    assert not may_be_mounted_below("/srv/m", "/a")


class Known:
    """Of a device: what the kernel knows of it, and that is nothing as soon as `late` requests were read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, late: int) -> None:
        self.late = late
        monkeypatch.setattr(request_wait, "has_requests", self.read_one)

    def read_one(self) -> bool:
        self.late -= 1
        return True

    @property
    def is_known(self) -> bool:
        return self.late > 0


@pytest.mark.parametrize(("late", "is_idle"), [(3, True), (1000, False)])
async def test_a_server_that_stood_still_reads_first_what_the_kernel_has_told(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, late: int, is_idle: bool
) -> None:
    """The time to wait for that is over before the first request is read."""
    del autojump_clock
    device = OpenDevice("web", 1, cast("TreeView", Known(monkeypatch, late)))
    cache = KernelCache(cast("OpenDevices", SimpleNamespace(is_shown=lambda _: True)), "/srv/m")
    monkeypatch.setattr(KernelCache, "_drop_names", lambda *_: _true())
    await cache._have_forgotten(device)
    assert device.view.is_known is not is_idle


async def _true() -> bool:
    return True


def test_a_mount_that_is_not_there(tmp_path: Path) -> None:
    assert may_be_mounted_below(str(tmp_path), "/a")
    assert not drop_unused_names(str(tmp_path / "missing"))
    assert not drop_unused_names(str(tmp_path)), "no mount point"
