"""What a layer changed against its parent; `find_changes` takes the fastest way that can be taken."""

from cowfs.layers.changes.blocks import block_changes
from cowfs.layers.changes.walk import walk_changes

__all__ = ["block_changes", "walk_changes"]
