"""What a server takes from its surroundings: nothing of it may lead to its own mount, where it would wait for itself.

A mount point is empty before the mount, so what could lead there are only names of directories that are kept for later:
where temporary files go, and where programs and modules are looked for.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cowfs.devices.on_disk.files import HomeFiles
from cowfs.errors import MountError


@contextmanager
def away_from(target: str, files: HomeFiles, *, read_only: bool) -> Iterator[None]:
    """Have nothing lead to a mount point that is about to be used; temporary files are in the home, in this block.

    Args:
        target: without symbolic links.
        read_only: the home cannot be written: temporary files stay where they are.

    Raises:
        MountError: they are below the mount point.
    """
    sys.path[:] = outside(sys.path, target)
    if read_only:
        directory = tempfile.gettempdir()
        if _is_below(directory, target):
            reason = f"temporary files would be in {directory}, on the mount itself; name another directory with TMPDIR"
            raise MountError("mount", "", target, errno=errno.EINVAL, reason=reason)
        yield
        return
    earlier = tempfile.tempdir
    files.make_directory(files.temporary)
    _clear(files.temporary)
    tempfile.tempdir = files.temporary
    try:
        yield
    finally:
        tempfile.tempdir = earlier
        _clear(files.temporary)
        with suppress(OSError):
            os.rmdir(files.temporary)


def outside(directories: list[str], target: str) -> list[str]:
    """Those of the directories that are not at or below a mount point."""
    return [directory for directory in directories if not _is_below(directory, target)]


def _is_below(directory: str, target: str) -> bool:
    return os.path.join(os.path.realpath(directory), "").startswith(os.path.join(target, ""))


def _clear(directory: str) -> None:
    """Remove what a server that was killed has left. Not below directories: something may be mounted there."""
    with os.scandir(directory) as entries:
        for entry in list(entries):
            with suppress(OSError):
                if stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode):
                    os.rmdir(entry.path)
                else:
                    os.unlink(entry.path)
