"""What a pool still lets its home do, and why, in words."""

from __future__ import annotations

import errno

import msgspec

from cowfs.errors import CowfsError, OutOfMetadataSpace, PoolModeError
from cowfs.pool import Pool, PoolMode, PoolStatus, UnreadableStatus


class Health(msgspec.Struct, frozen=True):
    """`problem` says what is wrong and what to do; empty for a pool that can be changed, or that is open read-only."""

    can_read: bool = True
    can_change: bool = True
    problem: str = ""
    mode: PoolMode = PoolMode.WRITE


def require_status(pool: Pool, *, flush: bool = True) -> PoolStatus:
    """The figures of a pool. Raises PoolModeError for one that reports none."""
    status = pool.status(flush=flush)
    if isinstance(status, UnreadableStatus):
        raise PoolModeError(f"pool {pool.name} answers '{status.value}'; close the home and check it")
    return status


def examine(pool: Pool) -> Health:
    """Look at a pool's mode and its needs-check flag."""
    try:
        status = pool.status(flush=False)
    except CowfsError as error:
        return Health(problem=f"pool {pool.name} does not report its state: {error}")
    if isinstance(status, UnreadableStatus):
        problem = (
            f"pool {pool.name} has failed: it answers '{status.value}', and nothing in it can be read or changed; "
            "close the home, then run 'pool check', and 'pool check --repair'"
        )
        return Health(can_read=False, can_change=False, problem=problem, mode=PoolMode.FAIL)
    mode = status.mode
    if mode is PoolMode.READ_ONLY and pool.table().read_only and not status.needs_check:
        return Health(mode=mode)
    # The status line has one word for two modes.
    if mode is PoolMode.READ_ONLY and status.used_metadata_blocks >= status.total_metadata_blocks:
        mode = PoolMode.OUT_OF_METADATA_SPACE
    problem = ""
    if status.needs_check:
        problem = (
            f"pool {pool.name} needs a check, because a change of its metadata failed; until 'pool check --repair' has "
            "run on the closed home, devices can be read and nothing can be changed"
        )
    elif mode is PoolMode.READ_ONLY:
        problem = (
            f"pool {pool.name} is read-only, because its metadata could not be written; devices can be read; "
            "close the home and open it again"
        )
    elif mode is PoolMode.OUT_OF_METADATA_SPACE:
        problem = (
            f"pool {pool.name} has no metadata space left; devices can be read and removed, and nothing else can be "
            "changed until it is made larger with 'pool resize --metadata-size'"
        )
    can_change = not status.needs_check and mode is not PoolMode.READ_ONLY
    return Health(can_change=can_change, problem=problem, mode=mode)


def require_writable(pool: Pool, *, to_make_room: bool) -> None:
    """Raises PoolModeError (EROFS) or OutOfMetadataSpace; see `ChangeGuard.check_writable`."""
    now = examine(pool)
    if not now.can_change:
        raise PoolModeError(now.problem, errno=errno.EROFS)
    if now.mode is PoolMode.OUT_OF_METADATA_SPACE and not to_make_room:
        raise OutOfMetadataSpace(now.problem)
