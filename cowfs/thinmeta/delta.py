"""What differs between two thin devices, found by walking only what they do not share.

Both mapping trees are walked together. Where both come to the same metadata block, everything below is the same and is
skipped; otherwise the higher of the two nodes is opened, so that a shared node is met from both sides. Two snapshots
that differ in a few places cost a few nodes each, whatever their size.

"Same" means the same data block; the time of a mapping does not matter.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Final, NamedTuple

from cowfs.blockdev import BlockDevice
from cowfs.errors import NoSuchThin
from cowfs.thinmeta.format import Node, Superblock
from cowfs.thinmeta.walk import (
    KEY_END,
    MAPPINGS,
    MAX_LEVELS,
    MetadataReader,
    Run,
    check_bounds,
    check_level,
    children,
    mapping_runs,
)
from cowfs.thinmeta.xml import TextSink

UNMAPPED: Final = -1


class DeltaKind(enum.Enum):
    """How two thins relate in a range of virtual blocks; blocks that neither maps are in no range."""

    SAME = "same"
    DIFFERENT = "different"
    LEFT_ONLY = "left_only"
    RIGHT_ONLY = "right_only"


class DeltaRange(NamedTuple):
    """`length` virtual blocks from `vblock`, contiguous on each side that maps them; the other's dblock is -1."""

    kind: DeltaKind
    vblock: int
    length: int
    left_dblock: int
    right_dblock: int


def changed_ranges(
    device: BlockDevice, left_id: int, right_id: int, *, held: bool = False, begin: int = 0
) -> Iterator[DeltaRange]:
    """Where two thins differ, ascending, as maximal ranges. Cost: the nodes that they do not share.

    Args:
        begin: the first virtual block to look at.

    Raises (while iterating):
        NoSuchThin: one of the two is not in the pool.
        MetadataCorrupt: something on the way cannot be read.
    """
    reader = MetadataReader(device)
    ranges = _compare(reader, reader.superblock(held=held), left_id, right_id, with_same=False, begin=begin)
    return _merge(piece for piece in ranges if piece.kind is not DeltaKind.SAME)


def allocated_ranges(device: BlockDevice, thin_id: int, *, begin: int = 0) -> Iterator[DeltaRange]:
    """Where a thin has blocks, from block `begin` on, as if compared with one that has none. Raises as above."""
    reader = MetadataReader(device)
    cursor = _Cursor(reader, *_root(reader, reader.superblock(), thin_id), begin=begin)
    while cursor:
        if not cursor.runs:
            cursor.open()
            continue
        run = cursor.runs.pop()
        yield DeltaRange(DeltaKind.LEFT_ONLY, run.vblock, run.length, run.dblock, UNMAPPED)


def delta(
    device: BlockDevice, left_id: int, right_id: int, out: TextSink, *, verbose: bool = False, held: bool = False
) -> None:
    """Write the differences as thin_delta 0.9.0 does; `verbose` names the data blocks too.

    Its `same` elements list what both map, so unlike `changed_ranges` this reads every mapping once.

    Raises:
        NoSuchThin, MetadataCorrupt: as `changed_ranges`.
    """
    reader = MetadataReader(device)
    superblock = reader.superblock(held=held)
    ranges = _compare(reader, superblock, left_id, right_id, with_same=True)
    first = next(ranges, None)  # fails before anything is written when a thin is unknown
    out.write(_superblock_tag(superblock))
    out.write(f'  <diff left="{left_id}" right="{right_id}">\n')
    if first:
        (_write_verbose if verbose else _write_plain)(_chain(first, ranges), out)
    out.write("  </diff>\n</superblock>\n")


# --------------------------------------------------------------------------------------------- comparison


