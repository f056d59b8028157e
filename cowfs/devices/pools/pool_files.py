"""The pool of a home: its two files, what they say about themselves, and the table that opens it."""

from __future__ import annotations

import os
import stat
from contextlib import closing, suppress

from cowfs.blockdev import FileDevice
from cowfs.devices.on_disk.files import HomeFiles
from cowfs.devices.on_disk.options import check_block_size
from cowfs.devices.on_disk.records import HomeFile
from cowfs.errors import CowfsError, HomeError, UsageError
from cowfs.pool import Pool, PoolTable
from cowfs.thinmeta.format import Superblock
from cowfs.units import METADATA_BLOCK_BYTES, SECTOR_BYTES, Sectors, format_size


def existing_table(files: HomeFiles, settings: HomeFile, *, read_only: bool) -> PoolTable:
    """The table for an existing pool. A data file that was made longer is used whole, as moby does.

    Raises:
        HomeError: a file is missing or shorter than the pool knows it to be.
    """
    _check_both_exist(files)
    superblock = _read_superblock(files)
    block_bytes = superblock.data_block_sectors * SECTOR_BYTES
    metadata_bytes = device_size(files.metadata)
    data_bytes = device_size(files.data)
    _check_not_truncated(files.metadata, metadata_bytes, superblock.metadata_space_map.nr_blocks * METADATA_BLOCK_BYTES)
    data_blocks = superblock.data_space_map.nr_blocks
    _check_not_truncated(files.data, data_bytes, data_blocks * block_bytes)
    if not read_only:
        data_blocks = data_bytes // block_bytes
    return make_table(files, settings, data_blocks, superblock.data_block_sectors, read_only=read_only)


def _read_superblock(files: HomeFiles) -> Superblock:
    """Raises MetadataCorrupt: it is damaged; HomeError: the metadata is not there, too short, or holds no pool."""
    with closing(open_device(files.metadata)) as device:
        if device.size_bytes < METADATA_BLOCK_BYTES:
            raise HomeError(f"{files.metadata} is truncated: it is {device.size_bytes} bytes long and holds no pool")
        block = device.pread(0, METADATA_BLOCK_BYTES)
    if not any(block):
        raise HomeError(f"{files.metadata} holds no pool: its superblock is all zeros; restore it from a backup")
    superblock = Superblock.unpack(block)
    try:
        check_block_size(superblock.data_block_sectors * SECTOR_BYTES)
    except UsageError as error:
        raise HomeError(f"{files.metadata}: {error}") from error
    return superblock


def make_table(
    files: HomeFiles, settings: HomeFile, data_blocks: int, block_sectors: int, *, read_only: bool = False
) -> PoolTable:
    return PoolTable(
        length_sectors=Sectors(data_blocks * block_sectors),
        metadata_device=files.metadata,
        data_device=files.data,
        block_sectors=Sectors(block_sectors),
        low_water_blocks=settings.low_water_blocks,
        skip_block_zeroing=settings.skip_block_zeroing,
        no_discard_passdown=settings.no_discard_passdown,
        error_if_no_space=settings.error_if_no_space,
        read_only=read_only,
    )


def use_table(pool: Pool, table: PoolTable) -> None:
    """Have a pool work by another table. Raises what the pool raises; it works by the former one then."""
    before = pool.table()
    try:
        pool.reload(table)
        pool.resume()
    except BaseException:
        with suppress(CowfsError):
            pool.reload(before)
            pool.resume()
        raise


def _check_both_exist(files: HomeFiles) -> None:
    """Raises HomeError when a file or device of the pool is missing; it is never made again, its content is lost."""
    missing = [path for path in (files.data, files.metadata) if not os.path.lexists(path)]
    if missing:
        is_own = any(path in (files.own_data, files.own_metadata) for path in missing)
        remedy = "restore from a backup" if is_own else "attach what holds it"
        raise HomeError(
            f"the pool of the home {files.home} is incomplete: {' and '.join(missing)} missing; "
            f"{remedy}, nothing was changed"
        )


def _check_not_truncated(path: str, size_bytes: int, known_bytes: int) -> None:
    if size_bytes < known_bytes:
        lacking = known_bytes - size_bytes
        raise HomeError(
            f"{path} is truncated: it is {size_bytes} bytes long and the pool has {known_bytes}, "
            f"so {lacking} bytes ({format_size(lacking)}) are missing; restore it from a backup"
        )


def device_size(path: str) -> int:
    """Bytes of a file or block device. Raises HomeError."""
    with closing(open_device(path)) as device:
        return device.size_bytes


def open_device(path: str, *, read_only: bool = True) -> FileDevice:
    """One of a pool's two files or devices. Raises HomeError."""
    try:
        return FileDevice(path, read_only=read_only)
    except OSError as error:
        raise HomeError(f"cannot open {path}: {error.strerror}", errno=error.errno) from error


def backing_space(data_file: str) -> tuple[int, int]:
    """(bytes that the data file occupies, bytes free under it); zeros for a device, and where it is not known."""
    try:
        found = os.stat(data_file)
        system = os.statvfs(data_file)
    except OSError:
        return 0, 0
    if not stat.S_ISREG(found.st_mode):
        return 0, 0
    return found.st_blocks * 512, system.f_bavail * system.f_frsize
