"""What writes to a full pool do: chosen when a home is made or later, remembered by the home, followed at once."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowfs.devices.deviceset import DeviceSet
from cowfs.devices.injected import Injected
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.devices.opening import make_home, open_home
from cowfs.errors import HomeError, OutOfDataSpace, PoolIoError, UsageError
from cowfs.pool import PoolTable, load_backend
from tests.devices.home_fakes import FailingOs

MIB = 1 << 20
SMALL = HomeOptions(data_size_bytes=32 * MIB, metadata_size_bytes=4 * MIB, base_size_bytes=16 * MIB, min_free_percent=0)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    with make_home(path, load_backend("emulated"), SMALL) as devices:
        devices.create("web", size_bytes=64 * MIB)
    return path


@pytest.fixture
def devices(home: Path) -> Iterator[DeviceSet]:
    with open_home(home, load_backend("emulated")) as devices:
        yield devices


def setting(devices: DeviceSet) -> tuple[str, float | None]:
    status = devices.reports.status()
    return status.no_space, status.no_space_timeout_seconds


def fill(devices: DeviceSet) -> OutOfDataSpace:
    """How a write fails that finds no space."""
    thin = devices.active.activate("web")
    try:
        for offset in range(16 * MIB, 64 * MIB, MIB):
            thin.pwrite(offset, b"x" * MIB)
    except OutOfDataSpace as error:
        return error
    finally:
        devices.active.deactivate("web")
    raise AssertionError("48 MiB fit into 32")


def test_it_is_remembered(home: Path) -> None:
    with open_home(home, load_backend("emulated")) as devices:
        assert setting(devices) == ("queue", 60)
        devices.set_no_space(error=True)
        devices.set_no_space(timeout_seconds=5)
        assert setting(devices) == ("error", 5)
    with open_home(home, load_backend("emulated")) as devices:
        assert setting(devices) == ("error", 5)
        devices.set_no_space(error=False)
    with open_home(home, load_backend("emulated")) as devices:
        assert setting(devices) == ("queue", 5)


def test_a_new_home_is_made_with_it(tmp_path: Path) -> None:
    options = HomeOptions(
        data_size_bytes=32 * MIB,
        metadata_size_bytes=4 * MIB,
        base_size_bytes=16 * MIB,
        error_if_no_space=True,
        no_space_timeout_seconds=7,
    )
    with make_home(tmp_path / "home", load_backend("emulated"), options) as devices:
        assert setting(devices) == ("error", 7)


def test_writes_of_a_pool_that_is_full_follow_at_once(devices: DeviceSet) -> None:
    assert fill(devices).may_queue
    assert devices.pool.extra_space_wait_seconds() > 0
    devices.set_no_space(error=True)
    assert devices.pool.extra_space_wait_seconds() == 0
    assert not fill(devices).may_queue
    devices.set_no_space(error=False, timeout_seconds=600)
    assert fill(devices).may_queue
    assert devices.pool.extra_space_wait_seconds() > 500
    devices.set_no_space(timeout_seconds=1000)
    assert devices.pool.extra_space_wait_seconds() > 900


def test_a_setting_that_cannot_be_written_is_not_in_force(home: Path) -> None:
    with open_home(
        home, load_backend("emulated"), injected=Injected(system=FailingOs("fsync", errno.ENOSPC))
    ) as devices:
        with pytest.raises(HomeError, match="No space left"):
            devices.set_no_space(error=True)
        assert setting(devices) == ("queue", 60)
    with open_home(home, load_backend("emulated")) as devices:
        assert setting(devices) == ("queue", 60)


def test_a_setting_that_the_pool_refuses_is_not_remembered(
    home: Path, devices: DeviceSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(table: PoolTable) -> None:
        if table.error_if_no_space:
            raise PoolIoError("the pool said no")

    monkeypatch.setattr(devices.pool, "reload", refuse)
    with pytest.raises(PoolIoError, match="said no"):
        devices.set_no_space(error=True)
    devices.close()
    with open_home(home, load_backend("emulated")) as again:
        assert setting(again) == ("queue", 60)


@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan")])
def test_times_that_cannot_be_are_refused(devices: DeviceSet, seconds: float) -> None:
    with pytest.raises(UsageError, match=r"is not a time .*; take 0"):
        devices.set_no_space(timeout_seconds=seconds)
    assert setting(devices) == ("queue", 60)
