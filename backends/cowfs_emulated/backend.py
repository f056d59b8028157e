"""Opening emulated pools by path: files, locks, and what is refused before the metadata is looked at."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from contextlib import ExitStack

from cowfs.blockdev import BlockDevice, FileDevice, may_be_link
from cowfs.errors import InvalidRequest
from cowfs.pool import Capability, Pool, PoolTable, ProbeResult
from cowfs_emulated.engine import NO_SPACE_TIMEOUT_SECONDS
from cowfs_emulated.pool import EmulatedPool


class EmulatedBackend:
    """Thin pools in this process, on any two files or block devices that the user may open.

    A pool holds an exclusive `flock` on its metadata file while it is open, and claims block devices. A read-only one
    on files that cannot be written here only looks whether the lock is free: any number may read such files, and
    the opener of the pool sees to it that nothing writes them.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        no_space_timeout_seconds: float = NO_SPACE_TIMEOUT_SECONDS,
        wrap_device: Callable[[str, BlockDevice], BlockDevice] | None = None,
    ) -> None:
        self._clock = clock
        self._no_space_timeout_seconds = no_space_timeout_seconds
        self._wrap_device = wrap_device or (lambda _role, device: device)

    @property
    def name(self) -> str:
        return "emulated"

    @property
    def capabilities(self) -> Capability:
        return (
            Capability.UNPRIVILEGED
            | Capability.ZEROED_REUSE
            | Capability.NO_LEAKS
            | Capability.FREED_SPACE_RETURNED
            | Capability.PROMPT_REUSE
            | Capability.GENTLE_METADATA_END
            | Capability.EXACT_AFTER_ABORT
            | Capability.BOUNDED_TIME
        )

    def probe(self) -> ProbeResult:
        return ProbeResult(usable=True)

    def with_clock(self, clock: Callable[[], float]) -> EmulatedBackend:
        return EmulatedBackend(
            clock=clock, no_space_timeout_seconds=self._no_space_timeout_seconds, wrap_device=self._wrap_device
        )

    def for_tests(
        self,
        *,
        clock: Callable[[], float],
        no_space_timeout_seconds: float,
        wrap_device: Callable[[str, BlockDevice], BlockDevice],
    ) -> EmulatedBackend:
        """The same backend, for tests.

        Args:
            clock: seconds.
            no_space_timeout_seconds: how long a full pool lets writes wait; 0 is for ever.
            wrap_device: called with `metadata` or `data` and the device; what it returns is used instead.
        """
        return EmulatedBackend(clock=clock, no_space_timeout_seconds=no_space_timeout_seconds, wrap_device=wrap_device)

    def open_pool(self, name: str, table: PoolTable, *, durable: bool = True) -> Pool:
        table.check()
        with ExitStack() as undo:
            metadata = _open(table.metadata_device, "metadata", read_only=table.read_only)
            undo.callback(metadata.close)
            data = _open_data(table)
            undo.callback(data.close)
            if os.path.samestat(os.fstat(metadata.fd), os.fstat(data.fd)):
                raise InvalidRequest(
                    f"{table.metadata_device} and {table.data_device} are the same file; a pool needs two"
                )
            _lock(metadata)
            if table.read_only and not os.access(table.metadata_device, os.W_OK):
                fcntl.flock(metadata.fd, fcntl.LOCK_UN)
            pool = EmulatedPool(
                self._wrap_device("metadata", metadata),
                self._wrap_device("data", data),
                table,
                name=name,
                clock=self._clock,
                durable=durable,
                discards_reach_data=not data.is_block_node,
                no_space_timeout_seconds=self._no_space_timeout_seconds,
            )
            undo.pop_all()
        return pool


def _open(path: str, role: str, *, read_only: bool = False) -> FileDevice:
    try:
        return FileDevice(path, read_only=read_only, nofollow=not may_be_link(path), exclusive=True)
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO).lower()
        if error.errno == errno.ELOOP:
            reason = "it is a symbolic link, which is not followed here"
        raise InvalidRequest(f"{role} device {path} cannot be opened: {reason}", errno=error.errno) from error


def _open_data(table: PoolTable) -> FileDevice:
    """A read-only pool still overwrites blocks that are mapped, unless its medium does not let it."""
    try:
        return _open(table.data_device, "data")
    except InvalidRequest as error:
        if not table.read_only or error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
    return _open(table.data_device, "data", read_only=True)


def _lock(metadata: FileDevice) -> None:
    try:
        fcntl.flock(metadata.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InvalidRequest(
            f"metadata device {metadata.path} is in use by another pool, here or in another process", errno=errno.EBUSY
        ) from None
