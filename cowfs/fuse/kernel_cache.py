"""Having the kernel forget the names it has cached of a mount, without taking away what is mounted below them.

When a name is invalidated, the kernel detaches what is mounted at it and below it, in every mount namespace: a
container whose root is in the mount loses its /proc, /dev and /sys. So that is the last resort:

    drop_unused_names         all names of the mount that are not in use; mount points are, and stay. Only for root, and
                              for all directories of the mount at once: what is looked up next is asked for again
    may_be_mounted_below      for other users: whether anything may be mounted in a directory of the mount. Where
                              nothing is, its name can be invalidated

The second is asked of every mount namespace that has a process which this one may look at. A process that it may not
look at counts if it is in another user namespace, for without that an ordinary user has no mount namespace of its own.
What is mounted between the question and the invalidation is not seen.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from cowfs.mounts.mountinfo import Mount, mount_at, parse_mountinfo

_PROC: Final = Path("/proc")
_AT_FDCWD: Final = -100
_SYS_FSCONFIG: Final = 431  # the same on every architecture that Linux has Python on
_SYS_FSPICK: Final = 433
_FSPICK_FLAGS: Final = 1 | 2 | 4  # close on exec, follow no symbolic link, mount nothing
_FSCONFIG_CMD_RECONFIGURE: Final = 7


def drop_unused_names(mount_point: str) -> bool:
    """Have the kernel forget what it has cached of names in a mount and does not need. Never in a handler.

    A reconfiguration that changes nothing does that (fs/super.c, `reconfigure_super`); it first writes back what
    programs have changed through mmap.

    Returns:
        Whether it has: not for an ordinary user, nor before Linux 5.2.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    picked = libc.syscall(_SYS_FSPICK, _AT_FDCWD, os.fsencode(mount_point), _FSPICK_FLAGS)
    if picked < 0:
        return False
    try:
        return bool(libc.syscall(_SYS_FSCONFIG, picked, _FSCONFIG_CMD_RECONFIGURE, None, None, 0) == 0)
    finally:
        os.close(picked)


def may_be_mounted_below(mount_point: str, directory: str) -> bool:
    """Whether anything may be mounted at or below a directory of a mount, in any mount namespace.

    Args:
        directory: its path in the mount, `/NAME`.
    """
    mount = mount_at(mount_point)
    if mount is None:
        return True
    return any(table is None or is_mounted_below(table, mount.device, directory) for table in _mount_tables())


def is_mounted_below(table: Sequence[Mount], device: str, directory: str) -> bool:
    """Whether a namespace's mounts have one at or below a directory of the file system with this device number."""
    of_device = {mount.mount_id: mount for mount in table if mount.device == device}
    for mount in table:
        parent = of_device.get(mount.parent_id)
        if parent is not None:
            path = os.path.normpath(os.path.join(parent.root, os.path.relpath(mount.target, parent.target)))
            if path == directory or path.startswith(directory + "/"):
                return True
    return False


def _mount_tables() -> Iterator[list[Mount] | None]:
    """Of each mount namespace that has a process; None for one that cannot be read."""
    seen = set()
    for process in _PROC.iterdir():
        if not process.name.isdecimal():
            continue
        try:
            namespace = os.readlink(process / "ns" / "mnt")
            if namespace not in seen:
                yield parse_mountinfo((process / "mountinfo").read_bytes())
                seen.add(namespace)
        except PermissionError:
            if not _is_in_this_user_namespace(process):
                yield None
        except (OSError, ValueError):
            continue  # it has ended


def _is_in_this_user_namespace(process: Path) -> bool:
    try:
        return (process / "uid_map").read_bytes() == (_PROC / "self" / "uid_map").read_bytes()
    except PermissionError:
        return False
    except OSError:
        return True  # it has ended
