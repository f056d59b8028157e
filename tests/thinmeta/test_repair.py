"""Repair: each defect is detected, then fixed, then clean, with as much kept as can be known; the source stays."""

from __future__ import annotations

import random
import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from cowfs.blockdev import MemoryDevice
from cowfs.errors import CowfsError, InvalidRequest, MetadataCorrupt, OutOfMetadataSpace
from cowfs.thinmeta import Metadata
from cowfs.thinmeta.check import check
from cowfs.thinmeta.format import ENTRIES_PER_BITMAP
from cowfs.thinmeta.repair import RepairReport, repair
from cowfs.thinmeta.walk import TOP_LEVEL, MetadataReader
from cowfs.units import METADATA_BLOCK_BYTES
from tests.kit.damage import DAMAGES, MetadataEditor
from tests.thinmeta.conftest import Tools, copy_of, map_blocks, xml_of

Mappings = dict[int, dict[int, int]]

REFUSED = {"incompat_feature", "compat_ro_feature"}
# What these break is not known any more, or was never right; every other defect is repaired without a trace.
LOSSY = {
    "leaf_checksum": "thin 1: mappings lost between virtual blocks 0 and 345: metadata block N: not a btree node",
    "mapping_root_checksum": "thin 1: mappings lost between virtual blocks 0 and the end: metadata block N: not a",
    "node_blocknr": "thin 1: mappings lost between virtual blocks 0 and 345: metadata block N: says it is block N",
    "node_value_size": "values of 4 bytes where 8",
    "node_without_flags": "node flags are 0x0",
    "node_both_flags": "node flags are 0x3",
    "node_too_many_entries": "253 entries of at most 252",
    "node_too_empty": "",
    "keys_out_of_order": "keys are not in ascending order",
    "keys_outside_of_parents": "1 entries of node N are out of place",
    "child_is_parent": "thin 1: mappings lost between virtual blocks 0 and 345: node N is out of place",
    "child_past_the_end": "thin 1: mappings lost between virtual blocks 0 and 345: metadata block N: is past the end",
    "node_of_another_tree": "metadata block N belongs to another tree",
    "mapping_beyond_data": "1 mappings in node N lead beyond the 20000 data blocks",
    "mapping_time": "1 mappings in node N have a time after the pool's; they count as oldest now",
    "details_missing": "thin 10: its details are lost",
    "mapping_tree_missing": "thin 11: dropped, its mapping tree is lost",
    "thin_id_too_large": "thin 16777216: dropped, its id has more than 24 bits",
    "data_block_size": "",
    "snapshot_counter": "the snapshot counter 16777216 is set to 16777215",
    "top_level_checksum": "the mapping trees were found by a search, at N; they may be of an older transaction",
    "details_checksum": "thin 10: its details are lost: creation and snapshot times are set anew",
    "superblock_checksum": "the superblock is damaged",
    "superblock_magic": "the superblock is damaged",
    "superblock_blocknr": "the superblock is damaged",
    "version_1": "",
    "details_time": "",
    "needs_check": "",
    "unknown_flag": "",
}


def without_locations(line: str) -> str:
    """The line with N for every metadata block, which depend on the writer's choice of places."""
    return re.sub(r"\b(node|root|metadata block|is block|search, at) \d+", r"\1 N", line)


def mappings_of(device: MemoryDevice, *, held: bool = False) -> Mappings:
    found: Mappings = {}
    reader = MetadataReader(device)
    for thin in reader.thins(reader.superblock(held=held)):
        mappings = found[thin.thin_id] = {}
        for runs in reader.runs(thin.root, thin.path):
            for run in runs:
                mappings.update({run.vblock + i: run.dblock + i for i in range(run.length)})
    return found


def repaired(source: MemoryDevice, size_bytes: int = 2 << 20, **known: Any) -> tuple[MemoryDevice, RepairReport]:
    before = copy_of(source)
    target = MemoryDevice(size_bytes)
    report = repair(source, target, **known)
    assert source.pread(0, source.size_bytes) == before.pread(0, before.size_bytes)
    assert check(target).summary == "clean" == report.check.summary
    return target, report


