"""How a device with xfs begins: told without loading what reads it."""

from __future__ import annotations

from typing import Final

from cowfs.blockdev import BlockDevice

MAGIC: Final = b"XFSB"
SUPERBLOCK_BYTES: Final = 512


def holds_xfs(device: BlockDevice) -> bool:
    """Whether a device begins as one with xfs does."""
    return device.size_bytes >= SUPERBLOCK_BYTES and device.pread(0, len(MAGIC)) == MAGIC
