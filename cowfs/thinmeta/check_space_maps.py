"""The part of the check that compares space maps with a recount.

A count is stored in two bits of a bitmap, or in the overflow btree where they say three. Bitmap by bitmap, the stored
counts are brought together and compared with the recounted ones in one step; only a bitmap that differs is looked at
block by block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from cowfs.errors import MetadataCorrupt
from cowfs.thinmeta.findings import Findings, Severity
from cowfs.thinmeta.format import ENTRIES_PER_BITMAP, IndexEntry, SpaceMapRoot, unpack_bitmap
from cowfs.thinmeta.recount import RefCounts
from cowfs.thinmeta.walk import OVERFLOW, MetadataReader

_IN_OVERFLOW: Final = re.compile(rb"\x03")


@dataclass(frozen=True, slots=True)
class StoredMap:
    """A space map as it is found: `overflow_known` is false when its overflow btree cannot be read."""

    name: str
    root: SpaceMapRoot
    entries: Iterable[tuple[int, IndexEntry, int, str]]  # index, entry, block that holds it, path to that block
    overflow_known: bool

    @property
    def overflow_path(self) -> str:
        return f"{self.name} space map -> overflow root {self.root.ref_count_root}"


def compare_map(
    reader: MetadataReader, findings: Findings, stored: StoredMap, recount: RefCounts, *, complete: bool
) -> None:
    """Report every difference between a stored space map and the recount.

    Args:
        complete: the recount saw every reference. If not, only counts that are too low are differences.
    """
    checker = _MapChecker(reader, findings, stored, recount, complete)
    for index, entry, holder, path in stored.entries:
        checker.check_bitmap(index, entry, holder, path)
    checker.finish()


class _MapChecker:
    def __init__(
        self, reader: MetadataReader, findings: Findings, stored: StoredMap, recount: RefCounts, complete: bool
    ) -> None:
        self._reader = reader
        self._findings = findings
        self._map = stored
        self._nr_blocks = stored.root.nr_blocks
        self._recount = recount
        self._complete = complete
        self._allocated = 0
        self._read = 0
        self._overflow = self._read_overflow()
        self._next_overflow = next(self._overflow, None)

    def check_bitmap(self, index: int, entry: IndexEntry, holder: int, path: str) -> None:
        where = f"{path} -> bitmap {index}"
        location = entry.bitmap_block
        above_two = self._take_overflow((index + 1) * ENTRIES_PER_BITMAP)
        try:
            counts = unpack_bitmap(self._reader.read_block(location, where), location, where)
        except MetadataCorrupt as error:
            self._findings.add_error(error)
            return
        self._read += 1
        inside = min(ENTRIES_PER_BITMAP, self._nr_blocks - index * ENTRIES_PER_BITMAP)
        self._check_entry(index, entry, counts, inside, holder, path)
        if any(counts[inside:]):
            self._findings.add(Severity.LEAK, "counts past the end of the map", block=location, path=where)
            counts[inside:] = bytes(ENTRIES_PER_BITMAP - inside)
        self._allocated += inside - counts.count(0, 0, inside)
        self._check_counts(index, counts, above_two, location, where)

    def finish(self) -> None:
        for block, count in self._take_overflow(2**64).items():
            if block < self._nr_blocks:
                continue  # its bitmap is missing, which was reported
            what = f"a reference count of {count} for block {block} past the end of the {self._map.name} map"
            self._overflow_error(what)
        all_read = self._read == -(-self._nr_blocks // ENTRIES_PER_BITMAP)
        if all_read and self._allocated != self._map.root.nr_allocated:
            self._warn(
                f"{self._map.name} space map: number of allocated blocks",
                0,
                "superblock",
                self._allocated,
                self._map.root.nr_allocated,
            )

    # ------------------------------------------------------------------ index entries

    def _check_entry(
        self, index: int, entry: IndexEntry, counts: bytearray, inside: int, holder: int, path: str
    ) -> None:
        free = counts.count(0)
        if entry.nr_free != free:
            self._warn(f"free blocks of bitmap {index}", holder, path, free, entry.nr_free)
        first_free = counts.find(0, 0, inside)
        limit = inside if first_free < 0 else first_free
        if entry.none_free_before > limit:
            what = f"first free block of bitmap {index}"
            self._warn(what, holder, path, f"at most {limit}", entry.none_free_before)

    def _warn(self, what: str, block: int, path: str, expected: object, found: object) -> None:
        self._findings.add(Severity.WARNING, what, block=block, path=path, expected=expected, found=found)

    # ------------------------------------------------------------------ counts

    def _check_counts(self, index: int, counts: bytearray, above_two: dict[int, int], location: int, path: str) -> None:
        base = index * ENTRIES_PER_BITMAP
        in_overflow = self._check_overflow(base, counts, above_two, location, path)
        expected = self._recount.as_stored(index)
        if counts == expected and all(above_two[block] == self._recount.count(block) for block in in_overflow):
            return
        run: tuple[int, int, int, int] | None = None  # first block, length, found, expected
        for offset, (stored, wanted) in enumerate(zip(counts, expected, strict=True)):
            if stored < 3 and stored == wanted:
                continue
            block = base + offset
            if stored == 3:
                if block not in in_overflow:
                    continue  # without a count in the overflow btree there is nothing to compare
                stored, wanted = above_two[block], self._recount.count(block)  # noqa: PLW2901
            elif wanted == 3:
                wanted = self._recount.count(block)  # noqa: PLW2901
            if stored == wanted or (stored > wanted and not self._complete):
                continue
            if run and run[0] + run[1] == block and run[2:] == (stored, wanted):
                run = (run[0], run[1] + 1, stored, wanted)
                continue
            self._report_run(run, location, path)
            run = (block, 1, stored, wanted)
        self._report_run(run, location, path)

    def _report_run(self, run: tuple[int, int, int, int] | None, location: int, path: str) -> None:
        if run is None:
            return
        begin, length, stored, wanted = run
        blocks = f"block {begin}" if length == 1 else f"blocks {begin}..{begin + length - 1}"
        self._findings.add(
            Severity.ERROR if wanted else Severity.LEAK,
            f"reference count of {self._map.name} {blocks}",
            block=location,
            path=path,
            expected=wanted,
            found=stored,
        )

    # ------------------------------------------------------------------ overflow btree

    def _check_overflow(
        self, base: int, counts: bytearray, above_two: dict[int, int], location: int, path: str
    ) -> set[int]:
        """The blocks whose count the overflow btree rightly has; reports where it and the bitmap contradict."""
        if not self._map.overflow_known:
            return set()
        marked = {base + match.start() for match in _IN_OVERFLOW.finditer(counts)}
        for block in sorted(marked - above_two.keys()):
            what = f"{self._map.name} block {block} is marked as in the overflow btree, which has no count for it"
            self._findings.add(Severity.ERROR, what, block=location, path=path)
        for block in sorted(above_two.keys() - marked):
            what = f"a reference count of {above_two[block]} for {self._map.name} block {block}, which its bitmap has"
            self._overflow_error(what)
        in_overflow = marked & above_two.keys()
        for block in sorted(block for block in in_overflow if above_two[block] < 3):
            self._overflow_error(f"a reference count of {above_two[block]} for {self._map.name} block {block}: too low")
            in_overflow.discard(block)
        return in_overflow

    def _overflow_error(self, what: str) -> None:
        self._findings.add(Severity.ERROR, what, block=self._map.root.ref_count_root, path=self._map.overflow_path)

    def _read_overflow(self) -> Iterator[tuple[int, int]]:
        if not self._map.overflow_known:
            return
        try:
            for leaf, _ in self._reader.leaves(self._map.root.ref_count_root, OVERFLOW, self._map.overflow_path):
                yield from zip(leaf.keys, leaf.values, strict=True)
        except MetadataCorrupt:
            return  # out of order, which the walk of the trees has reported

    def _take_overflow(self, end: int) -> dict[int, int]:
        """The counts of the overflow btree for blocks below `end` that were not taken before."""
        taken: dict[int, int] = {}
        while self._next_overflow is not None and self._next_overflow[0] < end:
            taken[self._next_overflow[0]] = self._next_overflow[1]
            self._next_overflow = next(self._overflow, None)
        return taken
