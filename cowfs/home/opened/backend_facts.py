"""What the storage options of a home can be, and their defaults, as its backend and this machine have it."""

from __future__ import annotations

import fcntl
import struct
from typing import Final

from cowfs.layers.options import Facts
from cowfs.pool import Backend, Capability

TOOL_DIRECTORIES: Final = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin"
_CONTROL: Final = "/dev/mapper/control"
_DM_VERSION: Final = 0xC138FD00
_DM_HEADER: Final = struct.Struct("=10IQ128s129s7x")

assert _DM_HEADER.size == 312


def driver_facts(backend: Backend) -> Facts:
    """What a layer driver's options can be, and their defaults, depend on.

    A process that may use a backend with nodes may mount too: both take CAP_SYS_ADMIN.
    """
    if Capability.KERNEL_NODES not in backend.capabilities:
        return Facts()
    import shutil

    try:
        with open("/proc/filesystems") as file:
            kernel_knows_xfs = "xfs" in file.read().split()
    except OSError:
        kernel_knows_xfs = False
    return Facts(
        kernel_mounts=True,
        has_mkfs_xfs=shutil.which("mkfs.xfs", path=TOOL_DIRECTORIES) is not None,
        kernel_knows_xfs=kernel_knows_xfs,
        dm_version=_device_mapper_version(),
    )


def _device_mapper_version() -> tuple[int, int, int] | None:
    """The version of the kernel's device mapper; None where it is not known."""
    header = bytearray(_DM_HEADER.pack(4, 0, 0, _DM_HEADER.size, _DM_HEADER.size, *[0] * 6, b"", b""))
    try:
        with open(_CONTROL, "rb+", buffering=0) as control:
            fcntl.ioctl(control, _DM_VERSION, header)
    except OSError:
        return None
    major, minor, patch = _DM_HEADER.unpack(header)[:3]
    return major, minor, patch
