"""The base device's file system: ext4, made, read and grown by `cowfs.ext4` and the commands of e2fsprogs.

Opening a home reads the base's superblock; all else is loaded when it is done.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from uuid import UUID

from cowfs.blockdev import BlockDevice
from cowfs.devices.on_disk.records import Identity
from cowfs.ext4.format import layout


class Ext4:
    """Args: mkfs_args: further arguments of mke2fs."""

    name = "ext4"

    def __init__(self, mkfs_args: Sequence[str] = ()) -> None:
        self._mkfs_args = tuple(mkfs_args)

    def make(self, device: BlockDevice, uuid: str) -> None:
        from cowfs.ext4.tools import mkfs

        # The user that makes the home can write to the root directory.
        owner = (os.geteuid(), os.getegid())
        mkfs.make_filesystem(device, uuid=uuid, root_owner=owner, extra_args=self._mkfs_args)

    def empty_bytes(self, size_bytes: int, block_bytes: int) -> int:
        from cowfs.ext4.tools import commands, mkfs

        with commands.temporary_image(size_bytes, holds_little=True) as image:
            mkfs.make_filesystem(image, extra_args=self._mkfs_args)
            return commands.touched_bytes(image, block_bytes)

    def read_uuid(self, device: BlockDevice) -> str:
        return str(UUID(bytes=layout.read_superblock(device).uuid))

    def identify(self, device: BlockDevice) -> Identity:
        from cowfs.devices.base import ext4_content

        superblock = layout.read_superblock(device)
        identity = Identity(str(UUID(bytes=superblock.uuid)), superblock.size_bytes)
        return identity if identity.size_bytes > device.size_bytes else ext4_content.look_into(device, identity)

    def grow(self, device: BlockDevice) -> None:
        from cowfs.ext4.tools import growth

        growth.grow_filesystem(device)
