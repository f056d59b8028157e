"""What keeps a file system in the kernel after its unmount: copies of the mount elsewhere, or users of files.

    unmounted here, and a copy in another mount namespace     a sandbox, a container: it would keep the server for ever
    detached here (umount -l) while files are in use          they are served until they are closed

Nothing here asks the file system, so its own server may look.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cowfs.mounts.mountinfo import Mount, mounts, parse_mountinfo

_MOUNTINFO: Final = "/proc/self/mountinfo"


class MountWatch:
    """Whether a file system is mounted in this process's mount namespace, at whatever path."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._table = open(_MOUNTINFO, "rb")  # noqa: SIM115  # open as long as it is watched
        self._poll = select.poll()
        self._poll.register(self._table, select.POLLPRI)
        self._is_mounted = self._look()

    def is_mounted(self) -> bool:
        """Reads the table only when it has changed."""
        if self._poll.poll(0):
            self._is_mounted = self._look()
        return self._is_mounted

    def _look(self) -> bool:
        return any(mount.device == self._device for mount in mounts())

    def close(self) -> None:
        self._table.close()


def is_kept_by_copies(mount: Mount) -> bool:
    """Whether another mount namespace has the file system of a mount, and no process of this one uses it."""
    ours = os.readlink("/proc/self/ns/mnt")
    has_copies = False
    for process in _processes():
        with contextlib.suppress(OSError):  # it ended, or may not be looked at
            if os.readlink(process / "ns/mnt") == ours:
                if _uses(process, mount):
                    return False
            elif not has_copies:
                table = parse_mountinfo((process / "mountinfo").read_bytes())
                has_copies = any(other.device == mount.device for other in table)
    return has_copies


def _processes() -> Iterator[Path]:
    return (entry for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def _uses(process: Path, mount: Mount) -> bool:
    """Whether a process has a file or a directory of a mount open or mapped, or works in it."""
    identity = b"mnt_id:\t%d\n" % mount.mount_id
    for info in (process / "fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if identity in info.read_bytes():
                return True
    for name in ("cwd", "root", "exe"):
        with contextlib.suppress(FileNotFoundError):  # a thread of the kernel has no program
            if identity in _description(process / name):
                return True
    major, minor = map(int, mount.device.split(":"))
    return b" %02x:%02x " % (major, minor) in (process / "maps").read_bytes()


def _description(link: Path) -> bytes:
    """What the kernel says of the place that a link in /proc leads to, which is not asked itself."""
    fd = os.open(link, os.O_PATH | os.O_CLOEXEC)
    try:
        return Path(f"/proc/self/fdinfo/{fd}").read_bytes()
    finally:
        os.close(fd)
