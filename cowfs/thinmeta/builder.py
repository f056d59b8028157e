"""Building a whole metadata device in one pass, from mappings in order: for restore and repair.

Blocks are handed out upwards from 1. Trees are written leaf by leaf as full as they get, each level closed by an even
cut, so every node but the root holds at least a third of what fits. Subtrees that several devices share are written
once and referenced by each. What refers to what is counted while it is written; `finish` writes both space maps from
these counts and the superblock last. Until then block 0 holds no superblock, so a half-built device is refused by
every reader, and not taken for an empty one.

    builder = MetadataBuilder(device, data_block_sectors=128, data_blocks=1 << 14)
    tree = builder.mapping_tree()
    tree.push_run(Run(vblock=0, dblock=7, length=100, time=0))
    builder.add_thin(1, tree, transaction_id=0, creation_time=0, snapshotted_time=0)
    builder.finish(time=0, transaction_id=1)

When the device is too small, building continues without writing, so that `finish` can say how many blocks it takes.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from cowfs.blockdev import BlockDevice
from cowfs.errors import InvalidRequest, OutOfMetadataSpace
from cowfs.thinmeta.format import (
    DETAILS,
    ENTRIES_PER_BITMAP,
    INDEX_ENTRY,
    NEXT_BLOCK,
    TIME_BITS,
    U32,
    U64,
    DeviceDetails,
    IndexEntry,
    Node,
    SpaceMapRoot,
    Superblock,
    ValueKind,
    pack_bitmap,
    pack_index,
    pack_mapping,
)
from cowfs.thinmeta.recount import RefCounts, data_blocks
from cowfs.thinmeta.walk import MAPPINGS, MetadataReader, Run, is_one_run
from cowfs.units import MAX_METADATA_BLOCKS, METADATA_BLOCK_BYTES, is_data_block_size

_NO_SUPERBLOCK: Final = b"\xff" * METADATA_BLOCK_BYTES
_CHILDREN_MAX: Final = U64.max_entries


@dataclass(frozen=True, slots=True)
class SubTree:
    """A node that was written, with all below it: how to refer to it."""

    first_key: int
    location: int
    entries: int  # in the node itself
    total: int  # mappings below it


class MetadataBuilder:
    """Writes one metadata device.

    Invariant: `metadata` holds one count per reference from a node that was written; the roots that the superblock
    names are counted by `finish`.

    Raises (all methods that write): OSError from the device. Running out of blocks is reported by `finish` alone.
    """

    def __init__(self, device: BlockDevice, *, data_block_sectors: int, data_blocks: int) -> None:
        if not is_data_block_size(data_block_sectors):
            raise InvalidRequest(
                f"a data block of {data_block_sectors} sectors: it must be a multiple of 128 to 2097152"
            )
        self.device = device
        self.data_block_sectors = data_block_sectors
        self.metadata_blocks = min(device.size_bytes // METADATA_BLOCK_BYTES, MAX_METADATA_BLOCKS)
        self.metadata = RefCounts(MAX_METADATA_BLOCKS * ENTRIES_PER_BITMAP)
        self.data = RefCounts(data_blocks)
        self._next = 1
        self._thins: dict[int, tuple[int, DeviceDetails]] = {}
        self._loose: list[int] = []  # mapping leaves made for sharing
        self._wrote = False
        if self.data.bitmaps >= self.metadata_blocks:
            self._refuse(self.data.bitmaps + 8)

    # ------------------------------------------------------------------ mappings

    def mapping_tree(self, *, to_share: bool = False) -> TreeBuilder:
        """An empty tree. With `to_share` only its leaves are built, for `push_leaf` to other trees."""
        return TreeBuilder(self, U64, self._count_mappings, self._loose if to_share else None)

    def add_thin(
        self,
        thin_id: int,
        tree: TreeBuilder | SubTree,
        *,
        transaction_id: int,
        creation_time: int,
        snapshotted_time: int,
    ) -> SubTree:
        """A device of these mappings; returns its tree, to give to other devices that map the same."""
        subtree = tree if isinstance(tree, SubTree) else tree.close()
        self._thins[thin_id] = (
            subtree.location,
            DeviceDetails(subtree.total, transaction_id, creation_time, snapshotted_time),
        )
        return subtree

    def write_mapping_node(self, node: Node, *, may_be_unused: bool = False) -> int:
        """Write a node of a mapping tree as it is; a leaf that nothing refers to in the end may be so marked."""
        location = self.write_node(node, self._count_mappings)
        if may_be_unused:
            self._loose.append(location)
        return location

    def has_thin(self, thin_id: int) -> bool:
        return thin_id in self._thins

    def read_leaf(self, location: int) -> Node:
        return MetadataReader(self.device).node(location, MAPPINGS, "new leaf")

    def write_node(self, node: Node, count_leaf: Callable[[Node], None]) -> int:
        """Write a node to a new block and count what it refers to."""
        location = self._allocate()
        self._write(location, node.pack(location) if location < self.metadata_blocks else b"")
        if node.is_leaf:
            count_leaf(node)
        else:
            self.metadata.add_each(node.values)
        return location

    def _count_mappings(self, leaf: Node) -> None:
        if leaf.keys and is_one_run(leaf.keys, leaf.values):
            self.data.add_run(leaf.values[0] >> TIME_BITS, len(leaf.values))
        else:
            self.data.add_each(data_blocks(leaf.values))

    def _forget_unused_leaves(self) -> None:
        """Leaves meant for sharing that no thin took: their blocks stay free, their data blocks are not used."""
        for location in self._loose:
            if location < self.metadata_blocks and not self.metadata.count(location):
                for block in data_blocks(self.read_leaf(location).values):
                    self.data.drop_run(block, 1)

    # ------------------------------------------------------------------ the end

    def finish(self, *, time: int, transaction_id: int, flags: int = 0, uuid: bytes = bytes(16)) -> Superblock:
        """Write the device trees, the space maps and, after a flush, the superblock.

        Raises:
            OutOfMetadataSpace: the device is too small; says how many blocks it takes.
        """
        superblock = Superblock(
            self.data_block_sectors,
            self.metadata_blocks,
            flags=flags,
            uuid=uuid,
            time=time,
            transaction_id=transaction_id,
        )
        superblock.mapping_root, superblock.details_root = self._write_thins()
        self._forget_unused_leaves()
        superblock.data_space_map = self._write_data_map()
        self.metadata.add_each((0, superblock.mapping_root, superblock.details_root))
        superblock.metadata_space_map = self._write_metadata_map()
        self.device.flush()
        self.device.pwrite(0, superblock.pack())
        self.device.flush()
        return superblock

    def _write_thins(self) -> tuple[int, int]:
        top_level = TreeBuilder(self, U64, lambda leaf: self.metadata.add_each(leaf.values))
        details = TreeBuilder(self, DETAILS, lambda _: None)
        for thin_id, (root, detail) in sorted(self._thins.items()):
            top_level.push(thin_id, (root,))
            details.push(thin_id, detail.to_words())
        return top_level.close().location, details.close().location

    def _write_data_map(self) -> SpaceMapRoot:
        counts = self.data
        index = TreeBuilder(self, INDEX_ENTRY, lambda leaf: self.metadata.add_each(leaf.values[::2]))
        for i in range(counts.bitmaps):
            index.push(i, self._write_bitmap(counts, i, self._allocate()).to_words())
        root = SpaceMapRoot(counts.nr_blocks, counts.allocated(), index.close().location)
        root.ref_count_root = self._write_overflow(counts)
        self.metadata.add_each((root.bitmap_root, root.ref_count_root))
        return root

    def _write_metadata_map(self) -> SpaceMapRoot:
        """The map that counts itself: every block it needs is taken and counted before the first bitmap is written."""
        overflow = self._write_overflow(self.metadata)
        bitmaps = -(-self.metadata_blocks // ENTRIES_PER_BITMAP)
        index_block = self._allocate()
        locations = [self._allocate() for _ in range(bitmaps)]
        if self._next > self.metadata_blocks:
            self._refuse(self._next - bitmaps)
        self.metadata.add_each((overflow, index_block, *locations))
        counts = self.metadata
        entries = [self._write_bitmap(counts, i, location) for i, location in enumerate(locations)]
        self._write(index_block, pack_index(entries, index_block))
        return SpaceMapRoot(self.metadata_blocks, counts.allocated(), index_block, overflow)

    def _write_overflow(self, counts: RefCounts) -> int:
        tree = TreeBuilder(self, U32, lambda _: None)
        for block, count in counts.overflow():
            tree.push(block, (count,))
        return tree.close().location

    def _write_bitmap(self, counts: RefCounts, index: int, location: int) -> IndexEntry:
        stored = counts.as_stored(index)
        free = stored.count(0)
        first_free = stored.find(0)
        if location < self.metadata_blocks:
            self._write(location, pack_bitmap(stored, location))
        return IndexEntry(location, free, ENTRIES_PER_BITMAP if first_free < 0 else first_free)

    # ------------------------------------------------------------------ blocks

    def _allocate(self) -> int:
        location = self._next
        self._next += 1
        return location

    def _write(self, location: int, block: bytes) -> None:
        if location >= self.metadata_blocks:
            return
        if not self._wrote:
            self._wrote = True
            self.device.pwrite(0, _NO_SUPERBLOCK)
        self.device.pwrite(location * METADATA_BLOCK_BYTES, block)

    def _refuse(self, blocks: int) -> None:
        """`blocks` without the bitmaps of the metadata map itself, one for each 16320 blocks or part of it."""
        needed = blocks + -(-blocks // (ENTRIES_PER_BITMAP - 1))
        message = f"the metadata device has {self.metadata_blocks} blocks of 4096 bytes and {needed} are needed"
        if needed > MAX_METADATA_BLOCKS:
            message += f", more than any metadata device can have ({MAX_METADATA_BLOCKS})"
        raise OutOfMetadataSpace(message)


class TreeBuilder:
    """One tree from its entries in ascending order of key: full nodes, none but the root under a third.

    Invariant: a level keeps its last third of a node without a parent, so there is always enough to cut evenly.
    """

    def __init__(
        self,
        builder: MetadataBuilder,
        kind: ValueKind,
        count_leaf: Callable[[Node], None],
        loose: list[int] | None = None,
    ) -> None:
        self._builder = builder
        self._kind = kind
        self._loose = loose  # given: leaves get no parents, and are noted here
        self._count_leaf = count_leaf
        self._minimum = kind.max_entries // 3
        self._room = kind.max_entries + self._minimum
        self._open = Node.leaf(kind)  # entries without a leaf yet
        self._levels: list[list[SubTree]] = [[]]  # nodes without a parent yet, leaves first

    def push(self, key: int, words: Iterable[int]) -> None:
        node = self._open
        node.keys.append(key)
        node.values.extend(words)
        if len(node.keys) >= self._room:
            self._write_full_leaves()

    def push_run(self, run: Run) -> None:
        """Mappings. They lie inside the data map and behind everything pushed before: the caller made sure."""
        vblock, value, left = run.vblock, pack_mapping(run.dblock, run.time), run.length
        if left == 1:
            self.push(vblock, (value,))
            return
        while left:
            count = min(left, self._room - len(self._open.keys))
            self._open.keys.extend(range(vblock, vblock + count))
            self._open.values.extend(range(value, value + count * NEXT_BLOCK, NEXT_BLOCK))
            vblock, value, left = vblock + count, value + count * NEXT_BLOCK, left - count
            self._write_full_leaves()

    def push_leaf(self, leaf: SubTree) -> None:
        """A mapping leaf that was written before, to be shared; copied where sharing would leave a node too empty."""
        if leaf.entries < self._minimum or 0 < len(self._open.keys) < self._minimum:
            self._copy_leaf(leaf)
        else:
            self._write_open()
            self._add(0, leaf)

    def close(self) -> SubTree:
        """Write what is left and every level above; returns the root."""
        self.close_leaves()
        level = 0
        while level + 1 < len(self._levels) or len(self._levels[level]) > 1:
            for part in _even_parts(self._levels[level], _CHILDREN_MAX):
                self._write_internal(level, part)
            self._levels[level] = []
            level += 1
        return self._levels[level][0]

    def close_leaves(self) -> list[SubTree]:
        """Write what is left; returns the leaves that have no parent yet: all of them in a tree to share."""
        if self._levels[0] and 0 < len(self._open.keys) < self._minimum:
            # Only a leaf given to `push_leaf` can be the last one here, and no parent refers to it yet.
            rest, self._open = self._open, Node.leaf(self._kind)
            self._copy_leaf(self._levels[0].pop())
            self._extend(rest)
        self._write_open(even_if_empty=len(self._levels) == 1 and not self._levels[0])
        return self._levels[0]

    # ------------------------------------------------------------------ internals

    def _copy_leaf(self, leaf: SubTree) -> None:
        if leaf.location < self._builder.metadata_blocks:
            self._extend(self._builder.read_leaf(leaf.location))
        else:  # never written: only blocks are being counted
            self._add(0, leaf)

    def _extend(self, node: Node) -> None:
        self._open.keys.extend(node.keys)
        self._open.values.extend(node.values)
        self._write_full_leaves()

    def _write_full_leaves(self) -> None:
        while len(self._open.keys) >= self._room:
            self._write_leaf(self._kind.max_entries)

    def _write_open(self, *, even_if_empty: bool = False) -> None:
        left = len(self._open.keys)
        if left > self._kind.max_entries:
            self._write_leaf(left // 2)
            left -= left // 2
        if left or even_if_empty:
            self._write_leaf(left)

    def _write_leaf(self, count: int) -> None:
        keys, values, words = self._open.keys, self._open.values, count * self._kind.stride
        leaf = Node(self._kind, True, keys[:count], values[:words])
        del keys[:count], values[:words]
        location = self._builder.write_node(leaf, self._count_leaf)
        if self._loose is not None:
            self._loose.append(location)
        self._add(0, SubTree(leaf.keys[0] if count else 0, location, count, count))

    def _add(self, level: int, subtree: SubTree) -> None:
        siblings = self._levels[level]
        siblings.append(subtree)
        if self._loose is None and len(siblings) >= _CHILDREN_MAX + _CHILDREN_MAX // 3:
            part = siblings[:_CHILDREN_MAX]
            del siblings[:_CHILDREN_MAX]
            self._write_internal(level, part)

    def _write_internal(self, level: int, part: list[SubTree]) -> None:
        node = Node.internal(
            array("Q", (child.first_key for child in part)), array("Q", (child.location for child in part))
        )
        location = self._builder.write_node(node, self._count_leaf)
        if level + 1 == len(self._levels):
            self._levels.append([])
        total = sum(child.total for child in part)
        self._add(level + 1, SubTree(part[0].first_key, location, len(part), total))


def _even_parts(nodes: list[SubTree], maximum: int) -> list[list[SubTree]]:
    """Cut in as few parts of at most `maximum` as possible, of nearly equal length."""
    count = -(-len(nodes) // maximum)
    cuts = [len(nodes) * i // count for i in range(count + 1)] if count else []
    return [nodes[begin:end] for begin, end in itertools.pairwise(cuts)]
