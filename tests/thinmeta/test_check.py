"""The full recount: clean metadata is clean; each defect gives exactly its finding, beside what the thin tools say."""

from __future__ import annotations

import contextlib
import random
import re
from dataclasses import dataclass

import pytest

from cowfs.blockdev import MemoryDevice
from cowfs.errors import CowfsError, InvalidRequest, MetadataCorrupt
from cowfs.thinmeta import Metadata
from cowfs.thinmeta.check import Severity, check, clear_needs_check
from cowfs.thinmeta.findings import MAX_FINDINGS
from cowfs.thinmeta.format import pack_bitmap
from cowfs.thinmeta.walk import MAPPINGS, MetadataReader
from cowfs.units import METADATA_BLOCK_BYTES
from tests.kit.damage import DAMAGES, MetadataEditor
from tests.thinmeta.conftest import Tools, copy_of, map_blocks, xml_of

ERROR, LEAK, WARNING = Severity.ERROR, Severity.LEAK, Severity.WARNING


@dataclass(frozen=True)
class Expected:
    """What a defect leads to: our one finding, and the exit status of thin_check 0.9.0 and 1.1.0."""

    severity: Severity | None
    says: str
    old: int
    new: int
    complete: bool = True


EXPECTED = {
    "superblock_checksum": Expected(ERROR, "not a superblock: checksum is", 1, 64, complete=False),
    "superblock_magic": Expected(ERROR, "magic is 27022011 and should be 27022010", 0, 0, complete=False),
    "superblock_blocknr": Expected(ERROR, "says it is block N", 0, 0, complete=False),
    "version_1": Expected(WARNING, "format version: found 1, expected 2", 0, 0),
    "uuid": Expected(None, "", 0, 0),
    "formatted_size": Expected(WARNING, "metadata size when formatted: found 1000000", 0, 0),
    "metadata_block_size": Expected(WARNING, "metadata block size in sectors: found 16, expected 8", 0, 0),
    "data_block_size": Expected(ERROR, "data block size in sectors: found 100", 0, 0),
    "compat_ro_feature": Expected(ERROR, "features incompatible with writing: found 0x1", 0, 0),
    "incompat_feature": Expected(ERROR, "incompatible features: found 0x1", 0, 0, complete=False),
    "unknown_flag": Expected(WARNING, "unknown flags: found 0x2", 0, 0),
    "needs_check": Expected(WARNING, "the needs-check flag is set", 0, 0),
    "snapshot_counter": Expected(ERROR, "snapshot counter: found 16777216, expected at most 16777215", 0, 0),
    "held_root_is_no_superblock": Expected(ERROR, "(held superblock): magic is 0", 1, 64, complete=False),
    "metadata_map_larger_than_device": Expected(ERROR, "size in blocks: found 257, expected at most 256", 0, 0),
    "metadata_nr_allocated": Expected(WARNING, "metadata space map: number of allocated blocks: found", 0, 0),
    "data_nr_allocated": Expected(WARNING, "data space map: number of allocated blocks: found 1339", 0, 0),
    "index_checksum": Expected(ERROR, "not a metadata index: checksum is", 1, 64, complete=False),
    "metadata_bitmap_checksum": Expected(ERROR, "-> bitmap 0): not a bitmap: checksum is", 1, 64),
    "data_bitmap_checksum": Expected(ERROR, "-> bitmap 0): not a bitmap: checksum is", 1, 64),
    "data_index_checksum": Expected(ERROR, "(data space map -> index root N): not a btree", 1, 64, complete=False),
    "data_overflow_checksum": Expected(ERROR, "(data space map -> overflow root N): not", 1, 64, complete=False),
    "metadata_overflow_checksum": Expected(ERROR, "(metadata space map -> overflow root", 1, 64, complete=False),
    "leaf_checksum": Expected(ERROR, "-> thin 1 -> node N): not a btree node: checksum", 1, 64, complete=False),
    "mapping_root_checksum": Expected(ERROR, "-> thin 1): not a btree node: checksum is", 1, 64, complete=False),
    "top_level_checksum": Expected(ERROR, "(mapping root N): not a btree node: checksum", 1, 64, complete=False),
    "details_checksum": Expected(ERROR, "(details root N): not a btree node: checksum", 1, 64, complete=False),
    "held_checksum": Expected(ERROR, "(held superblock): not a superblock: checksum", 1, 64, complete=False),
    "node_blocknr": Expected(ERROR, "-> thin 1 -> node N): says it is block N", 1, 64, complete=False),
    "node_value_size": Expected(ERROR, "values of 4 bytes where 8 (u64) are expected", 1, 64, complete=False),
    "node_without_flags": Expected(ERROR, "node flags are 0x0", 1, 64, complete=False),
    "node_both_flags": Expected(ERROR, "node flags are 0x3", 1, 64, complete=False),
    "node_too_many_entries": Expected(ERROR, "253 entries of at most 252 do not fit", 1, 64, complete=False),
    "node_max_entries": Expected(ERROR, "maximum of entries: found 250, expected 252", 1, 64),
    "keys_out_of_order": Expected(ERROR, "keys are not in ascending order", 1, 64, complete=False),
    "keys_outside_of_parents": Expected(ERROR, "keys are outside of what the parent says: found 0..346", 1, 64),
    "node_too_empty": Expected(ERROR, "too few entries: found 83, expected at least 84", 1, 64),
    "child_is_parent": Expected(ERROR, "-> thin 1 -> node N): leads back to itself", 1, 64, complete=False),
    "child_past_the_end": Expected(ERROR, "is past the end of the metadata device of 256", 1, 64, complete=False),
    "node_of_another_tree": Expected(ERROR, "is part of a top-level tree and of a mapping", 1, 64, complete=False),
    "metadata_leak": Expected(LEAK, "reference count of metadata block N: found 1, expected 0", 1, 64),
    "metadata_count_too_high": Expected(ERROR, "reference count of metadata block N: found 2, expected 1", 1, 64),
    "metadata_count_zero": Expected(ERROR, "reference count of metadata block N: found 0, expected 1", 1, 64),
    "data_leak": Expected(LEAK, "reference count of data block 16319: found 1, expected 0", 0, 64),
    "data_count_too_high": Expected(ERROR, "reference count of data block 1339: found 2, expected 1", 0, 64),
    "data_count_too_low": Expected(ERROR, "reference count of data block 1014: found 1, expected 2", 0, 64),
    "data_count_zero": Expected(ERROR, "reference count of data block 1339: found 0, expected 1", 0, 64),
    "overflow_entry_missing": Expected(ERROR, "is marked as in the overflow btree, which has no count", 0, 64),
    "overflow_entry_without_mark": Expected(ERROR, "a reference count of 3 for data block 16319, which its", 0, 64),
    "overflow_count": Expected(ERROR, "reference count of data block 249: found 4, expected 3", 0, 64),
    "overflow_count_too_low": Expected(ERROR, "a reference count of 2 for data block 249: too low", 0, 64),
    "counts_past_the_end": Expected(LEAK, "-> bitmap 1): counts past the end of the map", 0, 0),
    "bitmap_missing": Expected(ERROR, "bitmaps of a map of 32641 blocks: found 2, up to 1, expected 3", 0, 0),
    "data_nr_free": Expected(WARNING, "free blocks of bitmap 0: found 14979, expected 14980", 0, 0),
    "data_none_free_before": Expected(WARNING, "first free block of bitmap 0: found 1341, expected at most", 0, 0),
    "metadata_nr_free": Expected(WARNING, "-> index N): free blocks of bitmap 0: found", 0, 0),
    "mapped_blocks": Expected(ERROR, "thin 10 has a wrong number of mapped blocks: found 299, expected 300", 0, 64),
    "details_time": Expected(WARNING, "thin 10 has a time after the pool's: found 8, expected at most 7", 0, 0),
    "details_missing": Expected(ERROR, "thin 10 has no device details", 0, 64),
    "mapping_tree_missing": Expected(ERROR, "thin 11 has no mapping tree", 0, 64),
    "thin_id_too_large": Expected(ERROR, "thin id 16777216 has more than 24 bits", 0, 0),
    "mapping_beyond_data": Expected(ERROR, "a mapping from virtual block 200 on beyond the data map", 0, 0),
    "mapping_time": Expected(ERROR, "from virtual block 0 on with a time after the pool's: found 8", 0, 0),
}


