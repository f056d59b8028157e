"""Differences between thins: thin_delta's output, the naive comparison's answer, at the cost of what differs."""

from __future__ import annotations

import io
import random

import pytest

from cowfs.blockdev import MemoryDevice
from cowfs.errors import CowfsError, NoSuchThin
from cowfs.thinmeta import Metadata
from cowfs.thinmeta.delta import DeltaKind, DeltaRange, changed_ranges, delta
from cowfs.thinmeta.usage import usage
from cowfs.thinmeta.walk import MetadataReader
from tests.kit.damage import DAMAGES
from tests.thinmeta.conftest import Tools, copy_of, map_blocks

Mapping = dict[int, int]


def delta_of(device: MemoryDevice, left: int, right: int, **options: bool) -> str:
    out = io.StringIO()
    delta(device, left, right, out, **options)
    return out.getvalue()


def mapping_of(device: MemoryDevice, thin_id: int) -> Mapping:
    reader = MetadataReader(device)
    found = reader.thin(reader.superblock(), thin_id)
    assert found is not None
    return {run.vblock + i: run.dblock + i for runs in reader.runs(*found) for run in runs for i in range(run.length)}


def naive_changes(left: Mapping, right: Mapping) -> dict[int, tuple[int, int]]:
    changed = {vblock: (left.get(vblock, -1), right.get(vblock, -1)) for vblock in left.keys() | right.keys()}
    return {vblock: pair for vblock, pair in changed.items() if pair[0] != pair[1]}


def unfold(ranges: list[DeltaRange]) -> dict[int, tuple[int, int]]:
    """Each block of the ranges; checks that they are in order, maximal, and of the right kind."""
    found: dict[int, tuple[int, int]] = {}
    end = -1
    for piece in ranges:
        assert piece.vblock >= end
        end = piece.vblock + piece.length
        for i in range(piece.length):
            pair = tuple(-1 if dblock < 0 else dblock + i for dblock in (piece.left_dblock, piece.right_dblock))
            found[piece.vblock + i] = pair[0], pair[1]
        kinds = {
            (True, False): DeltaKind.LEFT_ONLY,
            (False, True): DeltaKind.RIGHT_ONLY,
            (True, True): DeltaKind.DIFFERENT,
        }
        assert piece.kind is kinds[piece.left_dblock >= 0, piece.right_dblock >= 0]
    return found


def random_pool(rng: random.Random) -> MemoryDevice:
    """Snapshots of snapshots with writes and discards between them."""
    device = MemoryDevice(4 << 20)
    metadata = Metadata.create(device, 128)
    metadata.resize_data(30000)
    metadata.create_thin(0)
    map_blocks(metadata, 0, 0, rng.randrange(1, 2500))
    for thin_id in range(1, 6):
        metadata.create_snap(thin_id, rng.randrange(thin_id))
        for _ in range(rng.randrange(12)):
            victim, vblock = rng.randrange(thin_id + 1), rng.randrange(3500)
            if rng.random() < 0.7:
                map_blocks(metadata, victim, vblock, rng.randrange(1, 20))
            else:
                metadata.open_thin(victim).remove(vblock, vblock + rng.randrange(1, 400))
        metadata.commit()
    metadata.close()
    return device


@pytest.mark.parametrize("verbose", [False, True])
def test_the_same_as_thin_delta(verbose: bool, sample: MemoryDevice, old_tools: Tools) -> None:
    for left, right in [(1, 2), (2, 1), (5, 6), (3, 4), (9, 1), (1, 9), (10, 1), (9, 9), (4, 4)]:
        options = ["--thin1", str(left), "--thin2", str(right), *["--verbose"] * verbose]
        assert delta_of(sample, left, right, verbose=verbose) == old_tools.output("thin_delta", sample, *options)


@pytest.mark.parametrize("verbose", [False, True])
def test_docker_layers(verbose: bool, docker: MemoryDevice, old_tools: Tools) -> None:
    for left, right in [(1, 2), (2, 4), (6, 1)]:
        options = ["--thin1", str(left), "--thin2", str(right), *["--verbose"] * verbose]
        assert delta_of(docker, left, right, verbose=verbose) == old_tools.output("thin_delta", docker, *options)


def test_held_metadata(sample: MemoryDevice, old_tools: Tools) -> None:
    options = ["-m", "--thin1", "1", "--thin2", "3"]
    assert delta_of(sample, 1, 3, held=True) == old_tools.output("thin_delta", sample, *options)
    assert delta_of(sample, 1, 3, held=True) != delta_of(sample, 1, 3)


