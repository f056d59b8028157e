"""How much each thin device maps, and how much of that is its alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from cowfs.blockdev import BlockDevice
from cowfs.errors import MetadataCorrupt, NoSuchThin
from cowfs.thinmeta.check_trees import TreeChecker
from cowfs.thinmeta.findings import Findings
from cowfs.thinmeta.format import (
    ENTRIES_PER_BITMAP,
    MAX_DATA_BLOCK,
    TIME_BITS,
    DeviceDetails,
    IndexEntry,
    Node,
    SpaceMapRoot,
    Superblock,
    unpack_bitmap,
    unpack_index,
)
from cowfs.thinmeta.recount import RefCounts
from cowfs.thinmeta.walk import (
    BITMAP_INDEX,
    KEY_END,
    MAPPINGS,
    TOP_LEVEL,
    MetadataReader,
    check_bounds,
    check_level,
    children,
    is_one_run,
)
from cowfs.units import MAX_SNAPSHOT_TIME

_MAX_BITMAPS: Final = 1024


@dataclass(frozen=True, slots=True)
class ThinUsage:
    """A thin device's data blocks. The exclusive ones are those that no other device maps: removing the device gives
    them back, as soon as no metadata snapshot holds them.
    """

    thin_id: int
    mapped_blocks: int
    exclusive_blocks: int
    details: DeviceDetails

    @property
    def shared_blocks(self) -> int:
        return self.mapped_blocks - self.exclusive_blocks


def usage(device: BlockDevice, *, thin_ids: Sequence[int] | None = None, held: bool = False) -> list[ThinUsage]:
    """The usage of every thin device, or of those asked for, by ascending id.

    What other devices can reach is known from the stored reference counts, so a shared subtree is not walked, and the
    cost is in what each device has for itself. Only while a metadata snapshot is held, which the stored counts
    include, everything is counted again.

    Args:
        held: the devices of the metadata snapshot, among themselves.

    Raises:
        MetadataCorrupt: something on the way cannot be read.
        NoSuchThin: one of `thin_ids`.
    """
    reader = MetadataReader(device)
    live = reader.superblock()
    superblock = reader.superblock(held=True) if held else live
    metadata, data = _recount(reader, superblock) if live.held_root else _stored(reader, live)
    wanted = None if thin_ids is None else set(thin_ids)
    found = []
    for thin in reader.thins(superblock):
        if wanted is None or thin.thin_id in wanted:
            exclusive = _exclusive_blocks(reader, metadata, data, thin.root, thin.path)
            found.append(ThinUsage(thin.thin_id, thin.details.mapped_blocks, exclusive, thin.details))
    missing = (wanted or set()) - {entry.thin_id for entry in found}
    if missing:
        raise NoSuchThin(f"no thin device {min(missing)} in this pool")
    return found


def _exclusive_blocks(reader: MetadataReader, metadata: _Counts, data: _Counts, root: int, path: str) -> int:
    exclusive = 0
    pending = [(root, 0, KEY_END, 1, path)]
    while pending:
        location, begin, end, level, where = pending.pop()
        if metadata.stored(location) > 1:
            continue
        node = reader.node(location, MAPPINGS, where)
        check_bounds(node, location, begin, end, where)
        if node.is_leaf:
            exclusive += _exclusive_in_leaf(node, data)
        else:
            check_level(level, location, where)
            pending += [(child, a, b, level + 1, f"{where} -> node {child}") for child, a, b in children(node, end)]
    return exclusive


def _exclusive_in_leaf(leaf: Node, data: _Counts) -> int:
    if leaf.keys and is_one_run(leaf.keys, leaf.values):
        return data.count_of_ones(leaf.values[0] >> TIME_BITS, len(leaf.keys))
    return sum(data.stored(value >> TIME_BITS) == 1 for value in leaf.values)


class _Counts:
    """Counts as a bitmap's two bits hold them, 3 meaning more than two; `load` gives those of one bitmap."""

    def __init__(self, nr_blocks: int, load: Callable[[int], bytes | bytearray]) -> None:
        self._nr_blocks = nr_blocks
        self._load = load
        self._bitmaps: dict[int, bytes | bytearray] = {}

    def stored(self, block: int) -> int:
        """0 for a block past the end of the map."""
        if block >= self._nr_blocks:
            return 0
        index, offset = divmod(block, ENTRIES_PER_BITMAP)
        return self._bitmap(index)[offset]

    def count_of_ones(self, begin: int, length: int) -> int:
        end = min(begin + length, self._nr_blocks)
        ones = 0
        while begin < end:
            index, offset = divmod(begin, ENTRIES_PER_BITMAP)
            size = min(end - begin, ENTRIES_PER_BITMAP - offset)
            ones += self._bitmap(index).count(1, offset, offset + size)
            begin += size
        return ones

    def _bitmap(self, index: int) -> bytes | bytearray:
        counts = self._bitmaps.get(index)
        if counts is None:
            if len(self._bitmaps) >= _MAX_BITMAPS:
                self._bitmaps.clear()
            counts = self._bitmaps[index] = self._load(index)
        return counts


def _stored(reader: MetadataReader, live: Superblock) -> tuple[_Counts, _Counts]:
    """The counts of both space maps."""
    return (
        _stored_map(reader, live.metadata_space_map, _metadata_entries(reader, live)),
        _stored_map(reader, live.data_space_map, _data_entries(reader, live)),
    )


def _stored_map(reader: MetadataReader, root: SpaceMapRoot, entries: list[IndexEntry]) -> _Counts:
    def load(index: int) -> bytearray:
        location, path = entries[index].bitmap_block, f"bitmap {index}"
        return unpack_bitmap(reader.read_block(location, path), location, path)

    return _Counts(min(root.nr_blocks, len(entries) * ENTRIES_PER_BITMAP), load)


def _recount(reader: MetadataReader, superblock: Superblock) -> tuple[_Counts, _Counts]:
    """What the mapping trees of one superblock refer to, and nothing else. Damage shows when they are walked again."""
    trees = TreeChecker(reader, Findings(), time=MAX_SNAPSHOT_TIME, progress=None)
    trees.data = RefCounts(MAX_DATA_BLOCK + 1)
    trees.data_nr_blocks = MAX_DATA_BLOCK + 1
    trees.check_tree(superblock.mapping_root, TOP_LEVEL, f"mapping root {superblock.mapping_root}")
    return (
        _Counts(trees.metadata.nr_blocks, trees.metadata.as_stored),
        _Counts(trees.data.nr_blocks, trees.data.as_stored),
    )


def _metadata_entries(reader: MetadataReader, superblock: Superblock) -> list[IndexEntry]:
    root = superblock.metadata_space_map
    path = f"metadata space map -> index {root.bitmap_root}"
    count = -(-min(root.nr_blocks, reader.blocks) // ENTRIES_PER_BITMAP)
    return unpack_index(reader.read_block(root.bitmap_root, path), root.bitmap_root, count, path)


def _data_entries(reader: MetadataReader, superblock: Superblock) -> list[IndexEntry]:
    root = superblock.data_space_map.bitmap_root
    entries: list[IndexEntry] = []
    path = f"data space map -> index root {root}"
    for leaf, where in reader.leaves(root, BITMAP_INDEX, path):
        for i, index in enumerate(leaf.keys):
            if index != len(entries):
                raise MetadataCorrupt(f"bitmap {len(entries)} is missing", block=root, path=where)
            entries.append(IndexEntry.from_words(leaf.values[2 * i], leaf.values[2 * i + 1]))
    return entries
