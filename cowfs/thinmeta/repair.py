"""Write clean metadata from what can still be read of damaged metadata.

The mapping trees are believed, everything that follows from them is made anew: reference counts, space maps, mapped
blocks. Subtrees without a flaw are copied as they are, sharing included; in the others, readable leaves are kept (and
shared) and get new parents. What is lost is reported range by range.

    superblock valid, device trees readable      taken as the start
    otherwise                                    the whole device is searched for the roots of both device trees

In a search, the roots that a damaged superblock names go first. Else the newest pair of trees that agrees: the same
devices, and as many mappings as the details say. Old versions of the trees may survive in free blocks, so a search
may find an older state than the last commit; the report says that it was made.

The result is written to another device. The source is only read, so a repair can be tried again.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import msgspec

from cowfs.blockdev import BlockDevice
from cowfs.errors import InvalidRequest, MetadataCorrupt
from cowfs.thinmeta.builder import MetadataBuilder, SubTree, TreeBuilder
from cowfs.thinmeta.check import check, clear_needs_check
from cowfs.thinmeta.check_trees import TreeChecker
from cowfs.thinmeta.findings import CheckReport, Findings
from cowfs.thinmeta.format import TIME_BITS, TIME_MASK, DeviceDetails, Node, SpaceMapRoot, Superblock
from cowfs.thinmeta.repair_roots import Origin, find_origin
from cowfs.thinmeta.walk import (
    DEVICE_DETAILS,
    KEY_END,
    MAPPINGS,
    MAX_LEVELS,
    TOP_LEVEL,
    MetadataReader,
    Progress,
    TreeKind,
    children,
    mapping_runs,
)
from cowfs.units import MAX_SNAPSHOT_TIME, MAX_THIN_ID


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that the repaired metadata does not have, or has by a guess. `thin_id` is None for the pool itself."""

    thin_id: int | None
    what: str

    def __str__(self) -> str:
        return self.what if self.thin_id is None else f"thin {self.thin_id}: {self.what}"


@dataclass(slots=True)
class RepairReport:
    """What a repair made. `check` is that of the new metadata."""

    losses: list[Loss] = field(default_factory=list)
    thins: int = 0
    mapped_blocks: int = 0
    check: CheckReport = field(default_factory=CheckReport)

    def lose(self, thin_id: int | None, what: str) -> None:
        loss = Loss(thin_id, what)
        if loss not in self.losses[-8:]:
            self.losses.append(loss)

    def summary(self) -> str:
        """One line."""
        kept = f"kept {self.thins} thins with {self.mapped_blocks} mapped blocks"
        return f"{kept}, nothing lost" if not self.losses else f"{kept}; {len(self.losses)} losses"


def repair(
    source: BlockDevice,
    target: BlockDevice,
    *,
    transaction_id: int | None = None,
    data_block_sectors: int | None = None,
    data_blocks: int | None = None,
    progress: Progress | None = None,
) -> RepairReport:
    """Write what can be read of `source` to `target`, check it, and clear the needs-check flag if it is clean.

    Args:
        target: at least as large as what is kept needs; its content is lost.
        transaction_id, data_block_sectors, data_blocks: the pool's own, where the caller knows them; they go before
            what the metadata says.
        progress: called with (blocks looked at, blocks in all) now and then.

    Raises:
        MetadataCorrupt: no device trees are left.
        InvalidRequest: the superblock is lost and a size that it held was not given.
        OutOfMetadataSpace: the target is too small; says how many blocks it takes.
    """
    report = RepairReport()
    reader = MetadataReader(source)
    origin = find_origin(reader, progress)
    for note in origin.notes:
        report.lose(None, note)
    superblock = _choose_superblock(origin, report, transaction_id, data_block_sectors, data_blocks)
    salvage = _Salvage(reader, target, superblock, report, progress)
    needs_check = superblock.flags & Superblock.NEEDS_CHECK
    salvage.build(flags=needs_check)
    report.check = check(target)
    if report.check.clean and needs_check:
        clear_needs_check(target)
        report.check = check(target)
    return report


def _choose_superblock(
    origin: Origin,
    report: RepairReport,
    transaction_id: int | None,
    data_block_sectors: int | None,
    data_blocks: int | None,
) -> Superblock:
    """The pool's own figures: what the caller knows, then what the superblock says."""
    superblock = msgspec.structs.replace(origin.superblock)
    if superblock.incompat_flags or superblock.compat_ro_flags:
        flags = superblock.incompat_flags, superblock.compat_ro_flags
        raise InvalidRequest(
            f"the pool uses features that are not known ({flags[0]:#x}, {flags[1]:#x}); use a newer cowfs"
        )
    if data_block_sectors is not None:
        superblock.data_block_sectors = data_block_sectors
    elif not superblock.data_block_sectors:
        raise InvalidRequest("the superblock is lost: the size of the pool's data blocks must be given")
    if transaction_id is not None:
        superblock.transaction_id = transaction_id
    if data_blocks is not None:
        superblock.data_space_map = SpaceMapRoot(data_blocks)
    elif origin.is_superblock_lost:
        raise InvalidRequest("the superblock is lost: the number of the pool's data blocks must be given")
    if superblock.time > MAX_SNAPSHOT_TIME:
        report.lose(None, f"the snapshot counter {superblock.time} is set to {MAX_SNAPSHOT_TIME}, the highest there is")
        superblock.time = MAX_SNAPSHOT_TIME
    if superblock.held_root:
        report.lose(None, "the metadata snapshot is released")
    return superblock


