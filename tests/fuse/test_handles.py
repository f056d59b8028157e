"""Opening by handle, open_by_handle_at(2): also what the kernel has forgotten, and never what took its place."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Account
from tests.fuse.conftest import Serve

pytestmark = pytest.mark.fuse

_HANDLE_BYTES = 128
_libc = ctypes.CDLL(None, use_errno=True)


class _Handle(ctypes.Structure):
    _fields_ = (("size", ctypes.c_uint), ("kind", ctypes.c_int), ("data", ctypes.c_ubyte * _HANDLE_BYTES))


def handle_of(path: Path) -> bytes:
    handle, mount_id = _Handle(size=_HANDLE_BYTES), ctypes.c_int()
    if _libc.name_to_handle_at(-100, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount_id), 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return bytes(handle)[: 8 + handle.size]


def open_handle(mount: Path, handle: bytes) -> int:
    root = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fd: int = _libc.open_by_handle_at(root, handle, os.O_RDONLY)
        if fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return fd
    finally:
        os.close(root)


def read_by_handle(mount: Path, handle: bytes) -> bytes:
    fd = open_handle(mount, handle)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def test_handles_outlive_the_mount(root_user: Account, serve: Serve) -> None:
    image = root_user.directory / "image"
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    served = serve(root_user, "volume", image)
    deep = served.target / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "kept").write_text("kept")
    (deep / "gone").write_text("gone")
    handles = {path.name: handle_of(path) for path in (deep, deep / "kept", deep / "gone", served.target)}
    assert served.end() == 0

    served = serve(root_user, "volume", image)
    assert read_by_handle(served.target, handles["kept"]) == b"kept"
    for name, names in (("b", {"kept", "gone"}), (served.target.name, set())):
        if name in handles:
            fd = open_handle(served.target, handles[name])
            assert set(os.listdir(fd)) >= names
            os.close(fd)
    (served.target / "a" / "b" / "gone").unlink()
    (served.target / "a" / "other").write_text("in its place")
    assert served.end() == 0

    served = serve(root_user, "volume", image)
    with pytest.raises(OSError) as caught:
        open_handle(served.target, handles["gone"])
    assert caught.value.errno == errno.ESTALE
    with pytest.raises(OSError) as caught:
        open_handle(served.target, handles["kept"][:8] + b"\xff" * 4 + handles["kept"][12:])
    assert caught.value.errno == errno.ESTALE
    assert served.end() == 0


def test_handles_of_a_home_and_of_a_disk(root_user: Account, serve: Serve) -> None:
    served = serve(root_user, "home", root_user.mkdir("work"))
    path = served.target / "a" / "dir" / "file"
    path.parent.mkdir()
    path.write_text("content")
    handles = [handle_of(path), handle_of(path.parent), handle_of(served.target / "a")]
    request, answer = root_user.directory / "work" / "request", root_user.directory / "work" / "answer"
    request.with_suffix(".part").write_text("close-if-idle a")
    request.with_suffix(".part").rename(request)
    subprocess.run(
        [sys.executable, "-c", "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)", answer],
        check=True,
        timeout=60,
    )
    assert answer.read_text() == "True False"  # the kernel has forgotten the device, which is closed
    assert read_by_handle(served.target, handles[0]) == b"content"
    fds = [open_handle(served.target, handle) for handle in handles]
    assert os.readlink(f"/proc/self/fd/{fds[1]}") == str(path.parent)
    assert [set(os.listdir(fd)) for fd in fds[1:]] == [{"file"}, {"dir", "lost+found"}]
    assert os.path.samestat(os.stat("..", dir_fd=fds[2]), os.stat(served.target))
    for fd in fds:
        os.close(fd)
    assert served.end() == 0

    disk = root_user.directory / "disk.img"
    disk.write_bytes(b"raw" + bytes(4093))
    served = serve(root_user, "raw", disk)
    handle = handle_of(served.target / "disk")
    assert served.end() == 0
    served = serve(root_user, "raw", disk)
    assert read_by_handle(served.target, handle)[:3] == b"raw"
    assert served.end() == 0
