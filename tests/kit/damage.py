"""Damage to metadata, one named defect per function, for tests of what must notice it.

Every function in `DAMAGES` takes a device with clean metadata and breaks one thing. Checksums are made right again
unless they are what is broken, and so are the counters that follow from the thing, so that a checker has exactly one
reason to complain. What a defect needs (a thin with several leaves, a held metadata snapshot, a count in an overflow
btree) must be there; `MetadataEditor` finds the place and raises LookupError otherwise.

    sample = some clean device
    DAMAGES["data_leak"](sample)
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from cowfs.blockdev import BlockDevice
from cowfs.thinmeta.format import (
    DETAILS,
    ENTRIES_PER_BITMAP,
    SUPERBLOCK_MAGIC,
    U64,
    DeviceDetails,
    IndexEntry,
    Node,
    SpaceMapRoot,
    checksum,
    pack_bitmap,
    pack_mapping,
    unpack_bitmap,
    unpack_mapping,
)
from cowfs.thinmeta.walk import (
    BITMAP_INDEX,
    DEVICE_DETAILS,
    MAPPINGS,
    OVERFLOW,
    TOP_LEVEL,
    MetadataReader,
    TreeKind,
)
from cowfs.units import METADATA_BLOCK_BYTES

_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_KEYS_OFFSET: Final = 32


class MetadataEditor:
    """Finds the places to damage, and rewrites blocks."""

    def __init__(self, device: BlockDevice) -> None:
        self.device = device
        self.reader = MetadataReader(device)
        self.superblock = self.reader.superblock()

    # ------------------------------------------------------------------ blocks

    def patch(self, location: int, offset: int, data: bytes) -> None:
        """Change bytes of a block and make its checksum right, whatever kind of block it is."""
        block = bytearray(self.device.pread(location * METADATA_BLOCK_BYTES, METADATA_BLOCK_BYTES))
        (stored,) = _U32.unpack_from(block)
        salt = stored ^ checksum(block, 0)
        block[offset : offset + len(data)] = data
        _U32.pack_into(block, 0, checksum(block, salt))
        self.write(location, bytes(block))

    def flip(self, location: int, bit: int) -> None:
        """Flip one bit of a block and leave the checksum alone."""
        offset = location * METADATA_BLOCK_BYTES + bit // 8
        (byte,) = self.device.pread(offset, 1)
        self.device.pwrite(offset, bytes([byte ^ 1 << bit % 8]))

    def write(self, location: int, block: bytes) -> None:
        self.device.pwrite(location * METADATA_BLOCK_BYTES, block)

    def write_node(self, location: int, node: Node) -> None:
        self.write(location, node.pack(location))

    def write_superblock(self) -> None:
        self.write(0, self.superblock.pack())

    # ------------------------------------------------------------------ places

    def nodes(self, root: int, tree: TreeKind) -> list[tuple[int, Node]]:
        """The nodes of a tree, a parent before its children."""
        node = self.reader.node(root, tree, "")
        found = [(root, node)]
        if not node.is_leaf:
            for child in node.values:
                found += self.nodes(child, tree)
        return found

    def thin_root(self, thin_id: int) -> int:
        found = self.reader.thin(self.superblock, thin_id)
        if found is None:
            raise LookupError(f"no thin {thin_id}")
        return found[0]

    def deep_thin(self) -> tuple[int, Node]:
        """Root of the first thin that has several leaves directly below it."""
        for _, root, path in self.reader.thin_roots(self.superblock):
            node = self.reader.node(root, MAPPINGS, path)
            if not node.is_leaf:
                return root, node
        raise LookupError("no thin with several leaves")

    def leaf(self) -> tuple[int, Node]:
        """A mapping leaf that is not a root."""
        location = self.deep_thin()[1].values[0]
        return location, self.reader.node(location, MAPPINGS, "")

    def last_leaf(self) -> tuple[int, Node]:
        """The last mapping leaf of the same tree: its keys have no upper bound but the tree's."""
        location = self.deep_thin()[1].values[-1]
        return location, self.reader.node(location, MAPPINGS, "")

    def own_leaf(self) -> tuple[int, int, Node]:
        """(thin id, location, node) of the last leaf of a tree of several levels that nothing is shared with."""
        counts = self.counts(self.metadata_bitmap())
        for thin_id, root, _ in self.reader.thin_roots(self.superblock):
            nodes = self.nodes(root, MAPPINGS)
            if len(nodes) > 1 and all(counts[location] == 1 for location, _ in nodes):
                return thin_id, *nodes[-1]
        raise LookupError("no thin with several leaves of its own")

    def data_index(self) -> tuple[int, Node]:
        """The first leaf of the data map's index btree."""
        return next(
            (location, node)
            for location, node in self.nodes(self.superblock.data_space_map.bitmap_root, BITMAP_INDEX)
            if node.is_leaf
        )

    def data_bitmap(self) -> int:
        return self.data_index()[1].values[0]

    def metadata_bitmap(self) -> int:
        index = self.superblock.metadata_space_map.bitmap_root
        (location,) = _U64.unpack_from(self.device.pread(index * METADATA_BLOCK_BYTES + 16, 8))
        return int(location)

    # ------------------------------------------------------------------ counts

    def counts(self, bitmap: int) -> bytearray:
        return unpack_bitmap(self.reader.read_block(bitmap), bitmap)

    def first(self, bitmap: int, count: int, limit: int = ENTRIES_PER_BITMAP) -> int:
        """The last block below `limit` with this stored count."""
        found = self.counts(bitmap).rfind(bytes([count]), 0, min(limit, ENTRIES_PER_BITMAP))
        if found < 0:
            raise LookupError(f"no block with the count {count}")
        return found

    def set_data_count(self, block: int, count: int) -> None:
        """Store a count below 4 for a block of the first data bitmap, with every counter that follows from it."""
        location, leaf = self.data_index()
        bitmap = leaf.values[0]
        entry = self._store(bitmap, block, count, self.superblock.data_space_map)
        leaf.values[0], leaf.values[1] = entry.to_words()
        self.write_node(location, leaf)
        self.write_superblock()

    def set_metadata_count(self, block: int, count: int) -> None:
        """The same for a block of the first metadata bitmap."""
        bitmap = self.metadata_bitmap()
        entry = self._store(bitmap, block, count, self.superblock.metadata_space_map)
        packed = IndexEntry.FORMAT.pack(entry.bitmap_block, entry.nr_free, entry.none_free_before)
        self.patch(self.superblock.metadata_space_map.bitmap_root, 16, packed)
        self.write_superblock()

    def _store(self, bitmap: int, block: int, count: int, root: SpaceMapRoot) -> IndexEntry:
        counts = self.counts(bitmap)
        root.nr_allocated += bool(count) - bool(counts[block])
        counts[block] = count
        self.write(bitmap, pack_bitmap(counts, bitmap))
        return IndexEntry(bitmap, counts.count(0), 0)


