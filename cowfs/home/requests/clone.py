"""Copying a home."""

from __future__ import annotations

import os
from typing import ClassVar

from cowfs.devices.reports import ClonedHome
from cowfs.errors import UsageError
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.requests.request import Request


class CloneHome(Request[ClonedHome], frozen=True, tag="clone_home"):
    """Copy the home to a new directory, as it is at one moment; mounted devices are brought to a consistent state.

    Where the disk can, the copy refers to the same blocks of the disk, which takes milliseconds whatever the size; else
    what the pool holds is copied, and a mount that cowfs serves waits meanwhile. Of devices that the kernel has mounted
    a snapshot is copied. The pool of the copy is in files, wherever that of the home is.

    Args:
        target: the new directory, absolute. One in which a copy was interrupted is replaced.

    Raises:
        HomeError: `target` exists or cannot be made.
        UsageError: `target` is in the home, or in a mount of it.
        CowfsError: copying failed, and nothing was left.
    """

    reads_all_devices: ClassVar[bool] = True

    target: str

    def run(self, home: OpenHome) -> ClonedHome:
        from cowfs.mounts.mountpoint import SERVED

        for place in (os.path.realpath(home.path), *SERVED):
            if os.path.join(self.target, "").startswith(os.path.join(place, "")):
                raise UsageError(f"{self.target} is in the home {home.path}, or in a mount of it; name a place outside")
        return home.devices.clone(self.target)
