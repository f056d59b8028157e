"""The block maps of inodes: loading, changing with the space accounted for, storing.

A change may need more tree blocks. They are taken when the change is made, so that storing later cannot fail for
lack of space; what turns out to be too much is given back when the map is stored.
"""

from __future__ import annotations

from collections.abc import Sequence

from cowfs.ext4.files.inodes import Inode
from cowfs.ext4.format import layout
from cowfs.ext4.library.block_runs import Run
from cowfs.ext4.library.filesystem import Filesystem
from cowfs.ext4.space import extents, indirect
from cowfs.ext4.space.allocator import Allocator
from cowfs.ext4.space.block_map import BlockMap, Segment

_EXTENT_FILE_BLOCKS_MAX = 2**32 - 1


class FileMaps:
    """Block maps of one volume's inodes."""

    def __init__(self, fs: Filesystem, allocator: Allocator) -> None:
        self._fs = fs
        self._allocator = allocator

    def load(self, inode: Inode) -> BlockMap:
        if inode.map is None:
            assert inode.has_map
            if inode.flags & layout.INODE_FLAG_EXTENTS:
                map_, nodes = extents.load(self._fs, inode.number, inode.checksum_seed, inode.pointers)
            else:
                map_, nodes = indirect.load(self._fs, inode.number, inode.pointers)
            self._check_places(inode, map_, nodes)
            inode.map, inode.nodes = map_, nodes
        return inode.map

    def _check_places(self, inode: Inode, map_: BlockMap, nodes: list[int]) -> None:
        """A file cannot be where the volume's own metadata is: writing to it would destroy that."""
        overlap = self._fs.descriptors.system_blocks.overlap
        if any(overlap(begin, length) for begin, length in map_.runs) or any(overlap(block, 1) for block in nodes):
            raise self._fs.damaged(f"inode {inode.number} has blocks of the volume's own metadata")

    def runs(self, inode: Inode) -> list[Run]:
        """All blocks of an inode, those of its tree included."""
        map_ = self.load(inode)
        return [*map_.runs, *(Run(block, 1) for block in inode.nodes)]

    def max_blocks(self, inode: Inode) -> int:
        """How long the inode's file can get."""
        if inode.flags & layout.INODE_FLAG_EXTENTS:
            return _EXTENT_FILE_BLOCKS_MAX
        return indirect.max_blocks(self._fs)

    def add(self, inode: Inode, segments: Sequence[Segment]) -> None:
        """Map blocks that were allocated, into holes.

        Raises:
            OSError (ENOSPC): no room for the tree. The map is as it was; the blocks are still the caller's.
        """
        map_ = self.load(inode)
        for segment in segments:
            map_.insert(segment.logical, segment.length, segment.physical, written=segment.written)
        try:
            self._reserve_nodes(inode, map_)
        except BaseException:
            for segment in segments:
                map_.remove(segment.logical, segment.length)
            raise
        inode.add_blocks(sum(segment.length for segment in segments))
        inode.map_changed = True

    def remove(self, inode: Inode, segments: Sequence[Segment]) -> None:
        """Undo `add`; the blocks are the caller's again."""
        map_ = self.load(inode)
        for segment in segments:
            map_.remove(segment.logical, segment.length)
        inode.add_blocks(-sum(segment.length for segment in segments))

    def set_written(self, inode: Inode, segments: Sequence[Segment]) -> None:
        """Mark allocated segments as written. Raises like `add`."""
        map_ = self.load(inode)
        for segment in segments:
            map_.set_written(segment.logical, segment.length)
        try:
            self._reserve_nodes(inode, map_)
        except BaseException:
            for segment in segments:
                map_.set_written(segment.logical, segment.length, written=False)
            raise
        inode.map_changed = True
        inode.touch()

    def prepare_to_truncate(self, inode: Inode, blocks: int) -> None:
        """Read what `truncate` needs. Raises OSError, and has changed nothing."""
        map_ = self.load(inode)
        if map_.end > blocks:
            parts = map_.segments(blocks, map_.end - blocks)
            self._allocator.prepare_to_free(Run(part.physical, part.length) for part in parts if part.physical >= 0)

    def truncate(self, inode: Inode, blocks: int) -> None:
        """Free what lies at and after a logical block. Raises like `prepare_to_truncate`."""
        self.prepare_to_truncate(inode, blocks)
        map_ = self.load(inode)
        if map_.end <= blocks:
            return
        freed = 0
        for run in map_.remove(blocks, map_.end - blocks):
            self._allocator.free(run)
            freed += run.length
        inode.add_blocks(-freed)
        inode.map_changed = True

    def store(self, inode: Inode) -> None:
        """Write the map into the inode's pointers and its tree blocks, as far as the cache."""
        map_ = self.load(inode)
        self._release_nodes(inode, self._nodes_needed(inode, map_))
        if inode.flags & layout.INODE_FLAG_EXTENTS:
            inode.pointers = extents.store(self._fs, inode.checksum_seed, map_, inode.nodes)
        else:
            inode.pointers = indirect.store(self._fs, map_, inode.nodes)

    def release(self, inode: Inode) -> None:
        """Free everything an inode maps, tree blocks included."""
        if not inode.has_map:
            return
        self.truncate(inode, 0)
        self._release_nodes(inode, 0)

    def _nodes_needed(self, inode: Inode, map_: BlockMap) -> int:
        if inode.flags & layout.INODE_FLAG_EXTENTS:
            return extents.nodes_needed(self._fs, map_)
        return indirect.nodes_needed(self._fs, map_)

    def _reserve_nodes(self, inode: Inode, map_: BlockMap) -> None:
        missing = self._nodes_needed(inode, map_) - len(inode.nodes)
        if missing <= 0:
            return
        for run in self._allocator.allocate(missing):
            inode.nodes.extend(range(run.physical, run.physical + run.length))
        inode.add_blocks(missing)

    def _release_nodes(self, inode: Inode, keep: int) -> None:
        surplus = inode.nodes[keep:]
        if not surplus:
            return
        del inode.nodes[keep:]
        for block in surplus:
            self._allocator.free_block(block)
        inode.add_blocks(-len(surplus))
