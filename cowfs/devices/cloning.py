"""A copy of a home in another directory: by reference where the disk can, else only what its files hold.

The new home is complete when its `cowfs.init` is removed, the last step; after a crash before that it is a home whose
making was interrupted, which the next copy or `init` throws away.
"""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import ExitStack, closing
from typing import Final

from cowfs.blockdev import FileDevice, copy_contents
from cowfs.devices.on_disk.files import DIRECTORY_MODE, HomeFiles
from cowfs.devices.on_disk.lock import LOCK_NAME, HomeLock
from cowfs.devices.on_disk.making import HomeState, state_of
from cowfs.devices.reports import ClonedHome
from cowfs.errors import CowfsError, HomeError
from cowfs.pool import NodePool, Pool

_MARKER: Final = b"This home is being copied. If nothing is copying it, run clone-home again.\n"


def clone_home(files: HomeFiles, pool: Pool, target: str) -> ClonedHome:
    """Copy a home that holds still, as it is on the disk.

    Raises:
        HomeError: the pool is the kernel's, or not in files of the home; `target` exists, or its directory cannot be
            written.
        CowfsError: the copy failed, with the errno, and was removed.
    """
    if isinstance(pool, NodePool):
        raise HomeError(
            f"the home {files.home} cannot be copied while the kernel has its pool; when none of its devices is "
            f"mounted, run: cowfs --backend emulated clone-home {files.home} {target}",
            errno=errno.EOPNOTSUPP,
        )
    if (files.data, files.metadata) != (files.own_data, files.own_metadata) or not os.path.isfile(files.own_data):
        raise HomeError(
            f"the home {files.home} cannot be copied, since its pool is not in files of the home; copy the disks that "
            "the pool is on",
            errno=errno.EOPNOTSUPP,
        )
    made = files.of(target, durable=files.durable)
    _begin(made)
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, target, ignore_errors=True)
        lock = HomeLock.acquire(target)
        undo.callback(lock.release)
        try:
            made.write(made.init_marker, _MARKER)
            by_reference = _copy(files, files.of(target, durable=False))
            made.sync_everything()
            made.remove(made.init_marker)
        except OSError as error:
            reason = error.strerror if isinstance(error, HomeError) else f"{error.filename or target}: {error.strerror}"
            raise CowfsError(
                f"cannot copy the home {files.home} to {target}: {reason}; nothing was left there", errno=error.errno
            ) from error
        lock.release()
        undo.pop_all()
    allocated = sum(os.stat(path).st_blocks * 512 for path in (made.data, made.metadata))
    return ClonedHome(target, files.home, by_reference, allocated)


def _begin(made: HomeFiles) -> None:
    """Make the directory, in place of one that was left half made: with the marker, or with nothing but the lock."""
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


def _copy(files: HomeFiles, made: HomeFiles) -> bool:
    """Whether the pool was copied by reference."""
    made.make_directory(made.pool_directory)
    made.make_directory(made.records)
    made.make_mounts()
    by_reference = [_copy_file(made, source, target) for source, target in _pool_files(files, made)]
    made.write_many({made.record(name): data for name, data in files.read_records() if data is not None})
    for name in files.list_names(files.replacements):
        made.make_directory(made.replacements)
        _copy_small(files, made, files.replacement(name), made.replacement(name))
    for name in ("old_records", "home_file", "parents", "making", "importing", "renaming"):
        _copy_small(files, made, getattr(files, name), getattr(made, name))
    return all(by_reference)


def _pool_files(files: HomeFiles, made: HomeFiles) -> list[tuple[str, str]]:
    return [(files.data, made.data), (files.metadata, made.metadata)]


def _copy_file(made: HomeFiles, source: str, target: str) -> bool:
    with closing(FileDevice(source, read_only=True, nofollow=True)) as device:
        made.make_sparse(target, device.size_bytes)
        with closing(FileDevice(target, nofollow=True)) as copy:
            return copy_contents(device, copy.fd)


def _copy_small(files: HomeFiles, made: HomeFiles, source: str, target: str) -> None:
    if (data := files.read(source)) is not None:
        made.write(target, data)
