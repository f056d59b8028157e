"""The error for a device that something has open, and whose content is to be another."""

from __future__ import annotations

import trio

from cowfs.errors import DeviceBusy
from cowfs.mounts.processes import listed, processes_at


async def in_use(name: str, path: str) -> DeviceBusy:
    """Names the processes that have something open at a path, where they can be seen. Never call it in a handler."""
    found = await trio.to_thread.run_sync(processes_at, path, abandon_on_cancel=True)
    unseen = "something mounted or attached there, or a process that this user may not look at"
    users = listed(found) or unseen
    return DeviceBusy(
        f"device '{name}' is in use at {path} by {users}; end that, or detach what is open by force (--force)"
    )
