"""Blocks that are kept from everyone, so that files take no more than a limit.

They belong to inode 5, which ext4 has for a boot loader and which has no name: no file reaches it, and the kernel and
e2fsck leave it as it is. The blocks are unwritten, so in a thin device they take no space; what changes on the device
are bitmaps, a data block of the pool for some 2 GiB.
"""

from __future__ import annotations

import errno
import stat
from typing import Final

from cowfs.errors import FilesystemError
from cowfs.ext4.files.file_map import FileMaps
from cowfs.ext4.files.inodes import Inode, InodeTable
from cowfs.ext4.library.filesystem import Filesystem
from cowfs.ext4.space.allocator import Allocator
from cowfs.ext4.space.block_map import Segment

_INODE: Final = 5
_MODE: Final = stat.S_IFREG | 0o600
_SECTOR_BYTES: Final = 512


class KeptBlocks:
    """Those of one volume. `count` has the blocks of their extent tree, too."""

    def __init__(self, fs: Filesystem, allocator: Allocator, maps: FileMaps, inodes: InodeTable) -> None:
        self._fs = fs
        self._allocator = allocator
        self._maps = maps
        self._inodes = inodes
        self._inode = self._find()
        self.count = 0 if self._inode is None else self._blocks_of(self._inode)

    def _find(self) -> Inode | None:
        try:
            inode = self._inodes.load(_INODE)
        except OSError:  # damage that matters is found at the root, which is beside it
            return None
        return inode if inode.is_regular and inode.links else None

    def _blocks_of(self, inode: Inode) -> int:
        return inode.sectors // (self._fs.block_bytes // _SECTOR_BYTES)

    def keep(self, count: int) -> None:
        """Keep so many blocks, where none are kept.

        Raises:
            OSError (ENOSPC): fewer are free; nothing was kept.
            FilesystemError (EOPNOTSUPP): the volume has no extents, so that keeping blocks would take many.
        """
        assert self._inode is None
        if not self._fs.has_extents:
            raise FilesystemError("ext4 without extents cannot be limited", errno=errno.EOPNOTSUPP)
        runs = self._allocator.allocate(count, self._place_at_the_end(count))
        segments = []
        logical = 0
        for run in runs:
            segments.append(Segment(logical, run.length, run.physical, written=False))
            logical += run.length
        inode = self._inodes.make_reserved(_INODE, _MODE)
        try:
            self._maps.add(inode, segments)
        except BaseException:
            self._inodes.discard_reserved(inode)
            self._allocator.undo(runs)
            raise
        inode.size = count * self._fs.block_bytes
        self._inode, self.count = inode, self._blocks_of(inode)

    def release(self) -> None:
        """Keep none any more: they are free after the next sync."""
        if self._inode is not None:
            self._maps.release(self._inode)
            self._inodes.discard_reserved(self._inode)
            self._inode, self.count = None, 0

    def _place_at_the_end(self, count: int) -> int:
        """Where to begin for the last blocks of the volume: files stay near the directories at its beginning."""
        descriptors = self._fs.descriptors
        group = self._fs.groups
        while count > 0 and group > 0:
            group -= 1
            count -= descriptors.free_blocks(group)
        return descriptors.first_block(group)
