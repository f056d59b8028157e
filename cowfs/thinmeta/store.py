"""Metadata blocks within a transaction: a bounded node cache, allocation, and shadowing.

A committed block is never overwritten (except block 0). To change a node that is not new in this transaction, its
content moves to a new block, its parent is changed, the old block loses a reference. A node with other parents keeps
its content too, and everything it points to gains a reference. A node made in this transaction with one reference is
changed in place.

Dirty nodes may be written before the commit when they grow too many: they sit in blocks that the committed metadata
does not use, so an early write cannot hurt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from cowfs.blockdev import BlockDevice, writer_through
from cowfs.errors import MetadataCorrupt, OutOfMetadataSpace, PoolIoError
from cowfs.thinmeta.counts import NEW_ONCE, Counts
from cowfs.thinmeta.format import Node, ValueKind
from cowfs.units import METADATA_BLOCK_BYTES

DEFAULT_CACHE_NODES: Final = 16384  # about 4.3 KB each when full
_MAX_DIRTY_NODES: Final = 4096
_MAX_WRITE_BLOCKS: Final = 256


class Store:
    """Blocks of one metadata device.

    `counts` is set by the owner as soon as the metadata space map is known; until then only `read` works.
    """

    def __init__(self, device: BlockDevice, cache_nodes: int = DEFAULT_CACHE_NODES) -> None:
        self.device = device
        self._write_through = writer_through(device)
        self.counts: Counts
        self._cache_nodes = cache_nodes
        self._clean: dict[int, Node] = {}
        self._dirty: dict[int, Node] = {}

    def read_block(self, location: int) -> bytes:
        offset = location * METADATA_BLOCK_BYTES
        if location < 0 or offset + METADATA_BLOCK_BYTES > self.device.size_bytes:
            raise MetadataCorrupt("is past the end of the metadata device", block=location)
        return self.device.pread(offset, METADATA_BLOCK_BYTES)

    def read(self, location: int, kind: ValueKind, path: str) -> Node:
        """The node at `location`, to look at; `shadow` gives one to change.

        Raises:
            MetadataCorrupt: the block is not such a node.
        """
        node = self._dirty.get(location) or self._clean.get(location)
        if node is None:
            node = Node.unpack(self.read_block(location), location, kind, path)
            self._remember(location, node)
        elif node.is_leaf and node.kind is not kind:
            message = f"holds {node.kind.name} values where {kind.name} is expected"
            raise MetadataCorrupt(message, block=location, path=path)
        return node

    def new(self, node: Node) -> int:
        """Give a new node a block. Raises OutOfMetadataSpace."""
        location = self.allocate()
        self._dirty[location] = node
        return location

    def shadow(self, location: int, kind: ValueKind, path: str, retain: Callable[[Node], None]) -> tuple[int, Node]:
        """The node at `location` for changing, and the block it lives in from now on.

        Args:
            retain: adds a reference to everything a leaf points to; called when a shared leaf is copied.
        """
        node = self.read(location, kind, path)
        if self.is_new(location):
            if location not in self._dirty:
                self._clean.pop(location, None)
                self._dirty[location] = node
            return location, node
        target = self.allocate()
        if self.counts.decrement(location) > 0:
            node = node.copy()
            if node.is_leaf:
                retain(node)
            else:
                for child in node.values:
                    self.counts.increment(child)
        else:
            self._clean.pop(location, None)
            if location in self._dirty:  # new, and freed by this very step
                del self._dirty[location]
        self._dirty[target] = node
        return target, node

    def relieve(self) -> None:
        """Write dirty nodes early when there are too many. Only between changes: no caller may hold a node then."""
        if len(self._dirty) > _MAX_DIRTY_NODES:
            self.write_nodes()

    def is_new(self, location: int) -> bool:
        """Whether a block was made in this transaction and has one reference: it may be changed in place."""
        return self.counts.byte(location) == NEW_ONCE

    def is_shared(self, location: int) -> bool:
        return self.counts.count(location) > 1

    def allocate(self) -> int:
        """A metadata block, counted once. Raises OutOfMetadataSpace."""
        location = self.counts.allocate_one()
        if location is None:
            raise OutOfMetadataSpace(
                f"all {self.counts.nr_blocks} metadata blocks are in use; enlarge the metadata device"
            )
        return location

    def forget(self, location: int) -> None:
        """Drop the node of a block that was freed."""
        self._dirty.pop(location, None)
        self._clean.pop(location, None)

    def flush_nodes(self, others: Mapping[int, bytes]) -> None:
        """Write every dirty node, and other blocks by their locations, and flush the device."""
        if not self._dirty and not others:
            self.device.flush()
        self.write_nodes(others, is_flushed=True)

    def write_nodes(self, others: Mapping[int, bytes] = MappingProxyType({}), *, is_flushed: bool = False) -> None:
        """Write every dirty node, and other blocks by their locations; neighbours go in one write.

        Args:
            is_flushed: flush the device with the last of them.
        """
        locations = sorted([*self._dirty, *others])
        begin = 0
        while begin < len(locations):
            end = begin + 1
            while end < len(locations) and locations[end] == locations[end - 1] + 1 and end - begin < _MAX_WRITE_BLOCKS:
                end += 1
            data = b"".join(
                [others.get(location) or self._dirty[location].pack(location) for location in locations[begin:end]]
            )
            if is_flushed and end == len(locations):
                self.write_block_through(locations[begin], data)
            else:
                self.write_block(locations[begin], data)
            begin = end
        dirty, self._dirty = self._dirty, {}
        for location, node in dirty.items():
            self._remember(location, node)

    def write_block(self, location: int, data: bytes) -> None:
        """Write a block, or several that follow one another."""
        _require_not_first(location)
        self.device.pwrite(location * METADATA_BLOCK_BYTES, data)

    def write_block_through(self, location: int, data: bytes) -> None:
        """The same, and flush the device."""
        _require_not_first(location)
        self._write_through(location * METADATA_BLOCK_BYTES, data)

    def write_first_block(self, data: bytes) -> None:
        """The last step of a commit: write block 0, and flush the device."""
        self._write_through(0, data)

    def reset(self) -> None:
        """Forget everything, as after an abort."""
        self._clean.clear()
        self._dirty.clear()

    def _remember(self, location: int, node: Node) -> None:
        clean = self._clean
        if len(clean) >= self._cache_nodes:
            for oldest in list(clean)[: max(1, self._cache_nodes // 8)]:
                del clean[oldest]
        clean[location] = node


def _require_not_first(location: int) -> None:
    if location <= 0:
        raise PoolIoError(f"refusing to write metadata block {location} outside a commit's last step")
