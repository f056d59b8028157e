"""Opening the pool of a home, wherever it is: in the home's own files, on devices, or an existing pool of the kernel.

A new home takes devices over only when nothing is on them, or when the user permits the loss of what is there; and a
externally created pool only if it was never used.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import ExitStack, closing
from typing import Final

import msgspec

from cowfs.blockdev import FileDevice
from cowfs.devices.on_disk import making
from cowfs.devices.on_disk.files import HomeFiles
from cowfs.devices.on_disk.names import BASE, pool_prefix
from cowfs.devices.on_disk.options import HomeOptions, PoolSource
from cowfs.devices.on_disk.records import HomeFile
from cowfs.devices.pools import pool_files
from cowfs.errors import (
    CowfsError,
    HomeBusy,
    HomeError,
    InvalidRequest,
    MetadataCorrupt,
    MissingRequirement,
    PoolModeError,
)
from cowfs.pool import Backend, NodeBackend, Pool, PoolStatus, PoolTable
from cowfs.thinmeta.format import Superblock
from cowfs.units import MAX_METADATA_BLOCKS, METADATA_BLOCK_BYTES, SECTOR_BYTES

_ZERO_BLOCK: Final = bytes(METADATA_BLOCK_BYTES)


def checked_source(files: HomeFiles, options: HomeOptions) -> HomeOptions:
    """The options for a new home, with paths made absolute and with the sizes of the devices that they name.

    Raises:
        HomeError: a device is not there (ENOENT), is none (ENOTBLK), is in use (EBUSY), is given twice, or has
            something on it that may not be lost (EEXIST).
        UsageError: a device is too small.
    """
    source = options.source
    paths = {"data": source.data_device, "metadata": source.metadata_device}
    paths = {role: os.path.abspath(path) for role, path in paths.items() if path}
    source = PoolSource(paths.get("data", ""), paths.get("metadata", ""), source.pool_name)
    is_ours = making.is_being_made_as(files, source)
    sizes = {}
    identities = []
    for role, path in paths.items():
        with closing(_open(path, role)) as device:
            identities.append(_identity(device))
            sizes[role] = device.size_bytes
        if not options.overwrite and not is_ours:
            _refuse_content(path, role)
    if len(identities) > len(set(identities)):
        raise HomeError(
            f"{paths['data']} and {paths['metadata']} are the same device; a pool needs two", errno=errno.EINVAL
        )
    data_bytes = sizes.get("data", options.data_size_bytes)
    metadata_bytes = sizes.get("metadata", options.metadata_size_bytes)
    options = msgspec.structs.replace(
        options,
        source=source,
        data_size_bytes=data_bytes - data_bytes % options.block_bytes if "data" in sizes else data_bytes,
        metadata_size_bytes=_usable_metadata_bytes(metadata_bytes) if "metadata" in sizes else metadata_bytes,
    )
    options.check()
    return options


def make_pool(files: HomeFiles, backend: Backend, options: HomeOptions) -> Pool:
    """The pool of a home that is being made, after `checked_source` and `making.begin_home`.

    Raises:
        HomeError: an externally created pool that was used before.
    """
    settings = making.settings_of(options)
    if options.source.thin_pool:
        pool = open_pool(files, backend, settings)
        with ExitStack() as undo:
            undo.callback(pool.close)
            if not os.path.lexists(files.record(BASE)):
                _check_unused(pool)
            undo.pop_all()
        return pool
    from cowfs.devices.pools import signatures

    for path in (options.source.data_device, options.source.metadata_device):
        if path and signatures.find(path):
            signatures.wipe(path)
    if options.source.metadata_device:
        with closing(_open(options.source.metadata_device, "metadata", read_only=False)) as device:
            device.pwrite(0, _ZERO_BLOCK)
            device.flush()
    data_blocks = options.data_size_bytes // options.block_bytes
    table = pool_files.make_table(files, settings, data_blocks, options.block_bytes // SECTOR_BYTES)
    return _open_table(files, backend, table)


def at_source(files: HomeFiles, settings: HomeFile, source: PoolSource) -> HomeFile:
    """The settings of a home whose pool is where `source` says; `files` learns it."""
    source.check()
    data, metadata = (path and os.path.abspath(path) for path in (source.data_device, source.metadata_device))
    files.use_devices(data, metadata)
    return msgspec.structs.replace(settings, data_device=data, metadata_device=metadata, thin_pool=source.pool_name)


def open_pool(files: HomeFiles, backend: Backend, settings: HomeFile, *, read_only: bool = False) -> Pool:
    """The pool of a home that was made before.

    Raises:
        HomeError: it is missing, truncated, or cannot be opened.
        HomeBusy: something else uses it.
        MissingRequirement: it is a pool of the kernel, and the backend has none.
    """
    if not settings.thin_pool:
        return _open_table(files, backend, pool_files.existing_table(files, settings, read_only=read_only))
    if not isinstance(backend, NodeBackend):
        raise MissingRequirement(
            f"the pool of the home {files.home} is '{settings.thin_pool}' of the kernel, and backend '{backend.name}' "
            "has none of the kernel's pools",
            remedy="cowfs --backend dmthin ...",
        )
    return backend.open_existing_pool(settings.thin_pool, durable=files.durable)


def is_in_use(files: HomeFiles) -> bool:
    """Whether a pool of the kernel has the metadata of a home, whose lock this process has.

    Raises:
        HomeError: the metadata cannot be opened.
    """
    try:
        fd = os.open(files.metadata, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if stat.S_ISBLK(os.fstat(fd).st_mode):
                os.close(os.open(files.metadata, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
            else:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EWOULDBLOCK):
            return True
        raise HomeError(f"cannot open {files.metadata}: {error.strerror}", errno=error.errno) from error
    return False


def _open_table(files: HomeFiles, backend: Backend, table: PoolTable) -> Pool:
    try:
        return backend.open_pool(f"{pool_prefix(files.home)}-pool", table, durable=files.durable)
    except InvalidRequest as error:
        if error.errno != errno.EBUSY:
            raise
        hint = "" if isinstance(backend, NodeBackend) else "; if the kernel has it, use --backend dmthin"
        raise HomeBusy(f"{error.message}{hint}") from error
    except OSError as error:
        if isinstance(error, CowfsError):
            raise
        raise HomeError(f"cannot open the pool of {files.home}: {error.strerror}", errno=error.errno) from error


def _open(path: str, role: str, *, read_only: bool = True) -> FileDevice:
    """A device of a new pool. Raises HomeError when it is not there, is none, or is in use."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):
            raise HomeError(f"{role} device {path} is neither a block device nor a file", errno=errno.ENOTBLK)
        return FileDevice(path, read_only=read_only, exclusive=True)
    except OSError as error:
        if isinstance(error, CowfsError):
            raise
        hint = "; it is mounted or part of another device, see 'lsblk'" if error.errno == errno.EBUSY else ""
        raise HomeError(
            f"{role} device {path} cannot be used: {os.strerror(error.errno or errno.EIO).lower()}{hint}",
            errno=error.errno,
        ) from error


