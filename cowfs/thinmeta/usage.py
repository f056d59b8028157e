"""How much each thin device maps, and how much of that nobody else uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cowfs.blockdev import BlockDevice
from cowfs.errors import MetadataCorrupt, NoSuchThin
from cowfs.thinmeta.format import (
    ENTRIES_PER_BITMAP,
    TIME_BITS,
    DeviceDetails,
    IndexEntry,
    Node,
    SpaceMapRoot,
    Superblock,
    unpack_bitmap,
    unpack_index,
)
from cowfs.thinmeta.walk import (
    BITMAP_INDEX,
    KEY_END,
    MAPPINGS,
    MetadataReader,
    check_bounds,
    check_level,
    children,
    is_one_run,
)

_MAX_BITMAPS: Final = 1024


@dataclass(frozen=True, slots=True)
class ThinUsage:
    """A thin device's data blocks. Removing the device gives back its exclusive ones."""

    thin_id: int
    mapped_blocks: int
    exclusive_blocks: int
    details: DeviceDetails

    @property
    def shared_blocks(self) -> int:
        return self.mapped_blocks - self.exclusive_blocks


def usage(device: BlockDevice, *, thin_ids: Sequence[int] | None = None, held: bool = False) -> list[ThinUsage]:
    """The usage of every thin device, or of those asked for, by ascending id.

    What other devices can reach is told by the reference counts of the live space maps: a shared subtree is not
    walked, so the cost is in what each device has for itself.

    Args:
        held: the devices of the metadata snapshot; what the live pool shares with it does not count as exclusive.

    Raises:
        MetadataCorrupt: something on the way cannot be read.
        NoSuchThin: one of `thin_ids`.
    """
    reader = MetadataReader(device)
    live = reader.superblock()
    superblock = reader.superblock(held=True) if held else live
    metadata = StoredCounts(reader, live.metadata_space_map, _metadata_entries(reader, live))
    data = StoredCounts(reader, live.data_space_map, _data_entries(reader, live))
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


def _exclusive_blocks(reader: MetadataReader, metadata: StoredCounts, data: StoredCounts, root: int, path: str) -> int:
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


def _exclusive_in_leaf(leaf: Node, data: StoredCounts) -> int:
    if leaf.keys and is_one_run(leaf.keys, leaf.values):
        return data.count_of_ones(leaf.values[0] >> TIME_BITS, len(leaf.keys))
    return sum(data.stored(value >> TIME_BITS) == 1 for value in leaf.values)


class StoredCounts:
    """A space map's counts as the bitmaps hold them, 3 meaning more than two; bitmaps are read when needed."""

    def __init__(self, reader: MetadataReader, root: SpaceMapRoot, entries: list[IndexEntry]) -> None:
        self._reader = reader
        self._nr_blocks = min(root.nr_blocks, len(entries) * ENTRIES_PER_BITMAP)
        self._entries = entries
        self._bitmaps: dict[int, bytearray] = {}

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

    def _bitmap(self, index: int) -> bytearray:
        counts = self._bitmaps.get(index)
        if counts is None:
            if len(self._bitmaps) >= _MAX_BITMAPS:
                self._bitmaps.clear()
            location, path = self._entries[index].bitmap_block, f"bitmap {index}"
            counts = unpack_bitmap(self._reader.read_block(location, path), location, path)
            self._bitmaps[index] = counts
        return counts


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
