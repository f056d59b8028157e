"""Faults of a home that this process has open itself: on the disks that are open in it, and on its pool."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

import cowfs
from cowfs.blockdev import BlockDevice
from cowfs.errors import OutOfDataSpace, PoolIoError, UsageError
from cowfs.faults.plan import Error, Place, Rule
from cowfs.home.executor import Executor
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.requests.faults import AddFaults
from cowfs.home.serving.mounting import MountRequest
from cowfs.home.serving.served_home import ServedHome
from cowfs.pool import BreakablePool, PoolMode, PoolStatus
from tests.faults.conftest import SMALL

BLOCK = 65536


@pytest.fixture
def home(tmp_path: Path) -> Iterator[cowfs.Home]:
    with cowfs.open_home(tmp_path / "home", create=True, options=SMALL) as home:
        home.create("web")
        home.create("other")
        yield home


def opened(home: cowfs.Home) -> OpenHome:
    """The home behind the interface."""
    with home._session.current() as session:
        assert isinstance(session, Executor)
        return session.home


def test_a_disk_that_is_open_and_one_that_is_opened_later(home: cowfs.Home) -> None:
    with home.device("web") as disk:
        disk.pwrite(BLOCK, b"before")
        with home.faults.fail("read", "write", on="device", device="web", range_blocks=(1, 2)) as fault:
            with pytest.raises(PoolIoError, match="fault 'rule-1' in write at 0x10000") as caught:
                disk.pwrite(BLOCK, b"after")
            assert caught.value.errno == errno.EIO
            disk.pwrite(2 * BLOCK, b"after")
            with home.device("other") as other:
                other.pwrite(BLOCK, b"x")
            assert (fault.seen, fault.hits) == (1, 1)
        assert disk.pread(BLOCK, 6) == b"before"
    home.faults.fail("flush", on="device", device="other", errno="EROFS", times=1)
    with home.device("other") as other:
        other.pwrite(0, b"x")
        with pytest.raises(PoolIoError, match="Read-only") as caught:
            other.flush()
        assert caught.value.errno == errno.EROFS
        other.flush()


def test_metadata_that_cannot_be_read_are_an_error_of_the_pool(home: cowfs.Home) -> None:
    with home.device("web") as disk:
        disk.pwrite(0, b"x")
    path = home.path
    home.close()
    with cowfs.open_home(path) as again, again.device("web") as disk:
        again.faults.fail("read", on="metadata", errno="ENOMEM")
        refused = r"thin 2, block 0: Cannot allocate memory \(fault 'rule-1' in read"
        with pytest.raises(PoolIoError, match=refused) as caught:
            disk.pread(0, 1)
        assert caught.value.errno == errno.EIO
        with pytest.raises(PoolIoError, match=refused):
            disk.pwrite(0, b"y")
        again.faults.pool_mode("read_only", "write", on="device", device="web")
        with pytest.raises(PoolIoError, match=refused):
            disk.pwrite(0, b"y")
        with pytest.raises(PoolIoError, match=refused):
            disk.flush()
        again.faults.clear()


def test_without_rules_a_disk_has_its_own_methods(home: cowfs.Home) -> None:
    """And so it has none of its own again when the last rule is cleared."""
    pool = opened(home).devices.pool
    assert isinstance(pool, BreakablePool)

    def overridden(device: BlockDevice) -> set[str]:
        return {"pread", "pwrite", "zero", "discard", "copy", "flush"} & vars(device).keys()

    with home.device("web") as disk:
        devices = [disk, *pool.disks().values()]
        before = [overridden(device) for device in devices]
        home.faults.fail("write", on="device")
        home.faults.fail("read", on="data")
        home.faults.fail(on="commit", name="c")
        assert all(len(overridden(device)) == 6 for device in devices)
        home.faults.clear("c")
        assert [overridden(device) for device in devices] == [overridden(disk), overridden(devices[1]), before[2]]
        home.faults.clear()
        assert [overridden(device) for device in devices] == before
        assert before[0] == set()


def test_the_disks_below_the_pool(home: cowfs.Home) -> None:
    with home.device("web") as disk:
        disk.pwrite(0, b"x" * BLOCK)
        with home.faults.fail("write", on="data", errno="ENOSPC"), pytest.raises(PoolIoError) as caught:
            disk.pwrite(BLOCK, b"x")
        assert caught.value.errno == errno.ENOSPC
        with home.faults.flip(on="data", offset_bytes=None, nth=1, seed=3) as flipped:
            read = disk.pread(0, BLOCK)
            assert sum((one ^ ord("x")).bit_count() for one in read) == 1
            assert disk.pread(0, BLOCK) == b"x" * BLOCK
            assert flipped.hits == 1
        with home.faults.lose("write", on="data", range_bytes=None):
            disk.pwrite(0, b"y")
        assert disk.pread(0, 1) == b"x"


@pytest.mark.parametrize("on", ["commit", "metadata"])
def test_a_commit_that_fails_makes_the_pool_read_only(home: cowfs.Home, on: Place) -> None:
    def story() -> None:
        with home.device("web") as disk:
            disk.pwrite(BLOCK, b"x")
            operations = () if on == "commit" else ("flush",)
            home.faults.fail(*operations, on=on, times=1)
            with pytest.raises(PoolIoError, match="changes since the last commit are lost"):
                disk.flush()

    with pytest.raises(PoolIoError, match="lost changes when pool"):
        story()
    status = home.status()
    assert (status.mode, status.needs_check) == ("read_only", True)


def test_the_pool_goes_into_a_mode_and_out_of_it(home: cowfs.Home) -> None:
    home.set_no_space("error")
    with home.device("web") as disk:
        disk.pwrite(0, b"x")
        home.faults.pool_mode("out_of_data_space", on="device", nth=1)
        with pytest.raises(OutOfDataSpace):
            disk.pwrite(BLOCK, b"x")
        home.faults.clear()
        pool = opened(home).devices.pool
        status = pool.status(flush=False)
        assert isinstance(status, PoolStatus)
        assert status.mode is PoolMode.OUT_OF_DATA_SPACE
        disk.discard(0, BLOCK)
        disk.flush()
        disk.pwrite(BLOCK, b"x")
        with home.faults.no_space(on="device", times=1), pytest.raises(OutOfDataSpace):
            disk.pwrite(0, b"x")


def test_requests_need_a_mount(home: cowfs.Home) -> None:
    with pytest.raises(UsageError, match=r"'files' are the requests of a mount, .* serves none; mount it first"):
        home.faults.fail("write")
    assert home.status().faults == 0


def test_a_pool_in_the_kernel_refuses_by_name(home: cowfs.Home, monkeypatch: pytest.MonkeyPatch) -> None:
    here = opened(home)
    monkeypatch.delattr(type(here.devices.pool), "degrade")
    with pytest.raises(UsageError, match=r"fault 'error': 'data' is not possible .* runs in the kernel"):
        home.faults.fail("write", on="data")
    with pytest.raises(UsageError, match="fault 'error': 'commit' is not possible"):
        home.faults.fail(on="commit")
    with pytest.raises(UsageError, match="fault 'pool_mode': 'pool_mode' is not possible"):
        home.faults.pool_mode("failed", on="device")
    home.faults.fail("write", on="device")


def test_what_a_mount_without_rules_does_for_a_request(home: cowfs.Home, tmp_path: Path) -> None:
    """Nothing: its handlers are those of its class, and are again when the last rule is cleared."""
    (tmp_path / "mnt").mkdir()
    request = MountRequest(tmp_path / "home", "emulated", "web", str(tmp_path / "mnt"))
    here = opened(home)
    with ServedHome.opened(here, request) as served:
        view = served._view
        assert view is not None
        before = dict(vars(view))
        here.faults.add(AddFaults([Rule(effect=Error(), operations=("write",))]).rules)
        assert "write" in vars(view)
        here.faults.clear(())
        assert vars(view) == before