def _identity(device: FileDevice) -> tuple[int, int]:
    found = os.fstat(device.fd)
    return (0, found.st_rdev) if device.is_block_node else (found.st_dev, found.st_ino)


def _refuse_content(path: str, role: str) -> None:
    """Raises HomeError when something is on a device."""
    from cowfs.devices.pools import signatures

    what = signatures.find(path)
    if not what and role == "metadata":
        with closing(_open(path, role)) as device:
            what = _describe_first_block(device.pread(0, min(METADATA_BLOCK_BYTES, device.size_bytes)))
    if what:
        raise HomeError(
            f"{role} device {path} holds {what}; name another device, or let it be overwritten with --force",
            errno=errno.EEXIST,
        )


def _describe_first_block(block: bytes) -> str:
    """What a metadata device holds that is not all zeros where a new one is; empty for one that is."""
    if not any(block):
        return ""
    try:
        superblock = Superblock.unpack(block)
    except MetadataCorrupt:
        return "something: its first block is not zero"
    return f"the metadata of a thin pool already, in transaction {superblock.transaction_id}"


def _usable_metadata_bytes(size_bytes: int) -> int:
    blocks = min(size_bytes // METADATA_BLOCK_BYTES, MAX_METADATA_BLOCKS)
    return blocks * METADATA_BLOCK_BYTES


def _check_unused(pool: Pool) -> None:
    """Raises HomeError if an externally created pool was used before."""
    status = pool.status()
    if not isinstance(status, PoolStatus):
        raise PoolModeError(f"pool '{pool.name}' answers '{status.value}'; repair it, or name another one")
    what = ""
    if status.used_data_blocks:
        what = f"has {status.used_data_blocks} used data blocks"
    elif status.transaction_id:
        what = f"has the transaction id {status.transaction_id}"
    elif pool.thin_ids():
        what = f"has {len(pool.thin_ids())} thin devices"
    if what:
        raise HomeError(
            f"unable to take ownership of thin-pool {pool.name}, which already {what}: another program uses it; "
            "name a pool that was never used",
            errno=errno.EEXIST,
        )
