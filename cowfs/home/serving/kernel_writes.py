"""Having the kernel write what it keeps of file systems that it has mounted, before something waits for that.

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
from cowfs.mounts.kernel_mount import sync_filesystem
from cowfs.mounts.nodes import kernel_mounts


class KernelWrites:
    """Of the devices of a home whose nodes are mounted in this mount namespace.

    Args:
        sync: has a file system written, by the path of a mount. Raises OSError.
    """

    def __init__(self, active: ActiveDevices, sync: Callable[[str], None] = sync_filesystem) -> None:
        self._active = active
        self._sync = sync
        self._threads = LeftAlone("syncfs")  # by device

    async def write(self, device: str) -> None:
        """Wait until what was written to a device's files is on the device; nothing happens where it is not mounted.

        The thread of one that is cancelled goes on, and the next one waits for it. In a process that ends, it ends when
        the kernel is done. What could not be written, the kernel says to who syncs the file.
        """

        def prepare() -> Callable[[], None] | None:
            target = self._mount_point(device)
            return None if target is None else partial(self._try_to_sync, target)

        await self._threads.run(device, prepare)

    def _try_to_sync(self, target: str) -> None:
        with suppress(OSError):
            self._sync(target)

    def _mount_point(self, device: str) -> str | None:
        mounts = kernel_mounts({name: numbers for name, numbers in self._active.open_nodes().items() if name == device})
        return next((mount.target for _, mount in mounts if os.path.isdir(mount.target)), None)
