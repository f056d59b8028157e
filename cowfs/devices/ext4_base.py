"""The base device's file system: ext4, made, read and grown by `cowfs.ext4` and the commands of e2fsprogs."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cowfs.blockdev import BlockDevice
from cowfs.ext4 import growth, mkfs


class Ext4:
    """Args: mkfs_args: further arguments of mke2fs."""

    name = "ext4"

    def __init__(self, mkfs_args: Sequence[str] = ()) -> None:
        self._mkfs_args = tuple(mkfs_args)

    def make(self, device: BlockDevice, uuid: str) -> None:
        # Whoever makes the home can write to the root of what it holds.
        owner = (os.geteuid(), os.getegid())
        mkfs.make_filesystem(device, uuid=uuid, root_owner=owner, extra_args=self._mkfs_args)

    def read_uuid(self, device: BlockDevice) -> str:
        return str(mkfs.read_uuid(device))

    def grow(self, device: BlockDevice) -> None:
        growth.grow_filesystem(device)
