"""Homes whose pool is damaged or full: the problem is said in words, the rest works, nothing is made worse."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from cowfs.blockdev import FileDevice
from cowfs.devices import opening
from cowfs.devices.deviceset import DeviceSet
from cowfs.devices.injected import Injected
from cowfs.devices.on_disk.options import HomeOptions, MinimumFree
from cowfs.errors import (
    HomeError,
    OutOfDataSpace,
    OutOfMetadataSpace,
    PoolModeError,
    UsageError,
)
from cowfs.home.maintenance import repair_home
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.requests.devices import ListDevices, Status
from cowfs.layers.options import DriverOptions, Facts, resolve_options
from cowfs.pool import PoolMode, UnreadableStatus, load_backend
from cowfs.steps import pieces_of
from cowfs.testing.judges import require_clean_pool
from cowfs.thinmeta import Metadata
from tests.devices.home_fakes import (
    MIB,
    ROOMY,
    SMALL,
    FakeBackend,
    Filesystem,
    assert_whole,
    fill_metadata,
    make_home,
    names,
    open_home,
)
from tests.kit.contents import contents

EMULATED = load_backend("emulated")


def changes(devices: DeviceSet) -> dict[str, Callable[[], object]]:
    return {
        "create": lambda: devices.create("new"),
        "resize": lambda: devices.resize("a", 2 * MIB),
        "resize_pool": lambda: devices.resize_pool(data_size_bytes=8 * MIB),
        "remove": lambda: devices.remove("a"),
        "remove deferred": lambda: devices.remove("a", deferred=True),
        "replace": lambda: devices.replacing("a").__enter__(),
        "ensure_base": devices.base.ensure,
    }


# --- pools that cannot be changed


def test_a_pool_that_needs_a_check_is_reported_and_read(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        devices.active.activate("a").pwrite(0, b"still readable")
    (home / "metadata/broken").write_text("{")
    before = contents(home, leave_out=())
    backend.condition = {"mode": PoolMode.READ_ONLY, "needs_check": True}
    with open_home(home, backend) as devices:
        assert devices.read_only
        assert "needs a check, because a change of its metadata failed" in devices.problems[0]
        assert devices.reports.status().problems == list(devices.problems)
        assert devices.active.activate("a").pread(0, 14) == b"still readable"
        for what, change in changes(devices).items():
            with pytest.raises(PoolModeError, match="'pool check --repair'") as caught:
                change()
            assert caught.value.errno == errno.EROFS, what
        assert devices.deletions.retry() == 0
    assert contents(home, leave_out=()) == before
    backend.condition = {}
    with open_home(home, backend) as devices:
        devices.create("new")
        assert_whole(devices)


@pytest.mark.parametrize("answer", list(UnreadableStatus))
def test_a_pool_that_failed_is_reported_and_its_devices_are_listed(
    home: Path, backend: FakeBackend, answer: UnreadableStatus
) -> None:
    backend.unreadable = answer
    with open_home(home, backend) as devices:
        assert f"has failed: it answers '{answer.value}'" in devices.problems[0]
        assert len(devices.problems) == 1
        assert names(devices) == ["a", "base"]
        status = devices.reports.status()
        assert (status.mode, status.data_total_bytes, status.orphan_thin_ids) == ("fail", 0, [])
        rows = list(pieces_of(ListDevices().run(OpenHome(devices, "fake", resolve_options(DriverOptions(), Facts())))))
        assert [(row.name, row.mapped_bytes, row.exclusive_bytes) for row in rows] == [
            ("a", None, None),
            ("base", None, None),
        ]
        assert Status().run(OpenHome(devices, "fake", resolve_options(DriverOptions(), Facts()))).problems == list(
            devices.problems
        )
        for change in changes(devices).values():
            with pytest.raises(PoolModeError, match="has failed"):
                change()


def test_a_pool_that_fails_later_is_reported_too(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        assert devices.reports.status().problems == []
        backend.condition = {"mode": PoolMode.READ_ONLY}
        (problem,) = devices.reports.status().problems
        assert "is read-only, because its metadata could not be written" in problem
        with pytest.raises(PoolModeError, match="close the home and open it again"):
            devices.create("new")


def test_a_pool_that_does_not_answer_does_not_hide_what_can_be_done(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        backend.status_errors = [PoolModeError("no answer")]
        devices.remove("a")
        assert_whole(devices)


def test_a_home_opened_read_only_is_no_problem(home: Path) -> None:
    home = home.parent / "real"
    opening.make_home(home, EMULATED, SMALL, injected=Injected(filesystem=Filesystem())).close()
    with opening.open_home(
        home, EMULATED, opening.OpenOptions(read_only=True), injected=Injected(filesystem=Filesystem())
    ) as devices:
        assert devices.reports.status().problems == []
        with pytest.raises(HomeError, match="open it for writing"):
            devices.create("new")


def test_the_flag_of_a_real_pool(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with make_home(home, EMULATED) as devices:
        devices.create("a")
        devices.active.activate("a").pwrite(0, b"still readable")
    device = FileDevice(home / "devicemapper/metadata")
    metadata = Metadata.open(device)
    metadata.set_needs_check()
    metadata.commit()
    metadata.close()
    device.close()
    with open_home(home, EMULATED) as devices:
        assert devices.reports.status().needs_check
        assert "needs a check" in devices.problems[0]
        assert devices.active.activate("a").pread(0, 14) == b"still readable"
        with pytest.raises(PoolModeError, match="'pool check --repair'"):
            devices.create("b")
    assert repair_home(home).repaired
    with open_home(home, EMULATED) as devices:
        assert devices.problems == ()
        devices.create("b")


# --- pools that are full


def test_devices_can_be_removed_when_the_metadata_is_full(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        backend.condition = {"mode": PoolMode.OUT_OF_METADATA_SPACE}
        (problem,) = devices.reports.status().problems
        assert "no metadata space left; devices can be read and removed" in problem
        for change in ("create", "resize", "ensure_base"):
            with pytest.raises(OutOfMetadataSpace, match="pool resize --metadata-size"):
                changes(devices)[change]()
        devices.remove("a")
        assert names(devices) == ["base"]
        assert_whole(devices)


def test_the_kernels_word_for_full_metadata_is_understood(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        backend.condition = {"mode": PoolMode.READ_ONLY, "used_metadata_blocks": 512}
        assert "no metadata space left" in devices.reports.status().problems[0]
        devices.resize_pool(metadata_size_bytes=4 * MIB)


def test_a_real_pool_whose_metadata_is_full_gets_out_of_it(tmp_path: Path) -> None:
    with make_home(tmp_path / "home", EMULATED, ROOMY) as devices:
        fill_metadata(devices)
        assert devices.reports.status().mode == "out_of_metadata_space"
        for number in range(20):
            devices.remove(f"d{number}")
        assert devices.reports.status().mode == "write"
        devices.create("again")
        assert_whole(devices)
        require_clean_pool(devices.pool)


def test_a_minimum_in_bytes(tmp_path: Path, backend: FakeBackend) -> None:
    home = tmp_path / "home"
    with make_home(home, backend, replace(SMALL, data_size_bytes=8 * MIB, min_free_bytes=2 * MIB)) as devices:
        assert devices.reports.status().min_free_bytes == 2 * MIB
        assert devices.reports.warnings() == []
        backend.condition = {"used_data_blocks": 80}  # 3 of 8 MiB are free
        (warning,) = devices.reports.warnings()
        assert "has 3145728 bytes (3 MiB) of data space free; below 2 MiB no device is made" in warning
        devices.create("a")
        backend.condition = {"used_data_blocks": 97}
        with pytest.raises(OutOfDataSpace, match=r"2031616 bytes \(1.94 MiB\) .* less than the 2097152 \(2 MiB\)"):
            devices.create("b")
        with pytest.raises(OutOfDataSpace, match="lower the minimum"):
            devices.resize("a", 2 * MIB)
        devices.remove("a")
    with open_home(home, backend, min_free_percent=1) as devices:
        assert (devices.reports.status().min_free_percent, devices.reports.status().min_free_bytes) == (1, None)
        devices.create("b")
    with open_home(home, backend) as devices, pytest.raises(OutOfDataSpace):
        devices.create("c")


def test_the_metadata_keeps_its_share_beside_a_minimum_in_bytes(tmp_path: Path, backend: FakeBackend) -> None:
    options = replace(SMALL, min_free_bytes=0, min_free_percent=10)
    with make_home(tmp_path / "home", backend, options) as devices:
        backend.condition = {"used_data_blocks": 64, "used_metadata_blocks": 450}
        (warning,) = devices.reports.warnings()
        assert "253952 bytes (248 KiB) of metadata space free; below 204 KiB no device is made" in warning
        devices.create("a")
        backend.condition = {"used_metadata_blocks": 470}
        with pytest.raises(OutOfMetadataSpace):
            devices.create("b")


def test_a_full_pool_is_a_warning(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        backend.condition = {"mode": PoolMode.OUT_OF_DATA_SPACE}
        status = devices.reports.status()
        assert status.problems == []
        assert "no data space left, so writes wait; remove or trim devices" in status.warnings[0]
        devices.remove("a")


def test_the_base_needs_room_too(home: Path, backend: FakeBackend) -> None:
    record = home / "metadata/base"
    record.write_text(record.read_text().replace('"initialized":true', '"initialized":false'))
    with open_home(home, backend, min_free_percent=10) as devices:
        backend.condition = {"used_data_blocks": 60}
        backend.events.clear()
        with pytest.raises(OutOfDataSpace):
            devices.create("new")
        assert backend.events == []
        backend.condition = {}
        devices.create("new")
        assert_whole(devices)
    backend.condition = {"used_data_blocks": 60}
    with pytest.raises(UsageError, match="take at least"):
        make_home(home.parent / "other", backend, replace(SMALL, min_free_percent=10))
    backend.condition = {}
    make_home(home.parent / "other", backend, replace(SMALL, min_free_percent=10)).close()


@pytest.mark.parametrize("minimum", [MinimumFree(100), MinimumFree(-1), MinimumFree(10, -1)])
def test_minimums_that_cannot_be(minimum: MinimumFree) -> None:
    with pytest.raises(UsageError, match=r"minimum free space of .* is not possible"):
        minimum.check()
    with pytest.raises(UsageError):
        HomeOptions(min_free_percent=minimum.percent, min_free_bytes=minimum.data_bytes).check()
