"""Which files the process that holds a home may read when another process passes them.

It reads in the thread that serves its mount, so no read may wait for that mount. It takes what is on the file system
that the home itself is on, which it depends on anyway, and what is in memory. Everything else may be on the mount in
the end: in a copy of it in another mount namespace, below an overlay, on a loop device of a raw view.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
import struct
from typing import Final

_AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_TYPE: Final = 1
_STATX_BYTES: Final = 256
_MODE: Final = struct.Struct("28xH")
_DEVICE: Final = struct.Struct("136xII")


def may_be_read(fd: int, home: str | os.PathLike[str]) -> bool:
    """Whether the holder of a home may read an open file: a regular one, in a safe place. Asks no file system for it.

    Raises:
        OSError: the home is not there, or the kernel is older than Linux 4.11.
    """
    mode, device = _identify(fd)
    return stat.S_ISREG(mode) and (device == os.stat(home).st_dev or _is_in_memory(fd))


def _identify(fd: int) -> tuple[int, int]:
    """Mode and device number; as fstat(2), which would ask the server of a FUSE mount."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = ctypes.create_string_buffer(_STATX_BYTES)
    if libc.statx(fd, b"", _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, _STATX_TYPE, found):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    (mode,) = _MODE.unpack_from(found.raw)
    return mode, os.makedev(*_DEVICE.unpack_from(found.raw))


def _is_in_memory(fd: int) -> bool:
    """Whether a file is a memfd or on tmpfs: no other files can have seals."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True