def test_healthy_metadata_stays_as_it_is(sample: MemoryDevice, old_tools: Tools, new_tools: Tools) -> None:
    target, report = repaired(sample)
    assert xml_of(target) == xml_of(sample)
    assert [str(loss) for loss in report.losses] == ["the metadata snapshot is released"]
    assert (old_tools.check(target), new_tools.check(target)) == (0, 0)
    assert old_tools.output("thin_dump", target) == xml_of(sample)
    # Sharing is kept: the copy needs no more blocks than the original.
    assert report.check.metadata_used_blocks <= check(sample).metadata_used_blocks
    assert check(sample).data_used_blocks >= report.check.data_used_blocks


@pytest.mark.parametrize("name", sorted(DAMAGES.keys() - LOSSY.keys() - REFUSED))
def test_detected_fixed_clean(name: str, sample: MemoryDevice, old_tools: Tools) -> None:
    before = xml_of(sample)
    DAMAGES[name](sample)
    if name != "uuid":
        assert check(sample).findings
    if name == "bitmap_missing":
        before = before.replace('nr_data_blocks="20000"', f'nr_data_blocks="{2 * ENTRIES_PER_BITMAP + 1}"')
    target, report = repaired(sample)
    assert all("metadata snapshot" in str(loss) for loss in report.losses)
    assert old_tools.check(target) == 0
    assert old_tools.output("thin_dump", target) == xml_of(target) == before


@pytest.mark.parametrize("name", sorted(LOSSY.keys() - {"data_block_size"}))
def test_detected_fixed_losses_reported(name: str, sample: MemoryDevice, old_tools: Tools, new_tools: Tools) -> None:
    # Without a top level, what is left is the state that the metadata snapshot holds.
    original = mappings_of(sample, held=name == "top_level_checksum")
    DAMAGES[name](sample)
    assert check(sample).findings
    target, report = repaired(sample)
    losses = [without_locations(str(loss)) for loss in report.losses]
    assert any(LOSSY[name] in loss for loss in losses), losses
    assert (old_tools.check(target), new_tools.check(target)) == (0, 0)
    kept = mappings_of(target)
    for thin_id, mappings in kept.items():
        assert mappings.items() <= original[thin_id].items()
    if name != "thin_id_too_large":
        assert kept.keys() == original.keys()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_unknown_features_are_left_alone(name: str, sample: MemoryDevice) -> None:
    DAMAGES[name](sample)
    with pytest.raises(InvalidRequest, match="features that are not known"):
        repair(sample, MemoryDevice(1 << 20))


def test_an_impossible_block_size_must_be_given(sample: MemoryDevice) -> None:
    before = xml_of(sample)
    DAMAGES["data_block_size"](sample)
    with pytest.raises(InvalidRequest, match="a data block of 100 sectors"):
        repair(sample, MemoryDevice(1 << 20))
    target, _ = repaired(sample, data_block_sectors=128)
    assert xml_of(target) == before


def test_exactly_one_leaf_is_lost_and_its_sharers_say_so(sample: MemoryDevice) -> None:
    original = mappings_of(sample)
    editor = MetadataEditor(sample)
    location, leaf = editor.last_leaf()
    editor.flip(location, 5000)
    sharers = [
        thin_id
        for thin_id, root, _ in editor.reader.thin_roots(editor.superblock)
        if location in editor.reader.node(root, TOP_LEVEL, "").values
    ]
    target, report = repaired(sample)
    kept = mappings_of(target)
    for thin_id, mappings in original.items():
        lost = set(leaf.keys) if thin_id in sharers else set()
        assert kept[thin_id] == {vblock: dblock for vblock, dblock in mappings.items() if vblock not in lost}
    told = {loss.thin_id for loss in report.losses if loss.thin_id is not None}
    assert told == set(sharers)
    assert len(sharers) > 1


def test_needs_check_is_cleared_by_a_clean_repair(sample: MemoryDevice) -> None:
    before = xml_of(sample)
    DAMAGES["needs_check"](sample)
    DAMAGES["data_leak"](sample)
    target, report = repaired(sample)
    assert not report.check.needs_check
    assert xml_of(target) == before


def test_superblock_gone_but_sizes_known(sample: MemoryDevice, old_tools: Tools) -> None:
    original = mappings_of(sample)
    sample.pwrite(0, bytes(METADATA_BLOCK_BYTES))
    with pytest.raises(InvalidRequest, match="the number of the pool's data blocks must be given"):
        repair(sample, MemoryDevice(1 << 20))
    target, report = repaired(sample, transaction_id=17, data_block_sectors=128, data_blocks=20000)
    assert any("found by a search" in str(loss) for loss in report.losses)
    assert old_tools.check(target) == 0
    assert mappings_of(target) == original
    assert report.check.transaction_id == 17