def _compare(
    reader: MetadataReader, superblock: Superblock, left_id: int, right_id: int, *, with_same: bool, begin: int = 0
) -> Iterator[DeltaRange]:
    """The pieces of both mappings in order; `with_same` also those below nodes that both share."""
    left = _Cursor(reader, *_root(reader, superblock, left_id), begin=begin)
    right = _Cursor(reader, *_root(reader, superblock, right_id), begin=begin)
    while left or right:
        if left.runs and right.runs:
            yield _next_range(left, right)
        elif left.runs:
            yield from _next_alone(left, right, DeltaKind.LEFT_ONLY)
        elif right.runs:
            yield from _next_alone(right, left, DeltaKind.RIGHT_ONLY)
        elif left.nodes and right.nodes and left.nodes[-1].location == right.nodes[-1].location:
            if with_same:
                yield from _same_below(reader, left.nodes[-1])
            left.nodes.pop()
            right.nodes.pop()
        else:
            _open_next(left, right)


def _root(reader: MetadataReader, superblock: Superblock, thin_id: int) -> tuple[int, str]:
    found = reader.thin(superblock, thin_id)
    if found is None:
        raise NoSuchThin(f"no thin device {thin_id} in this pool")
    return found


def _next_range(left: _Cursor, right: _Cursor) -> DeltaRange:
    """The first piece of two runs in which both are mapped alike, or only one of them is."""
    a, b = left.runs[-1], right.runs[-1]
    if a.vblock < b.vblock:
        run = left.take(min(a.length, b.vblock - a.vblock))
        return DeltaRange(DeltaKind.LEFT_ONLY, run.vblock, run.length, run.dblock, UNMAPPED)
    if b.vblock < a.vblock:
        run = right.take(min(b.length, a.vblock - b.vblock))
        return DeltaRange(DeltaKind.RIGHT_ONLY, run.vblock, run.length, UNMAPPED, run.dblock)
    length = min(a.length, b.length)
    kind = DeltaKind.SAME if a.dblock == b.dblock else DeltaKind.DIFFERENT
    left.take(length)
    right.take(length)
    return DeltaRange(kind, a.vblock, length, a.dblock, b.dblock)


def _next_alone(cursor: _Cursor, other: _Cursor, kind: DeltaKind) -> Iterator[DeltaRange]:
    """What one side maps before the other side's next node begins; else opens that node."""
    run = cursor.runs[-1]
    room = other.nodes[-1].begin - run.vblock if other.nodes else run.length
    if room <= 0:
        other.open()
        return
    run = cursor.take(min(run.length, room))
    is_left = kind is DeltaKind.LEFT_ONLY
    left, right = (run.dblock, UNMAPPED) if is_left else (UNMAPPED, run.dblock)
    yield DeltaRange(kind, run.vblock, run.length, left, right)


def _open_next(left: _Cursor, right: _Cursor) -> None:
    """Open the higher node, of two equally high ones the one that begins first: what is shared waits on its side."""
    if not right.nodes:
        left.open()
    elif not left.nodes:
        right.open()
    else:
        a, b = left.nodes[-1], right.nodes[-1]
        if (-a.level, a.begin) <= (-b.level, b.begin):
            left.open()
        else:
            right.open()


def _same_below(reader: MetadataReader, node: _Pending) -> Iterator[DeltaRange]:
    for leaf, _ in reader.leaves(node.location, MAPPINGS, node.path, node.begin, node.end):
        for run in mapping_runs(leaf.keys, leaf.values):
            yield DeltaRange(DeltaKind.SAME, run.vblock, run.length, run.dblock, run.dblock)


class _Pending(NamedTuple):
    """A node that was not opened: its keys lie in [begin, end), its level is 0 for leaves."""

    location: int
    begin: int
    end: int
    level: int
    depth: int
    path: str


