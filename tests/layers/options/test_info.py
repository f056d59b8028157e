"""The status items: names, order and number formats of the original, and bytes as JSON."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from cowfs.devices.on_disk.records import DeviceRecord
from cowfs.devices.reports import HomeReport
from cowfs.layers.info import DriverInfo, driver_info, loop_device_of, metadata_items, status_items
from cowfs.layers.options import DriverOptions, Facts, Settings, resolve_options
from cowfs.pool import PoolMode
from cowfs.units import format_decimal_size

GIB = 1 << 30
SETTINGS = resolve_options(DriverOptions(), Facts())
HOME = HomeReport(
    home="/var/lib/docker/devicemapper",
    backend="",
    holder_pid=None,
    views=[],
    pool="docker-8:1-42-pool",
    mode="write",
    no_space="queue",
    no_space_timeout_seconds=60.0,
    needs_check=False,
    transaction_id=7,
    block_bytes=65536,
    data_used_bytes=5000 * 65536,
    data_total_bytes=100 * GIB,
    metadata_used_bytes=256 * 4096,
    metadata_total_bytes=2 * GIB,
    min_free_percent=10,
    min_free_bytes=None,
    metadata_snapshot_block=None,
    devices=3,
    deleted_devices=2,
    base_size_bytes=10 * GIB,
    base_uuid="",
    data_file="/dev/loop0",
    data_file_allocated_bytes=0,
    metadata_file="/dev/loop1",
    host_free_bytes=0,
    orphan_thin_ids=[],
    problems=[],
    warnings=[],
)


def items(status: HomeReport | None = HOME, settings: Settings = SETTINGS, **words: str) -> list[tuple[str, str]]:
    return status_items(driver_info(status, settings, base_filesystem="ext4" if status else "", **words))


def test_all_items_in_order() -> None:
    files = {"data_file": "/h/devicemapper/data", "metadata_file": "/h/devicemapper/metadata"}
    status = structs.replace(HOME, **files)
    found = items(status, data_loop="/dev/loop0", metadata_loop="/dev/loop1", library_version="1.02.146 (2017-12-18)")
    assert found == [
        ("Pool Name", "docker-8:1-42-pool"),
        ("Pool Blocksize", "65.54kB"),
        ("Base Device Size", "10.74GB"),
        ("Backing Filesystem", "ext4"),
        ("Udev Sync Supported", "true"),
        ("Data file", "/dev/loop0"),
        ("Metadata file", "/dev/loop1"),
        ("Data loop file", "/h/devicemapper/data"),
        ("Metadata loop file", "/h/devicemapper/metadata"),
        ("Data Space Used", "327.7MB"),
        ("Data Space Total", "107.4GB"),
        ("Data Space Available", "107GB"),
        ("Metadata Space Used", "1.049MB"),
        ("Metadata Space Total", "2.147GB"),
        ("Metadata Space Available", "2.146GB"),
        ("Thin Pool Minimum Free Space", "10.74GB"),
        ("Deferred Removal Enabled", "true"),
        ("Deferred Deletion Enabled", "true"),
        ("Deferred Deleted Device Count", "2"),
        ("Library Version", "1.02.146 (2017-12-18)"),
    ]


def test_items_that_only_some_pools_have() -> None:
    names = [name for name, _ in items(structs.replace(HOME, data_file="", metadata_file=""))]
    assert not {"Data file", "Metadata file", "Data loop file", "Metadata loop file", "Library Version"} & set(names)
    assert names.index("Data Space Used") == names.index("Udev Sync Supported") + 1


def test_without_any_figures() -> None:
    settings = dataclasses.replace(SETTINGS, deferred_deletion=False)
    assert items(None, settings) == [
        ("Pool Name", ""),
        ("Pool Blocksize", "0B"),
        ("Base Device Size", "0B"),
        ("Backing Filesystem", ""),
        ("Udev Sync Supported", "true"),
        ("Data Space Used", "0B"),
        ("Data Space Total", "0B"),
        ("Data Space Available", "0B"),
        ("Metadata Space Used", "0B"),
        ("Metadata Space Total", "0B"),
        ("Metadata Space Available", "0B"),
        ("Thin Pool Minimum Free Space", "0B"),
        ("Deferred Removal Enabled", "true"),
        ("Deferred Deletion Enabled", "false"),
        ("Deferred Deleted Device Count", "0"),
        ("Pool Mode", "fail"),
    ]


def test_a_failed_pool() -> None:
    status = structs.replace(HOME, mode="fail", data_total_bytes=0, data_used_bytes=0, block_bytes=0)
    found = dict(items(status))
    assert found["Thin Pool Minimum Free Space"] == found["Data Space Available"] == found["Pool Blocksize"] == "0B"
    assert found["Pool Mode"] == "fail"


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (PoolMode.WRITE, []),
        (PoolMode.OUT_OF_DATA_SPACE, ["out_of_data_space"]),
        (PoolMode.OUT_OF_METADATA_SPACE, ["out_of_metadata_space"]),
        (PoolMode.READ_ONLY, ["ro"]),
        (PoolMode.FAIL, ["fail"]),
    ],
)
def test_a_pool_that_does_not_work_says_so_last(mode: PoolMode, words: list[str]) -> None:
    found = items(structs.replace(HOME, mode=mode.name.lower()))
    assert found == items() + [("Pool Mode", word) for word in words]


def test_needs_check_and_problems() -> None:
    found = items(structs.replace(HOME, needs_check=True, problems=["one", "two"]))
    assert found[len(items()) :] == [("Pool Needs Check", "true"), ("Problem", "one"), ("Problem", "two")]


def test_a_sparse_file_has_no_more_than_its_file_system(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    on_file = structs.replace(HOME, data_file=str(tmp_path / "data"), host_free_bytes=GIB)
    assert driver_info(on_file, SETTINGS).data_available_bytes == GIB
    assert driver_info(on_file, SETTINGS).metadata_available_bytes == 2 * GIB - 256 * 4096
    roomy = structs.replace(on_file, host_free_bytes=1000 * GIB)
    assert driver_info(roomy, SETTINGS).data_available_bytes == 100 * GIB - 5000 * 65536
    assert driver_info(HOME, SETTINGS).data_available_bytes == 100 * GIB - 5000 * 65536


def test_the_minimum_is_in_whole_blocks() -> None:
    small = structs.replace(HOME, data_total_bytes=19 * 65536)
    assert driver_info(small, SETTINGS).min_free_bytes == 65536


def test_as_json() -> None:
    decoded = msgspec.json.decode(msgspec.json.encode(driver_info(HOME, SETTINGS)))
    assert decoded["pool_block_bytes"] == 65536
    assert decoded["data_total_bytes"] == 100 * GIB
    assert decoded["deferred_removal"] is True
    assert set(decoded) == set(DriverInfo.__struct_encode_fields__)


def test_metadata_of_a_layer() -> None:
    record = DeviceRecord("abc", device_id=17, size_bytes=10 * GIB, transaction_id=3)
    assert metadata_items(record, "docker-8:1-42") == {
        "DeviceId": "17",
        "DeviceSize": "10737418240",
        "DeviceName": "docker-8:1-42-abc",
    }


def test_loop_devices(tmp_path: Path) -> None:
    for name, backing in (("loop0", "/h/metadata"), ("loop3", "/h/data"), ("sda", "/h/data"), ("loop1", None)):
        (tmp_path / name / "loop").mkdir(parents=True)
        if backing is not None:
            (tmp_path / name / "loop" / "backing_file").write_text(f"{backing}\n")
    assert loop_device_of("/h/data", str(tmp_path)) == "/dev/loop3"
    assert loop_device_of("/h/metadata", str(tmp_path)) == "/dev/loop0"
    assert loop_device_of("/h", str(tmp_path)) == ""
    assert loop_device_of("/h/data", str(tmp_path / "nothing")) == ""


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "1kB"),
        (1024, "1.024kB"),
        (65536, "65.54kB"),
        (524288, "524.3kB"),
        (10 * GIB, "10.74GB"),
        (100 * GIB, "107.4GB"),
        (999999, "1000kB"),
        (10**6, "1MB"),
        (2**64, "18.45EB"),
        (10**27, "1000YB"),
    ],
)
def test_sizes_for_people(size_bytes: int, text: str) -> None:
    assert format_decimal_size(size_bytes) == text


@given(st.integers(0, 2**64))
def test_sizes_for_people_are_near(size_bytes: int) -> None:
    text = format_decimal_size(size_bytes)
    number = text.rstrip("BkMGTPE")
    unit = "BkMGTPE".index(text[len(number)])
    assert len(number.replace(".", "")) <= 4
    assert abs(Decimal(number) * 1000**unit - size_bytes) <= Decimal(size_bytes) / 1999
