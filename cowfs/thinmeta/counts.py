"""Reference counts of one device's blocks in memory, loaded bitmap by bitmap, with the transaction's rules built in.

A block freed in this transaction may not be handed out before the commit: until then the last committed metadata still
uses it. So a loaded bitmap holds one byte per block, the count in the low two bits and what the commit needs above:

    0            free now and in the committed map: may be allocated
    1, 2         that count; 3: three or more, the overflow btree has the count
    NEW | n      allocated in this transaction (free in the committed map)
    FREED        freed in this transaction (used in the committed map)

Finding a free run is then one C search for a zero byte, and the end of a transaction one `translate`. What a commit
writes is kept, and only the span of a bitmap in which something has changed is packed anew: most transactions change a
few counts of the 16320.

Counts above two that changed wait in `overflow` until the commit writes them into the overflow btree, and `crossings`
has the order in which keys come and go there: the shape of a btree depends on it, and the kernel does each at once.

What is on disk comes from two callables, so this module does no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, KeysView
from typing import Final

from cowfs.errors import InvalidRequest, MetadataCorrupt
from cowfs.thinmeta.format import ENTRIES_PER_BITMAP, IndexEntry, pack_counts

NEW: Final = 0x80
FREED: Final = 0x40
NEW_ONCE: Final = NEW | 1
_OVERFLOW: Final = 3

_STRIP: Final = bytes(0 if byte == FREED else byte & 3 for byte in range(256))
_PLUS_ONE: Final = bytes(byte + 1 if byte & 3 in (0, 1) and byte < 255 else byte for byte in range(256))
_MINUS_ONE: Final = bytes(
    FREED if byte == 1 else 0 if byte == NEW_ONCE else byte - 1 if byte & 3 == 2 else byte for byte in range(256)
)
_MARK_UNUSED: Final = bytes(byte or 0x20 for byte in range(256))  # only inside `freed_runs`
_ONCE: Final = bytes([1, NEW_ONCE])
_ONCE_OR_TWICE: Final = bytes([1, 2, NEW | 1, NEW | 2])
_FREE_RUN: Final = re.compile(rb"\x00*")
_NEW_RUN: Final = re.compile(rb"\x81+")
_USED_RUN: Final = re.compile(rb"[^\x00]+")
_UNUSED_RUN: Final = re.compile(rb"[\x20\x40]+")
_MAX_CLEAN_BITMAPS: Final = 2048


class Counts:
    """Reference counts of `nr_blocks` blocks.

    Invariants: (1) `allocated` is the number of blocks whose count is not zero; (2) `entries[i].nr_free` is 16320 minus
    the nonzero counts of bitmap i, always current.

    Args:
        entries: one per bitmap.
        load: the counts of the bitmap stored at a metadata block.
        load_overflow: the count of a block in the committed overflow btree, None when it has none.
    """

    def __init__(
        self,
        name: str,
        nr_blocks: int,
        allocated: int,
        entries: list[IndexEntry],
        load: Callable[[int], bytearray],
        load_overflow: Callable[[int], int | None],
    ) -> None:
        self.name = name
        self.nr_blocks = nr_blocks
        self.allocated = allocated
        self.committed_allocated = allocated
        self.taken = 0  # allocations made in this transaction, given back or not
        self._given_back: list[tuple[int, int]] = []  # runs of such, freed again in this transaction
        self.entries = entries
        self.overflow: dict[int, int] = {}
        self.crossings: list[tuple[int, bool]] = []  # (block, whether its count rose above two or fell to it)
        self.cursor = 0
        self._load = load
        self._load_overflow = load_overflow
        self._bitmaps: dict[int, bytearray] = {}
        self._packed: dict[int, bytearray] = {}  # bitmaps as they were last written
        self._changed: dict[int, list[int]] = {}  # by bitmap: [begin, end) of what this transaction has changed in it
        self._blank: set[int] = set()  # bitmaps that are not on disk yet

    # ------------------------------------------------------------------ queries

    @property
    def dirty(self) -> KeysView[int]:
        """The bitmaps that this transaction has changed."""
        return self._changed.keys()

    def count(self, block: int) -> int:
        value = self.byte(block) & 3
        return self._overflow_count(block) if value == _OVERFLOW else value

    def byte(self, block: int) -> int:
        """The count with its transaction bits; NEW_ONCE means: made in this transaction, one reference."""
        index, offset = divmod(block, ENTRIES_PER_BITMAP)
        counts = self._bitmaps.get(index)
        if counts is None:
            counts = self._fetch(index, block)
        return counts[offset]

    @property
    def free(self) -> int:
        """Blocks without a reference; those freed since the last commit among them, which cannot be allocated yet."""
        return self.nr_blocks - self.allocated

    def used_runs(self) -> Iterator[tuple[int, int]]:
        """Runs (first block, length) of what has a reference, ascending, each in one bitmap; after a commit."""
        for index, entry in enumerate(self.entries):
            if entry.nr_free < ENTRIES_PER_BITMAP:
                base = index * ENTRIES_PER_BITMAP
                counts = self._fetch(index, base)
                yield from ((base + run.start(), run.end() - run.start()) for run in _USED_RUN.finditer(counts))

    # ------------------------------------------------------------------ changes

    def allocate(self, wanted: int) -> tuple[int, int]:
        """Take the first free run from the cursor on, wrapping once: (first block, 1..wanted blocks), or (0, 0)."""
        found = self._find_free(self.cursor, self.nr_blocks) or self._find_free(0, self.cursor)
        if found is None:
            return 0, 0
        index, offset, counts, limit = found
        end = _FREE_RUN.match(counts, offset, min(limit, offset + wanted)).end()  # type: ignore[union-attr]
        length = end - offset
        counts[offset:end] = bytes([NEW_ONCE]) * length
        self.entries[index].nr_free -= length
        self.allocated += length
        self.taken += length
        self._note_changed(index, offset, end)
        begin = index * ENTRIES_PER_BITMAP + offset
        self.cursor = begin + length
        return begin, length

    def allocate_one(self) -> int | None:
        """Take the first free block from the cursor on, wrapping once; None when there is none."""
        block = self.cursor
        index, offset = divmod(block, ENTRIES_PER_BITMAP)
        counts = self._bitmaps.get(index)
        if counts is None or block >= self.nr_blocks or counts[offset]:
            block, length = self.allocate(1)
            return block if length else None
        counts[offset] = NEW_ONCE
        self.entries[index].nr_free -= 1
        self.allocated += 1
        self.taken += 1
        self._note_changed(index, offset, offset + 1)
        self.cursor = block + 1
        return block

    def seek_free_run(self, length: int) -> None:
        """Have the next allocations begin at the first run of so many free blocks, or at the first free block.

        Only bitmaps that are in memory are looked at: where one is not, it is where they begin.
        """
        wanted = bytes(length)
        self.cursor = 0
        for index, entry in enumerate(self.entries):
            if entry.nr_free < length:
                continue
            base = index * ENTRIES_PER_BITMAP
            counts = self._bitmaps.get(index)
            offset = 0 if counts is None else counts.find(wanted, 0, self.nr_blocks - base)
            if offset >= 0:
                self.cursor = base + offset
                return

    def _find_free(self, begin: int, end: int) -> tuple[int, int, bytearray, int] | None:
        """First free block in [begin, end): (bitmap, offset, its counts, end of the search inside it)."""
        while begin < end:
            index, offset = divmod(begin, ENTRIES_PER_BITMAP)
            base = index * ENTRIES_PER_BITMAP
            if self.entries[index].nr_free:
                counts = self._bitmaps.get(index)
                if counts is None:
                    counts = self._fetch(index, begin)
                limit = min(ENTRIES_PER_BITMAP, end - base)
                offset = counts.find(0, offset, limit)
                if offset >= 0:
                    return index, offset, counts, limit
            begin = base + ENTRIES_PER_BITMAP
        return None

    def increment(self, block: int) -> None:
        index, offset = divmod(block, ENTRIES_PER_BITMAP)
        counts = self._bitmaps.get(index)
        if counts is None:
            counts = self._fetch(index, block)
        byte = counts[offset]
        value = byte & 3
        if value == _OVERFLOW:
            self.overflow[block] = self._overflow_count(block) + 1
        elif byte == FREED:
            counts[offset] = 1
            self._note_used(index)
        elif byte == 0:
            counts[offset] = NEW_ONCE
            self.taken += 1
            self._note_used(index)
        else:
            counts[offset] = byte + 1
            if value + 1 == _OVERFLOW:
                self.overflow[block] = _OVERFLOW
                self.crossings.append((block, True))
        self._note_changed(index, offset, offset + 1)

    def decrement(self, block: int) -> int:
        """Drop one reference; returns how many are left.

        Raises:
            MetadataCorrupt: the block has none.
        """
        index, offset = divmod(block, ENTRIES_PER_BITMAP)
        counts = self._bitmaps.get(index)
        if counts is None:
            counts = self._fetch(index, block)
        byte = counts[offset]
        value = byte & 3
        if value == _OVERFLOW:
            left = self._overflow_count(block) - 1
            self.overflow[block] = left
            if left < _OVERFLOW:
                counts[offset] = byte - 1
                self.crossings.append((block, False))
        elif value == 0:
            raise MetadataCorrupt(f"a reference to {self.name} block {block} is dropped, but it has none", block=0)
        else:
            left = value - 1
            counts[offset] = _MINUS_ONE[byte]
            if byte == NEW_ONCE:
                self._given_back.append((block, 1))
            if left == 0:
                self._note_freed(index, 1)
        self._note_changed(index, offset, offset + 1)
        return left

    def increment_run(self, begin: int, length: int) -> None:
        for index, offset, size, base in self._split(begin, length):
            counts = self._fetch(index, base + offset)
            part = counts[offset : offset + size]
            if part.translate(None, _ONCE):
                for block in range(base + offset, base + offset + size):
                    self.increment(block)
            else:
                counts[offset : offset + size] = part.translate(_PLUS_ONE)
                self._note_changed(index, offset, offset + size)

    def decrement_run(self, begin: int, length: int) -> None:
        """Raises MetadataCorrupt when one of the blocks has no reference."""
        for index, offset, size, base in self._split(begin, length):
            counts = self._fetch(index, base + offset)
            part = counts[offset : offset + size]
            if part.translate(None, _ONCE_OR_TWICE):
                for block in range(base + offset, base + offset + size):
                    self.decrement(block)
            else:
                old, new = part.count(1), part.count(NEW_ONCE)
                if new:
                    start = base + offset
                    self._given_back += [(start + run.start(), len(run[0])) for run in _NEW_RUN.finditer(part)]
                counts[offset : offset + size] = part.translate(_MINUS_ONE)
                self._note_freed(index, old + new)
                self._note_changed(index, offset, offset + size)

    def extend(self, nr_blocks: int) -> None:
        """Grow the device. The partial last bitmap needs no change: its entries past the end count as free already."""
        if nr_blocks < self.nr_blocks:
            raise InvalidRequest(f"the {self.name} device cannot shrink from {self.nr_blocks} to {nr_blocks} blocks")
        bitmaps = -(-nr_blocks // ENTRIES_PER_BITMAP)
        for index in range(len(self.entries), bitmaps):
            self.entries.append(IndexEntry(0, ENTRIES_PER_BITMAP, 0))
            self._note_changed(index, 0, ENTRIES_PER_BITMAP)
            self._blank.add(index)
        self.nr_blocks = nr_blocks

    # ------------------------------------------------------------------ commit

    def packed(self, index: int) -> bytearray:
        """The counts of a dirty bitmap as they are to be stored; brings its index entry up to date."""
        counts = self._fetch(index, index * ENTRIES_PER_BITMAP)
        begin, end = self._changed[index]
        packed = self._packed.get(index)
        if packed is None:
            begin, end = 0, ENTRIES_PER_BITMAP
            packed = self._packed[index] = bytearray(ENTRIES_PER_BITMAP // 4)
        begin, end = begin & ~3, end + 3 & ~3  # whole bytes of what is stored
        final = counts[begin:end].translate(_STRIP)
        packed[begin // 4 : end // 4] = pack_counts(final)
        free = counts.find(0, 0, begin)
        if free < 0 and (free := final.find(0)) >= 0:
            free += begin
        if free < 0:
            free = counts.find(0, end)
        self.entries[index].none_free_before = ENTRIES_PER_BITMAP if free < 0 else free
        return packed

    def freed_runs(self) -> list[tuple[int, int]]:
        """Runs (first block, length) freed in this transaction, ascending; also of what was allocated in it."""
        given_back: dict[int, list[tuple[int, int]]] = {}
        for begin, length in self._given_back:
            index, offset = divmod(begin, ENTRIES_PER_BITMAP)
            given_back.setdefault(index, []).append((offset, offset + length))
        runs: list[tuple[int, int]] = []
        for index in sorted(self.dirty):
            counts = self._bitmaps.get(index)
            if counts is None or (FREED not in counts and index not in given_back):
                continue
            marked = bytearray(counts)
            for offset, end in given_back.get(index, ()):
                marked[offset:end] = marked[offset:end].translate(_MARK_UNUSED)
            base = index * ENTRIES_PER_BITMAP
            runs.extend((base + run.start(), run.end() - run.start()) for run in _UNUSED_RUN.finditer(marked))
        return runs

    def end_transaction(self) -> None:
        """The current map becomes the committed one."""
        for index, (begin, end) in self._changed.items():
            counts = self._bitmaps.get(index)
            if counts is not None:
                counts[begin:end] = counts[begin:end].translate(_STRIP)
        self._changed.clear()
        self._blank.clear()
        self.overflow.clear()
        self.crossings.clear()
        self.taken = 0
        self._given_back.clear()
        self.committed_allocated = self.allocated

    # ------------------------------------------------------------------ internals

    def _split(self, begin: int, length: int) -> Iterator[tuple[int, int, int, int]]:
        end = begin + length
        while begin < end:
            index, offset = divmod(begin, ENTRIES_PER_BITMAP)
            size = min(end - begin, ENTRIES_PER_BITMAP - offset)
            yield index, offset, size, begin - offset
            begin += size

    def _fetch(self, index: int, block: int) -> bytearray:
        counts = self._bitmaps.get(index)
        if counts is not None:
            return counts
        if not 0 <= index < len(self.entries):
            raise MetadataCorrupt(f"{self.name} block {block} is past the end ({self.nr_blocks} blocks)", block=0)
        if len(self._bitmaps) >= _MAX_CLEAN_BITMAPS + len(self.dirty):
            self._forget_clean()
        blank = index in self._blank
        counts = bytearray(ENTRIES_PER_BITMAP) if blank else self._load(self.entries[index].bitmap_block)
        self._bitmaps[index] = counts
        return counts

    def _forget_clean(self) -> None:
        for index in [index for index in self._bitmaps if index not in self.dirty][: _MAX_CLEAN_BITMAPS // 2]:
            del self._bitmaps[index]
            self._packed.pop(index, None)

    def _overflow_count(self, block: int) -> int:
        count = self.overflow.get(block)
        if count is None:
            count = self._load_overflow(block)
        if count is None:
            message = (
                f"the bitmap marks {self.name} block {block} as shared by many, but the overflow btree has no count"
            )
            raise MetadataCorrupt(message, block=0)
        return count

    def _note_changed(self, index: int, begin: int, end: int) -> None:
        span = self._changed.get(index)
        if span is None:
            self._changed[index] = [begin, end]
            return
        if begin < span[0]:  # noqa: PLR1730 - calls of min and max take twice the time
            span[0] = begin
        if end > span[1]:  # noqa: PLR1730
            span[1] = end

    def _note_used(self, index: int) -> None:
        self.allocated += 1
        self.entries[index].nr_free -= 1

    def _note_freed(self, index: int, blocks: int) -> None:
        self.allocated -= blocks
        self.entries[index].nr_free += blocks
