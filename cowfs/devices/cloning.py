"""A copy of a home in another directory: by reference where the disk can, else only what its pool holds.

The new home is complete when its `cowfs.init` is removed, the last step; after a crash before that it is a home whose
making was interrupted, which the next copy or `init` throws away.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from types import MappingProxyType
from typing import Final

import msgspec

from cowfs.blockdev import FileDevice, copy_contents, copy_sparse, may_be_link
from cowfs.devices.on_disk import making
from cowfs.devices.on_disk.files import DIRECTORY_MODE, HomeFiles
from cowfs.devices.on_disk.lock import LOCK_NAME, HomeLock
from cowfs.devices.on_disk.making import HomeState, state_of
from cowfs.devices.reports import ClonedHome
from cowfs.errors import CowfsError, HomeError
from cowfs.pool import NodePool, Pool
from cowfs.thinmeta.metadata import Metadata
from cowfs.units import SECTOR_BYTES

_MARKER: Final = b"This home is being copied. If nothing is copying it, run clone-home again.\n"


def clone_home(
    files: HomeFiles, pool: Pool, target: str, snapshots: Mapping[int, int] = MappingProxyType({})
) -> ClonedHome:
    """Copy a home that holds still, to one whose pool is in files of its own.

    Args:
        snapshots: of thins that do not hold still, the snapshot that is the content of each in the copy.

    Raises:
        HomeError: `target` exists, or its directory cannot be written.
        CowfsError: the copy failed, with the errno, and was removed.
    """
    made = files.of(target, durable=files.durable)
    _begin(made)
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, target, ignore_errors=True)
        lock = HomeLock.acquire(target)
        undo.callback(lock.release)
        try:
            made.write(made.init_marker, _MARKER)
            by_reference = _copy(files, pool, files.of(target, durable=False), snapshots)
            made.sync_everything()
            made.remove(made.init_marker)
        except OSError as error:
            reason = str(error) if isinstance(error, CowfsError) else f"{error.filename or target}: {error.strerror}"
            raise CowfsError(
                f"cannot copy the home {files.home} to {target}: {reason}; nothing was left there", errno=error.errno
            ) from error
        lock.release()
        undo.pop_all()
    allocated = sum(os.stat(path).st_blocks * 512 for path in (made.data, made.metadata))
    return ClonedHome(target, files.home, by_reference, allocated)


def _begin(made: HomeFiles) -> None:
    """Make the directory, in place of an incomplete one: with the marker, or with nothing but the lock."""
    state = state_of(made)
    is_marked = state is HomeState.HALF_MADE and made.read(made.init_marker) == _MARKER
    if is_marked or (state is HomeState.EMPTY and LOCK_NAME in os.listdir(made.home)):
        HomeLock.acquire(made.home).release()  # nothing makes it any more
        shutil.rmtree(made.home)
    try:
        os.mkdir(made.home, DIRECTORY_MODE)
    except FileExistsError:
        raise HomeError(
            f"cannot copy a home to {made.home}: it exists; name a directory that does not", errno=errno.EEXIST
        ) from None
    except OSError as error:
        raise HomeError(f"cannot make the directory {made.home}: {error.strerror}", errno=error.errno) from error


def _copy(files: HomeFiles, pool: Pool, made: HomeFiles, snapshots: Mapping[int, int]) -> bool:
    """Whether the pool was copied by reference."""
    made.make_directory(made.pool_directory)
    made.make_directory(made.records)
    made.make_mounts()
    by_reference = [_copy_metadata(files, pool, made), _copy_data(files, pool, made)]
    _put_in_place(made, snapshots)
    made.write_many({made.record(name): data for name, data in files.read_records() if data is not None})
    temporary = set(map(str, snapshots.values()))
    for name in files.list_names(files.replacements):
        if name not in temporary:
            made.make_directory(made.replacements)
            _copy_small(files, made, files.replacement(name), made.replacement(name))
    for name in files.list_names(files.images):
        made.make_directory(made.images)
        _copy_small(files, made, os.path.join(files.images, name), os.path.join(made.images, name))
    for name in ("old_records", "home_file", "parents", "making", "importing", "renaming"):
        _copy_small(files, made, getattr(files, name), getattr(made, name))
    settings = making.stored_settings(files)
    if settings.data_device or settings.metadata_device or settings.thin_pool:
        settings = msgspec.structs.replace(settings, data_device="", metadata_device="", thin_pool="")
        making.store_settings(made, settings)
    return all(by_reference)


def _copy_metadata(files: HomeFiles, pool: Pool, made: HomeFiles) -> bool:
    with closing(pool.open_metadata() if isinstance(pool, NodePool) else _open(files.metadata)) as source:
        made.make_sparse(made.metadata, source.size_bytes)
        with closing(_open(made.metadata, read_only=False)) as copy:
            return copy_contents(source, copy.fd)


def _copy_data(files: HomeFiles, pool: Pool, made: HomeFiles) -> bool:
    """Copy the data device, after the metadata, which says what of it is in use."""
    with closing(pool.open_data() if isinstance(pool, NodePool) else _open(files.data)) as source:
        is_file = isinstance(source, FileDevice) and not source.is_block_node
        size_bytes = source.size_bytes if is_file else pool.table().length_sectors * SECTOR_BYTES
        made.make_sparse(made.data, size_bytes)
        with closing(_open(made.data, read_only=False)) as copy:
            if is_file:
                return copy_contents(source, copy.fd)
            copy_sparse(source, copy.fd, _used_ranges(made, pool.block_bytes))
        made.resize_file(made.data, size_bytes)
    return False


def _used_ranges(made: HomeFiles, block_bytes: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of the data blocks in use."""
    with closing(_open(made.metadata)) as device:
        metadata = Metadata.open(device, read_only=True)
        for begin, length in metadata.used_data_runs():
            yield begin * block_bytes, (begin + length) * block_bytes


def _put_in_place(made: HomeFiles, snapshots: Mapping[int, int]) -> None:
    """Replace the thins of a copy by their snapshots, and delete the snapshots."""
    if snapshots:
        with closing(_open(made.metadata, read_only=False)) as device:
            metadata = Metadata.open(device)
            for thin_id, snapshot_id in snapshots.items():
                metadata.take_over(thin_id, snapshot_id)
            metadata.commit()


def _open(path: str, *, read_only: bool = True) -> FileDevice:
    return FileDevice(path, read_only=read_only, nofollow=not may_be_link(path))


def _copy_small(files: HomeFiles, made: HomeFiles, source: str, target: str) -> None:
    if (data := files.read(source)) is not None:
        made.write(target, data)
