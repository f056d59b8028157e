"""Homes with a real ext4 in the base device, judged by e2fsck."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from cowfs.devices import opening
from cowfs.devices.deviceset import DeviceSet
from cowfs.devices.on_disk.options import HomeOptions, min_metadata_bytes
from cowfs.errors import HomeError
from cowfs.ext4.tools import commands as tools
from cowfs.filetree import ROOT_INODE
from cowfs.pool import load_backend
from cowfs.testing.judges import require_clean_pool
from cowfs.volumes import Volumes

MIB = 1 << 20
BACKEND = load_backend("emulated")
SMALL = HomeOptions(data_size_bytes=256 * MIB, metadata_size_bytes=4 * MIB, base_size_bytes=64 * MIB, durable=False)


def judged(devices: DeviceSet, name: str) -> dict[str, str]:
    """What dumpe2fs says of a device that e2fsck finds clean."""
    thin = devices.active.activate(name, read_only=True)
    with tempfile.NamedTemporaryFile() as file:
        os.ftruncate(file.fileno(), thin.size_bytes)
        for begin, end in tools.mapped_ranges(thin):
            os.pwrite(file.fileno(), thin.pread(begin, end - begin), begin)
        check = subprocess.run([tools.find("e2fsck"), "-fn", file.name], capture_output=True, text=True, check=False)
        assert check.returncode == 0, check.stdout
        shown = subprocess.run([tools.find("dumpe2fs"), "-h", file.name], capture_output=True, text=True, check=True)
    devices.active.deactivate(name)
    return dict(re.findall(r"^([^:\n]+):\s+(.*)$", shown.stdout, re.MULTILINE))


def test_the_base_holds_an_empty_ext4_with_the_uuid_of_the_home(tmp_path: Path) -> None:
    with opening.make_home(tmp_path / "home", BACKEND, SMALL) as devices:
        devices.create("a")
        uuid = devices.reports.status().base_uuid
        for name in ("base", "a"):
            facts = judged(devices, name)
            assert facts["Filesystem UUID"] == uuid
            assert int(facts["Block count"]) * int(facts["Block size"]) == 64 * MIB
        require_clean_pool(devices.pool)
    with opening.open_home(tmp_path / "home", BACKEND) as devices:
        assert devices.problems == ()
        assert devices.reports.status().base_uuid == uuid


def test_two_homes_have_two_uuids(tmp_path: Path) -> None:
    uuids = set()
    for name in ("one", "two"):
        with opening.make_home(tmp_path / name, BACKEND, SMALL) as devices:
            uuids.add(devices.reports.status().base_uuid)
    assert len(uuids) == 2
    (tmp_path / "one/metadata/deviceset-metadata").replace(tmp_path / "two/metadata/deviceset-metadata")
    with pytest.raises(HomeError, match="do not belong together"):
        opening.open_home(tmp_path / "two", BACKEND)


def test_a_base_without_a_file_system_is_refused_and_can_be_looked_at(tmp_path: Path) -> None:
    with opening.make_home(tmp_path / "home", BACKEND, SMALL) as devices:
        devices.active.activate("base").pwrite(0, bytes(4096))
    with pytest.raises(HomeError, match=r"base device \(thin 1\) of the home .* is not what the home says"):
        opening.open_home(tmp_path / "home", BACKEND)
    with opening.open_home(tmp_path / "home", BACKEND, opening.OpenOptions(verify=False)) as devices:
        assert "base" in devices


def test_a_larger_device_has_a_larger_file_system(tmp_path: Path) -> None:
    with opening.make_home(tmp_path / "home", BACKEND, SMALL) as devices:
        devices.create("a", size_bytes=128 * MIB)
        devices.create("b", parent="a", size_bytes=200 * MIB)
        devices.create("c")
        sizes = {name: int(judged(devices, name)["Block count"]) for name in ("a", "b", "c", "base")}
        block = int(judged(devices, "a")["Block size"])
        assert {name: count * block // MIB for name, count in sizes.items()} == {
            "a": 128,
            "b": 200,
            "c": 64,
            "base": 64,
        }
        assert devices.reports.inspect("b").mapped_bytes < 32 * MIB
        require_clean_pool(devices.pool)


def test_a_device_that_grew_holds_what_it_held(tmp_path: Path) -> None:
    with opening.make_home(tmp_path / "home", BACKEND, SMALL) as devices:
        devices.create("a")
        devices.create("b", parent="a")
        with Volumes(devices).opened("a") as volume:
            made = volume.make_node(ROOT_INODE, b"file", 0o100644, 0, 0)
            volume.write(made.inode, 0, b"kept" * MIB)
        devices.resize("a", 16 << 30)
        with Volumes(devices).opened("a") as volume:
            found = volume.lookup(ROOT_INODE, b"file")
            assert volume.read(found.inode, 0, 5 * MIB) == b"kept" * MIB
        facts = judged(devices, "a")
        assert int(facts["Block count"]) * int(facts["Block size"]) == 16 << 30
        assert int(judged(devices, "b")["Block count"]) == int(judged(devices, "base")["Block count"])
        require_clean_pool(devices.pool)


def test_a_base_that_grew_is_what_devices_are_made_of(tmp_path: Path) -> None:
    with opening.make_home(tmp_path / "home", BACKEND, SMALL) as devices:
        devices.create("a")
        devices.resize("base", 128 * MIB)
        devices.create("b")
        sizes = {name: int(judged(devices, name)["Block count"]) for name in ("base", "a", "b")}
        assert sizes["base"] == sizes["b"] == 2 * sizes["a"]
        require_clean_pool(devices.pool)
    with opening.open_home(tmp_path / "home", BACKEND) as devices:
        assert devices.problems == ()


def test_the_smallest_base_works(tmp_path: Path) -> None:
    with opening.make_home(tmp_path / "home", BACKEND, replace(SMALL, base_size_bytes=MIB)) as devices:
        devices.create("a")
        judged(devices, "a")


def test_the_least_metadata_holds_a_pool_that_can_be_used(tmp_path: Path) -> None:
    """What is accepted as a metadata size must be enough: one bitmap per 16320 data blocks is needed at once."""
    for data_blocks in (256, 1 << 16, 1 << 21, 1 << 24):
        options = replace(
            SMALL, data_size_bytes=data_blocks << 16, metadata_size_bytes=min_metadata_bytes(data_blocks),
            base_size_bytes=16 * MIB, min_free_percent=0,
        )  # fmt: skip
        with opening.make_home(tmp_path / str(data_blocks), BACKEND, options) as devices:
            for number in range(5):
                devices.create(f"d{number}")
                thin = devices.active.activate(f"d{number}")
                thin.pwrite(0, bytes(4096))
                thin.flush()
            assert devices.reports.status().mode == "write", data_blocks
            require_clean_pool(devices.pool)


def test_a_default_home_is_made_and_opened_quickly(tmp_path: Path) -> None:
    begin = time.perf_counter()
    with opening.make_home(tmp_path / "home", BACKEND) as devices:
        made = time.perf_counter() - begin
        mapped = devices.reports.inspect("base").mapped_bytes
    begin = time.perf_counter()
    opening.open_home(tmp_path / "home", BACKEND).close()
    print(f"100 GiB home: made in {made * 1000:.0f} ms, opened in {(time.perf_counter() - begin) * 1000:.0f} ms")
    print(f"its base of 10 GiB maps {mapped} bytes")
    assert mapped < 16 * MIB
