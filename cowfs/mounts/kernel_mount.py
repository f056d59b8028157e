"""mount(2) of a block device's node: which file system is on it, and what mount options mean."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import stat
from typing import Final

from cowfs.errors import FilesystemError, MountError, UsageError
from cowfs.mounts import nodes

_PROBED_BYTES: Final = 0x10040 + 8
_LOG_BYTES: Final = 256
_SYSLOG_ACTION_READ_ALL: Final = 3  # syslog(2)
_BLKFLSBUF: Final = 0x1261  # ioctl(2), linux/fs.h
_LOG_LEVEL: Final = re.compile(r"^<\d+>")
_WORD: Final = re.compile(r'(?:[^,"]|"[^"]*"?)+')

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _SYNCHRONOUS, _MANDLOCK, _DIRSYNC = 1, 2, 4, 8, 16, 64, 128
_NOATIME, _NODIRATIME, _SILENT, _RELATIME, _LAZYTIME, _STRICTATIME = (
    1 << 10,
    1 << 11,
    1 << 15,
    1 << 21,
    1 << 25,
    1 << 24,
)
# Option -> (flags set, flags cleared).
_FLAGS: Final = {
    "defaults": (0, 0),
    "ro": (_RDONLY, 0),
    "rw": (0, _RDONLY),
    "nosuid": (_NOSUID, 0),
    "suid": (0, _NOSUID),
    "nodev": (_NODEV, 0),
    "dev": (0, _NODEV),
    "noexec": (_NOEXEC, 0),
    "exec": (0, _NOEXEC),
    "sync": (_SYNCHRONOUS, 0),
    "async": (0, _SYNCHRONOUS),
    "dirsync": (_DIRSYNC, 0),
    "mand": (_MANDLOCK, 0),
    "nomand": (0, _MANDLOCK),
    "noatime": (_NOATIME, 0),
    "atime": (0, _NOATIME),
    "nodiratime": (_NODIRATIME, 0),
    "diratime": (0, _NODIRATIME),
    "relatime": (_RELATIME, 0),
    "norelatime": (0, _RELATIME),
    "strictatime": (_STRICTATIME, 0),
    "nostrictatime": (0, _STRICTATIME),
    "lazytime": (_LAZYTIME, 0),
    "nolazytime": (0, _LAZYTIME),
    "silent": (_SILENT, 0),
    "loud": (0, _SILENT),
}
_NOT_FOR_DEVICES: Final = frozenset({"remount", "move"}) | {
    recursive + kind for recursive in ("", "r") for kind in ("bind", "shared", "private", "slave", "unbindable")
}


def parse_mount_options(text: str) -> tuple[int, str]:
    """The flags of mount(2) that options such as `ro,noatime,data=journal` mean, and the rest, for the file system.

    A comma between quotes is part of an option: `context="system_u:object_r:t:s0:c1,c2"`.

    Raises:
        UsageError: an option that is not about mounting a device.
    """
    flags = 0
    data = []
    for word in _WORD.findall(text):
        if word in _NOT_FOR_DEVICES:
            raise UsageError(f"mount option '{word}' is not for mounting a device; leave it out")
        if word in _FLAGS:
            added, cleared = _FLAGS[word]
            flags = flags & ~cleared | added
        else:
            data.append(word)
    return flags, ",".join(data)


def mount_node(fd: int, name: str, target: str, options: str) -> str:
    """Mount the file system on a device's node; returns a path of the node.

    Args:
        fd: the node, open.
        name: the device's, for messages.
        options: as mount(8) has them; `nouuid` is added for xfs, which a snapshot shares its UUID with its origin.

    Raises:
        FilesystemError: no file system that is known.
        MountError: mount(2) failed.
    """
    flags, data = parse_mount_options(options)
    node = _node_of(fd)
    filesystem = _probe(fd, name, node)
    if filesystem == "xfs" and "nouuid" not in data.split(","):
        data = ",".join(filter(None, ["nouuid", data]))
    number = _mount(node, target, filesystem, flags, data)
    if number:
        reason = os.strerror(number).lower()
        if said := _end_of_kernel_log():
            reason += f"; the kernel's log ends with: {said}"
        raise MountError("mount", node, target, flags=flags, data=data, errno=number, reason=reason)
    return node


def _mount(source: str, target: str, filesystem: str, flags: int, data: str) -> int:
    """The errno of mount(2), 0 when it worked."""
    libc = ctypes.CDLL(None, use_errno=True)
    words = (os.fsencode(word) for word in (source, target, filesystem))
    if libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(data)) == 0:
        return 0
    return ctypes.get_errno()


def sync_filesystem(path: str) -> None:
    """Have the kernel write what it keeps of the file system at a path, however long that takes. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd):  # os has none
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    finally:
        os.close(fd)


def sync_device(node: str) -> None:
    """Have the kernel write what it keeps of a block device, and of a file system on it wherever that is mounted.

    Takes as long as that does. Raises OSError.
    """
    fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _BLKFLSBUF, 0)
    finally:
        os.close(fd)


def _end_of_kernel_log() -> str:
    """The last that the kernel said, in one line; empty for who may not read its log."""
    buffer = ctypes.create_string_buffer(_LOG_BYTES)
    length = ctypes.CDLL(None, use_errno=True).klogctl(_SYSLOG_ACTION_READ_ALL, buffer, _LOG_BYTES)
    text = buffer.raw[: max(length, 0)].decode(errors="replace")
    lines = (_LOG_LEVEL.sub("", line).strip() for line in text.splitlines())
    return "; ".join(filter(None, lines))


def _node_of(fd: int) -> str:
    """A path of the node that a descriptor is of: where udev or the kernel made one, else the descriptor itself."""
    number = os.fstat(fd).st_rdev
    kernel_name = os.path.basename(os.path.realpath(nodes.folder(number)))
    for path in (f"/dev/mapper/{nodes.target_name(number)}", f"/dev/{kernel_name}"):
        try:
            found = os.stat(path)
        except OSError:
            continue
        if stat.S_ISBLK(found.st_mode) and found.st_rdev == number:
            return path
    return f"/proc/self/fd/{fd}"


def _probe(fd: int, name: str, node: str) -> str:
    try:
        head = os.pread(fd, _PROBED_BYTES, 0)
    except OSError as error:
        raise FilesystemError(f"device '{name}': {node} cannot be read: {error.strerror}", errno=error.errno) from error
    if len(head) < _PROBED_BYTES:
        raise FilesystemError(
            f"device '{name}': unable to detect the file system type of {node}, which is too short", errno=errno.EINVAL
        )
    if head[0x438:0x43A] == b"\x53\xef":
        return "ext4"
    if head[:4] == b"XFSB":
        return "xfs"
    if head[0x10040:0x10048] == b"_BHRfS_M":
        return "btrfs"
    raise FilesystemError(
        f"device '{name}': unknown file system type on {node}; the kernel mounts ext4, xfs and btrfs here",
        errno=errno.EINVAL,
    )
