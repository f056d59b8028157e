"""Which directories hold the names of an inode: ext4 keeps that for directories (`..`) and for nothing else.

The link count says how many names there are to find, so the search ends with the last of them. It begins where names
usually are: file systems give files numbers after their directory's, near it. From there it widens, until in the end it
has read the names of every directory, but not one inode of a file.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Final

from cowfs.ext4.files.tables import InodeRange, InodeTables
from cowfs.ext4.volume import Volume

_CHUNK_INODES: Final = 256
_NEAREST: Final = 4
_FEW: Final = 32


def may_name(block: bytes, inodes: AbstractSet[int]) -> bool:
    """Whether a directory block may have a name of one of some inodes: found without parsing it, and too often."""
    if len(inodes) <= _FEW:
        return any(inode.to_bytes(4, "little") in block for inode in inodes)
    return not inodes.isdisjoint(memoryview(block).cast("I"))


class NameSearch:
    """A search in one volume, which must not change meanwhile.

    Args:
        links: how many names each inode has; none of them is a directory.
    """

    def __init__(self, volume: Volume, tables: InodeTables, links: Mapping[int, int]) -> None:
        self._volume = volume
        self._tables = tables
        self._missing = dict(links)
        self._seen: set[int] = set()
        self._chunks_per_group = -(-tables.geometry.inodes_per_group // _CHUNK_INODES)
        self._chunks = self._chunks_per_group * len(tables.geometry.tables)
        self._directories: dict[int, list[int]] = {}
        self.found: set[int] = set()

    def search_directories(self, directories: Iterable[int]) -> None:
        """Find the names that some directories hold."""
        for directory in directories:
            if not self._missing:
                return
            if directory not in self._seen:
                self._seen.add(directory)
                self._search_directory(directory)

    def _search_directory(self, directory: int) -> None:
        missing = self._missing
        for block in self._volume.name_blocks(directory):
            if not may_name(block, missing.keys()):
                continue
            for entry in self._volume.names_in(block):
                left = missing.get(entry.inode)
                if left is None:
                    continue
                self.found.add(directory)
                if left > 1:
                    missing[entry.inode] = left - 1
                else:
                    del missing[entry.inode]

    def search_everywhere(self) -> None:
        """Find all names that are left."""
        for inode in sorted(self._missing):
            if inode in self._missing:
                self.search_directories(self._nearest(inode))
        reach = 0
        while self._missing and reach <= self._chunks:
            near = {self._chunk(inode) for inode in self._missing}
            for chunk in sorted(_widened(near, reach, self._chunks)):
                self.search_directories(self._directories_in(chunk))
            reach = 2 * reach + 1

    def _nearest(self, inode: int) -> list[int]:
        """The directories numbered just below an inode, the nearest first."""
        directories = self._directories_in(self._chunk(inode))
        end = bisect_left(directories, inode)
        return directories[max(end - _NEAREST, 0) : end][::-1]

    def _chunk(self, inode: int) -> int:
        group, index = divmod(inode - 1, self._tables.geometry.inodes_per_group)
        return group * self._chunks_per_group + index // _CHUNK_INODES

    def _directories_in(self, chunk: int) -> list[int]:
        found = self._directories.get(chunk)
        if found is None:
            group, part = divmod(chunk, self._chunks_per_group)
            per_group = self._tables.geometry.inodes_per_group
            begin = part * _CHUNK_INODES
            count = min(_CHUNK_INODES, per_group - begin)
            found = self._tables.directories(InodeRange(group * per_group + begin + 1, count))
            self._directories[chunk] = found
        return found


def _widened(chunks: set[int], reach: int, end: int) -> set[int]:
    """The chunks that lie at most `reach` from one of `chunks`."""
    widened = set[int]()
    reached = 0
    for chunk in sorted(chunks):
        widened.update(range(max(chunk - reach, reached), min(chunk + reach + 1, end)))
        reached = min(chunk + reach + 1, end)
    return widened