class _Cursor:
    """A position in one mapping tree: runs of the leaf that is open, then nodes that are not, next ones last.

    What is mapped before block `begin` is passed over.
    """

    def __init__(self, reader: MetadataReader, root: int, path: str, *, begin: int = 0) -> None:
        self._reader = reader
        self._begin = begin
        self.runs: list[Run] = []
        self.nodes = [_Pending(root, 0, KEY_END, self._height(root, path), 1, path)]

    def __bool__(self) -> bool:
        return bool(self.runs or self.nodes)

    def open(self) -> None:
        """Replace the next node by its children, or its mappings."""
        pending = self.nodes.pop()
        node = self._read(pending)
        if node.is_leaf:
            self.runs = [run for run in mapping_runs(node.keys, node.values) if run.vblock + run.length > self._begin]
            self.runs.reverse()
            if self.runs and (before := self._begin - self.runs[-1].vblock) > 0:
                self.take(before)
            return
        self.nodes.extend(
            _Pending(child, begin, end, pending.level - 1, pending.depth + 1, f"{pending.path} -> node {child}")
            for child, begin, end in reversed(children(node, pending.end))
            if end > self._begin
        )

    def take(self, length: int) -> Run:
        """The first `length` blocks of the next run."""
        run = self.runs.pop()
        if length < run.length:
            self.runs.append(Run(run.vblock + length, run.dblock + length, run.length - length, run.time))
        return run._replace(length=length)

    def _read(self, pending: _Pending) -> Node:
        node = self._reader.node(pending.location, MAPPINGS, pending.path)
        check_bounds(node, pending.location, pending.begin, pending.end, pending.path)
        if not node.is_leaf:
            check_level(pending.depth, pending.location, pending.path)
        return node

    def _height(self, root: int, path: str) -> int:
        location = root
        for height in range(MAX_LEVELS):
            node = self._reader.node(location, MAPPINGS, path)
            if node.is_leaf:
                return height
            location = node.values[0]
        return MAX_LEVELS


def _merge(ranges: Iterator[DeltaRange]) -> Iterator[DeltaRange]:
    """Ranges that continue each other on both sides, as one."""
    last: DeltaRange | None = None
    for piece in ranges:
        if last is not None and _continues(last, piece):
            last = last._replace(length=last.length + piece.length)
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last


def _continues(last: DeltaRange, piece: DeltaRange) -> bool:
    length = last.length
    return (
        piece.kind is last.kind
        and piece.vblock == last.vblock + length
        and piece.left_dblock in (UNMAPPED, last.left_dblock + length)
        and piece.right_dblock in (UNMAPPED, last.right_dblock + length)
    )


# --------------------------------------------------------------------------------------------- XML


def _superblock_tag(superblock: Superblock) -> str:
    held = f' metadata_snap="{superblock.held_root}"' if superblock.held_root else ""
    return (
        f'<superblock uuid="" time="{superblock.time}" transaction="{superblock.transaction_id}" '
        f'data_block_size="{superblock.data_block_sectors}" '
        f'nr_data_blocks="{superblock.data_space_map.nr_blocks}"{held}>\n'
    )


def _chain(first: DeltaRange, rest: Iterator[DeltaRange]) -> Iterator[DeltaRange]:
    yield first
    yield from rest


def _write_plain(ranges: Iterator[DeltaRange], out: TextSink) -> None:
    """One element per range of one kind, whatever the data blocks."""
    for piece in _merge(piece._replace(left_dblock=UNMAPPED, right_dblock=UNMAPPED) for piece in ranges):
        out.write(f'    <{piece.kind.value} begin="{piece.vblock}" length="{piece.length}"/>\n')


def _write_verbose(ranges: Iterator[DeltaRange], out: TextSink) -> None:
    """An element around all ranges of one kind in a row, also where unmapped blocks lie between them."""
    kind: DeltaKind | None = None
    for piece in _merge(ranges):
        if piece.kind is not kind:
            if kind:
                out.write(f"    </{kind.value}>\n")
            kind = piece.kind
            out.write(f"    <{kind.value}>\n")
        if kind is DeltaKind.DIFFERENT:
            blocks = f'left_data_begin="{piece.left_dblock}" right_data_begin="{piece.right_dblock}"'
        else:
            blocks = f'data_begin="{max(piece.left_dblock, piece.right_dblock)}"'
        out.write(f'      <range begin="{piece.vblock}" {blocks} length="{piece.length}"/>\n')
    if kind:
        out.write(f"    </{kind.value}>\n")
