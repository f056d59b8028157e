"""What is mounted below a directory of a mount, by mount tables as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cowfs.fuse import kernel_cache
from cowfs.fuse.kernel_cache import drop_unused_names, is_mounted_below, may_be_mounted_below
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


def process(proc: Path, number: int, namespace: str, table: bytes | None, user: str = "0 0 4294967295\n") -> None:
    """A process in a /proc of our own; without a table it may not be looked at."""
    directory = proc / str(number)
    (directory / "ns").mkdir(parents=True)
    (directory / "uid_map").write_text(user)
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
    """Of another user namespace, that is: without one, an ordinary user has no mount namespace of its own."""
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "mountinfo" and path.parent.name == "2":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    process(proc, 2, "mnt:[2]", None)
    assert not may_be_mounted_below("/srv/m", "/a")
    (proc / "2" / "uid_map").write_text("0 1000 1\n")
    assert may_be_mounted_below("/srv/m", "/a")


def test_a_process_that_has_ended_does_not_count(proc: Path) -> None:
    process(proc, 2, "mnt:[2]", None)
    assert not may_be_mounted_below("/srv/m", "/a")


def test_a_mount_that_is_not_there(tmp_path: Path) -> None:
    assert may_be_mounted_below(str(tmp_path), "/a")
    assert not drop_unused_names(str(tmp_path / "missing"))
    assert not drop_unused_names(str(tmp_path)), "no mount point"
