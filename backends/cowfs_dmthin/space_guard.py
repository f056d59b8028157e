"""Keeping writes from waiting in the kernel.

A full pool that queues blocks a writer until space comes or its timeout ends, a minute as a rule. A process that
serves others must not be held, least of all from taking the request that enlarges the pool. So a write asks first:

    SpaceGuard  whether the pool has blocks for it, known from the status, which is asked for again when what it said
                last is used up or old
    Petition    where there is none: asks the kernel for one block, so that the pool knows that it is full

The write is then refused with `may_queue` set. That the pool is full, the event that says so, and the end of its
timeout remain the kernel's. What others take from the pool between question and write, through nodes that they use,
may make a write wait all the same.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeGuard

from cowfs.forking import not_inherited
from cowfs.pool import NoSpacePolicy, PoolMode, PoolStatus, UnreadableStatus

_VALID_SECONDS = 0.1
TIMEOUT_PATH = "/sys/module/dm_thin_pool/parameters/no_space_timeout"
_DEFAULT_TIMEOUT_SECONDS = 60.0  # of kernels before it was a parameter
_LEAST_WAIT_SECONDS = 0.1


class SpaceGuard:
    """How many blocks may be written to without waiting in the kernel.

    Args:
        ask: the pool's status; its argument says whether to commit first.
    """

    def __init__(
        self, ask: Callable[[bool], PoolStatus | UnreadableStatus], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._blocks = 0
        self._valid_until = 0.0
        self._must_commit = False
        self._full_since: float | None = None

    def take(self, blocks: int) -> bool:
        """Whether a write to so many blocks is done at once, whatever the answer of the kernel."""
        now = self._clock()
        if blocks > self._blocks or now >= self._valid_until:
            self._blocks = self._count()
            self._valid_until = now + _VALID_SECONDS
        if blocks > self._blocks:
            return False
        self._blocks -= blocks
        return True

    def invalidate(self, *, must_commit: bool = False) -> None:
        """What was known may be wrong. `must_commit`: blocks were freed, which are available after a commit."""
        self._blocks = 0
        self._must_commit |= must_commit

    def holds_writes(self) -> bool:
        """Whether the kernel lets writes to new blocks wait now."""
        status = self._ask(False)
        return _queues(status) and status.mode is PoolMode.OUT_OF_DATA_SPACE

    def wait_seconds(self) -> float:
        """How much longer the kernel would let a write wait: 0 when it would fail, infinity when for ever."""
        status = self._ask(False)
        if not _queues(status):
            return 0.0
        timeout = no_space_timeout_seconds() or float("inf")
        if status.mode is not PoolMode.OUT_OF_DATA_SPACE:
            self._full_since = None
            return timeout
        if self._full_since is None:
            self._full_since = self._clock()
        return max(timeout - (self._clock() - self._full_since), _LEAST_WAIT_SECONDS)

    def _count(self) -> int:
        status = self._ask(False)
        if _queues(status) and self._must_commit:  # any other pool commits when its own time comes
            status = self._ask(True)
        self._must_commit = False
        if not _queues(status):
            return sys.maxsize
        if status.mode is PoolMode.OUT_OF_DATA_SPACE:
            return 0
        return status.total_data_blocks - status.used_data_blocks


class Petition:
    """A sector of a block that needs space, written with what it holds already, by a thread that may wait.

    Args:
        fd: of the thin's node, for direct I/O.
        vblock: the block.
        content: of the sector at `offset`.
    """

    def __init__(self, fd: int, vblock: int, offset: int, content: bytes) -> None:
        self.vblock = vblock
        self._fd = os.dup(fd)
        self._offset = offset
        self._memory = mmap.mmap(-1, len(content))
        self._memory[:] = content
        not_inherited(self, f"a write to block {vblock}", drop=lambda petition: os.close(petition._fd))
        self._thread = threading.Thread(target=self._write, daemon=True, name=f"petition for block {vblock}")
        self._thread.start()

    def is_answered(self, wait_seconds: float | None = 0.0) -> bool:
        """Whether the kernel gave or refused the block, after waiting for that so long; without end when None."""
        self._thread.join(wait_seconds)
        return not self._thread.is_alive()

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            os.pwritev(self._fd, [self._memory], self._offset)
        fd, self._fd = self._fd, -1  # in this order, for a thread that forks
        os.close(fd)


def _queues(status: PoolStatus | UnreadableStatus) -> TypeGuard[PoolStatus]:
    return (
        isinstance(status, PoolStatus)
        and status.no_space is NoSpacePolicy.QUEUE
        and status.mode <= PoolMode.OUT_OF_DATA_SPACE
    )


def no_space_timeout_seconds() -> float:
    """How long full pools of the kernel let writes wait; 0 is for ever."""
    try:
        with open(TIMEOUT_PATH, encoding="ascii") as file:
            return float(file.read())
    except FileNotFoundError:
        return _DEFAULT_TIMEOUT_SECONDS