# --------------------------------------------------------------------------------------------- the superblock


def superblock_checksum(device: BlockDevice) -> None:
    MetadataEditor(device).flip(0, 8 * 2000)


def superblock_magic(device: BlockDevice) -> None:
    MetadataEditor(device).patch(0, 32, _U64.pack(SUPERBLOCK_MAGIC + 1))


def superblock_blocknr(device: BlockDevice) -> None:
    MetadataEditor(device).patch(0, 8, _U64.pack(1))


def version_1(device: BlockDevice) -> None:
    _set_superblock(device, version=1)


def uuid(device: BlockDevice) -> None:
    _set_superblock(device, uuid=b"0123456789abcdef")


def formatted_size(device: BlockDevice) -> None:
    _set_superblock(device, metadata_nr_blocks=10**6)


def metadata_block_size(device: BlockDevice) -> None:
    _set_superblock(device, metadata_block_sectors=16)


def data_block_size(device: BlockDevice) -> None:
    _set_superblock(device, data_block_sectors=100)


def compat_ro_feature(device: BlockDevice) -> None:
    _set_superblock(device, compat_ro_flags=1)


def incompat_feature(device: BlockDevice) -> None:
    _set_superblock(device, incompat_flags=1)


def unknown_flag(device: BlockDevice) -> None:
    _set_superblock(device, flags=2)


