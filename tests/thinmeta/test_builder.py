"""The bulk builder: any mix of runs and shared leaves becomes valid metadata, whatever the sizes."""

from __future__ import annotations

import random

import pytest

from cowfs.blockdev import MemoryDevice
from cowfs.errors import InvalidRequest, OutOfMetadataSpace
from cowfs.thinmeta import Metadata
from cowfs.thinmeta.builder import MetadataBuilder, SubTree, TreeBuilder
from cowfs.thinmeta.check import check
from cowfs.thinmeta.recount import RefCounts
from cowfs.thinmeta.walk import MetadataReader, Run
from tests.thinmeta.conftest import Tools, map_blocks


def add(builder: MetadataBuilder, thin_id: int, tree: TreeBuilder | SubTree) -> SubTree:
    return builder.add_thin(thin_id, tree, transaction_id=0, creation_time=0, snapshotted_time=0)


def runs_of(device: MemoryDevice, thin_id: int) -> list[Run]:
    reader = MetadataReader(device)
    found = reader.thin(reader.superblock(), thin_id)
    assert found is not None
    return [run for runs in reader.runs(*found) for run in runs]


# Around one leaf (252), the least that fills two, one internal node of full leaves, and the next level.
@pytest.mark.parametrize("count", [0, 1, 83, 84, 252, 253, 335, 336, 337, 588, 252 * 252, 252 * 336 - 1, 252 * 336])
@pytest.mark.parametrize("gap", [0, 1])
def test_trees_of_every_shape(count: int, gap: int) -> None:
    device = MemoryDevice(4 << 20)
    builder = MetadataBuilder(device, data_block_sectors=128, data_blocks=100000)
    tree = builder.mapping_tree()
    if gap:
        for i in range(count):
            tree.push_run(Run(2 * i, i, 1, 0))
    elif count:
        tree.push_run(Run(5, 0, count, 0))
    add(builder, 3, tree)
    builder.finish(time=0, transaction_id=9)
    report = check(device)
    assert report.summary == "clean", report.findings
    assert report.mapped_blocks == report.data_used_blocks == count
    expected = [Run(2 * i, i, 1, 0) for i in range(count)] if gap else [Run(5, 0, count, 0)] * bool(count)
    assert runs_of(device, 3) == expected


@pytest.mark.parametrize("seed", range(12))
def test_shared_leaves_among_own_mappings(seed: int, old_tools: Tools, new_tools: Tools) -> None:
    """Leaves written once, put into several trees between runs of any length, some never used."""
    rng = random.Random(seed)
    device = MemoryDevice(4 << 20)
    builder = MetadataBuilder(device, data_block_sectors=128, data_blocks=5000)
    library: list[tuple[list[SubTree], list[Run]]] = []
    begin = 3000
    for _ in range(8):
        shared = builder.mapping_tree(to_share=True)
        runs = []
        for _ in range(rng.choice([1, 30, 84, 150, 300, 700])):
            runs.append(Run(begin, rng.randrange(5000), 1, 0))
            begin += rng.randrange(1, 4)
        for run in runs:
            shared.push_run(run)
        library.append((shared.close_leaves(), runs))
        begin += 5000
    expected: dict[int, dict[int, int]] = {}
    for thin_id in range(6):
        tree = builder.mapping_tree()
        mappings = expected[thin_id] = {}
        for leaves, runs in library:
            for i in range(rng.choice([0, 0, 1, 50, 90, 400])):
                own = Run(runs[0].vblock - 2000 + i, rng.randrange(5000), 1, 0)
                tree.push_run(own)
                mappings[own.vblock] = own.dblock
            if rng.random() < 0.7:
                for leaf in leaves:
                    tree.push_leaf(leaf)
                mappings.update({run.vblock: run.dblock for run in runs})
        add(builder, thin_id, tree)
    builder.finish(time=0, transaction_id=0)
    report = check(device)
    assert report.summary == "clean", report.findings
    for thin_id, mappings in expected.items():
        found = {run.vblock + i: run.dblock + i for run in runs_of(device, thin_id) for i in range(run.length)}
        assert found == mappings
    assert (old_tools.check(device), new_tools.check(device)) == (0, 0)