def without_locations(line: str) -> str:
    """The line with N for every metadata block, which depend on the writer's choice of places."""
    return re.sub(r"\b(node|root|index|metadata block|superblock|is block) \d+", r"\1 N", line)


def test_every_defect_is_expected() -> None:
    assert EXPECTED.keys() == DAMAGES.keys()


def test_clean_sample(sample: MemoryDevice) -> None:
    report = check(sample, data_size_blocks=20000)
    assert (report.summary, report.findings, report.exit_code) == ("clean", [], 0)
    assert (report.transaction_id, report.thins, report.needs_check) == (17, 10, False)
    metadata = Metadata.open(sample, read_only=True)
    assert report.mapped_blocks == sum(metadata.details(thin_id).mapped_blocks for thin_id in metadata.thin_ids())
    assert report.data_used_blocks == metadata.data_used_blocks
    assert report.metadata_used_blocks == metadata.metadata_blocks - metadata.metadata_free_blocks


def test_clean_docker_metadata(docker: MemoryDevice) -> None:
    report = check(docker)
    assert report.summary == "clean"
    assert (report.thins, report.mapped_blocks, report.data_used_blocks) == (4, 3231, 832)


@pytest.mark.parametrize("name", DAMAGES)
def test_each_defect_gives_exactly_its_finding(name: str, sample: MemoryDevice) -> None:
    expected = EXPECTED[name]
    DAMAGES[name](sample)
    report = check(sample)
    lines = [str(finding) for finding in report.findings]
    if expected.severity is None:
        assert lines == []
        return
    assert len(lines) == 1, lines
    assert expected.says in without_locations(lines[0])
    assert report.findings[0].severity is expected.severity
    assert ("leaks were not looked for" not in report.summary) is expected.complete
    assert report.clean == (expected.severity is WARNING)
    assert report.exit_code == (0 if report.clean else 4)