@pytest.mark.parametrize("seed", range(8))
def test_random_pools(seed: int, old_tools: Tools) -> None:
    rng = random.Random(seed)
    device = random_pool(rng)
    mappings = {thin_id: mapping_of(device, thin_id) for thin_id in range(6)}
    for left in range(6):
        for right in range(6):
            ranges = list(changed_ranges(device, left, right))
            assert unfold(ranges) == naive_changes(mappings[left], mappings[right])
    left, right = rng.sample(range(6), 2)
    for verbose in (False, True):
        options = ["--thin1", str(left), "--thin2", str(right), *["--verbose"] * verbose]
        assert delta_of(device, left, right, verbose=verbose) == old_tools.output("thin_delta", device, *options)


class CountingDevice(MemoryDevice):
    """Counts reads."""

    def __init__(self, content: bytes) -> None:
        super().__init__(len(content))
        self.pwrite(0, content)
        self.reads = 0

    def pread(self, offset: int, length: int) -> bytes:
        self.reads += 1
        return super().pread(offset, length)


def test_cost_follows_the_change_not_the_size() -> None:
    """One block changed in a snapshot of 60000: a few nodes are read, not hundreds."""
    device = MemoryDevice(4 << 20)
    metadata = Metadata.create(device, 128)
    metadata.resize_data(70000)
    metadata.create_thin(0)
    map_blocks(metadata, 0, 0, 60000)
    metadata.commit()
    metadata.create_snap(1, 0)
    metadata.commit()
    map_blocks(metadata, 1, 31000, 1)
    metadata.commit()
    metadata.close()
    counting = CountingDevice(device.pread(0, device.size_bytes))
    assert [(r.kind, r.vblock, r.length) for r in changed_ranges(counting, 0, 1)] == [(DeltaKind.DIFFERENT, 31000, 1)]
    assert counting.reads < 20


def test_unknown_thin_writes_nothing(sample: MemoryDevice) -> None:
    out = io.StringIO()
    with pytest.raises(NoSuchThin, match="no thin device 77"):
        delta(sample, 1, 77, out)
    assert out.getvalue() == ""
    with pytest.raises(NoSuchThin, match="no thin device 78"):
        list(changed_ranges(sample, 78, 1))


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_ends_in_an_answer_or_an_error(name: str, sample: MemoryDevice) -> None:
    DAMAGES[name](sample)
    for left, right in [(1, 2), (10, 3)]:
        for call in (lambda: delta_of(sample, left, right), lambda: usage(sample)):  # noqa: B023
            try:
                call()
            except CowfsError as error:
                assert "\n" not in str(error)  # noqa: PT017


# --------------------------------------------------------------------------------------------- usage


def assert_usage_is_thin_ls(device: MemoryDevice, tools: Tools) -> None:
    columns = "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BLOCKS,CREATE_TIME,SNAP_TIME"
    text = tools.output("thin_ls", device, "--no-headers", "-o", columns)
    expected = [tuple(map(int, line.split())) for line in text.splitlines()]
    found = [
        (
            u.thin_id,
            u.mapped_blocks,
            u.exclusive_blocks,
            u.shared_blocks,
            u.details.creation_time,
            u.details.snapshotted_time,
        )
        for u in usage(device)
    ]
    assert found == expected


def test_usage_is_thin_ls(sample: MemoryDevice, docker: MemoryDevice, old_tools: Tools) -> None:
    assert_usage_is_thin_ls(sample, old_tools)
    assert_usage_is_thin_ls(docker, old_tools)


@pytest.mark.parametrize("seed", range(4))
def test_usage_of_random_pools(seed: int, old_tools: Tools, new_tools: Tools) -> None:
    device = random_pool(random.Random(seed))
    assert_usage_is_thin_ls(device, old_tools)
    assert_usage_is_thin_ls(device, new_tools)


@pytest.mark.parametrize("seed", range(4))
def test_exclusive_is_what_deletion_gives_back(seed: int) -> None:
    device = random_pool(random.Random(seed))
    for thin in usage(device):
        metadata = Metadata.open(copy_of(device))
        used = metadata.data_used_blocks
        metadata.delete_thin(thin.thin_id)
        metadata.commit()
        assert used - metadata.data_used_blocks == thin.exclusive_blocks


def test_usage_of_chosen_thins(sample: MemoryDevice) -> None:
    assert [entry.thin_id for entry in usage(sample, thin_ids=[10, 3])] == [3, 10]
    with pytest.raises(NoSuchThin, match="no thin device 77"):
        usage(sample, thin_ids=[3, 77])


def test_usage_of_held_metadata(sample: MemoryDevice, old_tools: Tools) -> None:
    text = old_tools.output("thin_ls", sample, "-m", "--no-headers", "-o", "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS")
    found = [(entry.thin_id, entry.mapped_blocks, entry.exclusive_blocks) for entry in usage(sample, held=True)]
    assert found == [tuple(map(int, line.split())) for line in text.splitlines()]
    assert [entry[0] for entry in found] == [1, 2, 3, 4, 5]
