"""Having the kernel write what it keeps of devices that are in use, before something waits for that.

To suspend a device for a snapshot, or to end its last mount, the kernel writes everything that programs wrote and did
not sync. That may be gigabytes, and a call that waits for it cannot be interrupted. So it is asked for before, in a
thread that can be left alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from cowfs.devices.active import ActiveDevices
from cowfs.fuse.left_alone import LeftAlone
from cowfs.mounts.kernel_mount import sync_device, sync_filesystem
from cowfs.mounts.nodes import kernel_mounts


class KernelWrites:
    """Of the devices of a home that are in use through their nodes.

    One that is mounted in this mount namespace is written through its mount, any other one through its node.

    Args:
        sync: has a file system written, by the path of a mount. Raises OSError.
        sync_node: has a block device and what is mounted of it written, by the path of its node. Raises OSError.
    """

    def __init__(
        self,
        active: ActiveDevices,
        sync: Callable[[str], None] = sync_filesystem,
        sync_node: Callable[[str], None] = sync_device,
    ) -> None:
        self._active = active
        self._sync = sync
        self._sync_node = sync_node
        self._threads = LeftAlone("syncfs")  # by device

    async def write(self, device: str) -> None:
        """Wait until what was written to a device's files is on the device; nothing happens where it is not in use.

        The thread of one that is cancelled goes on, and the next one waits for it. In a process that ends, it ends when
        the kernel is done. What could not be written, the kernel says to who syncs the file.
        """
        await self._threads.run(device, partial(self._prepared, device))

    def _prepared(self, device: str) -> Callable[[], None] | None:
        numbers = self._active.open_nodes().get(device)
        if not numbers:
            return None
        targets = (mount.target for _, mount in kernel_mounts({device: numbers}))
        target = next((target for target in targets if os.path.isdir(target)), None)
        if target is not None:
            return partial(_try_to, self._sync, target)
        node = self._active.kept_nodes().get(device)
        return None if node is None else partial(_try_to, self._sync_node, node)


def _try_to(sync: Callable[[str], None], path: str) -> None:
    with suppress(OSError):
        sync(path)
