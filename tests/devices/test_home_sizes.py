"""Growing: devices, the base device, the pool; what fails leaves the old size everywhere, and can be tried again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cowfs.devices import opening
from cowfs.devices.deviceset import DeviceSet
from cowfs.devices.injected import Injected
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.errors import (
    DeviceBusy,
    FilesystemError,
    HomeError,
    OutOfDataSpace,
    OutOfMetadataSpace,
    PoolIoError,
    UnknownDevice,
    UsageError,
)
from cowfs.pool import load_backend
from cowfs.testing.judges import require_clean_pool
from tests.devices.home_fakes import (
    MIB,
    PAGE,
    ROOMY,
    FailingOs,
    FakeBackend,
    Filesystem,
    assert_whole,
    fill_metadata,
    make_home,
    names,
    open_home,
)

REFUSED = FilesystemError("resize2fs said no")


def sizes(devices: DeviceSet) -> dict[str, int]:
    return {record.name: record.size_bytes for record in devices.records()}


def page(devices: DeviceSet, name: str) -> bytes:
    thin = devices.active.activate(name, read_only=True)
    try:
        return thin.pread(0, PAGE).rstrip(b"\0")
    finally:
        devices.active.deactivate(name)


# --- devices


def test_a_device_that_cannot_be_made_larger_is_not_made(home: Path, backend: FakeBackend) -> None:
    filesystem = Filesystem()
    with open_home(home, backend, filesystem=filesystem) as devices:
        filesystem.grow_errors = [REFUSED]
        with pytest.raises(FilesystemError, match="device 'new': resize2fs said no"):
            devices.create("new", parent="a", size_bytes=2 * MIB)
        assert names(devices) == ["a", "base"]
        assert_whole(devices)
        assert devices.create("new", parent="a", size_bytes=2 * MIB).size_bytes == 2 * MIB
        assert page(devices, "new").endswith(str(2 * MIB).encode())
        assert page(devices, "a") == page(devices, "base")


def test_a_device_that_cannot_grow_is_as_it_was(home: Path, backend: FakeBackend) -> None:
    filesystem = Filesystem()
    with open_home(home, backend, filesystem=filesystem) as devices:
        before = page(devices, "a")
        filesystem.grow_errors = [REFUSED]
        with pytest.raises(FilesystemError, match="device 'a': resize2fs said no"):
            devices.resize("a", 2 * MIB)
        assert sizes(devices) == {"a": MIB, "base": MIB}
        assert page(devices, "a") == before
        assert_whole(devices)
        assert devices.resize("a", 2 * MIB).size_bytes == 2 * MIB
        assert page(devices, "a").endswith(str(2 * MIB).encode())
        assert_whole(devices)
    with open_home(home, backend) as devices:
        assert sizes(devices) == {"a": 2 * MIB, "base": MIB}
        assert devices.record("a").parent == "base"


def test_a_resize_to_the_same_size_finishes_the_file_system(home: Path, backend: FakeBackend) -> None:
    """Where another program stored a new size before it grew what is inside, and failed to."""
    record = home / "metadata/a"
    record.write_text(record.read_text().replace(str(MIB), str(2 * MIB)))
    with open_home(home, backend) as devices:
        assert devices.resize("a", 2 * MIB).size_bytes == 2 * MIB
        assert page(devices, "a").endswith(str(2 * MIB).encode())


def test_what_cannot_be_resized(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        refusals: list[tuple[type[OSError], str, Callable[[], object]]] = [
            (UsageError, r"'a' has 1048576 bytes \(1 MiB\) and cannot shrink", lambda: devices.resize("a", MIB - 512)),
            (UsageError, "not a multiple of the sector size", lambda: devices.resize("a", MIB + 1)),
            (UsageError, "too large", lambda: devices.resize("a", 1 << 61)),
            (UnknownDevice, "'x'", lambda: devices.resize("x", 2 * MIB)),
        ]
        for error, text, action in refusals:
            with pytest.raises(error, match=text):
                action()
        devices.active.activate("a")
        with pytest.raises(DeviceBusy, match="is in use, so it cannot be resized"):
            devices.resize("a", 2 * MIB)
        devices.remove("a", deferred=True)
        with pytest.raises(DeviceBusy, match="marked for deletion"):
            devices.resize("a", 2 * MIB)


# --- the base device


def test_a_larger_base_is_for_the_devices_made_after(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        devices.resize("base", 2 * MIB)
        devices.create("b")
        assert sizes(devices) == {"a": MIB, "b": 2 * MIB, "base": 2 * MIB}
        assert page(devices, "b").endswith(str(2 * MIB).encode())
        assert devices.record("base").initialized
        assert_whole(devices)
    with open_home(home, backend) as devices:
        assert sizes(devices)["base"] == 2 * MIB


def test_a_base_that_could_not_grow_is_tried_again(home: Path, backend: FakeBackend) -> None:
    filesystem = Filesystem()
    with open_home(home, backend, filesystem=filesystem) as devices:
        for _ in range(2):
            filesystem.grow_errors = [REFUSED]
            with pytest.raises(FilesystemError):
                devices.resize("base", 2 * MIB)
        assert sizes(devices)["base"] == MIB
        assert_whole(devices)
        devices.resize("base", 2 * MIB)
        assert sizes(devices)["base"] == 2 * MIB
        assert page(devices, "base").endswith(str(2 * MIB).encode())


def test_a_base_does_not_shrink(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        devices.resize("base", 2 * MIB)
        with pytest.raises(UsageError, match=r"'base' has 2097152 bytes \(2 MiB\) and cannot shrink to 1048576"):
            devices.resize("base", MIB)
        assert sizes(devices) == {"a": MIB, "base": 2 * MIB}


# --- the pool


def test_a_pool_grows_while_it_is_used(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        thin = devices.active.activate("a")
        status = devices.resize_pool(data_size_bytes=8 * MIB, metadata_size_bytes=4 * MIB)
        assert (status.data_total_bytes, status.metadata_total_bytes) == (8 * MIB, 4 * MIB)
        thin.pwrite(0, b"still there")
        again = devices.resize_pool(data_size_bytes=8 * MIB)
        assert again.data_total_bytes == 8 * MIB
    with open_home(home, backend) as devices:
        assert devices.reports.status().data_total_bytes == 8 * MIB


def test_a_file_that_grew_by_other_means_is_taken_as_it_is(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        os.truncate(home / "devicemapper/data", 6 * MIB)
        assert devices.resize_pool().data_total_bytes == 6 * MIB


def test_sizes_that_a_pool_cannot_have(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        refusals = [
            ({"data_size_bytes": 3 * MIB}, "data has 4194304 bytes .* cannot shrink to 3145728"),
            ({"metadata_size_bytes": 2 * MIB - PAGE}, "metadata size .* too small"),
            ({"data_size_bytes": 8 * MIB + 512}, "not a multiple of the block size"),
            ({"metadata_size_bytes": 4 * MIB + 1}, "not a multiple"),
            ({"metadata_size_bytes": 1 << 35}, "more than a pool can use"),
        ]
        for arguments, text in refusals:
            with pytest.raises(UsageError, match=text):
                devices.resize_pool(**arguments)
        with pytest.raises(OutOfMetadataSpace, match="make the metadata larger too, at least"):
            devices.resize_pool(data_size_bytes=1 << 40)
        assert devices.reports.status().data_total_bytes == 4 * MIB
    assert (home / "devicemapper/data").stat().st_size == 4 * MIB


def test_a_pool_that_does_not_take_it_has_its_files_as_they_were(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        backend.fail = {"resume 128": [PoolIoError("the table was refused")]}
        with pytest.raises(PoolIoError, match="the table was refused"):
            devices.resize_pool(data_size_bytes=8 * MIB)
        assert backend.events[-1] == "resume 64"
        assert devices.reports.status().data_total_bytes == 4 * MIB
        assert (home / "devicemapper/data").stat().st_size == 4 * MIB
        devices.create("b")


def test_a_disk_that_is_full_leaves_the_pool_as_it_was(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend, system=FailingOs("ftruncate", errno.EFBIG)) as devices:
        with pytest.raises(HomeError, match="File too large"):
            devices.resize_pool(data_size_bytes=8 * MIB)
        assert devices.reports.status().data_total_bytes == 4 * MIB
        assert devices.resize_pool(data_size_bytes=8 * MIB).data_total_bytes == 8 * MIB


def test_an_emulated_pool_grows_under_its_users(tmp_path: Path) -> None:
    options = HomeOptions(
        data_size_bytes=16 * MIB, metadata_size_bytes=2 * MIB, base_size_bytes=64 * MIB, error_if_no_space=True,
        min_free_percent=0, durable=False,
    )  # fmt: skip
    with opening.make_home(
        tmp_path / "home", load_backend("emulated"), options, injected=Injected(filesystem=Filesystem())
    ) as devices:
        devices.create("a")
        thin = devices.active.activate("a")
        thin.pwrite(0, b"x" * 15 * MIB)
        with pytest.raises(OutOfDataSpace):
            thin.pwrite(15 * MIB, b"x" * 2 * MIB)
        devices.resize_pool(data_size_bytes=32 * MIB, metadata_size_bytes=4 * MIB)
        thin.pwrite(16 * MIB, b"y" * MIB)
        thin.flush()
        assert thin.pread(16 * MIB, 1) == b"y"
        status = devices.reports.status()
        assert (status.data_total_bytes, status.metadata_total_bytes) == (32 * MIB, 4 * MIB)
        assert status.mode == "write"
        require_clean_pool(devices.pool)


def test_metadata_that_is_used_up_is_made_larger(tmp_path: Path) -> None:
    with make_home(tmp_path / "home", load_backend("emulated"), ROOMY) as devices:
        fill_metadata(devices)
        assert devices.reports.status().mode == "out_of_metadata_space"
        devices.resize_pool(metadata_size_bytes=8 * MIB)
        devices.create("more")
        assert devices.reports.status().mode == "write"
        require_clean_pool(devices.pool)
