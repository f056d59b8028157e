"""What the kernel has cached of the devices of a home view, and having it drop that.

Names are forgotten without taking away what is mounted below them.

When a name is invalidated, the kernel detaches what is mounted at it and below it, in every mount namespace: a
container whose root is in the mount loses its /proc, /dev and /sys. So that is the last resort:

    drop_unused_names         all names of the mount that are not in use; mount points are, and stay. Only for root, and
                              for all directories of the mount at once: what is looked up next is asked for again
    may_be_mounted_below      for other users: whether anything may be mounted in a directory of the mount. Where
                              nothing is, its name can be invalidated

The second is asked of every mount namespace that has a process which this one may look at. A process that it may not
look at counts if it is of this user and in another user namespace: others cannot enter the mount of an ordinary user,
and without a user namespace this user has no mount namespace of its own. What is mounted between the question and the
invalidation is not seen.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import pyfuse3
import trio
from pyfuse3 import ROOT_INODE

from cowfs.fuse import request_wait
from cowfs.fuse.in_use import in_use
from cowfs.fuse.open_devices import OpenDevice, OpenDevices
from cowfs.fuse.translate import drop_caches
from cowfs.fuse.tree_view import TreeView
from cowfs.mounts.mountinfo import Mount, parse_mountinfo, topmost_at

_PROC: Final = Path("/proc")
_AT_FDCWD: Final = -100
_SYS_FSCONFIG: Final = 431  # the same on every architecture that Linux has Python on
_SYS_FSPICK: Final = 433
_FSPICK_FLAGS: Final = 1 | 2 | 4  # close on exec, follow no symbolic link, mount nothing
_FSCONFIG_CMD_RECONFIGURE: Final = 7
_FORGET_SECONDS: Final = 1.0  # how long the kernel may take to report what it has forgotten
_RELEASE_LOOK_SECONDS: Final = 0.005
_LATE_ROUNDS: Final = (
    100  # then, for what it has reported and this process has not read: of 24 requests 16 forget at least
)
_DELETED_SECONDS: Final = 5.0
_DELETED_MAX_SECONDS: Final = 80.0


class KernelCache:
    """What the kernel has cached of the devices behind a view that is mounted.

    A coroutine here waits for the kernel, which may have requests for the view meanwhile: never call it in a handler.

    `revealed`: the device that is shown for a moment although it is marked for deletion, to be looked up.
    """

    def __init__(self, open_devices: OpenDevices, mount_point: str) -> None:
        self._open = open_devices
        self._mount_point = mount_point
        self.revealed: OpenDevice | None = None
        self._cut_off: dict[str, OpenDevice] = {}

    async def invalidate(self, name: str) -> None:
        """Something else in this process has changed a device: have the kernel drop what it has cached of it."""
        device = self._open.by_name(name)
        if device is None:
            return
        device.view.reread()
        device.root = None
        await self._drop_names(device)
        await trio.to_thread.run_sync(drop_caches, device.view.known(), abandon_on_cancel=True)
        await self._restore_name(device)

    async def close_if_idle(self, name: str) -> bool:
        """Close a device's volume unless the device is in use; whether it is closed.

        Ends without a checkpoint: what follows at once finds the device unused.
        """
        device = self._open.by_name(name)
        if device is not None and device.view.is_known and not device.holds:
            await self._have_forgotten(device)
            device = self._open.by_name(name)
        if device is None:
            return True
        if device.view.is_known or not self._open.can_be_closed(device):
            with suppress(OSError):  # a volume that cannot be opened is not in use
                self._open.attach(device)  # so that the device set knows that the device is in use
            return False
        self._open.close_volume(device, even_if_it_fails=True)
        return True

    async def give_up(self, name: str, *, force: bool) -> None:
        """Close a device that is about to become another thin, so that nothing open in it reaches the new content.

        Ends without a checkpoint; `take_up` follows.

        Raises:
            DeviceBusy: something is open in it, and `force` is not given; it stays as it is.
        """
        device = self._open.by_name(name)
        if device is not None and not force:
            if not await self.close_if_idle(name):
                raise await in_use(name, os.path.join(self._mount_point, name))
        elif device is not None:
            self._open.close_volume(device, even_if_it_fails=True)
            self._cut_off[name] = device

    async def take_up(self, name: str) -> None:
        """Have the kernel drop what it has cached of a device that was given up while it was in use."""
        device = self._cut_off.pop(name, None)
        if device is None or self._open.is_shown(device):
            return
        await trio.to_thread.run_sync(_drop_name, os.fsencode(name), abandon_on_cancel=True)
        await trio.to_thread.run_sync(drop_caches, device.view.known(), abandon_on_cancel=True)

    async def serve_deletions(
        self,
        *,
        sleep: Callable[[float], Awaitable[None]] = trio.sleep,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """A service: lets go of devices that are marked for deletion, since the kernel does not say when their users
        are gone. The longer they are in use, the less often: it costs all devices what the kernel has cached.
        """
        task_status.started()
        pause_seconds = _DELETED_SECONDS
        while True:
            await sleep(pause_seconds)
            is_waited_for = False
            for device in list(self._open.known.values()):
                if not device.holds and self._open.devices.number(device.name) is None:
                    is_waited_for |= not await self.close_if_idle(device.name)
            pause_seconds = min(2 * pause_seconds, _DELETED_MAX_SECONDS) if is_waited_for else _DELETED_SECONDS

    async def _have_forgotten(self, device: OpenDevice) -> None:
        """Have the kernel drop all of a device that is not in use, and wait until it has said so."""
        if await self._drop_names(device):
            await until_forgotten(device.view, lambda: device.view.is_known)
        await self._restore_name(device)

    async def _drop_names(self, device: OpenDevice) -> bool:
        """Have the kernel drop the names in a device, and what is not in use with them; False when that cannot be."""
        if await trio.to_thread.run_sync(drop_unused_names, self._mount_point, abandon_on_cancel=True):
            return True
        below = "/" + device.name
        if await trio.to_thread.run_sync(may_be_mounted_below, self._mount_point, below, abandon_on_cancel=True):
            return False
        if not self._open.is_shown(device):
            await self._look_up(device)  # only a name that it has can be invalidated
        device.is_name_dropped = True
        await trio.to_thread.run_sync(_drop_name, os.fsencode(device.name), abandon_on_cancel=True)
        return True

    async def _restore_name(self, device: OpenDevice) -> None:
        if device.is_name_dropped and device.view.is_known and self._open.is_shown(device):
            await self._look_up(device)
        device.is_name_dropped = False

    async def _look_up(self, device: OpenDevice) -> None:
        self.revealed = device
        try:
            path = os.path.join(self._mount_point, device.name)
            await trio.to_thread.run_sync(_look_up, path, abandon_on_cancel=True)
        finally:
            self.revealed = None


async def invalidate_tree(view: TreeView, mount_point: str) -> None:
    """As `KernelCache.invalidate`, for a view of one device that is mounted alone. Never in a handler.

    For an ordinary user, names stay cached where something may be mounted below the mount point.
    """
    view.reread()
    is_dropped = await trio.to_thread.run_sync(drop_unused_names, mount_point, abandon_on_cancel=True)
    if not is_dropped and not await trio.to_thread.run_sync(
        may_be_mounted_below, mount_point, "", abandon_on_cancel=True
    ):
        for name in view.names_at_root():
            await trio.to_thread.run_sync(_drop_name, name, abandon_on_cancel=True)
    await trio.to_thread.run_sync(drop_caches, view.known(), abandon_on_cancel=True)


class Forgetting(Protocol):
    """A view; `forgotten` is set when the kernel forgets."""

    forgotten: trio.Event


async def until_forgotten(view: Forgetting, is_known: Callable[[], bool]) -> None:
    """Wait until the kernel has said that it has forgotten what it was made to drop, or needs it still."""
    with trio.move_on_after(_FORGET_SECONDS):
        while is_known():
            view.forgotten = trio.Event()
            await view.forgotten.wait()
    for _ in range(_LATE_ROUNDS):  # this process may have stood still meanwhile
        if not (is_known() and request_wait.has_requests()):
            break
        await trio.lowlevel.checkpoint()


async def until_released(has_orphans: Callable[[], bool]) -> None:
    """Wait a moment while files without a name are open: the kernel says only after close(2) that one is closed.

    Ends without a checkpoint.
    """
    with trio.move_on_after(_FORGET_SECONDS):
        while has_orphans():
            await trio.sleep(_RELEASE_LOOK_SECONDS)


def drop_unused_names(mount_point: str) -> bool:
    """Have the kernel drop what it has cached of names in a mount and does not need. Never in a handler.

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
        mount_point: without symbolic links.
        directory: its path in the mount, `/NAME`; empty for anywhere in the mount.
    """
    mount = topmost_at(mount_point)
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
            if _may_enter(process) and not _is_in_this_user_namespace(process):
                yield None
        except (OSError, ValueError):
            continue  # it has ended


def _may_enter(process: Path) -> bool:
    """Whether a process may be let into this user's mount: root's admits all users, an ordinary user's that user."""
    try:
        status = (process / "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False  # it has ended
    user_ids = next((line.split()[1:] for line in status.splitlines() if line.startswith("Uid:")), [])
    return os.geteuid() == 0 or str(os.geteuid()) in user_ids


def _is_in_this_user_namespace(process: Path) -> bool:
    try:
        return (process / "uid_map").read_bytes() == (_PROC / "self" / "uid_map").read_bytes()
    except PermissionError:
        return False
    except OSError:
        return True  # it has ended


def _drop_name(name: bytes) -> None:
    try:
        pyfuse3.invalidate_entry(ROOT_INODE, name)
    except FileNotFoundError:
        return  # the kernel does not have it


def _look_up(path: str) -> None:
    """By a separate process: a thread of this one that waits for the mount would outlive even a kill."""
    subprocess.run(["/bin/sh", "-c", 'test -e "$1"', "sh", path], stdin=subprocess.DEVNULL, check=False)
