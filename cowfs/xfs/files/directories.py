"""Names in directories."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from typing import Final

from cowfs.xfs.files.blocks import Blocks, Cache, os_error
from cowfs.xfs.files.inodes import Inodes
from cowfs.xfs.files.maps import Maps
from cowfs.xfs.format import headers
from cowfs.xfs.format.inode import FORM_LOCAL, Inode
from cowfs.xfs.format.names import (
    ALONE,
    LEAF_BYTES,
    BadNames,
    Name,
    names_in_block,
    names_in_inode,
    parent_in_inode,
)
from cowfs.xfs.format.superblock import damaged

_NAMES_MAX: Final = 1 << 18


class Directory:
    """The names of a directory, `.` and `..` first."""

    def __init__(self, names: list[Name]) -> None:
        self.names = names
        self.by_name = {name.name: name for name in names}


class Directories:
    """Directories that were used lately, whole."""

    def __init__(self, blocks: Blocks, maps: Maps, inodes: Inodes) -> None:
        self._blocks = blocks
        self._maps = maps
        self._inodes = inodes
        self._directories: Cache[int, Directory] = Cache(_NAMES_MAX, lambda found: len(found.names) + 16)

    def load(self, inode: Inode) -> Directory:
        """Raises OSError (ENOTDIR); FilesystemError: damage."""
        if not inode.is_directory:
            raise os_error(errno.ENOTDIR)
        found = self._directories.get(inode.number)
        if found is None:
            names = [Name(b".", inode.number, stat.S_IFDIR), Name(b"..", self.parent(inode), stat.S_IFDIR)]
            names += (name for name in self._names(inode) if name.name not in (b".", b".."))
            found = self._directories.put(inode.number, Directory(names))
        return found

    def require_place(self, number: int, directory: int) -> None:
        """A directory is in one place, the one that its `..` leads to, so that no path leads into itself.

        Raises:
            FilesystemError (EUCLEAN): the directory `number` has a name in another one.
        """
        inode = self._inodes.get(number)
        if number == directory:
            raise damaged(f"directory {number} has a name in itself")
        if inode.is_directory and (parent := self.parent(inode)) != directory:
            raise damaged(f"directory {number} has a name in directory {directory}, and its '..' leads to {parent}")

    def parent(self, inode: Inode) -> int:
        """The inode of `..`."""
        known = self._directories.get(inode.number)
        if known is not None:
            return known.by_name[b".."].inode
        if inode.form == FORM_LOCAL:
            try:
                return parent_in_inode(inode.fork)
            except BadNames as error:
                raise damaged(f"directory {inode.number}: {error}") from error
        for number, name in enumerate(self._names(inode)):
            if name.name == b"..":
                return name.inode
            if number:
                break
        raise damaged(f"directory {inode.number} does not begin with '.' and '..'")

    def limit(self, share: float) -> None:
        self._directories.limit(share)

    def clear(self) -> None:
        self._directories.clear()

    def _names(self, inode: Inode) -> Iterator[Name]:
        if inode.form == FORM_LOCAL:
            try:
                yield from names_in_inode(self._blocks.sb, inode.fork)
            except BadNames as error:
                raise damaged(f"directory {inode.number}: {error}") from error
            return
        for fsblocks in self._name_blocks(inode):
            block, offset = self._blocks.read_checked(headers.NAMES, fsblocks, inode.number)
            try:
                yield from names_in_block(self._blocks.sb, block)
            except BadNames as error:
                place = self._blocks.sb.place(offset)
                raise damaged(f"{place}, names of directory {inode.number}: {error}") from error
            if block[:4] in ALONE:
                return

    def _name_blocks(self, inode: Inode) -> Iterator[list[int]]:
        """The blocks with names, each as the blocks of the file system that it is in."""
        sb = self._blocks.sb
        size = 1 << sb.directory_block_log
        end = LEAF_BYTES >> sb.block_log
        gathered: list[int] = []
        for extent in self._maps.data(inode).extents:
            for logical in range(extent.logical, min(extent.logical + extent.length, end)):
                if logical % size != len(gathered) or extent.is_unwritten:
                    raise damaged(f"directory {inode.number} lacks a part of the block of names at {logical}")
                gathered.append(extent.fsblock + logical - extent.logical)
                if len(gathered) == size:
                    yield gathered
                    gathered = []
        if gathered:
            raise damaged(f"directory {inode.number} lacks a part of its last block of names")