def test_the_tools_find_the_sample_clean(sample: MemoryDevice, old_tools: Tools, new_tools: Tools) -> None:
    assert (old_tools.check(sample), new_tools.check(sample)) == (0, 0)


@pytest.mark.parametrize("name", DAMAGES)
def test_what_thin_check_0_9_says(name: str, sample: MemoryDevice, old_tools: Tools) -> None:
    DAMAGES[name](sample)
    assert old_tools.check(sample) == EXPECTED[name].old


@pytest.mark.parametrize("name", DAMAGES)
def test_what_thin_check_1_1_says(name: str, sample: MemoryDevice, new_tools: Tools) -> None:
    DAMAGES[name](sample)
    assert new_tools.check(sample) == EXPECTED[name].new


def test_data_device_smaller_than_the_map(sample: MemoryDevice) -> None:
    report = check(sample, data_size_blocks=19999)
    assert [str(finding) for finding in report.findings] == [
        "error: metadata block 0 (superblock): data space map: size in blocks: found 20000, expected at most 19999"
    ]


def test_leaves_at_unequal_depth(sample: MemoryDevice) -> None:
    """A node put between the root and its last leaf: also too empty, since it has one child."""
    editor = MetadataEditor(sample)
    root, node = editor.deep_thin()
    inserted = editor.first(editor.metadata_bitmap(), 0, editor.reader.blocks)
    between = node.copy()
    del between.keys[:-1], between.values[:-1]
    editor.write_node(inserted, between)
    node.values[-1] = inserted
    editor.write_node(root, node)
    editor.set_metadata_count(inserted, 1)
    child = between.values[0]
    references = editor.counts(editor.metadata_bitmap())[child]
    findings = [str(finding) for finding in check(sample).findings]
    assert any("leaves at unequal depth, 1 and 2 below it" in line for line in findings)
    assert any(f"node {inserted}): too few entries: found 1" in line for line in findings)
    assert len(findings) == 2, (findings, references)