def test_many_thins_on_one_tree() -> None:
    """The root's count does not fit a bitmap's two bits, the device trees have several levels."""
    device = MemoryDevice(2 << 20)
    builder = MetadataBuilder(device, data_block_sectors=128, data_blocks=1000)
    tree = builder.mapping_tree()
    tree.push_run(Run(0, 0, 900, 0))
    shared = add(builder, 0, tree)
    for thin_id in range(1, 20000):
        add(builder, thin_id, shared)
    builder.finish(time=0, transaction_id=0)
    report = check(device)
    assert (report.summary, report.thins, report.data_used_blocks) == ("clean", 20000, 900)
    metadata = Metadata.open(device)
    metadata.delete_thin(7)
    map_blocks(metadata, 8, 0, 3)
    metadata.commit()
    assert check(device).summary == "clean"


def test_free_counts_allow_growth() -> None:
    """The entries past the end of the last bitmap count as free, so a grown map is filled to its end."""
    device = MemoryDevice(1 << 20)
    builder = MetadataBuilder(device, data_block_sectors=128, data_blocks=256)
    add(builder, 0, builder.mapping_tree())
    builder.finish(time=0, transaction_id=0)
    metadata = Metadata.open(device)
    metadata.resize_data(512)
    map_blocks(metadata, 0, 0, 512)
    metadata.commit()
    assert check(device).data_used_blocks == 512


def test_full_maps() -> None:
    """Every data block used, in a map that ends inside a bitmap and in one that ends with it."""
    for blocks in (16320, 20000, 32640):
        device = MemoryDevice(1 << 20)
        builder = MetadataBuilder(device, data_block_sectors=128, data_blocks=blocks)
        tree = builder.mapping_tree()
        tree.push_run(Run(0, 0, blocks, 0))
        add(builder, 0, tree)
        builder.finish(time=0, transaction_id=0)
        report = check(device)
        assert (report.summary, report.data_used_blocks) == ("clean", blocks)


def test_needed_blocks_are_exact() -> None:
    """What a refusal asks for is enough, and one block less is not."""

    def build(size_blocks: int) -> None:
        builder = MetadataBuilder(MemoryDevice(size_blocks * 4096), data_block_sectors=128, data_blocks=90000)
        tree = builder.mapping_tree()
        tree.push_run(Run(0, 0, 90000, 0))
        add(builder, 0, tree)
        builder.finish(time=0, transaction_id=0)

    with pytest.raises(OutOfMetadataSpace) as caught:
        build(50)
    needed = int(caught.value.message.split()[-3])
    build(needed)
    with pytest.raises(OutOfMetadataSpace):
        build(needed - 1)


def test_impossible_block_size() -> None:
    with pytest.raises(InvalidRequest, match="a data block of 100 sectors"):
        MetadataBuilder(MemoryDevice(1 << 20), data_block_sectors=100, data_blocks=1)


def test_counts_above_what_a_byte_holds() -> None:
    counts = RefCounts(40000)
    for _ in range(300):
        counts.add_run(16310, 20)
    counts.add(16315)
    assert [counts.count(block) for block in (16309, 16310, 16315, 16329, 16330)] == [0, 300, 301, 300, 0]
    assert dict(counts.overflow()) == {block: 300 + (block == 16315) for block in range(16310, 16330)}
    for _ in range(299):
        counts.drop_run(16310, 20)
    assert [counts.count(block) for block in (16310, 16315, 16329)] == [1, 2, 1]
    assert counts.allocated() == 20
    with pytest.raises(IndexError):
        counts.add(40000)
    with pytest.raises(IndexError):
        counts.add_run(39999, 2)
