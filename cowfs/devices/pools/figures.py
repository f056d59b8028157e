"""What devices and the pool occupy, read from the committed metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Final

from cowfs.devices.pools.health import require_status
from cowfs.devices.reports import UsageRow
from cowfs.errors import CowfsError, MetadataCorrupt
from cowfs.pool import Pool
from cowfs.thinmeta.format import ENTRIES_PER_BITMAP, Superblock, unpack_bitmap, unpack_index, unpack_mapping
from cowfs.thinmeta.walk import (
    BITMAP_INDEX,
    KEY_END,
    MAPPINGS,
    MAX_LEVELS,
    TOP_LEVEL,
    MetadataReader,
    ThinEntry,
    bisect_key,
    check_bounds,
    check_level,
    children,
    mapping_runs,
)
from cowfs.units import METADATA_BLOCK_BYTES

_MAX_BITMAPS: Final = 256  # of 16 KB each, so 4 MB for each of the two maps


@contextmanager
def reading(pool: Pool) -> Iterator[PoolFigures]:
    """The figures as of now, for the length of a block in which the pool does not commit.

    Raises:
        PoolModeError: the pool failed.
        MetadataCorrupt: its superblock or space maps cannot be read.
    """
    require_status(pool)  # commits
    with closing(pool.open_metadata()) as device:
        yield PoolFigures(pool, MetadataReader(device))


class PoolFigures:
    """What the thins of a pool occupy, all as of one commit.

    Blocks that a metadata snapshot holds count as shared, for removing the device does not free them.
    """

    def __init__(self, pool: Pool, reader: MetadataReader) -> None:
        self._pool = pool
        self._reader = reader
        self._superblock = reader.superblock()
        self._exclusive = _ExclusiveBlocks(reader, self._superblock)

    def thins(self) -> dict[int, ThinEntry]:
        """All of them by id, which is quicker than one by one. Raises MetadataCorrupt."""
        return {entry.thin_id: entry for entry in self._reader.thins(self._superblock)}

    def find(self, thin_id: int) -> ThinEntry | None:
        """One of them. Raises MetadataCorrupt when its mappings are present and its details are not."""
        found = self._reader.thin(self._superblock, thin_id)
        if found is None:
            return None
        root, path = found
        return ThinEntry(thin_id, root, self._reader.thin_details(self._superblock, thin_id), path)

    def usage(self, entry: ThinEntry, name: str | None) -> UsageRow:
        """What one thin occupies.

        Raises:
            MetadataCorrupt: its mappings cannot be read.

        Cost: time in proportion to the metadata nodes that only this thin uses; bounded memory.
        """
        blocks, nodes = self._exclusive.count(entry.root, entry.path)
        if blocks and self._is_held(entry.thin_id):
            blocks = nodes = 0
        mapped_blocks, block_bytes = entry.details.mapped_blocks, self._pool.block_bytes
        return UsageRow(
            name=name,
            id=entry.thin_id,
            mapped_bytes=mapped_blocks * block_bytes,
            shared_bytes=(mapped_blocks - blocks) * block_bytes,
            exclusive_bytes=blocks * block_bytes,
            metadata_bytes=nodes * METADATA_BLOCK_BYTES,
        )

    def _is_held(self, thin_id: int) -> bool:
        """Whether a metadata snapshot holds a thin as it is now, by a node above its root."""
        location, begin, end = self._superblock.mapping_root, 0, KEY_END
        path = f"mapping root {location}"
        for _ in range(MAX_LEVELS if self._superblock.held_root else 0):
            if self._exclusive.is_shared(location):
                return True
            node = self._reader.node(location, TOP_LEVEL, path)
            check_bounds(node, location, begin, end, path)
            if node.is_leaf:
                break
            location, begin, end = children(node, end)[bisect_key(node.keys, thin_id)]
        return False

    def first_block(self, entry: ThinEntry) -> int | None:
        """The data block of the first virtual block; None where that is not mapped. Raises MetadataCorrupt."""
        value = self._reader.find(entry.root, MAPPINGS, 0, entry.path)
        return None if value is None else unpack_mapping(value)[0]

    def highest_mapped_byte(self, entry: ThinEntry) -> int | None:
        """The end of the last virtual block that is mapped; None where none is. Raises MetadataCorrupt."""
        if not entry.details.mapped_blocks:
            return None
        location, begin, end = entry.root, 0, KEY_END
        for _ in range(MAX_LEVELS):
            node = self._reader.node(location, MAPPINGS, entry.path)
            check_bounds(node, location, begin, end, entry.path)
            if node.is_leaf:
                return (node.keys[-1] + 1) * self._pool.block_bytes - 1 if node.keys else None
            location, begin, end = children(node, end)[-1]
        raise MetadataCorrupt(f"the tree has more than {MAX_LEVELS} levels", block=location, path=entry.path)


def is_fresh(pool: Pool, thin_id: int, transaction_id: int) -> bool:
    """Whether a thin was made in a pool transaction and has no block of its own; False where that is not known."""
    try:
        with reading(pool) as figures:
            thin = figures.find(thin_id)
            if thin is None or thin.details.transaction_id != transaction_id:
                return False
            return not figures.usage(thin, None).exclusive_bytes
    except CowfsError:
        return False


class _ExclusiveBlocks:
    """Counting the data blocks that one thin alone maps.

    A node with several references belongs to several trees, and so does everything below it; what is left are the
    blocks with one reference in leaves with one reference.
    """

    def __init__(self, reader: MetadataReader, superblock: Superblock) -> None:
        self._reader = reader
        self._superblock = superblock
        metadata_map = superblock.metadata_space_map
        bitmaps = -(-metadata_map.nr_blocks // ENTRIES_PER_BITMAP)
        index = reader.read_block(metadata_map.bitmap_root, "metadata space map")
        entries = unpack_index(index, metadata_map.bitmap_root, bitmaps, "metadata space map")
        self._nodes = _Counts(reader, metadata_map.nr_blocks, lambda i: entries[i].bitmap_block)
        self._data = _Counts(reader, superblock.data_space_map.nr_blocks, self._find_data_bitmap)

    def is_shared(self, location: int) -> bool:
        """Whether several nodes, or roots, refer to a node."""
        return self._nodes.counts(location, 1) != b"\1"

    def count(self, root: int, path: str) -> tuple[int, int]:
        """(data blocks, nodes) that only the tree under a root refers to."""
        total = nodes = 0
        pending = [(root, 0, KEY_END, 1)]
        while pending:
            location, begin, end, level = pending.pop()
            if self.is_shared(location):
                continue
            node = self._reader.node(location, MAPPINGS, path)
            check_bounds(node, location, begin, end, path)
            nodes += 1
            if node.is_leaf:
                runs = mapping_runs(node.keys, node.values)
                total += sum(self._data.counts(run.dblock, run.length).count(1) for run in runs)
            else:
                check_level(level, location, path)
                pending.extend((*child, level + 1) for child in children(node, end))
        return total, nodes

    def _find_data_bitmap(self, index: int) -> int:
        root = self._superblock.data_space_map.bitmap_root
        location = self._reader.find(root, BITMAP_INDEX, index, f"data space map index root {root}")
        if location is None:
            raise MetadataCorrupt(f"bitmap {index} is missing", block=root, path="data space map")
        return location


class _Counts:
    """Reference counts of one space map as its bitmaps have them: 0, 1, 2, and 3 for more."""

    def __init__(self, reader: MetadataReader, nr_blocks: int, find_bitmap: Callable[[int], int]) -> None:
        self._reader = reader
        self._nr_blocks = nr_blocks
        self._find_bitmap = find_bitmap
        self._bitmaps: dict[int, bytes] = {}

    def counts(self, begin: int, length: int) -> bytes:
        """One byte per block."""
        if begin + length > self._nr_blocks:
            raise MetadataCorrupt(f"is past the end of its device of {self._nr_blocks} blocks", block=begin)
        index, offset = divmod(begin, ENTRIES_PER_BITMAP)
        parts = []
        while length:
            size = min(length, ENTRIES_PER_BITMAP - offset)
            parts.append(self._bitmap(index)[offset : offset + size])
            index, offset, length = index + 1, 0, length - size
        return b"".join(parts)

    def _bitmap(self, index: int) -> bytes:
        counts = self._bitmaps.get(index)
        if counts is None:
            location = self._find_bitmap(index)
            path = f"bitmap {index}"
            counts = bytes(unpack_bitmap(self._reader.read_block(location, path), location, path))
            if len(self._bitmaps) >= _MAX_BITMAPS:
                del self._bitmaps[next(iter(self._bitmaps))]
            self._bitmaps[index] = counts
        return counts
