"""A private copy of a pool's metadata, for readers that take their time while the pool goes on."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Final

from cowfs.blockdev import BlockDevice, data_ranges
from cowfs.errors import HomeError

_CHUNK_BYTES: Final = 1 << 20


def copy_metadata(source: BlockDevice, home: Path) -> int:
    """Copy a device into a file without a name, beside the original; returns its descriptor.

    Only what holds data is copied (by reference where the file system can), so a 2 GiB metadata file of a small pool
    takes milliseconds. The file vanishes when the last descriptor is closed, however its readers end.
    """
    try:
        with tempfile.TemporaryFile(dir=home / "devicemapper", buffering=0) as file:
            os.ftruncate(file.fileno(), source.size_bytes)
            for begin, end in data_ranges(source):
                _copy_range(source, file.fileno(), begin, end)
            return os.dup(file.fileno())
    except OSError as error:
        raise HomeError(
            f"cannot copy the metadata of {home} for reading: {error.strerror or error}; unmount, then run it again",
            errno=error.errno,
        ) from error


def _copy_range(source: BlockDevice, target: int, begin: int, end: int) -> None:
    fd = getattr(source, "fd", None)
    while fd is not None and begin < end:
        try:
            count = os.copy_file_range(fd, target, end - begin, begin, begin)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
            break
        if count == 0:
            break
        begin += count
    while begin < end:
        data = source.pread(begin, min(_CHUNK_BYTES, end - begin))
        if any(data):
            os.pwrite(target, data, begin)
        begin += len(data)
