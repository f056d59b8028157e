"""The base device's file system: ext4, made and read by `cowfs.ext4`."""

from __future__ import annotations

import os

from cowfs.blockdev import BlockDevice


class Ext4:
    """Imported on use, so that a home opens where e2fsprogs is not installed."""

    name = "ext4"

    def make(self, device: BlockDevice, uuid: str) -> None:
        from cowfs.ext4.mkfs import make_filesystem  # noqa: PLC0415

        # Whoever makes the home can write to the root of what it holds.
        make_filesystem(device, uuid=uuid, root_owner=(os.geteuid(), os.getegid()))

    def read_uuid(self, device: BlockDevice) -> str:
        from cowfs.ext4.mkfs import read_uuid  # noqa: PLC0415

        return str(read_uuid(device))