def test_many_findings_are_counted_and_cut(sample: MemoryDevice) -> None:
    """Every second free data block leaks, so no two make one finding."""
    editor = MetadataEditor(sample)
    bitmap = editor.data_bitmap()
    counts = editor.counts(bitmap)
    free = [block for block in range(0, len(counts), 2) if not counts[block]]
    for block in free:
        counts[block] = 1
    editor.write(bitmap, pack_bitmap(counts, bitmap))
    report = check(sample)
    assert report.summary.startswith(f"{len(free)} leaks, ")
    assert len(report.findings) == MAX_FINDINGS
    assert report.hidden_findings == len(free) + 2 - MAX_FINDINGS > 0
    assert not report.clean


def test_a_run_of_leaked_blocks_is_one_finding(sample: MemoryDevice) -> None:
    editor = MetadataEditor(sample)
    for block in range(15000, 15100):
        editor.set_data_count(block, 1)
    (finding,) = check(sample).findings
    assert "reference count of data blocks 15000..15099: found 1, expected 0" in str(finding)


def test_partial_recount_still_sees_counts_that_are_too_low(sample: MemoryDevice) -> None:
    """Damage hides some references; a count below those that were seen is wrong all the same, leaks are unknown."""
    DAMAGES["data_count_zero"](sample)
    DAMAGES["data_leak"](sample)
    DAMAGES["leaf_checksum"](sample)
    report = check(sample)
    assert sorted(finding.severity.value for finding in report.findings) == ["error", "error"]
    assert any("data block 1339: found 0, expected 1" in str(finding) for finding in report.findings)
    assert "leaks were not looked for" in report.summary


def test_clear_needs_check(sample: MemoryDevice) -> None:
    before = copy_of(sample)
    DAMAGES["needs_check"](sample)
    assert check(sample).needs_check
    assert clear_needs_check(sample).clean
    assert not check(sample).needs_check
    assert sample.pread(0, sample.size_bytes) == before.pread(0, before.size_bytes)


@pytest.mark.parametrize("name", ["data_leak", "leaf_checksum", "superblock_checksum"])
def test_needs_check_stays_on_damaged_metadata(name: str, sample: MemoryDevice) -> None:
    DAMAGES["needs_check"](sample)
    DAMAGES[name](sample)
    before = copy_of(sample)
    with pytest.raises(InvalidRequest, match="repair the metadata first"):
        clear_needs_check(sample)
    assert sample.pread(0, sample.size_bytes) == before.pread(0, before.size_bytes)


def test_progress_is_reported() -> None:
    device = MemoryDevice(4 << 20)
    metadata = Metadata.create(device, 128)
    metadata.resize_data(70000)
    metadata.create_thin(1)
    map_blocks(metadata, 1, 0, 70000)
    metadata.commit()
    metadata.close()
    told: list[tuple[int, int]] = []
    report = check(device, progress=lambda done, total: told.append((done, total)))
    assert told
    assert all(0 < done <= total == report.metadata_used_blocks for done, total in told)


# --------------------------------------------------------------------------------------------- hostile metadata


def reachable_blocks(device: MemoryDevice) -> set[int]:
    """Metadata blocks with a reference, as the recount sees them."""
    editor = MetadataEditor(device)
    counts = editor.counts(editor.metadata_bitmap())
    return {block for block in range(editor.reader.blocks) if counts[block]}


def test_a_flipped_bit_in_a_used_block_is_never_clean(sample_content: bytes, rng: random.Random) -> None:
    device = MemoryDevice(len(sample_content))
    device.pwrite(0, sample_content)
    used = sorted(reachable_blocks(device))
    for _ in range(600):
        location, bit = rng.choice(used), rng.randrange(8 * METADATA_BLOCK_BYTES)
        flip(device, location, bit)
        assert not check(device).clean, (location, bit)
        flip(device, location, bit)
    assert check(device).summary == "clean"


def flip(device: MemoryDevice, location: int, bit: int) -> None:
    offset = location * METADATA_BLOCK_BYTES + bit // 8
    device.pwrite(offset, bytes([device.pread(offset, 1)[0] ^ 1 << bit % 8]))