class _Salvage:
    """One repair: walks the source's trees and builds the target's."""

    def __init__(
        self,
        reader: MetadataReader,
        target: BlockDevice,
        superblock: Superblock,
        report: RepairReport,
        progress: Progress | None,
    ) -> None:
        self.reader = reader
        self.superblock = superblock
        self.report = report
        self.builder = MetadataBuilder(
            target,
            data_block_sectors=superblock.data_block_sectors,
            data_blocks=superblock.data_space_map.nr_blocks,
        )
        # The recount is the builder's; this one only judges nodes, and its findings come out as losses.
        self.trees = TreeChecker(reader, Findings(), time=superblock.time, progress=progress)
        self.trees.data_nr_blocks = superblock.data_space_map.nr_blocks
        self.trees.expected_nodes = reader.blocks
        self.trees.check_tree(superblock.details_root, DEVICE_DETAILS, f"details root {superblock.details_root}")
        self.trees.check_tree(superblock.mapping_root, TOP_LEVEL, f"mapping root {superblock.mapping_root}")
        self._copies = array("Q", bytes(8 * reader.blocks))  # source node -> its copy
        self._rebuilt: dict[int, tuple[SubTree, bool]] = {}  # root with flaws below -> its new tree, was something lost

    def build(self, *, flags: int) -> None:
        """Build everything, superblock last."""
        details = self._read_details()
        for thin_id, root in self._read_roots():
            if thin_id > MAX_THIN_ID:
                self.report.lose(thin_id, "dropped, its id has more than 24 bits")
                continue
            subtree = self._take(thin_id, root)
            self._add(thin_id, subtree, details.pop(thin_id, None))
        for thin_id in details:
            self.report.lose(thin_id, "dropped, its mapping tree is lost")
        superblock = self.superblock
        self.builder.finish(
            time=superblock.time, transaction_id=superblock.transaction_id, flags=flags, uuid=superblock.uuid
        )

    def _add(self, thin_id: int, subtree: SubTree, details: DeviceDetails | None) -> None:
        time = self.superblock.time
        if details is None:
            # A late snapshot time makes every block count as shared: it costs a copy, and never harms.
            details = DeviceDetails(0, self.superblock.transaction_id, 0, time)
            self.report.lose(thin_id, "its details are lost: creation and snapshot times are set anew")
        self.builder.add_thin(
            thin_id,
            subtree,
            transaction_id=details.transaction_id,
            creation_time=min(details.creation_time, time),
            snapshotted_time=min(details.snapshotted_time, time),
        )
        self.report.thins += 1
        self.report.mapped_blocks += subtree.total

    # ------------------------------------------------------------------ device trees

    def _read_details(self) -> dict[int, DeviceDetails]:
        found = {}
        for leaf, _, _ in self._readable_leaves(self.superblock.details_root, DEVICE_DETAILS, None):
            for i, thin_id in enumerate(leaf.keys):
                words = leaf.values[3 * i : 3 * i + 3]
                found[thin_id] = DeviceDetails.from_words(words[0], words[1], words[2])
        return found

    def _read_roots(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for leaf, _, _ in self._readable_leaves(self.superblock.mapping_root, TOP_LEVEL, None):
            found.extend(zip(leaf.keys, leaf.values, strict=True))
        return found

    # ------------------------------------------------------------------ mapping trees

    def _take(self, thin_id: int, root: int) -> SubTree:
        if self.trees.is_sound(root, MAPPINGS):
            return self._copy(root, f"thin {thin_id}")
        known = self._rebuilt.get(root)
        if known is None:
            losses = len(self.report.losses)
            known = self._rebuild(thin_id, root), len(self.report.losses) > losses
            self._rebuilt[root] = known
        elif known[1]:
            self.report.lose(thin_id, f"the same mappings lost as of another thin with the mapping root {root}")
        return known[0]

    def _copy(self, location: int, path: str) -> SubTree:
        """Copy a sound subtree once; each further reference is to the same copy."""
        total = self.trees.total(location) or 0
        if self._copies[location]:
            return SubTree(0, self._copies[location], 0, total)
        node = self.reader.node(location, MAPPINGS, path)
        if not node.is_leaf:
            for i, child in enumerate(node.values):
                node.values[i] = self._copy(child, path).location
        target = self.builder.write_mapping_node(node)
        self._copies[location] = target
        return SubTree(0, target, 0, total)

    def _rebuild(self, thin_id: int, root: int) -> SubTree:
        """New parents for the readable leaves of a tree with flaws."""
        tree = self.builder.mapping_tree()
        for leaf, location, is_whole in self._readable_leaves(root, MAPPINGS, thin_id):
            if is_whole and self.trees.is_sound(location, MAPPINGS):
                tree.push_leaf(self._share(leaf, location))
            else:
                self._push_good(tree, leaf, location, thin_id)
        return tree.close()

    def _share(self, leaf: Node, location: int) -> SubTree:
        if not self._copies[location]:
            self._copies[location] = self.builder.write_mapping_node(leaf, may_be_unused=True)
        return SubTree(leaf.keys[0] if leaf.keys else 0, self._copies[location], len(leaf.keys), len(leaf.keys))

    def _push_good(self, tree: TreeBuilder, leaf: Node, location: int, thin_id: int) -> None:
        """The mappings of a leaf that can be true."""
        nr_blocks, time = self.superblock.data_space_map.nr_blocks, self.superblock.time
        where = f"in node {location}"
        kept = [i for i, value in enumerate(leaf.values) if value >> TIME_BITS < nr_blocks]
        if len(kept) < len(leaf.keys):
            lost = len(leaf.keys) - len(kept)
            self.report.lose(thin_id, f"{lost} mappings {where} lead beyond the {nr_blocks} data blocks")
        late = sum(leaf.values[i] & TIME_MASK > time for i in kept)
        if late:
            self.report.lose(thin_id, f"{late} mappings {where} have a time after the pool's; they count as oldest now")
        keys = array("Q", (leaf.keys[i] for i in kept))
        values = array("Q", (_with_possible_time(leaf.values[i], time) for i in kept))
        for run in mapping_runs(keys, values):
            tree.push_run(run)

    # ------------------------------------------------------------------ reading around damage

    def _readable_leaves(self, root: int, tree: TreeKind, thin_id: int | None) -> list[tuple[Node, int, bool]]:
        """(leaf, location, whether it is complete) of each leaf that can be read, keys ascending; reports the others.

        Entries that their parents place elsewhere are cut off, so that what is returned never overlaps.
        """
        found = []
        pending = [(root, 0, KEY_END, 1)]
        while pending:
            location, begin, end, level = pending.pop()
            node = self._read(location, begin, end, tree, thin_id)
            if node is None:
                continue
            if not node.is_leaf:
                if level < MAX_LEVELS and begin <= node.keys[0] and node.keys[-1] < end:
                    pending += [(*child, level + 1) for child in reversed(children(node, end))]
                else:
                    self._lose_range(tree, thin_id, begin, end, f"node {location} is out of place")
                continue
            inside = [i for i, key in enumerate(node.keys) if begin <= key < end]
            is_whole = len(inside) == len(node.keys)
            if not is_whole:
                lost = len(node.keys) - len(inside)
                self._lose_range(tree, thin_id, begin, end, f"{lost} entries of node {location} are out of place")
                node = _slice(node, inside)
            found.append((node, location, is_whole))
        return found

    def _read(self, location: int, begin: int, end: int, tree: TreeKind, thin_id: int | None) -> Node | None:
        try:
            node = self.reader.node(location, tree, "")
        except MetadataCorrupt as error:
            self._lose_range(tree, thin_id, begin, end, str(error))
            return None
        if not self.trees.is_node_of(location, tree):
            self._lose_range(tree, thin_id, begin, end, f"metadata block {location} belongs to another tree")
            return None
        return node

    def _lose_range(self, tree: TreeKind, thin_id: int | None, begin: int, end: int, why: str) -> None:
        last = "the end" if end == KEY_END else str(end - 1)
        if tree is MAPPINGS:
            self.report.lose(thin_id, f"mappings lost between virtual blocks {begin} and {last}: {why}")
        else:
            what = "details" if tree is DEVICE_DETAILS else "mapping trees"
            self.report.lose(None, f"{what} lost between thins {begin} and {last}: {why}")


def _slice(node: Node, inside: list[int]) -> Node:
    """The entries of a leaf at these positions, which follow each other."""
    if not inside:
        return Node.leaf(node.kind)
    begin, end, stride = inside[0], inside[-1] + 1, node.kind.stride
    return Node(node.kind, True, node.keys[begin:end], node.values[begin * stride : end * stride])


def _with_possible_time(value: int, time: int) -> int:
    """The mapping, with time 0 instead of one in the future: what counts as shared is copied, never overwritten."""
    return value if value & TIME_MASK <= time else value & ~TIME_MASK
