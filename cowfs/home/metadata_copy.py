"""A private copy of a pool's metadata, for readers that take long, while the pool is in use."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from cowfs.blockdev import BlockDevice, copy_contents
from cowfs.errors import HomeError


def copy_metadata(source: BlockDevice, home: Path) -> int:
    """Copy a device into a file without a name, beside the original; returns its descriptor.

    Only what holds data is copied (by reference where the file system can), so a 2 GiB metadata file of a small pool
    takes milliseconds. The file vanishes when the last descriptor is closed, however its readers end.
    """
    try:
        with tempfile.TemporaryFile(dir=home / "devicemapper", buffering=0) as file:
            os.ftruncate(file.fileno(), source.size_bytes)
            copy_contents(source, file.fileno())
            return os.dup(file.fileno())
    except OSError as error:
        raise HomeError(
            f"cannot copy the metadata of {home} for reading: {error.strerror or error}; unmount, then run it again",
            errno=error.errno,
        ) from error