def test_superblock_names_wrong_roots(sample: MemoryDevice) -> None:
    """A damaged root pointer in a damaged superblock: the right trees are found again."""
    original = mappings_of(sample)
    MetadataEditor(sample).flip(0, 8 * 320 + 1)
    target, report = repaired(sample)
    assert mappings_of(target) == original
    assert any("the superblock is damaged" in str(loss) for loss in report.losses)


def test_nothing_left(sample: MemoryDevice) -> None:
    for device in (MemoryDevice(1 << 20), MemoryDevice(0), MemoryDevice(5000)):
        with pytest.raises(MetadataCorrupt):
            repair(device, MemoryDevice(1 << 20), data_block_sectors=128, data_blocks=100)


def test_target_too_small_says_how_much_it_takes(sample: MemoryDevice) -> None:
    with pytest.raises(OutOfMetadataSpace) as caught:
        repair(sample, MemoryDevice(20 * METADATA_BLOCK_BYTES))
    match = re.search(r"has 20 blocks of 4096 bytes and (\d+) are needed", caught.value.message)
    assert match
    needed = int(match[1])
    repaired(sample, needed * METADATA_BLOCK_BYTES)
    with pytest.raises(OutOfMetadataSpace):
        repair(sample, MemoryDevice((needed - 1) * METADATA_BLOCK_BYTES))


def test_many_snapshots_of_a_damaged_tree_stay_shared() -> None:
    """300 snapshots of one root with a damaged leaf: one new tree, not 300."""
    device = MemoryDevice(8 << 20)
    metadata = Metadata.create(device, 128)
    metadata.resize_data(6000)
    metadata.create_thin(0)
    map_blocks(metadata, 0, 0, 5000)
    for thin_id in range(1, 301):
        metadata.create_snap(thin_id, 0)
    metadata.commit()
    metadata.close()
    editor = MetadataEditor(device)
    editor.flip(editor.leaf()[0], 9999)
    target, report = repaired(device, 1 << 20)
    assert report.thins == 301
    assert report.check.metadata_used_blocks < 60
    assert len({frozenset(mappings) for mappings in mappings_of(target).values()}) == 1


@pytest.mark.parametrize("name", ["leaf_checksum", "data_leak", "details_checksum", "superblock_checksum"])
def test_docker_metadata(name: str, docker: MemoryDevice, old_tools: Tools) -> None:
    """Real metadata, one level deep: where a leaf is a root, the first device's own tree is what is lost."""
    original = mappings_of(docker)
    if name == "leaf_checksum":
        editor = MetadataEditor(docker)
        editor.flip(editor.thin_root(4), 77)
        del original[4]
    else:
        DAMAGES[name](docker)
    target, _ = repaired(docker, 4 << 20)
    kept = mappings_of(target)
    if name == "leaf_checksum":
        assert kept.pop(4) == {}
    assert kept == original
    assert old_tools.check(target) == 0


@pytest.mark.parametrize("seed", range(6))
def test_random_damage_is_repaired_or_refused(seed: int, sample_content: bytes) -> None:
    """Whatever happened to the metadata: an honest error, or clean metadata that ET and the thin tools can read."""
    rng = random.Random(seed)
    outcomes = set[type]()
    for _ in range(25):
        device = MemoryDevice(len(sample_content))
        device.pwrite(0, sample_content)
        editor = MetadataEditor(device)
        for _ in range(rng.randrange(1, 5)):
            location = rng.randrange(42)
            if rng.random() < 0.5:
                editor.flip(location, rng.randrange(8 * METADATA_BLOCK_BYTES))
            else:
                offset = rng.choice([rng.randrange(4, 64), rng.randrange(4, METADATA_BLOCK_BYTES - 8)])
                editor.patch(location, offset, rng.randbytes(rng.randrange(1, 9)))
        target = MemoryDevice(1 << 20)
        try:
            report = repair(device, target)
        except CowfsError as error:
            outcomes.add(type(error))
            continue
        assert report.check.summary == "clean", report.check.findings
        ET.fromstring(xml_of(target))
        outcomes.add(RepairReport)
    assert RepairReport in outcomes
