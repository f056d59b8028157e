"""What a layer changed against its parent; `find_changes` takes the fastest way that can be trusted."""

from cowfs.layers.changes.blocks import block_changes
from cowfs.layers.changes.find import ThinPair, find_changes, find_path_changes, own_bytes
from cowfs.layers.changes.walk import walk_changes

__all__ = ["ThinPair", "block_changes", "find_changes", "find_path_changes", "own_bytes", "walk_changes"]
