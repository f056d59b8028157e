"""Who occupies what: the figures against a count of who maps which block, and against what a removal gives back."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from msgspec.structs import replace

from cowfs.devices.deviceset import DeviceSet
from cowfs.pool import load_backend
from tests.devices.home_fakes import MIB, SMALL, make_home

BLOCK = 64 << 10
EMULATED = load_backend("emulated")
OPTIONS = replace(SMALL, data_size_bytes=256 * MIB, base_size_bytes=64 * MIB, durable=False)


def mapped_blocks(devices: DeviceSet) -> dict[int, set[int]]:
    """The data blocks of every thin."""
    found = {}
    for thin_id in devices.pool.thin_ids():
        thin = devices.pool.activate(f"look-{thin_id}", thin_id, 64 * MIB // 512, read_only=True)
        found[thin_id] = {block for e in thin.extents() for block in range(e.dblock, e.dblock + e.length)}
        thin.close()
    return found


def scribble(devices: DeviceSet, rng: random.Random) -> None:
    """Devices, snapshots of them, writes and discards on all, a few removals, a thin without a record."""
    names = ["base"]
    for number in range(40):
        names.append(devices.create(f"d{number}", parent=rng.choice(names)).name)
        for name in rng.sample(names[1:], min(3, len(names) - 1)):
            thin = devices.active.activate(name)
            for _ in range(4):
                begin, length = rng.randrange(1000), rng.randrange(1, 20)
                if rng.random() < 0.2:
                    thin.discard(begin * BLOCK, length * BLOCK)
                else:
                    thin.pwrite(begin * BLOCK, bytes([number]) * (length * BLOCK))
            devices.active.deactivate(name)
        if rng.random() < 0.2:
            devices.remove(names.pop(rng.randrange(1, len(names))))
    devices.pool.create_snap(1000, devices.record(names[1]).device_id)


@pytest.mark.parametrize("seed", range(3))
def test_it_agrees_with_a_count_of_all_mappings(tmp_path: Path, seed: int) -> None:
    with make_home(tmp_path / "home", EMULATED, OPTIONS) as devices:
        scribble(devices, random.Random(seed))
        blocks = mapped_blocks(devices)
        users = Counter(block for mapped in blocks.values() for block in mapped)
        figures = devices.reports.usage(record.name for record in devices.records())
        orphans = devices.reports.orphan_usage()
        assert [orphan.id for orphan in orphans] == [1000]
        assert set(figures) == {record.name for record in devices.records()}
        for found in [*figures.values(), *orphans]:
            mapped = blocks[found.id]
            assert found.mapped_bytes == len(mapped) * BLOCK
            assert found.exclusive_bytes == sum(users[block] == 1 for block in mapped) * BLOCK
            if found.name:
                assert devices.reports.inspect(found.name).exclusive_bytes == found.exclusive_bytes
        assert sum(found.exclusive_bytes for found in figures.values()) > 0


def test_it_is_what_a_removal_gives_back(tmp_path: Path) -> None:
    with make_home(tmp_path / "home", EMULATED, OPTIONS) as devices:
        scribble(devices, random.Random(9))
        begin = devices.reports.status()
        nodes_bytes = 0
        for record in devices.records():
            if record.name == "base":
                continue
            usage = devices.reports.usage([record.name])[record.name]
            nodes_bytes += usage.metadata_bytes
            before = devices.reports.status()
            devices.remove(record.name)
            assert before.data_used_bytes - devices.reports.status().data_used_bytes == usage.exclusive_bytes
        # The trees of devices and of reference counts shrink as well.
        freed_bytes = begin.metadata_used_bytes - devices.reports.status().metadata_used_bytes
        assert 0 <= freed_bytes - nodes_bytes <= 0.1 * nodes_bytes


def test_what_a_metadata_snapshot_holds_is_not_given_back(tmp_path: Path) -> None:
    with make_home(tmp_path / "home", EMULATED, OPTIONS) as devices:
        devices.create("a")
        devices.active.activate("a").pwrite(0, b"x" * (3 * BLOCK))
        assert devices.reports.inspect("a").exclusive_bytes == 3 * BLOCK
        devices.pool.reserve_metadata_snap()
        assert devices.reports.inspect("a").exclusive_bytes == 0
        devices.pool.release_metadata_snap()
        assert devices.reports.inspect("a").exclusive_bytes == 3 * BLOCK


def test_devices_without_a_thin_are_left_out(tmp_path: Path) -> None:
    with make_home(tmp_path / "home", EMULATED, OPTIONS) as devices:
        devices.create("a")
        devices.pool.delete(2)
        assert set(devices.reports.usage(["a", "base", "unknown"])) == {"base"}