def needs_check(device: BlockDevice) -> None:
    _set_superblock(device, flags=1)


def snapshot_counter(device: BlockDevice) -> None:
    _set_superblock(device, time=2**24)


def held_root_is_no_superblock(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    _set_superblock(device, held_root=editor.leaf()[0])


def metadata_map_larger_than_device(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    editor.superblock.metadata_space_map.nr_blocks = device.size_bytes // METADATA_BLOCK_BYTES + 1
    editor.write_superblock()


def metadata_nr_allocated(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    editor.superblock.metadata_space_map.nr_allocated += 1
    editor.write_superblock()


def data_nr_allocated(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    editor.superblock.data_space_map.nr_allocated -= 1
    editor.write_superblock()


def _set_superblock(device: BlockDevice, **fields: int | bytes) -> None:
    editor = MetadataEditor(device)
    for name, value in fields.items():
        setattr(editor.superblock, name, value)
    editor.write_superblock()


# --------------------------------------------------------------------------------------------- checksums


def index_checksum(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    editor.flip(editor.superblock.metadata_space_map.bitmap_root, 8 * 4000)


def metadata_bitmap_checksum(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    editor.flip(editor.metadata_bitmap(), 8 * 4000)


def data_bitmap_checksum(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    editor.flip(editor.data_bitmap(), 8 * 4000)


def data_index_checksum(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    editor.flip(editor.superblock.data_space_map.bitmap_root, 8 * 4000)


def data_overflow_checksum(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    editor.flip(editor.superblock.data_space_map.ref_count_root, 8 * 4000)


def metadata_overflow_checksum(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    editor.flip(editor.superblock.metadata_space_map.ref_count_root, 8 * 4000)


def leaf_checksum(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    editor.flip(editor.leaf()[0], 8 * 4000)


def mapping_root_checksum(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    editor.flip(editor.deep_thin()[0], 8 * 4000)


def top_level_checksum(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    editor.flip(editor.superblock.mapping_root, 8 * 4000)


def details_checksum(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    editor.flip(editor.superblock.details_root, 8 * 4000)


def held_checksum(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    if not editor.superblock.held_root:
        raise LookupError("no metadata snapshot is held")
    editor.flip(editor.superblock.held_root, 8 * 4000)


# --------------------------------------------------------------------------------------------- nodes


def node_blocknr(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    location, _ = editor.leaf()
    editor.patch(location, 8, _U64.pack(location + 1))


def node_value_size(device: BlockDevice) -> None:
    _patch_leaf_header(device, 24, 4)


def node_without_flags(device: BlockDevice) -> None:
    _patch_leaf_header(device, 4, 0)


def node_both_flags(device: BlockDevice) -> None:
    _patch_leaf_header(device, 4, 3)


def node_too_many_entries(device: BlockDevice) -> None:
    _patch_leaf_header(device, 16, 253)


def node_max_entries(device: BlockDevice) -> None:
    """A leaf laid out for 250 entries instead of 252."""
    editor = MetadataEditor(device)
    location, leaf = editor.last_leaf()
    if len(leaf.keys) > 250:
        raise LookupError("the leaf is too full")
    editor.patch(location, 20, _U32.pack(250))
    editor.patch(location, _KEYS_OFFSET + 8 * 250, leaf.values.tobytes())


def keys_out_of_order(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    location, leaf = editor.leaf()
    leaf.keys[3], leaf.keys[4] = leaf.keys[4], leaf.keys[3]
    editor.write_node(location, leaf)


def keys_outside_of_parents(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    _, parent = editor.deep_thin()
    location, leaf = editor.leaf()
    leaf.keys[-1] = parent.keys[1]
    editor.write_node(location, leaf)


def node_too_empty(device: BlockDevice) -> None:
    """A leaf one entry short of a third, with everything that counts its entries corrected."""
    editor = MetadataEditor(device)
    thin_id, location, leaf = editor.own_leaf()
    keep = U64.max_entries // 3 - 1
    for value in leaf.values[keep:]:
        block, _ = unpack_mapping(value)
        editor.set_data_count(block, editor.counts(editor.data_bitmap())[block] - 1)
    removed = len(leaf.keys) - keep
    del leaf.keys[keep:], leaf.values[keep:]
    editor.write_node(location, leaf)
    _change_details(editor, thin_id, lambda details: _lower(details, removed))


def child_is_parent(device: BlockDevice) -> None:
    """An internal node that leads back to itself."""
    editor = MetadataEditor(device)
    root, node = editor.deep_thin()
    node.values[0] = root
    editor.write_node(root, node)


def child_past_the_end(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    root, node = editor.deep_thin()
    node.values[0] = device.size_bytes // METADATA_BLOCK_BYTES
    editor.write_node(root, node)


def node_of_another_tree(device: BlockDevice) -> None:
    """A mapping node whose child is the top level of the mapping trees."""
    editor = MetadataEditor(device)
    root, node = editor.deep_thin()
    node.values[0] = editor.superblock.mapping_root
    editor.write_node(root, node)


def _patch_leaf_header(device: BlockDevice, offset: int, value: int) -> None:
    editor = MetadataEditor(device)
    editor.patch(editor.leaf()[0], offset, _U32.pack(value))


# --------------------------------------------------------------------------------------------- reference counts


def metadata_leak(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    editor.set_metadata_count(editor.first(editor.metadata_bitmap(), 0, editor.reader.blocks), 1)


def metadata_count_too_high(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    editor.set_metadata_count(editor.superblock.details_root, patient_count(editor, editor.superblock.details_root) + 1)


def metadata_count_zero(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    editor.set_metadata_count(editor.first(editor.metadata_bitmap(), 1), 0)


def data_leak(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    limit = editor.superblock.data_space_map.nr_blocks
    editor.set_data_count(editor.first(editor.data_bitmap(), 0, limit), 1)


def data_count_too_high(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    editor.set_data_count(editor.first(editor.data_bitmap(), 1), 2)


def data_count_too_low(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    editor.set_data_count(editor.first(editor.data_bitmap(), 2), 1)


def data_count_zero(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    editor.set_data_count(editor.first(editor.data_bitmap(), 1), 0)


def overflow_entry_missing(device: BlockDevice) -> None:
    """A bitmap says three or more where the overflow btree has nothing."""
    editor = MetadataEditor(device)
    editor.set_data_count(editor.first(editor.data_bitmap(), 1), 3)


def overflow_entry_without_mark(device: BlockDevice) -> None:
    """The overflow btree has a count for a block that is free."""
    editor = MetadataEditor(device)
    limit = editor.superblock.data_space_map.nr_blocks
    location, leaf = _overflow_leaf(editor)
    leaf.keys.append(editor.first(editor.data_bitmap(), 0, limit))
    leaf.values.append(3)
    editor.write_node(location, leaf)


def overflow_count(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    location, leaf = _overflow_leaf(editor)
    if not leaf.keys:
        raise LookupError("no data block has a count above two")
    leaf.values[0] += 1
    editor.write_node(location, leaf)


def overflow_count_too_low(device: BlockDevice) -> None:
    """A count of two in the overflow btree, which is for three and more."""
    editor = MetadataEditor(device)
    location, leaf = _overflow_leaf(editor)
    if not leaf.keys:
        raise LookupError("no data block has a count above two")
    leaf.values[0] = 2
    editor.write_node(location, leaf)


def counts_past_the_end(device: BlockDevice) -> None:
    """A count in the last data bitmap for a block that the map does not have."""
    editor = MetadataEditor(device)
    location, leaf = [
        (location, node)
        for location, node in editor.nodes(editor.superblock.data_space_map.bitmap_root, BITMAP_INDEX)
        if node.is_leaf
    ][-1]
    bitmap = leaf.values[-2]
    counts = editor.counts(bitmap)
    inside = editor.superblock.data_space_map.nr_blocks % ENTRIES_PER_BITMAP
    if not inside:
        raise LookupError("the last bitmap has no entries past the end")
    counts[inside] = 1
    editor.write(bitmap, pack_bitmap(counts, bitmap))
    leaf.values[-1] = IndexEntry(bitmap, counts.count(0), 0).to_words()[1]
    editor.write_node(location, leaf)


def bitmap_missing(device: BlockDevice) -> None:
    """A data map one bitmap larger than its index btree."""
    editor = MetadataEditor(device)
    _, leaf = editor.data_index()
    editor.superblock.data_space_map.nr_blocks = len(leaf.keys) * ENTRIES_PER_BITMAP + 1
    editor.write_superblock()


def data_nr_free(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    location, leaf = editor.data_index()
    leaf.values[1] -= 1
    editor.write_node(location, leaf)


def data_none_free_before(device: BlockDevice) -> None:
    """The hint skips a free block, which would never be used."""
    editor = MetadataEditor(device)
    location, leaf = editor.data_index()
    limit = editor.superblock.data_space_map.nr_blocks
    first_free = editor.counts(leaf.values[0]).find(0, 0, min(limit, ENTRIES_PER_BITMAP))
    if first_free < 0:
        raise LookupError("no free data block")
    leaf.values[1] = leaf.values[1] & 0xFFFFFFFF | (first_free + 1) << 32
    editor.write_node(location, leaf)


def metadata_nr_free(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    index = editor.superblock.metadata_space_map.bitmap_root
    (free,) = _U32.unpack_from(device.pread(index * METADATA_BLOCK_BYTES + 24, 4))
    editor.patch(index, 24, _U32.pack(free - 1))


def patient_count(editor: MetadataEditor, block: int) -> int:
    """The stored count of a metadata block of the first bitmap."""
    return editor.counts(editor.metadata_bitmap())[block]


def _overflow_leaf(editor: MetadataEditor) -> tuple[int, Node]:
    """The last leaf of the data map's overflow btree."""
    return editor.nodes(editor.superblock.data_space_map.ref_count_root, OVERFLOW)[-1]


# --------------------------------------------------------------------------------------------- devices


def mapped_blocks(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    _change_details(editor, _last_thin(editor), lambda details: _lower(details, 1))


def details_time(device: BlockDevice) -> None:
    """A device snapshotted in the pool's future."""
    editor = MetadataEditor(device)

    def later(details: DeviceDetails) -> None:
        details.snapshotted_time = editor.superblock.time + 1

    _change_details(editor, _last_thin(editor), later)


def details_missing(device: BlockDevice) -> None:
    """A device that the top level has and the details btree has not."""
    editor = MetadataEditor(device)
    location, leaf = editor.nodes(editor.superblock.details_root, DEVICE_DETAILS)[-1]
    leaf.keys.pop()
    del leaf.values[-3:]
    editor.write_node(location, leaf)


def mapping_tree_missing(device: BlockDevice) -> None:
    """A device that the details btree has and the top level has not. The new one maps nothing."""
    editor = MetadataEditor(device)
    location, leaf = editor.nodes(editor.superblock.details_root, DEVICE_DETAILS)[-1]
    if len(leaf.keys) >= DETAILS.max_entries:
        raise LookupError("the leaf is full")
    leaf.keys.append(leaf.keys[-1] + 1)
    leaf.values.extend(DeviceDetails(0, 0, 0, 0).to_words())
    editor.write_node(location, leaf)


def thin_id_too_large(device: BlockDevice) -> None:
    """A device id of 25 bits, in both trees."""
    editor = MetadataEditor(device)
    for root, tree in (
        (editor.superblock.details_root, DEVICE_DETAILS),
        (editor.superblock.mapping_root, TOP_LEVEL),
    ):
        location, leaf = editor.nodes(root, tree)[-1]
        leaf.keys[-1] = 2**24
        editor.write_node(location, leaf)


def mapping_beyond_data(device: BlockDevice) -> None:
    """A mapping to a block that the data map does not have; the block mapped before is not counted any more."""
    editor = MetadataEditor(device)
    location, leaf = editor.leaf()
    counts = editor.counts(editor.data_bitmap())
    i = next(i for i, value in enumerate(leaf.values) if counts[unpack_mapping(value)[0]] < 3)
    block, time = unpack_mapping(leaf.values[i])
    leaf.values[i] = pack_mapping(editor.superblock.data_space_map.nr_blocks + 5, time)
    editor.write_node(location, leaf)
    editor.set_data_count(block, counts[block] - 1)


def mapping_time(device: BlockDevice) -> None:
    editor = MetadataEditor(device)
    location, leaf = editor.leaf()
    block, _ = unpack_mapping(leaf.values[0])
    leaf.values[0] = pack_mapping(block, editor.superblock.time + 1)
    editor.write_node(location, leaf)


def _last_thin(editor: MetadataEditor) -> int:
    return [thin_id for thin_id, _ in editor.reader.details(editor.superblock)][-1]


def _lower(details: DeviceDetails, blocks: int) -> None:
    details.mapped_blocks -= blocks


def _change_details(editor: MetadataEditor, thin_id: int, change: Callable[[DeviceDetails], None]) -> None:
    for location, node in editor.nodes(editor.superblock.details_root, DEVICE_DETAILS):
        if node.is_leaf and thin_id in node.keys:
            words = slice(3 * node.keys.index(thin_id), 3 * node.keys.index(thin_id) + 3)
            details = DeviceDetails.from_words(*node.values[words])
            change(details)
            for i, word in enumerate(details.to_words()):
                node.values[words.start + i] = word
            editor.write_node(location, node)
            return
    raise LookupError(f"no thin {thin_id}")


Damage = Callable[[BlockDevice], None]

DAMAGES: Final[dict[str, Damage]] = {
    damage.__name__: damage
    for damage in (
        superblock_checksum,
        superblock_magic,
        superblock_blocknr,
        version_1,
        uuid,
        formatted_size,
        metadata_block_size,
        data_block_size,
        compat_ro_feature,
        incompat_feature,
        unknown_flag,
        needs_check,
        snapshot_counter,
        held_root_is_no_superblock,
        metadata_map_larger_than_device,
        metadata_nr_allocated,
        data_nr_allocated,
        index_checksum,
        metadata_bitmap_checksum,
        data_bitmap_checksum,
        data_index_checksum,
        data_overflow_checksum,
        metadata_overflow_checksum,
        leaf_checksum,
        mapping_root_checksum,
        top_level_checksum,
        details_checksum,
        held_checksum,
        node_blocknr,
        node_value_size,
        node_without_flags,
        node_both_flags,
        node_too_many_entries,
        node_max_entries,
        keys_out_of_order,
        keys_outside_of_parents,
        node_too_empty,
        child_is_parent,
        child_past_the_end,
        node_of_another_tree,
        metadata_leak,
        metadata_count_too_high,
        metadata_count_zero,
        data_leak,
        data_count_too_high,
        data_count_too_low,
        data_count_zero,
        overflow_entry_missing,
        overflow_entry_without_mark,
        overflow_count,
        overflow_count_too_low,
        counts_past_the_end,
        bitmap_missing,
        data_nr_free,
        data_none_free_before,
        metadata_nr_free,
        mapped_blocks,
        details_time,
        details_missing,
        mapping_tree_missing,
        thin_id_too_large,
        mapping_beyond_data,
        mapping_time,
    )
}