def test_a_flipped_bit_in_a_free_block_changes_nothing(sample: MemoryDevice, rng: random.Random) -> None:
    used = reachable_blocks(sample)
    before = xml_of(sample)
    for location in sorted(set(range(256)) - used):
        flip(sample, location, rng.randrange(8 * METADATA_BLOCK_BYTES))
    assert check(sample).summary == "clean"
    assert xml_of(sample) == before


def test_flipped_bits_under_a_right_checksum(sample_content: bytes, rng: random.Random) -> None:
    """Whatever a valid-looking block says: reading ends, with the package's own errors; what is clean can be dumped."""
    device = MemoryDevice(len(sample_content))
    device.pwrite(0, sample_content)
    used = sorted(reachable_blocks(device))
    original = xml_of(device)
    silent = 0
    for _ in range(600):
        location, offset = rng.choice(used), rng.randrange(4, METADATA_BLOCK_BYTES)
        (byte,) = device.pread(location * METADATA_BLOCK_BYTES + offset, 1)
        MetadataEditor(device).patch(location, offset, bytes([byte ^ 1 << rng.randrange(8)]))
        report = check(device)
        try:
            text = xml_of(device)
        except MetadataCorrupt:
            assert not report.clean, (location, offset)
        else:
            silent += report.clean and text != original
        device.pwrite(0, sample_content)
    # Some fields have nothing to compare them with: a virtual block, a time, a transaction id.
    assert silent < 60


@pytest.mark.parametrize("seed", range(4))
def test_many_flipped_bits_under_right_checksums(seed: int, sample_content: bytes) -> None:
    rng = random.Random(seed)
    for _ in range(40):
        device = MemoryDevice(len(sample_content))
        device.pwrite(0, sample_content)
        editor = MetadataEditor(device)
        for location in rng.sample(sorted(reachable_blocks(device)), 6):
            offset = rng.choice([rng.randrange(4, 64), rng.randrange(4, METADATA_BLOCK_BYTES)])
            editor.patch(location, offset, rng.randbytes(rng.randrange(1, 9))[: METADATA_BLOCK_BYTES - offset])
        report = check(device)
        try:
            xml_of(device)
        except MetadataCorrupt:
            assert not report.clean


def test_truncated_anywhere_is_never_clean(sample_content: bytes, rng: random.Random) -> None:
    lengths = [0, 1, 511, 4095, 4096, *(rng.randrange(len(sample_content)) for _ in range(60))]
    for length in lengths:
        device = MemoryDevice(length)
        device.pwrite(0, sample_content[:length])
        assert not check(device).clean, length
        with contextlib.suppress(CowfsError):
            xml_of(device)


def test_a_tree_without_end_is_refused(sample: MemoryDevice) -> None:
    """More levels than any tree has, each node with one child: a chain through every free block."""
    editor = MetadataEditor(sample)
    root, node = editor.deep_thin()
    free = sorted(set(range(editor.reader.blocks)) - reachable_blocks(sample))
    chain = node.copy()
    del chain.keys[1:], chain.values[1:]
    for location, child in zip(free, [*free[1:], node.values[0]], strict=True):
        chain.values[0] = child
        editor.write_node(location, chain)
    node.values[0] = free[0]
    editor.write_node(root, node)
    assert any("the tree has more than 32 levels" in str(finding) for finding in check(sample).findings)
    with pytest.raises(MetadataCorrupt, match="more than 32 levels"):
        xml_of(sample)


def test_a_node_used_twice_in_one_tree_does_not_multiply_work(sample: MemoryDevice) -> None:
    """All children of an internal node are the same one; unfolded it would be walked for ever."""
    editor = MetadataEditor(sample)
    root, node = editor.deep_thin()
    for i in range(len(node.values)):
        node.values[i] = node.values[0]
    editor.write_node(root, node)
    assert not check(sample).clean
    with pytest.raises(MetadataCorrupt, match="outside of what the parent says"):
        list(MetadataReader(sample).leaves(root, MAPPINGS, ""))


def test_a_data_map_as_large_as_numbers_go(sample: MemoryDevice) -> None:
    editor = MetadataEditor(sample)
    editor.superblock.data_space_map.nr_blocks = 2**63
    editor.write_superblock()
    assert any("bitmaps of a map of" in str(finding) for finding in check(sample).findings)
