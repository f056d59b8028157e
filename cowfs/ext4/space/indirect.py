"""Indirect blocks: the block map of inodes that have no extent tree, as ext2 and ext3 made them.

Twelve direct pointers, then one block of pointers, one block of such blocks, and one block of those; 32-bit block
numbers, 0 for a hole. A changed map is stored by writing all pointer blocks anew into the blocks they have.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from typing import Final

from cowfs.ext4.library.filesystem import Filesystem
from cowfs.ext4.space.block_map import MAX_EXTENT_BLOCKS, BlockMap

_DIRECT: Final = 12
_LEVELS: Final = 3


def max_blocks(fs: Filesystem) -> int:
    """How many blocks a file can have."""
    width = fs.block_bytes // 4
    return _DIRECT + width + width**2 + width**3


def load(fs: Filesystem, inode: int, root: bytes) -> tuple[BlockMap, list[int]]:
    """The map stored under the 15 pointers of `root`, and the pointer blocks."""
    builder = _Builder(fs, inode)
    pointers = struct.unpack("<15I", root)
    builder.add(0, array("I", pointers[:_DIRECT]))
    logical = _DIRECT
    for level in range(1, _LEVELS + 1):
        builder.descend(logical, pointers[_DIRECT + level - 1], level)
        logical += (fs.block_bytes // 4) ** level
    builder.finish()
    return builder.map, builder.nodes


class _Builder:
    """Collects pointers in logical order into extents."""

    def __init__(self, fs: Filesystem, inode: int) -> None:
        self.map = BlockMap()
        self.nodes: list[int] = []
        self._seen: set[int] = set()
        self._fs = fs
        self._inode = inode
        self._run = (0, 0, 0)  # logical, count, physical

    def descend(self, logical: int, block: int, level: int) -> None:
        if not block:
            return
        self._check(block)
        self.nodes.append(block)
        if block in self._seen:
            raise self._fs.damaged(f"inode {self._inode} has the indirect block {block} twice")
        self._seen.add(block)
        pointers = array("I", self._fs.cache.read(block))
        if level == 1:
            self.add(logical, pointers)
            return
        step = len(pointers) ** (level - 1)
        for index, child in enumerate(pointers):
            self.descend(logical + index * step, child, level - 1)

    def add(self, logical: int, pointers: array[int]) -> None:
        start, count, physical = self._run
        for number, block in enumerate(pointers, logical):
            if not block:
                continue
            if count and number == start + count and block == physical + count and count < MAX_EXTENT_BLOCKS:
                count += 1
                continue
            self._run = (start, count, physical)
            self.finish()
            start, count, physical = number, 1, block
        self._run = (start, count, physical)

    def finish(self) -> None:
        start, count, physical = self._run
        if count:
            self._check(physical)
            self._check(physical + count - 1)
            self.map.append(start, count, physical, True)
        self._run = (0, 0, 0)

    def _check(self, block: int) -> None:
        if not self._fs.first_data_block < block < self._fs.blocks:
            raise self._fs.damaged(f"inode {self._inode} points to block {block}, outside the volume")


def nodes_needed(fs: Filesystem, map_: BlockMap) -> int:
    width = fs.block_bytes // 4
    needed = _nodes_of(map_, width)
    return sum(map(len, needed))


def _nodes_of(map_: BlockMap, width: int) -> list[set[int]]:
    """Which pointer blocks exist, per level: level 0 holds pointers to data. Blocks are numbered through, in order
    of the data below them, each level separately; number 0 of level n is the one that the root points to."""
    leaves: set[int] = set()
    for segment in map_:
        first = max(segment.logical, _DIRECT) - _DIRECT
        end = segment.logical + segment.length - _DIRECT
        if end > first:
            leaves.update(range(first // width, (end - 1) // width + 1))
    seconds = {(leaf - 1) // width for leaf in leaves if leaf >= 1}
    thirds = {0 for second in seconds if second >= 1}
    return [leaves, seconds, thirds]


def store(fs: Filesystem, map_: BlockMap, nodes: list[int]) -> bytes:
    """Write the pointer blocks into `nodes`, as many as `nodes_needed` says; returns the root."""
    width = fs.block_bytes // 4
    free = iter(nodes)
    leaves, seconds, thirds = _nodes_of(map_, width)
    root = array("I", bytes(60))
    tables = {leaf: array("I", bytes(fs.block_bytes)) for leaf in leaves}
    for segment in map_:
        _fill(segment.logical, segment.length, segment.physical, root, tables, width)
    places = _write_tables(fs, tables, free)
    middle: dict[int, array[int]] = {second: array("I", bytes(fs.block_bytes)) for second in seconds}
    for leaf, block in places.items():
        if leaf == 0:
            root[_DIRECT] = block
        else:
            second, slot = divmod(leaf - 1, width)
            middle[second][slot] = block
    top = array("I", bytes(fs.block_bytes))
    for second, block in _write_tables(fs, middle, free).items():
        if second == 0:
            root[_DIRECT + 1] = block
        else:
            top[second - 1] = block
    if thirds:
        root[_DIRECT + 2] = _write_tables(fs, {0: top}, free)[0]
    return root.tobytes()


def _fill(logical: int, count: int, physical: int, root: array[int], tables: dict[int, array[int]], width: int) -> None:
    while count:
        if logical < _DIRECT:
            table, slot, room = root, logical, _DIRECT - logical
        else:
            leaf, slot = divmod(logical - _DIRECT, width)
            table, room = tables[leaf], width - slot
        piece = min(count, room)
        table[slot : slot + piece] = array("I", range(physical, physical + piece))
        logical, physical, count = logical + piece, physical + piece, count - piece


def _write_tables(fs: Filesystem, tables: dict[int, array[int]], free: Iterator[int]) -> dict[int, int]:
    """Write pointer blocks; returns the place of each."""
    places = {}
    for number in sorted(tables):
        places[number] = next(free)
        fs.cache.write(places[number], tables[number].tobytes())
    return places
