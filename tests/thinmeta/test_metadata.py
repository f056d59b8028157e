"""The transactional writer against a plain model, with thin_check and thin_dump as outside judges."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest

from cowfs.blockdev import FileDevice, MemoryDevice
from cowfs.errors import InvalidRequest, NoSuchThin, OutOfDataSpace, OutOfMetadataSpace, ThinBusy, ThinExists
from cowfs.thinmeta import Metadata

THIN_CHECK = shutil.which("thin_check", path="/usr/sbin:/usr/bin:/sbin:/bin")
THIN_DUMP = shutil.which("thin_dump", path="/usr/sbin:/usr/bin:/sbin:/bin")
needs_thin_tools = pytest.mark.skipif(
    THIN_CHECK is None, reason="thin_check is missing; apt-get install thin-provisioning-tools"
)

Model = dict[int, dict[int, int]]  # thin id -> virtual block -> data block


def new_file(path: Path, size_bytes: int) -> FileDevice:
    path.touch()
    os.truncate(path, size_bytes)
    return FileDevice(path)


def judge(path: Path, model: Model) -> None:
    """thin_check is content, and thin_dump shows exactly the model's mappings."""
    assert THIN_CHECK is not None
    assert THIN_DUMP is not None
    checked = subprocess.run([THIN_CHECK, str(path)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    xml = subprocess.run([THIN_DUMP, str(path)], capture_output=True, check=True).stdout
    found: Model = {}
    for device in ET.fromstring(xml):
        mappings = found.setdefault(int(device.attrib["dev_id"]), {})
        assert int(device.attrib["mapped_blocks"]) == len(model[int(device.attrib["dev_id"])])
        for run in device:
            if run.tag == "single_mapping":
                mappings[int(run.attrib["origin_block"])] = int(run.attrib["data_block"])
            else:
                for i in range(int(run.attrib["length"])):
                    mappings[int(run.attrib["origin_begin"]) + i] = int(run.attrib["data_begin"]) + i
    assert found == model


def recount_data(metadata: Metadata, model: Model) -> None:
    """Used data blocks are exactly the distinct ones of the model."""
    used = Counter(dblock for mappings in model.values() for dblock in mappings.values())
    assert metadata.data_used_blocks == len(used)
    if not metadata.changed:
        runs = metadata.used_data_runs()
        assert [block for begin, length in runs for block in range(begin, begin + length)] == sorted(used)


def write_range(metadata: Metadata, model: Model, thin_id: int, vblock: int, count: int) -> None:
    """Map fresh blocks to a range, as breaking sharing or provisioning would."""
    thin = metadata.open_thin(thin_id)
    while count:
        dblock, length = metadata.allocate_data(count)
        thin.insert(vblock, dblock, length)
        for i in range(length):
            model[thin_id][vblock + i] = dblock + i
        vblock += length
        count -= length


def check_lookup(metadata: Metadata, model: Model, thin_id: int, vblock: int, count: int) -> None:
    found: dict[int, int] = {}
    position = vblock
    for length, dblock, _shared in metadata.open_thin(thin_id).lookup(vblock, count):
        if dblock >= 0:
            found.update({position + i: dblock + i for i in range(length)})
        position += length
    assert position == vblock + count
    assert found == {v: d for v, d in model[thin_id].items() if vblock <= v < vblock + count}


@needs_thin_tools
@pytest.mark.parametrize("seed", range(12))
def test_random_histories_agree_with_the_model(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    device = new_file(tmp_path / "metadata", 4 << 20)
    metadata = Metadata.create(device, 128)
    metadata.resize_data(40000)
    metadata.commit()
    model: Model = {}
    committed: Model = {}
    space = rng.choice([300, 3000, 60000])
    for _step in range(400):
        action = rng.random()
        ids = sorted(model)
        if action < 0.06 or not ids:
            thin_id = rng.randrange(20)
            if thin_id in model:
                with pytest.raises(ThinExists):
                    metadata.create_thin(thin_id)
            else:
                metadata.create_thin(thin_id)
                model[thin_id] = {}
        elif action < 0.14:
            origin, thin_id = rng.choice(ids), rng.randrange(20, 60)
            if thin_id not in model:
                metadata.create_snap(thin_id, origin)
                model[thin_id] = dict(model[origin])
        elif action < 0.19 and len(ids) > 3:
            thin_id = rng.choice(ids)
            metadata.delete_thin(thin_id)
            del model[thin_id]
            with pytest.raises(NoSuchThin):
                metadata.open_thin(thin_id)
        elif action < 0.21 and len(ids) > 3:
            thin_id, other_id = rng.sample(ids, 2)
            details = metadata.details(thin_id)
            metadata.take_over(thin_id, other_id)
            model[thin_id] = model.pop(other_id)
            assert metadata.details(thin_id).transaction_id == details.transaction_id
            with pytest.raises(NoSuchThin):
                metadata.open_thin(other_id)
        elif action < 0.65:
            count = rng.choice([1, 1, 1, 7, 64, 500])
            if metadata.data_free_blocks > count:
                write_range(metadata, model, rng.choice(ids), rng.randrange(space), count)
        elif action < 0.80:
            thin_id, begin = rng.choice(ids), rng.randrange(space)
            end = begin + rng.choice([1, 10, 300, 5000])
            gone = [v for v in model[thin_id] if begin <= v < end]
            assert metadata.open_thin(thin_id).remove(begin, end) == len(gone)
            for vblock in gone:
                del model[thin_id][vblock]
        elif action < 0.90:
            check_lookup(metadata, model, rng.choice(ids), rng.randrange(space), rng.choice([1, 20, 2000]))
        elif action < 0.96:
            metadata.commit()
            committed = {thin_id: dict(mappings) for thin_id, mappings in model.items()}
            recount_data(metadata, model)
        elif action < 0.98:
            metadata.abort()
            model = {thin_id: dict(mappings) for thin_id, mappings in committed.items()}
            recount_data(metadata, model)
        else:
            metadata.commit()
            committed = {thin_id: dict(mappings) for thin_id, mappings in model.items()}
            metadata = Metadata.open(device, cache_nodes=rng.choice([8, 1000]))
    metadata.commit()
    recount_data(metadata, model)
    assert metadata.thin_ids() == sorted(model)
    for thin_id in model:
        check_lookup(metadata, model, thin_id, 0, space + 6000)
        assert metadata.open_thin(thin_id).highest() == max(model[thin_id], default=None)
    judge(tmp_path / "metadata", model)


@needs_thin_tools
def test_many_sharers_use_the_overflow_tree(tmp_path: Path) -> None:
    device = new_file(tmp_path / "metadata", 4 << 20)
    metadata = Metadata.create(device, 128)
    metadata.resize_data(4096)
    metadata.create_thin(0)
    model: Model = {0: {}}
    write_range(metadata, model, 0, 0, 100)
    for thin_id in range(1, 300):
        metadata.create_snap(thin_id, thin_id - 1)
        model[thin_id] = dict(model[thin_id - 1])
        metadata.commit()
    for thin_id in range(0, 300, 3):
        write_range(metadata, model, thin_id, thin_id % 90, 2)
    metadata.commit()
    judge(tmp_path / "metadata", model)
    for thin_id in range(1, 300, 2):
        metadata.delete_thin(thin_id)
        del model[thin_id]
    metadata.commit()
    recount_data(metadata, model)
    judge(tmp_path / "metadata", model)


@needs_thin_tools
def test_held_snapshot_keeps_the_old_mappings(tmp_path: Path) -> None:
    device = new_file(tmp_path / "metadata", 4 << 20)
    metadata = Metadata.create(device, 128)
    metadata.resize_data(4096)
    metadata.create_thin(3)
    model: Model = {3: {}}
    write_range(metadata, model, 3, 0, 600)
    metadata.reserve_snap()
    metadata.commit()
    with pytest.raises(ThinBusy):
        metadata.reserve_snap()
    free = metadata.metadata_free_blocks
    write_range(metadata, model, 3, 0, 600)
    metadata.commit()
    judge(tmp_path / "metadata", model)
    held = subprocess.run(
        [str(THIN_DUMP), f"-m{metadata.held_root}", str(tmp_path / "metadata")], capture_output=True, check=True
    ).stdout
    assert b'origin_begin="0" data_begin="0" length="600"' in held
    metadata.release_snap()
    metadata.commit()
    with pytest.raises(InvalidRequest):
        metadata.release_snap()
    assert metadata.metadata_free_blocks == free + 1
    recount_data(metadata, model)
    judge(tmp_path / "metadata", model)


@needs_thin_tools
def test_growing_both_devices(tmp_path: Path) -> None:
    path = tmp_path / "metadata"
    device = new_file(path, 64 * 4096)
    metadata = Metadata.create(device, 128)
    metadata.resize_data(100)
    metadata.create_thin(1)
    model: Model = {1: {}}
    write_range(metadata, model, 1, 0, 100)
    with pytest.raises(OutOfDataSpace):
        metadata.allocate_data(1)
    metadata.resize_data(40000)
    os.truncate(path, 40000 * 4096)
    device.refresh_size()
    metadata.resize_metadata(40000)
    with pytest.raises(InvalidRequest):
        metadata.resize_data(39999)
    write_range(metadata, model, 1, 100, 39900)
    metadata.commit()
    assert metadata.data_free_blocks == 0
    assert metadata.metadata_blocks == 40000
    judge(path, model)
    assert Metadata.open(device).data_used_blocks == 40000


def test_metadata_exhaustion_raises_and_abort_recovers() -> None:
    device = MemoryDevice(24 * 4096)
    metadata = Metadata.create(device, 128)
    metadata.resize_data(16000)
    metadata.create_thin(1)
    metadata.commit()
    thin = metadata.open_thin(1)

    def map_every_other_block() -> None:
        for vblock in range(0, 16000, 2):
            thin.insert(vblock, *metadata.allocate_data(1))

    with pytest.raises(OutOfMetadataSpace):
        map_every_other_block()
    assert thin.changed
    metadata.abort()
    assert metadata.open_thin(1) is thin
    assert thin.mapped_blocks == 0
    assert thin.lost_changes
    assert metadata.data_used_blocks == 0


def test_too_small_a_device_is_refused() -> None:
    for blocks in range(8):
        with pytest.raises(OutOfMetadataSpace):
            Metadata.create(MemoryDevice(blocks * 4096), 128)


def test_freed_blocks_come_back_only_after_the_commit() -> None:
    metadata = Metadata.create(MemoryDevice(1 << 20), 128)
    metadata.resize_data(10)
    metadata.create_thin(1)
    metadata.open_thin(1).insert(0, *metadata.allocate_data(10))
    metadata.commit()
    metadata.open_thin(1).remove(2, 6)
    assert metadata.data_free_blocks == 4  # counted, as the kernel does, and not available
    with pytest.raises(OutOfDataSpace):
        metadata.allocate_data(1)
    assert metadata.commit() == [(2, 4)]
    assert metadata.data_free_blocks == 4


def test_allocation_continues_after_the_last_and_wraps_once() -> None:
    metadata = Metadata.create(MemoryDevice(1 << 20), 128)
    metadata.resize_data(10)
    metadata.create_thin(1)
    thin = metadata.open_thin(1)
    thin.insert(0, *metadata.allocate_data(6))
    metadata.commit()
    thin.remove(0, 2)
    metadata.commit()
    assert metadata.allocate_data(1) == (6, 1)
    assert metadata.allocate_data(10) == (7, 3)
    assert metadata.allocate_data(10) == (0, 2)
    metadata.release_data(0, 2)
    assert metadata.allocate_data(10) == (0, 2)


def test_old_mappings_are_shared_after_a_snapshot() -> None:
    metadata = Metadata.create(MemoryDevice(1 << 20), 128)
    metadata.resize_data(10)
    metadata.create_thin(1)
    origin = metadata.open_thin(1)
    origin.insert(0, *metadata.allocate_data(2))
    assert origin.lookup(0, 3) == [(2, 0, False), (1, -1, False)]
    metadata.create_snap(2, 1)
    assert origin.lookup(0, 2) == [(2, 0, True)]
    origin.insert(0, *metadata.allocate_data(1))
    assert origin.lookup(0, 2) == [(1, 2, False), (1, 1, True)]
    assert metadata.open_thin(2).lookup(0, 2) == [(2, 0, True)]


def test_a_device_that_was_cut_short_is_refused() -> None:
    device = MemoryDevice(1 << 20)
    Metadata.create(device, 128)
    device.resize((1 << 20) - 4096)
    with pytest.raises(InvalidRequest, match="cut short"):
        Metadata.open(device)
