"""Where a repair starts: the superblock and the roots of the two device trees, searched for when they are lost.

A block does not say how old it is. So among what is found, first comes what the superblock names, then what agrees:
a details tree and a top-level tree of the same devices, where each device maps as much as its details say.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import msgspec

from cowfs.errors import MetadataCorrupt
from cowfs.thinmeta.check_trees import TreeChecker
from cowfs.thinmeta.findings import Findings
from cowfs.thinmeta.format import (
    MAX_DATA_BLOCK,
    SUPERBLOCK_LOCATION,
    SUPERBLOCK_MAGIC,
    SUPERBLOCK_SALT,
    DeviceDetails,
    Superblock,
    seal,
)
from cowfs.thinmeta.walk import (
    DEVICE_DETAILS,
    MAPPINGS,
    TOP_LEVEL,
    MetadataReader,
    Progress,
)
from cowfs.units import MAX_SNAPSHOT_TIME, is_data_block_size

_PROGRESS_BLOCKS: Final = 1024
_MAX_PARTNERS: Final = 64  # details trees of the same devices that are tried with one top-level tree, newest first
_Rank: TypeAlias = tuple[int, tuple[int, int, int]]


@dataclass(slots=True)
class Origin:
    """A superblock to start from, valid or put together; `notes` say what had to be guessed."""

    superblock: Superblock
    notes: list[str] = field(default_factory=list)

    @property
    def is_superblock_lost(self) -> bool:
        """Nothing of the live one was left: the sizes are not known, or only those of a held copy."""
        return not self.superblock.data_block_sectors or self.superblock.location != SUPERBLOCK_LOCATION


@dataclass(frozen=True, slots=True)
class _Details:
    root: int
    devices: dict[int, DeviceDetails]

    @property
    def age(self) -> tuple[int, int, int]:
        """Larger is newer, as far as is known: snapshot counter, transaction id, mapped blocks."""
        devices = self.devices.values()
        return (
            max((max(device.creation_time, device.snapshotted_time) for device in devices), default=0),
            max((device.transaction_id for device in devices), default=0),
            sum(device.mapped_blocks for device in devices),
        )


@dataclass(frozen=True, slots=True)
class _TopLevel:
    root: int
    thins: dict[int, int]  # thin id -> root of its mapping tree


def find_origin(reader: MetadataReader, progress: Progress | None = None) -> Origin:
    """The superblock if it and the device trees are whole, else the best that a search finds.

    Raises:
        MetadataCorrupt: nothing to start from.
    """
    try:
        superblock = Superblock.unpack(reader.read_block(SUPERBLOCK_LOCATION, "superblock"))
        damage = None
    except MetadataCorrupt as error:
        superblock, damage = _damaged_superblock(reader), error
    details = _read_details(reader, superblock.details_root)
    top_level = _read_top_level(reader, superblock.mapping_root)
    if details and top_level:
        if damage is None:
            return Origin(superblock)
        if top_level.thins.keys() == details.devices.keys():
            note = f"the superblock is damaged; the trees it names are whole, its other fields may be wrong ({damage})"
            return Origin(superblock, [note])
    if damage is not None:
        details = top_level = None
    search = _Search(reader, progress)
    pair = search.best_pair(details, top_level)
    if pair is None and details and not top_level:
        pair = search.best_pair(None, None)  # an older state of both is better than devices without mappings
    if pair is not None:
        return _from_pair(superblock, *pair, damage)
    if damage is None and _has_readable_leaf(reader, superblock.mapping_root):
        return Origin(superblock)
    message = "no pair of device trees is left anywhere on the device; restore the metadata from a dump"
    raise MetadataCorrupt(message, block=superblock.mapping_root, path="mapping root")


def _from_pair(
    superblock: Superblock, details: _Details, top_level: _TopLevel, damage: MetadataCorrupt | None
) -> Origin:
    notes = [f"the superblock is damaged, its fields may be wrong ({damage})"] if damage else []
    if superblock.mapping_root != top_level.root:
        notes.append(
            f"the mapping trees were found by a search, at {top_level.root}; they may be of an older transaction"
        )
    if superblock.details_root != details.root:
        notes.append(
            f"the device details were found by a search, at {details.root}; they may be of an older transaction"
        )
    time, transaction_id, _ = details.age
    superblock = msgspec.structs.replace(superblock, mapping_root=top_level.root, details_root=details.root)
    if superblock.time < time or superblock.transaction_id < transaction_id:
        superblock.time = max(superblock.time, time)
        superblock.transaction_id = max(superblock.transaction_id, transaction_id)
        notes.append(
            f"snapshot counter and transaction id are set to {superblock.time} and {superblock.transaction_id}, "
            "the highest that a device has"
        )
    return Origin(superblock, notes)


def _has_readable_leaf(reader: MetadataReader, root: int) -> bool:
    """Whether a damaged top level still leads anywhere."""
    checker = _judge(reader)
    checker.check_tree(root, TOP_LEVEL, f"mapping root {root}")
    return checker.is_node_of(root, TOP_LEVEL)


def _judge(reader: MetadataReader) -> TreeChecker:
    checker = TreeChecker(reader, Findings(), time=MAX_SNAPSHOT_TIME, progress=None)
    checker.data_nr_blocks = MAX_DATA_BLOCK + 1
    return checker


# --------------------------------------------------------------------------------------------- a damaged superblock


def _damaged_superblock(reader: MetadataReader) -> Superblock:
    """The fields of an invalid superblock as far as they can be true, else those of a held copy."""
    with contextlib.suppress(MetadataCorrupt):
        found = _unverified(reader.read_block(SUPERBLOCK_LOCATION))
        if found is not None:
            return found
    for location in range(1, reader.blocks):
        with contextlib.suppress(MetadataCorrupt):
            held = Superblock.unpack(reader.read_block(location), location)
            return msgspec.structs.replace(held, mapping_root=0, details_root=0)
    return Superblock(data_block_sectors=0, metadata_nr_blocks=0)


def _unverified(block: bytes) -> Superblock | None:
    """A superblock whose checksum, address or magic is wrong, if the rest makes sense."""
    mended = bytearray(block)
    struct.pack_into("<Q16xQ", mended, 8, SUPERBLOCK_LOCATION, SUPERBLOCK_MAGIC)
    superblock = Superblock.unpack(seal(mended, SUPERBLOCK_SALT))
    plausible = (
        is_data_block_size(superblock.data_block_sectors)
        and superblock.time <= MAX_SNAPSHOT_TIME
        and superblock.data_space_map.nr_blocks <= MAX_DATA_BLOCK
    )
    return superblock if plausible else None


# --------------------------------------------------------------------------------------------- whole trees


def _read_details(reader: MetadataReader, root: int) -> _Details | None:
    """A details tree without any damage."""
    devices = {}
    try:
        for leaf, _ in reader.leaves(root, DEVICE_DETAILS, ""):
            for i, thin_id in enumerate(leaf.keys):
                devices[thin_id] = DeviceDetails.from_words(*leaf.values[3 * i : 3 * i + 3])
    except MetadataCorrupt:
        return None
    return _Details(root, devices)


def _read_top_level(reader: MetadataReader, root: int) -> _TopLevel | None:
    """A top-level tree without any damage; what it points to may be damaged."""
    thins: dict[int, int] = {}
    try:
        for leaf, _ in reader.leaves(root, TOP_LEVEL, ""):
            if any(location >= reader.blocks for location in leaf.values):
                return None
            thins.update(zip(leaf.keys, leaf.values, strict=True))
    except MetadataCorrupt:
        return None
    return _TopLevel(root, thins)


class _Search:
    """Looks at every block for the roots of device trees."""

    def __init__(self, reader: MetadataReader, progress: Progress | None) -> None:
        self._reader = reader
        self._progress = progress
        self._checker = _judge(reader)
        self._roots: tuple[list[int], list[int]] | None = None

    def best_pair(self, details: _Details | None, top_level: _TopLevel | None) -> tuple[_Details, _TopLevel] | None:
        """The newest pair that agrees best. A tree that is given is not searched for: it is the current one."""
        if self._roots is None:
            self._roots = self._find_roots()
        details_roots, top_level_roots = self._roots
        if details:
            all_details = [details]
        else:
            all_details = [found for root in details_roots if (found := _read_details(self._reader, root))]
        by_thins: dict[frozenset[int], list[_Details]] = {}
        for found in sorted(all_details, key=lambda candidate: candidate.age, reverse=True):
            by_thins.setdefault(frozenset(found.devices), []).append(found)
        best: tuple[_Rank, _Details, _TopLevel] | None = None
        for candidate in [top_level] if top_level else self._top_levels(top_level_roots):
            partners = by_thins.get(frozenset(candidate.thins), [])
            totals = self._totals(candidate) if partners else {}
            for partner in partners[:_MAX_PARTNERS]:
                rank = self._rank(partner, totals)
                if rank is not None and (best is None or rank > best[0]):
                    best = rank, partner, candidate
        return best and best[1:]

    def _rank(self, details: _Details, totals: dict[int, int | None]) -> _Rank | None:
        """First how many devices map what their details say, then how new the details are."""
        agreeing = sum(totals[thin_id] == device.mapped_blocks for thin_id, device in details.devices.items())
        if details.devices and not agreeing:
            return None
        return agreeing, details.age

    def _top_levels(self, roots: list[int]) -> Iterator[_TopLevel]:
        for root in roots:
            found = _read_top_level(self._reader, root)
            if found:
                yield found

    def _totals(self, top_level: _TopLevel) -> dict[int, int | None]:
        """Mapped blocks of each device; nodes that several candidates share are walked once."""
        totals = {}
        for thin_id, root in top_level.thins.items():
            self._checker.check_tree(root, MAPPINGS, f"thin {thin_id}")
            is_mapping = self._checker.is_node_of(root, MAPPINGS)
            totals[thin_id] = self._checker.total(root) if is_mapping else None
        return totals

    def _find_roots(self) -> tuple[list[int], list[int]]:
        """Nodes that no other node refers to and that may be roots of a details tree, of a top-level tree."""
        details: list[int] = []
        others: list[int] = []
        children: set[int] = set()
        for location in range(1, self._reader.blocks):
            if self._progress and location % _PROGRESS_BLOCKS == 0:
                self._progress(location, self._reader.blocks)
            for tree in (TOP_LEVEL, DEVICE_DETAILS):
                with contextlib.suppress(MetadataCorrupt):
                    node = self._reader.node(location, tree, "")
                    if not node.is_leaf:
                        children.update(node.values)
                    elif tree is TOP_LEVEL and any(value >= self._reader.blocks for value in node.values):
                        break  # mappings: their values are far above any metadata block
                    (details if tree is DEVICE_DETAILS else others).append(location)
        return [root for root in details if root not in children], [root for root in others if root not in children]
