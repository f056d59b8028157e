"""Reading untrusted metadata: blocks, trees, and runs of mappings, with the way from the superblock.

Every reader here raises MetadataCorrupt for what cannot be right, names the block and the path to it
(`mapping root 17 -> thin 3 -> node 40`), and ends on any input: a child's keys must lie inside the range that its
parent gives it, so a block cannot be met twice on the way through one tree, and trees have at most `MAX_LEVELS`.
Memory is a node per level, whatever the tree's size.
"""

from __future__ import annotations

import bisect
import os
from array import array
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, TypeAlias

import msgspec

from cowfs.blockdev import BlockDevice
from cowfs.errors import MetadataCorrupt
from cowfs.thinmeta.format import (
    DETAILS,
    INDEX_ENTRY,
    NEXT_BLOCK,
    SUPERBLOCK_LOCATION,
    TIME_BITS,
    TIME_MASK,
    U32,
    U64,
    DeviceDetails,
    Node,
    Superblock,
    ValueKind,
)
from cowfs.units import METADATA_BLOCK_BYTES

MAX_LEVELS: Final = 32  # the kernel's own trees need 5 for the largest pool
KEY_END: Final = 2**64

Progress: TypeAlias = Callable[[int, int], None]
"""Called now and then with (blocks done, blocks in all)."""


class TreeKind(msgspec.Struct, frozen=True):
    """One of the five trees: what its leaves hold, and the name used in messages."""

    name: str
    values: ValueKind


MAPPINGS: Final = TreeKind("mapping", U64)  # virtual block -> data block and time
TOP_LEVEL: Final = TreeKind("top-level", U64)  # thin id -> root of its mapping tree
DEVICE_DETAILS: Final = TreeKind("details", DETAILS)  # thin id -> details
BITMAP_INDEX: Final = TreeKind("bitmap index", INDEX_ENTRY)  # index -> where the data map's bitmap is
OVERFLOW: Final = TreeKind("overflow", U32)  # block -> reference count above two


class Run(NamedTuple):
    """`length` virtual blocks from `vblock` mapped to as many data blocks from `dblock`, all at one `time`."""

    vblock: int
    dblock: int
    length: int
    time: int


class ThinEntry(msgspec.Struct, frozen=True):
    """A thin as the two device trees know it. `path` leads to its mapping tree."""

    thin_id: int
    root: int
    details: DeviceDetails
    path: str


