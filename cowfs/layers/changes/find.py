"""Which way the changes of a layer are found: from the blocks that differ where that can be trusted, else by a walk."""

from __future__ import annotations

from typing import NamedTuple

from cowfs.blockdev import BlockDevice
from cowfs.ext4.volume import Volume
from cowfs.layers.changes.blocks import BlockWalk, changed_bytes_in
from cowfs.layers.changes.renames import Renames
from cowfs.layers.changes.walk import Walk
from cowfs.layers.interface import Change, LayerRoot, PathChange
from cowfs.pool import Pool
from cowfs.steps import Steps
from cowfs.thinmeta.delta import DeltaKind, DeltaRange, changed_ranges


class ThinPair(NamedTuple):
    """The thins that the volumes of a layer and of its parent are on."""

    pool: Pool
    layer_id: int
    parent_id: int


def find_changes(layer: LayerRoot, parent: LayerRoot | None, thins: ThinPair | None = None) -> Steps[list[Change]]:
    """What differs between a layer and its parent (None: an empty one), sorted by path; see `walk_changes`.

    A walk is taken without `thins`, and when the volumes are not ext4 opened here, have no common origin, are of
    different sizes, keep no nanoseconds, or when e2fsck has changed one of them since the snapshot.

    Both volumes are quiesced first. They should then hold still: take a snapshot of a layer that is in use.

    Raises:
        OSError: a volume cannot be read or synced.
        NoSuchThin, MetadataCorrupt: of `thins`.
    """
    return (yield from _walk(layer, parent, thins).run())


def find_path_changes(layer: LayerRoot, parent: LayerRoot, thins: ThinPair) -> Steps[list[PathChange]]:
    """As `find_changes`, with renames reported as renames; see `PathChange`."""
    return (yield from Renames(_walk(layer, parent, thins)).run())


def own_bytes(thins: ThinPair) -> int:
    """Bytes in blocks that a layer maps and its parent does not, or not there."""
    differing = (item.length for item in _differing_ranges(thins) if item.kind is not DeltaKind.RIGHT_ONLY)
    return sum(differing) * thins.pool.block_bytes


def _walk(layer: LayerRoot, parent: LayerRoot | None, thins: ThinPair | None) -> Walk:
    if parent is None or thins is None or not can_be_told_by_blocks(layer, parent):
        return Walk(layer, parent or LayerRoot(layer.tree, 0))
    changed = changed_bytes_in(_differing_ranges(thins), thins.pool.block_bytes)
    for tree in (layer.tree, parent.tree):
        assert isinstance(tree, Volume)
        for begin, end in tree.from_journal:
            changed.add(begin, end)
    return BlockWalk(layer, parent, changed)


def can_be_told_by_blocks(layer: LayerRoot, parent: LayerRoot) -> bool:
    """Whether the inode tables of the two volumes are in the same places; quiesces both."""
    if not (layer.inode and parent.inode):
        return False
    if not (isinstance(layer.tree, Volume) and isinstance(parent.tree, Volume)):
        return False
    layer.tree.quiesce()
    parent.tree.quiesce()
    geometry = layer.tree.inode_tables().geometry
    return geometry.has_nanoseconds and geometry == parent.tree.inode_tables().geometry


def _differing_ranges(thins: ThinPair) -> list[DeltaRange]:
    def read(metadata: BlockDevice, held: bool) -> list[DeltaRange]:
        return list(changed_ranges(metadata, thins.layer_id, thins.parent_id, held=held))

    return thins.pool.read_metadata(read)
