"""Making a pool larger while it is in use.

The files grow first, then the pool takes what they have. A crash in between is finished by the next opening, which
takes a longer file whole too. The metadata comes before the data, whose bitmaps need room in it.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import Final

from cowfs.devices.on_disk.files import HomeFiles
from cowfs.devices.on_disk.options import check_data_size, check_metadata_size, check_not_smaller, data_bitmaps
from cowfs.devices.pools.health import require_status
from cowfs.devices.pools.pool_files import device_size, use_table
from cowfs.errors import CowfsError, HomeError, OutOfMetadataSpace, UsageError
from cowfs.pool import Pool, PoolStatus, PoolTable
from cowfs.units import METADATA_BLOCK_BYTES, SECTOR_BYTES, Sectors, format_size

_SPARE_METADATA_BLOCKS: Final = 64  # paths to the new bitmaps, and copies of one transaction


def grow_pool(files: HomeFiles, pool: Pool, data_size_bytes: int | None, metadata_size_bytes: int | None) -> None:
    """Grow the devices of a pool to these sizes; without a size, to what a device has by now.

    Raises:
        UsageError: a size that cannot be, or that is smaller; another one than a block device has.
        OutOfMetadataSpace: the metadata has no room for the bitmaps of so many data blocks.
        HomeError: the file cannot grow.
        PoolModeError, PoolError: the pool does not take it; its files are then as they were.
    """
    table = pool.table()
    data_bytes = _whole_sectors(device_size(table.data_device))
    metadata_bytes = _whole_sectors(device_size(table.metadata_device))
    if data_size_bytes is not None:
        check_data_size(data_size_bytes, pool.block_bytes)
        _check_growth("data", table.data_device, data_bytes, data_size_bytes)
    if metadata_size_bytes is not None:
        check_metadata_size(metadata_size_bytes, table.data_blocks)
        _check_growth("metadata", table.metadata_device, metadata_bytes, metadata_size_bytes)
    new_data_bytes = max(data_bytes, data_size_bytes or 0)
    new_metadata_bytes = max(metadata_bytes, metadata_size_bytes or 0)
    grown = table.replace(length_sectors=Sectors(new_data_bytes // pool.block_bytes * table.block_sectors))
    _check_room_for_bitmaps(pool, grown.data_blocks, new_metadata_bytes)
    _grow(files, pool, table.metadata_device, metadata_bytes, new_metadata_bytes, table)
    _grow(files, pool, table.data_device, data_bytes, new_data_bytes, grown)


def _grow(files: HomeFiles, pool: Pool, path: str, old_bytes: int, new_bytes: int, table: PoolTable) -> None:
    if new_bytes > old_bytes:
        files.resize_file(path, new_bytes)
    try:
        use_table(pool, table)
    except BaseException:
        if new_bytes > old_bytes and _total_bytes(pool, path) <= old_bytes:
            with suppress(HomeError):
                files.resize_file(path, old_bytes)
        raise


def _total_bytes(pool: Pool, path: str) -> int:
    """How much of one of its devices a pool knows; all there can be where that is not known."""
    try:
        status = pool.status(flush=False)
    except CowfsError:
        return os.stat(path).st_size
    if not isinstance(status, PoolStatus):
        return os.stat(path).st_size
    if path == pool.table().metadata_device:
        return status.total_metadata_blocks * METADATA_BLOCK_BYTES
    return status.total_data_blocks * pool.block_bytes


def _check_growth(what: str, path: str, size_bytes: int, new_bytes: int) -> None:
    check_not_smaller(f"the pool's {what}", size_bytes, new_bytes)
    if new_bytes != size_bytes and not stat.S_ISREG(os.stat(path).st_mode):
        raise UsageError(
            f"the pool's {what} is the block device {path} of {size_bytes} bytes; make that larger, then run this "
            "without a size"
        )


def _check_room_for_bitmaps(pool: Pool, data_blocks: int, metadata_bytes: int) -> None:
    status = require_status(pool)
    more = data_bitmaps(data_blocks) - data_bitmaps(status.total_data_blocks)
    free = metadata_bytes // METADATA_BLOCK_BYTES - status.used_metadata_blocks
    if more > 0 and free < more + _SPARE_METADATA_BLOCKS:
        least = (status.used_metadata_blocks + more + _SPARE_METADATA_BLOCKS) * METADATA_BLOCK_BYTES
        raise OutOfMetadataSpace(
            f"pool {pool.name} has no room in its metadata for {data_blocks} data blocks; "
            f"make the metadata larger too, at least {least} bytes ({format_size(least)})"
        )


def _whole_sectors(size_bytes: int) -> int:
    return size_bytes // SECTOR_BYTES * SECTOR_BYTES