class MetadataReader:
    """Read access to a metadata device. A read error is a MetadataCorrupt too, with the device's errno."""

    def __init__(self, device: BlockDevice) -> None:
        self.device = device
        self.blocks = device.size_bytes // METADATA_BLOCK_BYTES

    def read_block(self, location: int, path: str = "") -> bytes:
        if not 0 <= location < self.blocks:
            message = f"is past the end of the metadata device of {self.blocks} blocks"
            raise MetadataCorrupt(message, block=location, path=path)
        try:
            return self.device.pread(location * METADATA_BLOCK_BYTES, METADATA_BLOCK_BYTES)
        except OSError as error:
            reason = error.strerror or os.strerror(error.errno or 0)
            raise MetadataCorrupt(f"cannot be read: {reason}", block=location, path=path, errno=error.errno) from error

    def node(self, location: int, tree: TreeKind, path: str) -> Node:
        return Node.unpack(self.read_block(location, path), location, tree.values, path)

    def superblock(self, *, held: bool = False) -> Superblock:
        """Block 0, or the copy that a metadata snapshot holds."""
        superblock = Superblock.unpack(self.read_block(SUPERBLOCK_LOCATION, "superblock"))
        if superblock.incompat_flags:
            message = f"unknown incompatible features {superblock.incompat_flags:#x}"
            raise MetadataCorrupt(message, block=SUPERBLOCK_LOCATION, path="superblock")
        if not held:
            return superblock
        location = superblock.held_root
        if not location:
            message = "no metadata snapshot is held; reserve one with the message reserve_metadata_snap"
            raise MetadataCorrupt(message, block=SUPERBLOCK_LOCATION, path="superblock")
        return Superblock.unpack(self.read_block(location, "held superblock"), location)

    def leaves(
        self, root: int, tree: TreeKind, path: str, begin: int = 0, end: int = KEY_END
    ) -> Iterator[tuple[Node, str]]:
        """The leaves of a tree whose keys lie in [begin, end), in key order, each with the path to it."""
        pending = [(root, begin, end, 1, path)]
        while pending:
            location, low, high, level, where = pending.pop()
            node = self.node(location, tree, where)
            check_bounds(node, location, low, high, where)
            if node.is_leaf:
                yield node, where
                continue
            check_level(level, location, where)
            pending.extend(
                (child, child_begin, child_end, level + 1, f"{where} -> node {child}")
                for child, child_begin, child_end in reversed(children(node, high))
            )

    def runs(self, root: int, path: str) -> Iterator[list[Run]]:
        """The mappings of one thin as maximal runs, a list for each leaf or so."""
        last: Run | None = None
        for leaf, _ in self.leaves(root, MAPPINGS, path):
            runs = mapping_runs(leaf.keys, leaf.values)
            if last is not None and runs:
                runs[0:1] = join(last, runs[0])
            elif last is not None:
                runs = [last]
            if runs:
                last = runs.pop()
            if runs:
                yield runs
        if last is not None:
            yield [last]

    def thin_roots(self, superblock: Superblock) -> Iterator[tuple[int, int, str]]:
        """(thin id, root, path) of every thin, ascending."""
        path = f"mapping root {superblock.mapping_root}"
        for leaf, _ in self.leaves(superblock.mapping_root, TOP_LEVEL, path):
            for thin_id, root in zip(leaf.keys, leaf.values, strict=True):
                yield thin_id, root, f"{path} -> thin {thin_id}"

    def details(self, superblock: Superblock) -> Iterator[tuple[int, DeviceDetails]]:
        """(thin id, details) of every thin, ascending."""
        path = f"details root {superblock.details_root}"
        for leaf, _ in self.leaves(superblock.details_root, DEVICE_DETAILS, path):
            words = leaf.values
            for i, thin_id in enumerate(leaf.keys):
                yield thin_id, DeviceDetails.from_words(words[3 * i], words[3 * i + 1], words[3 * i + 2])

    def thins(self, superblock: Superblock) -> Iterator[ThinEntry]:
        """Every thin, ascending.

        Raises:
            MetadataCorrupt: a device is in one of the two trees only.
        """
        roots = self.thin_roots(superblock)
        details = self.details(superblock)
        while True:
            root, detail = next(roots, None), next(details, None)
            if root is None and detail is None:
                return
            if root is None or detail is None or root[0] != detail[0]:
                thin_id = min(entry[0] for entry in (root, detail) if entry is not None)
                has_root = root is not None and root[0] == thin_id
                missing = "device details" if has_root else "mapping tree"
                block = superblock.details_root if has_root else superblock.mapping_root
                raise MetadataCorrupt(f"thin {thin_id} has no {missing}", block=block, path=f"{missing} of all thins")
            yield ThinEntry(root[0], root[1], detail[1], root[2])

    def thin(self, superblock: Superblock, thin_id: int) -> tuple[int, str] | None:
        """(root, path) of one thin's mapping tree; None when there is no such thin."""
        path = f"mapping root {superblock.mapping_root}"
        root = self.find(superblock.mapping_root, TOP_LEVEL, thin_id, path)
        return None if root is None else (root, f"{path} -> thin {thin_id}")

    def thin_details(self, superblock: Superblock, thin_id: int) -> DeviceDetails:
        """Raises MetadataCorrupt when there are none of this thin."""
        path = f"details root {superblock.details_root}"
        words = self.find_words(superblock.details_root, DEVICE_DETAILS, thin_id, path)
        if words is None:
            raise MetadataCorrupt(f"thin {thin_id} has no device details", block=superblock.details_root, path=path)
        return DeviceDetails.from_words(*words)

    def find(self, root: int, tree: TreeKind, key: int, path: str) -> int | None:
        """The first word of a key's value; None where the key is not there."""
        words = self.find_words(root, tree, key, path)
        return None if words is None else words[0]

    def find_words(self, root: int, tree: TreeKind, key: int, path: str) -> array[int] | None:
        """All words of a key's value; None where the key is not there."""
        location, begin, end = root, 0, KEY_END
        for _ in range(MAX_LEVELS):
            node = self.node(location, tree, path)
            check_bounds(node, location, begin, end, path)
            position = bisect_key(node.keys, key)
            if position < 0 or (node.is_leaf and node.keys[position] != key):
                return None
            if node.is_leaf:
                stride = node.kind.stride
                return node.values[position * stride : (position + 1) * stride]
            location, begin, end = children(node, end)[position]
            path = f"{path} -> node {location}"
        raise MetadataCorrupt(f"the tree has more than {MAX_LEVELS} levels", block=location, path=path)


