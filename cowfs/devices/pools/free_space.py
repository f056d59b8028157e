"""What must stay free in a pool, so that the devices in it can go on writing when no more are made."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from cowfs.devices.on_disk.options import MinimumFree
from cowfs.devices.pools.health import examine, require_status, require_writable
from cowfs.errors import CowfsError, MountError, OutOfDataSpace, OutOfMetadataSpace
from cowfs.pool import NoSpacePolicy, Pool, PoolMode, PoolStatus, UnreadableStatus
from cowfs.units import METADATA_BLOCK_BYTES, format_size

_MOUNT_BLOCKS: Final = 16  # the superblock, the journal, a bitmap, a table, a directory of each of a few groups


class _Space(msgspec.Struct, frozen=True):
    """One of a pool's two devices."""

    what: str
    free_bytes: int
    least_bytes: int

    def describe(self, pool_name: str) -> str:
        return (
            f"pool {pool_name} has {self.free_bytes} bytes ({format_size(self.free_bytes)}) of {self.what} space free"
        )


def require_minimum(pool: Pool, minimum: MinimumFree) -> None:
    """Raises OutOfDataSpace or OutOfMetadataSpace when less than the minimum is free."""
    status = require_status(pool, flush=False)
    # Blocks freed since the last commit count as used until a commit.
    if any(_lacking(status, pool.block_bytes, minimum)):
        status = require_status(pool)
    for space in _lacking(status, pool.block_bytes, minimum):
        error = OutOfDataSpace if space.what == "data" else OutOfMetadataSpace
        raise error(
            f"{space.describe(pool.name)}, less than the {space.least_bytes} ({format_size(space.least_bytes)}) that "
            f"stay free; remove or trim devices, make the pool larger with 'pool resize', or lower the minimum"
        )


def require_room_to_mount(pool: Pool) -> None:
    """Raises OutOfDataSpace where a mount by the kernel might wait for space, and with it the process that mounts."""
    status = pool.status(flush=False)
    if isinstance(status, UnreadableStatus) or status.mode > PoolMode.OUT_OF_DATA_SPACE:
        return
    free = status.total_data_blocks - status.used_data_blocks
    if status.no_space is NoSpacePolicy.QUEUE and free < _MOUNT_BLOCKS:
        raise OutOfDataSpace(
            f"pool {pool.name} has {free} data blocks free, and mounting a device may take {_MOUNT_BLOCKS}; writes "
            "wait there for space, and so would the mount; remove or trim devices, make the pool larger with "
            "'pool resize --data-size', or have writes fail with 'pool set --no-space error'"
        )


@contextmanager
def naming_what_a_mount_lacks(pool: Pool) -> Iterator[None]:
    """Where the kernel cannot mount because the pool does not let it write, the error says that.

    Raises:
        OutOfDataSpace, OutOfMetadataSpace, PoolModeError: in place of a MountError (EIO).
    """
    try:
        yield
    except MountError as error:
        if error.errno != errno.EIO:
            raise
        require_writable(pool, to_make_room=False)
        if examine(pool).mode is not PoolMode.OUT_OF_DATA_SPACE:
            raise
        text = f"{error.message}; pool {pool.name} has no data space left; remove or trim devices, or make it larger"
        raise OutOfDataSpace(f"{text} with 'pool resize --data-size'") from error


def warnings(pool: Pool, minimum: MinimumFree) -> list[str]:
    """What is running out, in words."""
    try:
        status = pool.status(flush=False)
    except CowfsError:
        return []
    if isinstance(status, UnreadableStatus):
        return []
    if status.mode is PoolMode.OUT_OF_DATA_SPACE:
        writes = "wait" if status.no_space is NoSpacePolicy.QUEUE else "fail"
        remedy = "remove or trim devices, or make it larger with 'pool resize --data-size'"
        return [f"pool {pool.name} has no data space left, so writes {writes}; {remedy}"]
    return [
        f"{space.describe(pool.name)}; below {format_size(space.least_bytes)} no device is made"
        for space in _spaces(status, pool.block_bytes, minimum)
        if space.least_bytes and space.free_bytes < 2 * space.least_bytes
    ]


def _lacking(status: PoolStatus, block_bytes: int, minimum: MinimumFree) -> Iterator[_Space]:
    return (space for space in _spaces(status, block_bytes, minimum) if space.free_bytes < space.least_bytes)


def _spaces(status: PoolStatus, block_bytes: int, minimum: MinimumFree) -> Iterator[_Space]:
    data_bytes = minimum.data_bytes
    if data_bytes is None:
        data_bytes = _share(status.total_data_blocks, minimum.percent) * block_bytes
    free = status.total_data_blocks - status.used_data_blocks
    yield _Space("data", free * block_bytes, data_bytes)
    metadata_bytes = _share(status.total_metadata_blocks, minimum.percent) * METADATA_BLOCK_BYTES
    free_metadata = status.total_metadata_blocks - status.used_metadata_blocks
    yield _Space("metadata", free_metadata * METADATA_BLOCK_BYTES, metadata_bytes)


def _share(total: int, percent: int) -> int:
    return max(1, total * percent // 100) if percent else 0
