"""The base device's file system: xfs, made and grown by the commands of xfsprogs on the kernel's node of a device."""

from __future__ import annotations

import os
import struct
import tempfile
import uuid as uuid_module
from collections.abc import Sequence
from typing import Final

from cowfs.blockdev import BlockDevice
from cowfs.devices.on_disk.records import Identity
from cowfs.errors import FilesystemError, MissingRequirement
from cowfs.ext4.tools import commands as tools
from cowfs.pool import NodeThin
from cowfs.units import SECTOR_BYTES

_SUPERBLOCK: Final = struct.Struct(">4sIQ16x16s")  # magic, block size, blocks, UUID


class Xfs:
    """Args: mkfs_args: further arguments of mkfs.xfs."""

    name = "xfs"

    def __init__(self, mkfs_args: Sequence[str] = ()) -> None:
        self._mkfs_args = tuple(mkfs_args)

    def make(self, device: BlockDevice, uuid: str) -> None:
        # A thin that was just made maps nothing, so there is nothing to discard (-K).
        arguments = ["-q", "-f", "-K", "-m", f"uuid={uuid}", *self._mkfs_args, _node(device)]
        _run("mkfs.xfs", arguments, "xfsprogs")
        device.flush()

    def empty_bytes(self, size_bytes: int, block_bytes: int) -> int:
        with tools.temporary_image(size_bytes, holds_little=True) as image:
            _run("mkfs.xfs", ["-q", "-f", *self._mkfs_args, image.path], "xfsprogs")
            return tools.touched_bytes(image, block_bytes)

    def read_uuid(self, device: BlockDevice) -> str:
        return self.identify(device).uuid

    def identify(self, device: BlockDevice) -> Identity:
        """What is in it is not looked at; only the kernel can."""
        magic, block_bytes, blocks, uuid = _SUPERBLOCK.unpack_from(device.pread(0, SECTOR_BYTES))
        if magic != b"XFSB":
            raise FilesystemError("there is no xfs on the device")
        return Identity(str(uuid_module.UUID(bytes=uuid)), block_bytes * blocks)

    def grow(self, device: BlockDevice) -> None:
        """xfs grows while it is mounted. Snapshots share their UUID, which the kernel takes only with `nouuid`."""
        with tempfile.TemporaryDirectory(prefix="cowfs-") as directory:
            _run("mount", ["-t", "xfs", "-o", "nouuid", _node(device), directory], "mount")
            try:
                _run("xfs_growfs", [directory], "xfsprogs")
            finally:
                _run("umount", [directory], "mount")
        device.flush()


def limit_nospace_retries(node: str, retries: int, sys: str = "/sys") -> None:
    """Have a mounted xfs give up metadata writes for which there is no space, after so many retries; 0 is at once.

    Raises:
        FilesystemError: the kernel has no such setting.
    """
    try:
        number = os.stat(node).st_rdev
        link = f"{sys}/dev/block/{os.major(number)}:{os.minor(number)}"
        name = os.path.basename(os.path.realpath(link))
        with open(f"{sys}/fs/xfs/{name}/error/metadata/ENOSPC/max_retries", "w") as file:
            file.write(str(retries))
    except OSError as error:
        raise FilesystemError(
            "devmapper: user specified daemon option dm.xfs_nospace_max_retries but it does not seem to be supported "
            f"on this system :{error.strerror}"
        ) from error


def _node(device: BlockDevice) -> str:
    if not isinstance(device, NodeThin):
        raise MissingRequirement(
            "xfs needs a block device node, and the device's backend runs in this process, not in the kernel",
            remedy="cowfs --backend dmthin ...",
        )
    return device.node


def _run(command: str, arguments: Sequence[str], package: str) -> None:
    status, output = tools.run(command, arguments, package)
    if status:
        raise FilesystemError(f"{command} failed with status {status}: {tools.one_line(output)}")
