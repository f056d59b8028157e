"""Waiting for events of a pool (low water, a change of mode) while other tasks go on, and telling the log of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from cowfs.pool import NodePool, Pool, UnreadableStatus
from cowfs.units import format_size

_log = logging.getLogger(__name__)
POLL_SECONDS: Final = 1.0


async def wait_for_event(pool: Pool, after: int, *, poll_seconds: float = POLL_SECONDS) -> int:
    """Wait until a pool's event counter is not `after` any more; its value.

    The kernel wakes this task by a descriptor; a pool in this process is looked at every `poll_seconds`.
    """
    if not isinstance(pool, NodePool):
        while (counter := pool.event_counter) == after:
            await trio.sleep(poll_seconds)
        return counter
    fd = pool.open_events()
    try:
        while True:
            pool.arm_events(fd)
            if (counter := pool.event_counter) != after:
                return counter
            await trio.lowlevel.wait_readable(fd)
    finally:
        trio.lowlevel.notify_closing(fd)
        os.close(fd)


def event_service(pool: Pool, *, poll_seconds: float = POLL_SECONDS) -> Callable[..., Awaitable[None]]:
    """A service for the nursery of a process that serves a home: logs what happened to the pool."""

    async def serve(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        counter = pool.event_counter
        task_status.started()
        try:
            while True:
                counter = await wait_for_event(pool, counter, poll_seconds=poll_seconds)
                _log.warning("pool %s: %s", pool.name, describe(pool))
        except Exception:  # a defect here must not end a mount
            _log.exception("events of pool %s", pool.name)

    return serve


def describe(pool: Pool) -> str:
    """How a pool is, in one line: its mode and what is free."""
    status = pool.status(flush=False)
    if isinstance(status, UnreadableStatus):
        return f"its status is '{status.value}'"
    free_bytes = (status.total_data_blocks - status.used_data_blocks) * pool.block_bytes
    metadata_blocks = status.total_metadata_blocks - status.used_metadata_blocks
    needs_check = ", and it needs a check" if status.needs_check else ""
    return (
        f"mode {status.mode.name.lower().replace('_', ' ')}{needs_check}; {format_size(free_bytes)} of data and "
        f"{metadata_blocks} metadata blocks are free"
    )
