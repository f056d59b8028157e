"""The part of the check that walks trees: every distinct node once, whatever refers to it how often.

For each block that is a node, a few numbers are kept (29 bytes per metadata block): its tree, height, first and last
key, how much is mapped below it, and whether all of that is sound. They are all that is needed to judge each further
reference to it, so sharing costs nothing, and a snapshot's mapped blocks are known without walking it again.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from typing import Final

from cowfs.errors import MetadataCorrupt
from cowfs.thinmeta.findings import Findings, Severity
from cowfs.thinmeta.format import TIME_BITS, TIME_MASK, IndexEntry, Node
from cowfs.thinmeta.recount import RefCounts, data_blocks
from cowfs.thinmeta.walk import (
    BITMAP_INDEX,
    DEVICE_DETAILS,
    MAPPINGS,
    MAX_LEVELS,
    OVERFLOW,
    TOP_LEVEL,
    MetadataReader,
    Progress,
    TreeKind,
    is_one_run,
)
from cowfs.units import MAX_THIN_ID

_TREES: Final = (MAPPINGS, TOP_LEVEL, DEVICE_DETAILS, BITMAP_INDEX, OVERFLOW)
_UNSEEN: Final = 0
_OPEN: Final = 254  # its children are being looked at
_BAD: Final = 255
_UNKNOWN: Final = 2**64 - 1  # a total with a damaged part in it
_PROGRESS_NODES: Final = 256
_MAX_ENTRIES_FIELD: Final = struct.Struct("<20xI")


@dataclass(frozen=True, slots=True)
class IndexedBitmap:
    """A bitmap of the data space map, as its index names it."""

    index: int
    entry: IndexEntry
    location: int  # of the index leaf
    path: str


class TreeChecker:
    """Walks trees, reports what is wrong in them, and counts every reference they hold.

    Attributes:
        metadata, data: the references seen so far, for comparing with the space maps.
        metadata_complete, data_complete: whether no damage hid references.
        bitmaps: the entries of the data map's index, in order; walk that tree first.
    """

    def __init__(self, reader: MetadataReader, findings: Findings, *, time: int, progress: Progress | None) -> None:
        self.metadata = RefCounts(reader.blocks)
        self.data = RefCounts(0)
        self.data_nr_blocks = 0
        self.metadata_complete = True
        self.data_complete = True
        self.bitmaps: list[IndexedBitmap] = []
        self.expected_nodes = 0
        self._reader = reader
        self._findings = findings
        self._time = time
        self._progress = progress
        self._nodes = 0
        self._too_empty: set[int] = set()
        blocks = reader.blocks
        self._tree = bytearray(blocks)
        self._height = bytearray(blocks)
        self._flawed = bytearray(blocks)
        self._entries = array("H", bytes(2 * blocks))
        self._first = array("Q", bytes(8 * blocks))
        self._last = array("Q", bytes(8 * blocks))
        self._total = array("Q", bytes(8 * blocks))

    def check_tree(self, root: int, tree: TreeKind, path: str) -> bool:
        """Walk a tree from a reference to its root, which is counted; whether all of its nodes are readable."""
        self._visit(root, tree, path, 1, is_root=True)
        return self.total(root) is not None

    def total(self, root: int) -> int | None:
        """Entries in the leaves below a root; None when it or something below cannot be read."""
        if root >= self._reader.blocks or self._height[root] == _BAD:
            return None
        total = self._total[root]
        return None if total == _UNKNOWN else total

    def is_sound(self, root: int, tree: TreeKind) -> bool:
        """Whether nothing is wrong with a node that was walked, nor with anything below it in its tree."""
        return self.is_node_of(root, tree) and not self._flawed[root]

    def is_node_of(self, location: int, tree: TreeKind) -> bool:
        """Whether a block is a readable node, walked as part of such a tree."""
        if location >= self._reader.blocks or self._height[location] in (_UNSEEN, _BAD):
            return False
        return _TREES[self._tree[location]] is tree

    def refer(self, location: int) -> None:
        """Count a reference to a metadata block."""
        if location < self._reader.blocks:
            self.metadata.add(location)

    # ------------------------------------------------------------------ nodes

    def _visit(self, location: int, tree: TreeKind, path: str, level: int, *, is_root: bool) -> int:
        """Judge one reference to a node; returns its height, 0 when it is damaged."""
        if location >= self._reader.blocks:
            self._enter(location, tree, path, level)  # says so
            return 0
        if self._height[location] == _UNSEEN:
            self._enter(location, tree, path, level)
        elif self._height[location] == _BAD:
            self._lose(tree)
        elif _TREES[self._tree[location]] is not tree:
            other = _TREES[self._tree[location]].name
            self._damaged(tree, f"is part of a {other} tree and of a {tree.name} tree", location, path)
            return 0
        elif self._height[location] == _OPEN:
            self._damaged(tree, "leads back to itself", location, path)
            return 0
        self.refer(location)
        if self._height[location] == _BAD:
            return 0
        if not is_root:
            self._check_fill(location, tree, path)
        return self._height[location]

    def _check_fill(self, location: int, tree: TreeKind, path: str) -> None:
        kind = tree.values if self._height[location] == 1 else MAPPINGS.values
        minimum = kind.max_entries // 3
        if self._entries[location] < minimum and location not in self._too_empty:
            self._too_empty.add(location)
            self._error("too few entries", location, path, f"at least {minimum}", self._entries[location])

    def _enter(self, location: int, tree: TreeKind, path: str, level: int) -> None:
        """Read a node that was not seen before, and all below it."""
        self._note_progress()
        if location < self._reader.blocks:
            self._tree[location] = _TREES.index(tree)
            self._height[location] = _BAD
        try:
            block = self._reader.read_block(location, path)
            node = Node.unpack(block, location, tree.values, path)
            if level > MAX_LEVELS:
                raise MetadataCorrupt(f"the tree has more than {MAX_LEVELS} levels", block=location, path=path)
        except MetadataCorrupt as error:
            self._findings.add_error(error)
            self._lose(tree)
            return
        (maximum,) = _MAX_ENTRIES_FIELD.unpack_from(block)
        if maximum != node.kind.max_entries:
            self._error("maximum of entries", location, path, node.kind.max_entries, maximum)
        self._height[location] = _OPEN
        self._entries[location] = len(node.keys)
        if node.is_leaf:
            self._first[location], self._last[location] = (node.keys[0], node.keys[-1]) if node.keys else (0, 0)
            self._total[location] = len(node.keys)
            self._enter_leaf(node, location, tree, path)
            self._height[location] = 1
        else:
            self._enter_internal(node, location, tree, path, level)

    def _enter_internal(self, node: Node, location: int, tree: TreeKind, path: str, level: int) -> None:
        heights = set()
        total = 0
        last = node.keys[-1]
        bounds = [*node.keys[1:], None]
        for child, begin, end in zip(node.values, node.keys, bounds, strict=True):
            where = f"{path} -> node {child}"
            height = self._visit(child, tree, where, level + 1, is_root=False)
            if not height:
                total = _UNKNOWN
                self._flawed[location] = 1
                continue
            heights.add(height)
            total = _UNKNOWN if _UNKNOWN in (total, self._total[child]) else total + self._total[child]
            if self._entries[child]:
                last = max(last, self._last[child])
                self._check_keys(child, where, begin, end)
            self._flawed[location] |= self._flawed[child]
        if len(heights) > 1:
            depths = " and ".join(str(height) for height in sorted(heights))
            self._error(f"leaves at unequal depth, {depths} below it", location, path)
        height = 1 + max(heights, default=1)
        self._first[location], self._last[location], self._total[location] = node.keys[0], last, total
        if height > MAX_LEVELS:
            self._damaged(tree, f"the tree has more than {MAX_LEVELS} levels", location, path)
            height = _BAD
        self._height[location] = height

    def _check_keys(self, child: int, path: str, begin: int, end: int | None) -> None:
        first, last = self._first[child], self._last[child]
        if first < begin or (end is not None and last >= end):
            allowed = f"{begin} and up" if end is None else f"{begin}..{end - 1}"
            self._error("keys are outside of what the parent says", child, path, allowed, f"{first}..{last}")

    # ------------------------------------------------------------------ leaves

    def _enter_leaf(self, leaf: Node, location: int, tree: TreeKind, path: str) -> None:
        if tree is MAPPINGS:
            self._check_mappings(leaf, location, path)
        elif tree is TOP_LEVEL:
            for thin_id, root in zip(leaf.keys, leaf.values, strict=True):
                if thin_id > MAX_THIN_ID:
                    self._error(f"thin id {thin_id} has more than 24 bits", location, path)
                self._visit(root, MAPPINGS, f"{path} -> thin {thin_id}", 1, is_root=True)
        elif tree is BITMAP_INDEX:
            for i, index in enumerate(leaf.keys):
                entry = IndexEntry.from_words(leaf.values[2 * i], leaf.values[2 * i + 1])
                self.refer(entry.bitmap_block)
                self.bitmaps.append(IndexedBitmap(index, entry, location, path))

    def _check_mappings(self, leaf: Node, location: int, path: str) -> None:
        keys, values = leaf.keys, leaf.values
        if not keys:
            return
        if is_one_run(keys, values):
            begin, time = values[0] >> TIME_BITS, values[0] & TIME_MASK
            if time <= self._time and begin + len(keys) <= self.data.nr_blocks:
                self.data.add_run(begin, len(keys))
                return
        blocks = data_blocks(values)
        if max(blocks) < self.data.nr_blocks:
            self.data.add_each(blocks)
        else:
            self.data.add_each(block for block in blocks if block < self.data.nr_blocks)
            self._check_beyond(keys, blocks, location, path)
        late = [i for i, value in enumerate(values) if value & TIME_MASK > self._time]
        if late:
            what = f"{_mappings(len(late))} from virtual block {keys[late[0]]} on with a time after the pool's"
            self._error(what, location, path, f"at most {self._time}", values[late[0]] & TIME_MASK)

    def _check_beyond(self, keys: array[int], blocks: list[int], location: int, path: str) -> None:
        beyond = [i for i, block in enumerate(blocks) if block >= self.data_nr_blocks]
        if beyond:
            what = f"{_mappings(len(beyond))} from virtual block {keys[beyond[0]]} on beyond the data map"
            self._error(what, location, path, f"data blocks below {self.data_nr_blocks}", blocks[beyond[0]])
        if len(beyond) < sum(block >= self.data.nr_blocks for block in blocks):
            self.data_complete = False  # the bitmaps that should count these are missing, which is reported there

    # ------------------------------------------------------------------ reporting

    def _damaged(self, tree: TreeKind, what: str, location: int, path: str) -> None:
        self._error(what, location, path)
        self._lose(tree)

    def _lose(self, tree: TreeKind) -> None:
        """References below a damaged node are not known."""
        self.metadata_complete = False
        if tree in (MAPPINGS, TOP_LEVEL):
            self.data_complete = False

    def _error(self, what: str, location: int, path: str, expected: object = "", found: object = "") -> None:
        if location < self._reader.blocks:
            self._flawed[location] = 1
        self._findings.add(Severity.ERROR, what, block=location, path=path, expected=expected, found=found)

    def _note_progress(self) -> None:
        self._nodes += 1
        if self._progress and self._nodes % _PROGRESS_NODES == 0:
            self._progress(self._nodes, max(self._nodes, self.expected_nodes))


def _mappings(count: int) -> str:
    return "a mapping" if count == 1 else f"{count} mappings"
