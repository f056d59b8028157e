"""Opening devices by number, whether devtmpfs or udev makes the nodes, or neither.

A name below /dev is only a hint; what was opened is checked by its device number.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import time
from contextlib import suppress

from cowfs.errors import PoolIoError

_MAPPER = "/dev/mapper"
_UDEV_SOCKET = "/run/udev/control"
_LOOK_SECONDS = 0.01
# A node without a driver behind it is as good as none.
_NOTHING_THERE = (errno.ENOENT, errno.ENODEV, errno.ENXIO)


def node_path(device_number: int) -> str:
    """The usual path of a block device's node; it need not exist."""
    major, minor = os.major(device_number), os.minor(device_number)
    with suppress(OSError), open(f"/sys/dev/block/{major}:{minor}/uevent", encoding="utf-8") as file:
        for line in file:
            key, _, value = line.strip().partition("=")
            if key == "DEVNAME":
                return f"/dev/{value}"
    return f"/dev/block/{major}:{minor}"


def named_node(name: str, device_number: int, *, wait_seconds: float = 0.0) -> str:
    """A path of a device's node that people know it by: /dev/mapper/NAME, where it is or can be made.

    Args:
        wait_seconds: how long udev is waited for, where it runs.
    """
    path = f"{_MAPPER}/{name}"
    deadline = time.monotonic() + (wait_seconds if os.path.exists(_UDEV_SOCKET) else 0)
    while not _is_node_of(path, device_number):
        if time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
            continue
        with suppress(OSError):
            os.makedirs(_MAPPER, 0o755, exist_ok=True)
            if not os.path.islink(path):
                with suppress(FileNotFoundError):  # a node of a device that is gone
                    os.unlink(path)
                os.mknod(path, stat.S_IFBLK | 0o600, device_number)
        return path if _is_node_of(path, device_number) else node_path(device_number)
    return path


def remove_named_node(name: str, device_number: int) -> None:
    """Remove a node that `named_node` has made; udev removes its own."""
    path = f"{_MAPPER}/{name}"
    if not os.path.islink(path) and _is_node_of(path, device_number):
        with suppress(OSError):
            os.unlink(path)


def _is_node_of(path: str, device_number: int) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISBLK(found.st_mode) and found.st_rdev == device_number


def open_block(device_number: int, flags: int) -> int:
    """A descriptor of a block device, through its node or, where there is none, through one made for the moment."""
    return _open_checked(node_path(device_number), stat.S_IFBLK, device_number, flags)


def open_misc(path: str, name: str, flags: int) -> int:
    """A descriptor of a misc device such as `device-mapper`, at its usual path or by its number in /proc/misc.

    Raises:
        OSError: ENOENT, ENODEV or ENXIO where the kernel has no such device (its module may have to be loaded).
    """
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        minor = _misc_minor(name) if error.errno in _NOTHING_THERE else None
        if minor is None:
            raise
        return _open_checked(path, stat.S_IFCHR, os.makedev(10, minor), flags)


def _misc_minor(name: str) -> int | None:
    """The minor number of a misc device, None where the kernel has none of this name."""
    try:
        with open("/proc/misc", encoding="ascii") as file:
            return {word[1]: int(word[0]) for word in map(str.split, file)}.get(name)
    except OSError:
        return None


def _open_checked(path: str, kind: int, device_number: int, flags: int) -> int:
    flags |= os.O_CLOEXEC
    try:
        fd = os.open(path, flags)
    except OSError as error:
        if error.errno not in _NOTHING_THERE:
            raise
    else:
        if _is_device(fd, kind, device_number):
            return fd
        os.close(fd)
    with tempfile.TemporaryDirectory(prefix="cowfs-node-") as folder:
        temporary = os.path.join(folder, "node")
        os.mknod(temporary, kind | 0o600, device_number)
        fd = os.open(temporary, flags)
    if not _is_device(fd, kind, device_number):
        os.close(fd)
        raise PoolIoError(f"{path} is not device {os.major(device_number)}:{os.minor(device_number)}")
    return fd


def _is_device(fd: int, kind: int, device_number: int) -> bool:
    found = os.fstat(fd)
    return stat.S_IFMT(found.st_mode) == kind and found.st_rdev == device_number
