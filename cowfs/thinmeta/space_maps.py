"""The two space maps of a pool: how often each data block and each metadata block is used.

A map is bitmaps of two bits a block, an index of the bitmaps, and a tree of the counts that do not fit into two bits. A
commit writes changed bitmaps to new blocks. For the metadata map that changes the map itself, until nothing more
changes: `update_trees` chooses all blocks first, and only then is the map written.
"""

from __future__ import annotations

from cowfs.errors import MetadataCorrupt
from cowfs.thinmeta.btree import BTree
from cowfs.thinmeta.counts import Counts
from cowfs.thinmeta.format import (
    ENTRIES_PER_BITMAP,
    INDEX_ENTRY,
    SUPERBLOCK_LOCATION,
    U32,
    IndexEntry,
    SpaceMapRoot,
    Superblock,
    pack_index,
    seal_bitmap,
    unpack_bitmap,
    unpack_index,
)
from cowfs.thinmeta.store import Store


class SpaceMaps:
    """Both maps of one pool. The counts of metadata blocks are `store.counts`, those of data blocks are `data`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._data_index = BTree(store, INDEX_ENTRY, "data space map index")
        self._overflow = BTree(store, U32, "reference counts")
        self.data: Counts

    def make(self, superblock: Superblock, blocks: int) -> None:
        """Empty maps, of so many metadata blocks and of no data blocks."""
        store = self._store
        store.counts = self._new_counts("metadata", superblock.metadata_space_map, [])
        store.counts.extend(blocks)
        self.data = self._new_counts("data", superblock.data_space_map, [])
        if blocks:
            store.counts.increment(SUPERBLOCK_LOCATION)
            store.counts.cursor = 1
        superblock.metadata_space_map.bitmap_root = store.allocate()
        superblock.metadata_space_map.ref_count_root = self._overflow.empty()
        superblock.data_space_map.bitmap_root = self._data_index.empty()
        superblock.data_space_map.ref_count_root = self._overflow.empty()

    def load(self, superblock: Superblock) -> None:
        """Read where both maps are; their bitmaps are read when they are needed. Raises MetadataCorrupt."""
        root = superblock.metadata_space_map
        bitmaps = -(-root.nr_blocks // ENTRIES_PER_BITMAP)
        index = self._store.read_block(root.bitmap_root)
        entries = unpack_index(index, root.bitmap_root, bitmaps, "metadata space map index")
        self._store.counts = self._new_counts("metadata", root, entries)
        root = superblock.data_space_map
        self.data = self._new_counts("data", root, self._load_data_index(root))

    def _new_counts(self, name: str, root: SpaceMapRoot, entries: list[IndexEntry]) -> Counts:
        def load_overflow(block: int) -> int | None:
            words = self._overflow.get(root.ref_count_root, block)
            return words[0] if words else None

        return Counts(name, root.nr_blocks, root.nr_allocated, entries, self._load_bitmap, load_overflow)

    def _load_data_index(self, root: SpaceMapRoot) -> list[IndexEntry]:
        bitmaps = -(-root.nr_blocks // ENTRIES_PER_BITMAP)
        entries = [IndexEntry.from_words(*words) for _, words in self._data_index.items(root.bitmap_root)]
        if len(entries) < bitmaps or (bitmaps and self._data_index.last_key(root.bitmap_root) != len(entries) - 1):
            message = f"{len(entries)} bitmaps are listed where {bitmaps} are needed for {root.nr_blocks} blocks"
            raise MetadataCorrupt(message, block=root.bitmap_root, path="data space map index")
        return entries[:bitmaps]

    def _load_bitmap(self, location: int) -> bytearray:
        return unpack_bitmap(self._store.read_block(location), location, "space map bitmap")

    def update_trees(self, superblock: Superblock) -> None:
        """Bring the trees of both maps up to date, and choose the blocks that they are written to."""
        self._update_data_map(superblock.data_space_map)
        self._update_metadata_map(superblock.metadata_space_map)

    def _update_data_map(self, root: SpaceMapRoot) -> None:
        """Give changed data bitmaps new homes, and bring the trees of the data space map up to date."""
        self._update_overflow(self.data, root)
        for index in sorted(self.data.dirty):
            self._rehome(self.data, index)
            self._store.write_block(*self._bitmap(self.data, index))
            words = self.data.entries[index].to_words()
            root.bitmap_root = self._data_index.insert(root.bitmap_root, index, *words)
        root.nr_blocks = self.data.nr_blocks
        root.nr_allocated = self.data.allocated

    def _update_metadata_map(self, root: SpaceMapRoot) -> None:
        """The same for the metadata map, which describes itself: loop until nothing needs a new home."""
        counts = self._store.counts
        homed: set[int] = set()
        index_homed = False
        while counts.overflow or counts.dirty - homed:
            if not index_homed:
                root.bitmap_root = self._rehome_block(root.bitmap_root)
                index_homed = True
            self._update_overflow(counts, root)
            for index in sorted(counts.dirty - homed):
                self._rehome(counts, index)
                homed.add(index)
        root.nr_blocks = counts.nr_blocks
        root.nr_allocated = counts.allocated

    def _update_overflow(self, counts: Counts, root: SpaceMapRoot) -> None:
        # Updating the metadata map may change counts again, so what is taken here is gone from the waiting list.
        pending, counts.overflow = counts.overflow, {}
        crossings, counts.crossings = counts.crossings, []
        for block, above in crossings:
            if above:
                root.ref_count_root = self._overflow.insert(root.ref_count_root, block, pending[block])
            else:
                root.ref_count_root = self._overflow.remove(root.ref_count_root, block)
        for block in sorted(pending):
            if pending[block] > 2:
                root.ref_count_root = self._overflow.insert(root.ref_count_root, block, pending[block])

    def _rehome(self, counts: Counts, index: int) -> None:
        entry = counts.entries[index]
        entry.bitmap_block = self._rehome_block(entry.bitmap_block)

    def _rehome_block(self, location: int) -> int:
        """A block made in this transaction to replace a bitmap or index block; `location` 0 means none yet."""
        if location and self._store.is_new(location):
            return location
        target = self._store.allocate()
        if location:
            self._store.counts.decrement(location)
        return target

    def metadata_blocks(self, superblock: Superblock) -> dict[int, bytes]:
        """The bitmaps of the metadata, and their index, by the blocks that `update_trees` chose for them."""
        counts, root = self._store.counts, superblock.metadata_space_map
        if not counts.dirty:
            return {}
        found = dict(self._bitmap(counts, index) for index in sorted(counts.dirty))
        found[root.bitmap_root] = pack_index(counts.entries, root.bitmap_root)
        return found

    def _bitmap(self, counts: Counts, index: int) -> tuple[int, bytes]:
        """Where a changed bitmap is to be, and its block."""
        location = counts.entries[index].bitmap_block
        return location, seal_bitmap(counts.packed(index), location)
