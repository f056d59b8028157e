"""Working off the devices marked for deletion, as long as a home is served."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from cowfs.devices.deviceset import DeviceSet

_log = logging.getLogger(__name__)
RETRY_SECONDS: Final = 30.0


def deletion_service(
    devices: DeviceSet, sleep: Callable[[float], Awaitable[None]] = trio.sleep
) -> Callable[..., Awaitable[None]]:
    """A service for the nursery of a process that serves a home: tries every 30 s to delete what is marked for it."""

    async def serve(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while True:
            await sleep(RETRY_SECONDS)
            try:
                devices.deletions.retry()
            except Exception:  # a defect here must not end a mount
                _log.exception("deletions of %s", devices.home)

    return serve
