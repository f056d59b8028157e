"""Check metadata by counting everything again.

Every node, bitmap and header that the superblock leads to is read once and judged; every reference is counted, and the
counts are compared with both space maps, and the devices' details with what they map. It finds what the kernel and
thin_check look for, and what they do not: data reference counts, mapped blocks, free counts, times.

    superblock -> data space map (index btree, bitmaps, overflow btree), metadata space map (index block, ...)
               -> details btree, mapping btrees, the held metadata snapshot's two
    then: details against mapping trees; both space maps against the recount

The device must not change meanwhile. Nothing is written but by `clear_needs_check`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from cowfs.blockdev import BlockDevice
from cowfs.errors import InvalidRequest, MetadataCorrupt
from cowfs.thinmeta.check_space_maps import StoredMap, compare_map
from cowfs.thinmeta.check_trees import TreeChecker
from cowfs.thinmeta.findings import CheckReport, Findings, MetadataFinding, Severity
from cowfs.thinmeta.format import (
    ENTRIES_PER_BITMAP,
    FORMAT_VERSION,
    SUPERBLOCK_SALT,
    IndexEntry,
    Superblock,
    seal,
    unpack_index,
)
from cowfs.thinmeta.recount import RefCounts
from cowfs.thinmeta.walk import (
    BITMAP_INDEX,
    DEVICE_DETAILS,
    OVERFLOW,
    TOP_LEVEL,
    MetadataReader,
    Progress,
)
from cowfs.units import (
    MAX_METADATA_BLOCKS,
    MAX_SNAPSHOT_TIME,
    METADATA_BLOCK_BYTES,
    METADATA_BLOCK_SECTORS,
    is_data_block_size,
)

__all__ = ["CheckReport", "MetadataFinding", "Severity", "check", "clear_needs_check"]

_FLAGS: Final = struct.Struct("<4xI")


def check(device: BlockDevice, *, data_size_blocks: int | None = None, progress: Progress | None = None) -> CheckReport:
    """Check the metadata on a device completely.

    Args:
        data_size_blocks: size of the pool's data device, where known: the data map must fit.
        progress: called with (blocks looked at, blocks in use) now and then.

    Damage is reported, never raised.
    """
    findings = Findings()
    reader = MetadataReader(device)
    try:
        superblock = Superblock.unpack(reader.read_block(0, "superblock"))
    except MetadataCorrupt as error:
        findings.add_error(error)
        findings.counts_complete = False
        return findings.report()
    return _Check(reader, findings, superblock, progress).run(data_size_blocks)


def clear_needs_check(device: BlockDevice) -> CheckReport:
    """Clear the needs-check flag when a check finds neither leak nor error; returns what it found.

    Raises:
        InvalidRequest: the metadata is not clean; nothing was written.
    """
    report = check(device)
    if not report.clean:
        raise InvalidRequest(f"needs check is not cleared: the check found {report.summary}; repair the metadata first")
    block = bytearray(device.pread(0, METADATA_BLOCK_BYTES))
    (flags,) = _FLAGS.unpack_from(block)
    if flags & Superblock.NEEDS_CHECK:
        block[4:8] = (flags & ~Superblock.NEEDS_CHECK).to_bytes(4, "little")
        device.pwrite(0, seal(block, SUPERBLOCK_SALT))
        device.flush()
    return report


class _Check:
    """One run: the superblock's fields, then trees, then what they say about each other."""

    def __init__(
        self, reader: MetadataReader, findings: Findings, superblock: Superblock, progress: Progress | None
    ) -> None:
        self.reader = reader
        self.findings = findings
        self.thins = self.mapped_blocks = 0
        self.superblock = superblock
        self.trees = TreeChecker(reader, findings, time=superblock.time, progress=progress)
        self.trees.expected_nodes = min(superblock.metadata_space_map.nr_allocated, reader.blocks)

    def run(self, data_size_blocks: int | None) -> CheckReport:
        superblock, trees = self.superblock, self.trees
        self._check_superblock(data_size_blocks)
        if superblock.incompat_flags:
            self.findings.counts_complete = False  # what is behind the superblock may be something else
            return self.findings.report()
        trees.refer(0)
        data_map = self._check_data_map_trees()
        metadata_map = self._check_metadata_map_trees()
        self._check_devices(superblock, "")
        self._check_held()
        self.findings.counts_complete = trees.metadata_complete and trees.data_complete
        compare_map(self.reader, self.findings, data_map, trees.data, complete=trees.data_complete)
        if metadata_map:
            compare_map(self.reader, self.findings, metadata_map, trees.metadata, complete=trees.metadata_complete)
        return self._report()

    def _report(self) -> CheckReport:
        superblock = self.superblock
        return msgspec.structs.replace(
            self.findings.report(),
            needs_check=superblock.needs_check,
            transaction_id=superblock.transaction_id,
            thins=self.thins,
            mapped_blocks=self.mapped_blocks,
            metadata_used_blocks=self.trees.metadata.allocated(),
            metadata_blocks=superblock.metadata_space_map.nr_blocks,
            data_used_blocks=self.trees.data.allocated(),
            data_blocks=superblock.data_space_map.nr_blocks,
        )

    # ------------------------------------------------------------------ superblock

    def _check_superblock(self, data_size_blocks: int | None) -> None:
        superblock = self.superblock
        if superblock.incompat_flags:
            self._superblock(Severity.ERROR, "incompatible features", 0, hex(superblock.incompat_flags))
        if superblock.compat_ro_flags:
            self._superblock(Severity.ERROR, "features incompatible with writing", 0, hex(superblock.compat_ro_flags))
        if superblock.version != FORMAT_VERSION:
            self._superblock(Severity.WARNING, "format version", FORMAT_VERSION, superblock.version)
        if superblock.flags & ~Superblock.NEEDS_CHECK:
            self._superblock(Severity.WARNING, "unknown flags", "0 or 1", hex(superblock.flags))
        if superblock.needs_check:
            self.findings.add(Severity.WARNING, "the needs-check flag is set", block=0, path="superblock")
        if superblock.metadata_block_sectors != METADATA_BLOCK_SECTORS:
            found = superblock.metadata_block_sectors
            self._superblock(Severity.WARNING, "metadata block size in sectors", METADATA_BLOCK_SECTORS, found)
        if not is_data_block_size(superblock.data_block_sectors):
            allowed = "a multiple of 128, up to 2097152"
            self._superblock(Severity.ERROR, "data block size in sectors", allowed, superblock.data_block_sectors)
        if superblock.time > MAX_SNAPSHOT_TIME:
            self._superblock(Severity.ERROR, "snapshot counter", f"at most {MAX_SNAPSHOT_TIME}", superblock.time)
        self._check_sizes(data_size_blocks)

    def _check_sizes(self, data_size_blocks: int | None) -> None:
        superblock, blocks = self.superblock, self.reader.blocks
        nr_blocks = superblock.metadata_space_map.nr_blocks
        limit = min(blocks, MAX_METADATA_BLOCKS)
        if nr_blocks > limit:
            self._superblock(Severity.ERROR, "metadata space map: size in blocks", f"at most {limit}", nr_blocks)
        if superblock.metadata_nr_blocks > nr_blocks:
            found = superblock.metadata_nr_blocks
            self._superblock(Severity.WARNING, "metadata size when formatted", f"at most {nr_blocks}", found)
        data_blocks = superblock.data_space_map.nr_blocks
        if data_size_blocks is not None and data_blocks > data_size_blocks:
            self._superblock(
                Severity.ERROR, "data space map: size in blocks", f"at most {data_size_blocks}", data_blocks
            )

    def _superblock(self, severity: Severity, what: str, expected: object, found: object) -> None:
        self.findings.add(severity, what, block=0, path="superblock", expected=expected, found=found)

    # ------------------------------------------------------------------ space maps' own trees

    def _check_data_map_trees(self) -> StoredMap:
        root, trees = self.superblock.data_space_map, self.trees
        path = f"data space map -> index root {root.bitmap_root}"
        whole = trees.check_tree(root.bitmap_root, BITMAP_INDEX, path)
        needed = -(-root.nr_blocks // ENTRIES_PER_BITMAP)
        indexes = [bitmap.index for bitmap in trees.bitmaps]
        if whole and (len(indexes) != needed or indexes != list(range(needed))):
            self.findings.add(
                Severity.ERROR,
                f"bitmaps of a map of {root.nr_blocks} blocks",
                block=root.bitmap_root,
                path=path,
                expected=f"{needed}, numbered from 0",
                found=f"{len(indexes)}" + (f", up to {indexes[-1]}" if indexes else ""),
            )
        # Memory for counting follows the bitmaps that really exist, not what the superblock claims.
        distinct = len({bitmap.entry.bitmap_block for bitmap in trees.bitmaps})
        trees.data_nr_blocks = root.nr_blocks
        trees.data = RefCounts(min(root.nr_blocks, distinct * ENTRIES_PER_BITMAP))
        overflow = trees.check_tree(
            root.ref_count_root, OVERFLOW, f"data space map -> overflow root {root.ref_count_root}"
        )
        entries = [(b.index, b.entry, b.location, b.path) for b in trees.bitmaps if b.index < trees.data.bitmaps]
        return StoredMap("data", root, entries, overflow)

    def _check_metadata_map_trees(self) -> StoredMap | None:
        root, trees = self.superblock.metadata_space_map, self.trees
        overflow = trees.check_tree(
            root.ref_count_root, OVERFLOW, f"metadata space map -> overflow root {root.ref_count_root}"
        )
        location = root.bitmap_root
        path = f"metadata space map -> index {location}"
        trees.refer(location)
        count = -(-min(root.nr_blocks, self.reader.blocks) // ENTRIES_PER_BITMAP)
        try:
            entries = unpack_index(self.reader.read_block(location, path), location, count, path)
        except MetadataCorrupt as error:
            self.findings.add_error(error)
            trees.metadata_complete = False
            return None
        for entry in entries:
            trees.refer(entry.bitmap_block)
        numbered: list[tuple[int, IndexEntry, int, str]] = [(i, e, location, path) for i, e in enumerate(entries)]
        return StoredMap("metadata", root, numbered, overflow)

    # ------------------------------------------------------------------ devices

    def _check_devices(self, superblock: Superblock, prefix: str) -> None:
        """The details tree and the mapping trees of the live superblock or of the held one."""
        trees, details_root, mapping_root = self.trees, superblock.details_root, superblock.mapping_root
        has_details = trees.check_tree(details_root, DEVICE_DETAILS, f"{prefix}details root {details_root}")
        has_roots = trees.check_tree(mapping_root, TOP_LEVEL, f"{prefix}mapping root {mapping_root}")
        if not (has_details and has_roots):
            return
        try:
            thins = mapped = 0
            for blocks in self._compare_devices(superblock, prefix):
                thins += 1
                mapped += blocks
        except MetadataCorrupt:
            return  # out of order, which the walk of the trees has reported
        if not prefix:
            self.thins, self.mapped_blocks = thins, mapped

    def _compare_devices(self, superblock: Superblock, prefix: str) -> Iterator[int]:
        """Mapped blocks of each device that is in both trees; reports the others, and wrong details."""
        details_path = f"{prefix}details root {superblock.details_root}"
        roots, details = self.reader.thin_roots(superblock), self.reader.details(superblock)
        root, detail = next(roots, None), next(details, None)
        while root or detail:
            if root and (not detail or root[0] < detail[0]):
                self._device_error(root[0], "has no device details", superblock.details_root, details_path)
                root = next(roots, None)
            elif detail and (not root or detail[0] < root[0]):
                path = f"{prefix}mapping root {superblock.mapping_root}"
                self._device_error(detail[0], "has no mapping tree", superblock.mapping_root, path)
                detail = next(details, None)
            elif root and detail:
                thin_id, device = detail
                total = self.trees.total(root[1])
                if total is not None and total != device.mapped_blocks:
                    what = "has a wrong number of mapped blocks"
                    self._device_error(
                        thin_id, what, superblock.details_root, details_path, total, device.mapped_blocks
                    )
                latest = max(device.creation_time, device.snapshotted_time)
                if latest > self.superblock.time:
                    self.findings.add(
                        Severity.WARNING,
                        f"thin {thin_id} has a time after the pool's",
                        block=superblock.details_root,
                        path=details_path,
                        expected=f"at most {self.superblock.time}",
                        found=latest,
                    )
                yield total or 0
                root, detail = next(roots, None), next(details, None)

    def _device_error(
        self, thin_id: int, what: str, block: int, path: str, expected: object = "", found: object = ""
    ) -> None:
        what = f"thin {thin_id} {what}"
        self.findings.add(Severity.ERROR, what, block=block, path=path, expected=expected, found=found)

    def _check_held(self) -> None:
        location = self.superblock.held_root
        if not location:
            return
        path = f"held superblock {location}"
        try:
            held = Superblock.unpack(self.reader.read_block(location, path), location)
        except MetadataCorrupt as error:
            self.findings.add_error(error)
            self.trees.metadata_complete = False
            self.trees.data_complete = False
            return
        self.trees.refer(location)
        self._check_devices(held, f"{path} -> ")
