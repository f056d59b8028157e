"""The mapping of one thin device: its subtree of the mapping tree, looked up and changed in runs."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import Protocol

from cowfs.thinmeta.btree import END_OF_KEYS, BTree
from cowfs.thinmeta.format import NEXT_BLOCK, TIME_BITS, TIME_MASK, DeviceDetails, pack_mapping
from cowfs.units import Extent


class Transaction(Protocol):
    """The pool's metadata, as the mapping of one thin device changes it. `time` is that of the last snapshot."""

    subtrees: BTree

    @property
    def time(self) -> int: ...

    def check_writable(self) -> None: ...

    def note_changed(self, thin: ThinMapping) -> None:
        """What is known of a device has changed, the first time since the last commit."""
        ...

    def store_root(self, thin_id: int, root: int) -> None:
        """Put a device's subtree root into the top level of the mapping tree."""
        ...

    def take_root(self, thin_id: int) -> None:
        """Take it out, for as long as the subtree is changed."""
        ...

    def release_values(self, values: array[int]) -> None:
        """Drop the references of mappings that are gone."""
        ...


class ThinMapping:
    """The mapping of one thin device: virtual blocks to data blocks.

    `changed` since the last commit; `lost_changes` once an abort threw some away (the device's flushes then fail until
    it is reopened). Made by `Metadata.open_thin` only.
    """

    __slots__ = (
        "_keys",
        "_lower",
        "_transaction",
        "_upper",
        "_values",
        "changed",
        "details",
        "details_changed",
        "lost_changes",
        "root",
        "thin_id",
    )

    def __init__(self, transaction: Transaction, thin_id: int, root: int, details: DeviceDetails) -> None:
        self._transaction = transaction
        self.thin_id = thin_id
        self.root = root
        self.details = details
        self.changed = False
        self.details_changed = False
        self.lost_changes = False
        self.forget_leaf()

    @property
    def mapped_blocks(self) -> int:
        return self.details.mapped_blocks

    def lookup(self, vblock: int, count: int) -> list[tuple[int, int, int]]:
        """What [vblock, vblock + count) maps to.

        Returns:
            Runs (length, data block, shared) that cover the range in order: contiguous on both sides, with one answer
            to whether sharing must be broken before writing. Data block -1 stands for unmapped.

        Cost: O(log mappings + runs); nothing is read when the leaf of the last lookup serves again.
        """
        runs: list[tuple[int, int, int]] = []
        end = vblock + count
        snapshotted = self.details.snapshotted_time
        while vblock < end:
            if not self._lower <= vblock < self._upper:
                self._seek(vblock)
            keys, values = self._keys, self._values
            stop = end if end < self._upper else self._upper
            total = len(keys)
            i = bisect_left(keys, vblock)
            while vblock < stop:
                begin = keys[i] if i < total else stop
                if begin > vblock:
                    gap = (begin if begin < stop else stop) - vblock
                    if runs and runs[-1][1] < 0:
                        gap += runs.pop()[0]
                    runs.append((gap, -1, False))
                    vblock = begin
                    continue
                value = values[i]
                expected = value
                first = i
                while i < total and vblock < stop and keys[i] == vblock and values[i] == expected:
                    i += 1
                    vblock += 1
                    expected += NEXT_BLOCK
                runs.append((i - first, value >> TIME_BITS, (value & TIME_MASK) < snapshotted))
        return runs

    def insert(self, vblock: int, dblock: int, length: int) -> None:
        """Map a run to data blocks that `allocate_data` gave; what was mapped there loses a reference."""
        transaction = self._transaction
        self.forget_leaf()
        start = pack_mapping(dblock, transaction.time)
        values = array("Q", range(start, start + length * NEXT_BLOCK, NEXT_BLOCK))
        self._touch()
        root, replaced = transaction.subtrees.insert_run(self.root, vblock, values)
        self._move_to(root)
        self.details.mapped_blocks += length - len(replaced)
        transaction.release_values(replaced)

    def remove(self, begin: int, end: int) -> int:
        """Unmap [begin, end); returns how many blocks were mapped.

        The subtree leaves the device tree meanwhile, which may merge nodes there; the kernel does so, even when nothing
        is mapped.
        """
        transaction = self._transaction
        transaction.check_writable()
        self.forget_leaf()
        transaction.take_root(self.thin_id)
        self.root, removed = transaction.subtrees.remove_range(self.root, begin, end)
        self._store_root()
        self._note_change()
        self.details.mapped_blocks -= len(removed)
        transaction.release_values(removed)
        return len(removed)

    def highest(self) -> int | None:
        """The highest mapped virtual block."""
        return self._transaction.subtrees.last_key(self.root)

    def extents(self, begin: int = 0, end: int | None = None) -> Iterator[Extent]:
        """Mapped runs in order, clipped to [begin, end), each contiguous on both sides whatever its times."""
        stop = END_OF_KEYS if end is None else end
        run: Extent | None = None
        for leaf in self._transaction.subtrees.leaves(self.root, begin, stop):
            i = bisect_left(leaf.keys, begin)
            for key, value in zip(leaf.keys[i:], leaf.values[i:], strict=True):
                if key >= stop:
                    break
                dblock = value >> TIME_BITS
                if run is not None and key == run.vblock + run.length and dblock == run.dblock + run.length:
                    run = Extent(run.vblock, run.dblock, run.length + 1)
                    continue
                if run is not None:
                    yield run
                run = Extent(key, dblock, 1)
        if run is not None:
            yield run

    def mark_snapshotted(self, time: int) -> None:
        self.details.snapshotted_time = time
        self._note_details()

    def forget_leaf(self) -> None:
        self._lower = self._upper = 0
        self._keys = self._values = array("Q")

    def _seek(self, vblock: int) -> None:
        leaf, self._lower, self._upper = self._transaction.subtrees.leaf_at(self.root, vblock)
        self._keys, self._values = leaf.keys, leaf.values

    def _touch(self) -> None:
        self._transaction.check_writable()
        if not self.changed:
            # From the top down: a device tree shared with a held snapshot must be copied, and so the subtree's root
            # counted twice, before the subtree itself is touched.
            self._store_root()
        self._note_change()

    def _note_change(self) -> None:
        self.changed = True
        self._note_details()

    def _note_details(self) -> None:
        if not self.details_changed:
            self.details_changed = True
            self._transaction.note_changed(self)

    def _move_to(self, root: int) -> None:
        if root != self.root:
            self.root = root
            self._store_root()

    def _store_root(self) -> None:
        self._transaction.store_root(self.thin_id, self.root)


def data_runs(values: array[int]) -> Iterator[tuple[int, int]]:
    """Mapping values as runs (data block, length) of consecutive data blocks, in the order given."""
    begin = length = 0
    for value in values:
        dblock = value >> TIME_BITS
        if dblock == begin + length and length:
            length += 1
            continue
        if length:
            yield begin, length
        begin, length = dblock, 1
    if length:
        yield begin, length
