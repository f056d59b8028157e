"""Inodes by number."""

from __future__ import annotations

import errno
from typing import Final

from cowfs.xfs.files.blocks import Blocks, Cache, os_error
from cowfs.xfs.format import inode as format_inode
from cowfs.xfs.format.inode import Inode

_INODES_MAX: Final = 8192
_BLOCKS_MAX: Final = 256


class Inodes:
    """The inodes of a volume, and the blocks that they are in, as far as they were used lately.

    `uses`: a count of questions.
    """

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._inodes: Cache[int, Inode] = Cache(_INODES_MAX)
        self._raw: Cache[int, bytes] = Cache(_BLOCKS_MAX)
        self.uses = 0

    def get(self, number: int) -> Inode:
        """Raises OSError (ESTALE): no inode has this number, or it is not in use; FilesystemError: damage."""
        self.uses += 1
        return self._inodes.get(number) or self._inodes.put(number, self._read(number))

    def _read(self, number: int) -> Inode:
        sb = self._blocks.sb
        address = sb.inode_address(number)
        if address is None:
            raise os_error(errno.ESTALE)
        fsblock, begin = address
        raw = self._raw.get(fsblock) or self._raw.put(fsblock, self._blocks.read(fsblock, 1, f"inode {number}"))
        offset = self._blocks.offset(fsblock, 1, "") + begin
        found = format_inode.unpack(
            sb,
            number,
            raw[begin : begin + sb.inode_bytes],
            where=sb.place(offset),
            is_replayed=self._blocks.is_replayed(offset, sb.inode_bytes),
        )
        if found is None:
            raise os_error(errno.ESTALE)
        return found

    def limit(self, share: float) -> None:
        self._inodes.limit(share)
        self._raw.limit(share)

    def clear(self) -> None:
        self._inodes.clear()
        self._raw.clear()
