"""Counting references from nothing, for readers and writers of a whole metadata device at once.

Counts are kept in pieces of one bitmap (16320 blocks), allocated when first touched, so the memory needed follows what
is used and not what a header claims. A piece holds one byte per block, up to 255; the rest is in a dict.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator
from typing import Final

from cowfs.thinmeta.format import ENTRIES_PER_BITMAP, TIME_BITS

_FULL: Final = 255
_PLUS_ONE: Final = bytes([*range(1, 256), _FULL])
_MINUS_ONE: Final = bytes([0, *range(255)])
_AS_STORED: Final = bytes(min(count, 3) for count in range(256))
_OVERFLOWING: Final = re.compile(rb"[\x03-\xff]")
_EMPTY: Final = bytes(ENTRIES_PER_BITMAP)


class RefCounts:
    """How often each of `nr_blocks` blocks is used. Blocks past the end are the caller's error: IndexError."""

    def __init__(self, nr_blocks: int) -> None:
        self.nr_blocks = nr_blocks
        self._pieces: dict[int, bytearray] = {}
        self._above_full: dict[int, int] = {}

    def add(self, block: int) -> None:
        self.add_each((block,))

    def add_each(self, blocks: Iterable[int]) -> None:
        nr_blocks, pieces = self.nr_blocks, self._pieces
        for block in blocks:
            if not 0 <= block < nr_blocks:
                raise IndexError(f"block {block} of {nr_blocks}")
            index = block // ENTRIES_PER_BITMAP
            piece = pieces.get(index)
            if piece is None:
                piece = pieces[index] = bytearray(ENTRIES_PER_BITMAP)
            try:
                piece[block - index * ENTRIES_PER_BITMAP] += 1
            except ValueError:
                self._above_full[block] = self._above_full.get(block, 0) + 1

    def add_run(self, begin: int, length: int) -> None:
        if begin < 0 or begin + length > self.nr_blocks:
            raise IndexError(f"blocks {begin}+{length} of {self.nr_blocks}")
        for piece, offset, size, block in self._parts(begin, length):
            part = piece[offset : offset + size]
            if _FULL in part:
                self.add_each(range(block, block + size))
            else:
                piece[offset : offset + size] = part.translate(_PLUS_ONE)

    def drop_run(self, begin: int, length: int) -> None:
        """Take back an `add_run`."""
        for piece, offset, size, block in self._parts(begin, length):
            part = piece[offset : offset + size]
            piece[offset : offset + size] = part.translate(_MINUS_ONE)
            if _FULL in part:
                for i in (i for i, count in enumerate(part) if count == _FULL and block + i in self._above_full):
                    piece[offset + i] = _FULL
                    self._above_full[block + i] -= 1
                    if not self._above_full[block + i]:
                        del self._above_full[block + i]

    def count(self, block: int) -> int:
        index, offset = divmod(block, ENTRIES_PER_BITMAP)
        piece = self._pieces.get(index)
        return piece[offset] + self._above_full.get(block, 0) if piece else 0

    @property
    def bitmaps(self) -> int:
        return -(-self.nr_blocks // ENTRIES_PER_BITMAP)

    def as_stored(self, index: int) -> bytes:
        """The 16320 counts of a bitmap as its two bits hold them."""
        piece = self._pieces.get(index)
        return bytes(piece.translate(_AS_STORED)) if piece else _EMPTY

    def overflow(self) -> Iterator[tuple[int, int]]:
        """(block, count) for each count above two, ascending."""
        for index in sorted(self._pieces):
            piece = self._pieces[index]
            base = index * ENTRIES_PER_BITMAP
            for match in _OVERFLOWING.finditer(piece):
                block = base + match.start()
                yield block, piece[match.start()] + self._above_full.get(block, 0)

    def allocated(self) -> int:
        """How many blocks are used at all."""
        return sum(ENTRIES_PER_BITMAP - piece.count(0) for piece in self._pieces.values())

    def _parts(self, begin: int, length: int) -> Iterator[tuple[bytearray, int, int, int]]:
        """(piece, offset, size, first block) of each piece that the run touches."""
        end = begin + length
        while begin < end:
            index, offset = divmod(begin, ENTRIES_PER_BITMAP)
            size = min(end - begin, ENTRIES_PER_BITMAP - offset)
            yield self._pieces.setdefault(index, bytearray(ENTRIES_PER_BITMAP)), offset, size, begin
            begin += size


def data_blocks(values: array[int]) -> list[int]:
    """The data blocks of mapping values."""
    return [value >> TIME_BITS for value in values]
