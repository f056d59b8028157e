"""Mounts by the kernel itself: mount(2) of a device's node, where the backend has nodes.

    command                                     who holds the home (the command itself, or a server)
    check the mount point
    OpenNode ──────────────────────────────►    open the node
    mount(2)       ◄──── descriptor of the node
    close the descriptor

No process stays behind. The kernel removes the device with its last user, which is the descriptor and then the mount,
and the pool with its last device; so a mount ended by umount(8) leaves nothing either. While it lasts the home is free:
the next process that opens it takes the pool over as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cowfs.devices.on_disk.names import TARGET_PREFIX
from cowfs.mounts import nodes
from cowfs.mounts.kernel_mount import mount_node, parse_mount_options
from cowfs.mounts.mountinfo import Mount, encode_source, mount_at, mounts
from cowfs.mounts.mountpoint import check_mount_point, unmount_now


def mount_by_kernel(
    home: Path,
    name: str,
    target: str,
    open_node: Callable[[], int],
    *,
    options: str = "",
    read_only: bool = False,
    on_ready: Callable[[], None] | None = None,
) -> str:
    """Mount the file system of a device at an empty directory; returns the path of the device's node.

    Args:
        open_node: asks the process that holds the home for an open node of the device.
        options: as mount(8) has them; `nouuid` is added for xfs, which a snapshot shares its UUID with its origin.
        on_ready: called once it is mounted; the mount is taken back when this raises, or anything before.

    Raises:
        UnknownDevice, DeviceBusy: as `ActiveDevices.open_node`.
        MissingRequirement: the backend has no nodes.
        FilesystemError: no file system that is known.
        MountError: the mount point cannot be used, or mount(2) failed.
    """
    options = ",".join(filter(None, [options, "ro" if read_only else ""]))
    parse_mount_options(options)
    target = check_mount_point(encode_source(home, name), target)
    fd = open_node()
    try:
        node = mount_node(fd, name, target, options)
        if on_ready is not None:
            on_ready()
    except BaseException:
        if mount_at(target) is not None:  # nothing was there before
            unmount_now(target)
        raise
    finally:
        os.close(fd)
    return node


def is_mount_of_home(mount: Mount) -> bool:
    """Whether the kernel has a device of some home mounted here."""
    return nodes.target_name(nodes.device_of(mount)).startswith(TARGET_PREFIX)


def unmount_by_kernel(mount: Mount, *, lazy: bool = False) -> None:
    """Unmount; without `lazy`, the device, and what only it used, is removed when this returns.

    Raises:
        MountError: files in it are in use (EBUSY), or mounted by another user (EPERM).
    """
    number = nodes.device_of(mount)
    name = nodes.target_name(number)
    pools = nodes.below(number)
    loops = {loop for pool in pools for loop in nodes.below(pool) if nodes.clears_itself(loop)}
    unmount_now(mount.target, lazy=lazy)
    if not lazy and not nodes.is_kept(number) and not any(nodes.device_of(other) == number for other in mounts()):
        nodes.wait_until(lambda: nodes.target_name(number) != name)
        nodes.wait_until(lambda: all(not nodes.target_name(pool) or nodes.targets_above(pool) for pool in pools))
        nodes.wait_until(lambda: all(not nodes.clears_itself(loop) or nodes.targets_above(loop) for loop in loops))