def check_bounds(node: Node, location: int, begin: int, end: int, path: str) -> None:
    """Raises MetadataCorrupt when a key of the node is outside [begin, end), its parent's keys for it."""
    if node.keys and not (begin <= node.keys[0] and node.keys[-1] < end):
        message = f"keys {node.keys[0]}..{node.keys[-1]} are outside of what the parent says, {begin}..{end - 1}"
        raise MetadataCorrupt(message, block=location, path=path)


def check_level(level: int, location: int, path: str) -> None:
    """Raises MetadataCorrupt when there may be nothing below an internal node of this level; the root's is 1."""
    if level >= MAX_LEVELS:
        raise MetadataCorrupt(f"the tree has more than {MAX_LEVELS} levels", block=location, path=path)


def children(node: Node, end: int) -> list[tuple[int, int, int]]:
    """(location, begin, end) of each child: its keys lie in [begin, end). `end` is that of the node's own keys."""
    return list(zip(node.values, node.keys, [*node.keys[1:], end], strict=True))


def bisect_key(keys: array[int], key: int) -> int:
    """Position of the last key not above `key`; -1 when all are."""
    return bisect.bisect_right(keys, key) - 1


def mapping_runs(keys: array[int], values: array[int]) -> list[Run]:
    """The mappings of a leaf as maximal runs."""
    if not keys:
        return []
    count = len(keys)
    key, value = keys[0], values[0]
    if is_one_run(keys, values):
        return [Run(key, value >> TIME_BITS, count, value & TIME_MASK)]
    runs = []
    begin, first = key, value
    for next_key, next_value in zip(keys[1:], values[1:], strict=True):
        key += 1
        value += NEXT_BLOCK
        if next_key != key or next_value != value:
            runs.append(Run(begin, first >> TIME_BITS, key - begin, first & TIME_MASK))
            begin, first = key, value = next_key, next_value
    runs.append(Run(begin, first >> TIME_BITS, key + 1 - begin, first & TIME_MASK))
    return runs


def is_one_run(keys: array[int], values: array[int]) -> bool:
    """Whether a leaf's mappings follow each other on both sides at one time; costs a fraction of looking at each."""
    count = len(keys)
    return (
        keys[-1] - keys[0] == count - 1
        and values[-1] - values[0] == (count - 1) * NEXT_BLOCK
        and values == array("Q", range(values[0], values[-1] + 1, NEXT_BLOCK))
    )


def join(left: Run, right: Run) -> list[Run]:
    """Two runs in order, as one where they continue each other."""
    continues = (
        left.vblock + left.length == right.vblock
        and left.dblock + left.length == right.dblock
        and left.time == right.time
    )
    return [left._replace(length=left.length + right.length)] if continues else [left, right]
