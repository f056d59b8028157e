"""The errors for a device that something has open, of which the content is to be another."""

from __future__ import annotations

import trio

from cowfs.errors import DeviceBusy
from cowfs.mounts.processes import listed, processes_at


async def require_unused(name: str, path: str) -> None:
    """Raises DeviceBusy, with their names, when processes have something open at a path. Never call it in a handler."""
    found = await trio.to_thread.run_sync(processes_at, path, abandon_on_cancel=True)
    if found:
        raise DeviceBusy(
            f"device '{name}' is in use at {path} by {listed(found)}; end that, or detach what is open with --force"
        )


def used_unseen(name: str, path: str) -> DeviceBusy:
    """The error where the kernel knows of a use, and /proc shows none."""
    return DeviceBusy(
        f"device '{name}' is in use at {path}, by something mounted or attached there, or by a process that this user "
        "may not look at; end that, or detach it with --force"
    )
