"""The defects of Docker's devicemapper driver, one defect after the other, and the tests that keep it from here.

The defects that no other test is about have theirs below; `DEFECTS` says for each where they are.
"""

from __future__ import annotations

import ast
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cowfs.devices.base import base_xfs
from cowfs.devices.base.base_xfs import Xfs
from cowfs.errors import DeviceBusy, FilesystemError, PoolIoError
from cowfs.ext4.tools import commands as tools
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.opened.opening import open_here
from cowfs.home.opened.spec import HomeSpec, Make
from cowfs.layers.driver import LayerDriver
from cowfs.layers.info import driver_info, status_items
from cowfs.pool import NodePool, NodeThin, ThinStatus, UnreadableStatus
from tests.conftest import REPOSITORY
from tests.devices.home_fakes import FakeBackend, FakePool, FakeThin, Killed, Steps, assert_whole, make_home, open_home
from tests.layers.driver_home import opened

HERE = "tests/layers/test_defects.py"
TRANSACTIONS = "tests/devices/test_home_transactions.py"
SIZES = "tests/devices/test_home_sizes.py"
INPUTS = "tests/devices/test_home_inputs.py"
KERNEL = "tests/uml/guest_layers.py"

DEFECTS: dict[int, tuple[str, list[str]]] = {
    1: (
        "a device whose making was rolled back is still there until the next start",
        [f"{TRANSACTIONS}::test_a_failed_make_can_be_tried_again_at_once"],
    ),
    2: (
        "a rollback that meets a busy thin frees its id and its record all the same",
        [f"{TRANSACTIONS}::test_a_busy_thin_survives_recovery_with_its_id_taken"],
    ),
    3: (
        "a crash between the discard and the deletion leaves a device that is listed, and empty",
        [
            f"{HERE}::test_a_crash_after_the_discard_leaves_no_empty_device",
            f"{HERE}::test_a_device_that_could_not_be_deleted_after_its_discard_is_marked",
            "tests/uml/guest_crash.py::remove_full",
        ],
    ),
    4: (
        "deferred deletions are not retried in the first run of a home",
        ["tests/devices/test_home_deletions.py::test_it_works_from_the_first_run_of_a_home_on"],
    ),
    5: (
        "a transaction file that does not parse is taken for none",
        [f"{TRANSACTIONS}::test_an_unreadable_transaction_file_is_set_aside_and_what_it_left_is_found"],
    ),
    6: (
        "the base device's new size is stored before it has grown, so that a failure is final",
        [f"{SIZES}::test_a_base_that_could_not_grow_is_tried_again"],
    ),
    7: (
        "a device whose file system could not be grown stays registered",
        [f"{SIZES}::test_a_device_that_cannot_be_made_larger_is_not_made"],
    ),
    8: (
        "a mount that fails leaves the device active",
        [
            f"{HERE}::test_a_get_that_fails_leaves_nothing_active",
            "tests/devices/test_volumes.py::test_what_cannot_be_opened_leaves_nothing_active",
            f"{KERNEL}::retries_of_an_xfs_are_limited",
        ],
    ),
    9: (
        "all file systems are mounted at one place to be grown",
        [f"{HERE}::test_two_file_systems_may_be_grown_at_once"],
    ),
    10: (
        "options are the process's, and outlive the driver they were given to",
        [f"{HERE}::test_options_are_those_of_one_driver"],
    ),
    11: (
        "a thin that maps nothing, and a pool without data blocks, break the status",
        [f"{HERE}::test_a_thin_that_maps_nothing_has_a_status", f"{HERE}::test_a_pool_without_data_has_a_status"],
    ),
    12: (
        "of several options of a layer, an unknown one is found or not by chance",
        ["tests/layers/options/test_layer_options.py::test_every_unknown_key_is_found"],
    ),
    13: (
        "a deletion that failed closes its transaction, and errors of closing are lost",
        [
            f"{TRANSACTIONS}::test_a_remove_that_the_pool_refuses_changes_nothing",
            f"{TRANSACTIONS}::test_a_failed_close_of_a_remove_is_reported",
        ],
    ),
    14: (
        "ids that are the home's own file names, or paths, are taken",
        [
            f"{INPUTS}::test_names_that_cannot_be_are_refused_before_anything_changes",
            "cowfs/testing/layers/rules.py::an_id_that_cannot_be_is_refused",
        ],
    ),
    15: (
        "a put without a get fails, and one that fails cannot be repeated",
        [
            "cowfs/testing/layers/rules.py::a_layer_is_got_as_often_as_it_is_put",
            f"{KERNEL}::layers_are_got_and_put",
        ],
    ),
    16: (
        "a device that is active already, and a mount that is there already, are taken whatever they are",
        [
            f"{KERNEL}::something_else_at_a_mount_point_is_no_layer",
            "tests/uml/guest_dmthin.py::a_device_of_somebody_else_is_left_alone",
        ],
    ),
    17: (
        "the diff of a layer without a parent takes no notice of the id maps",
        ["tests/layers/archive/test_pack.py::test_ids_are_mapped_back_with_and_without_changes"],
    ),
    18: (
        "a rename is not followed by an fsync of the directory",
        ["tests/devices/test_home_crash.py::test_a_change_is_wholly_there_or_wholly_absent"],
    ),
    19: (
        "extended attributes, access lists and parts of seconds are lost by diff and apply",
        [
            "tests/layers/archive/test_round_trip.py::test_a_whole_layer",
            "tests/layers/archive/test_pack.py::test_extended_attributes",
            "cowfs/testing/layers/rules.py::all_of_a_layer_comes_back_from_its_archive",
        ],
    ),
    20: (
        "two processes open one home",
        ["tests/devices/test_home_lock.py::test_an_open_home_is_held_until_it_is_closed"],
    ),
    21: (
        "the search for an id that is free has no end",
        [f"{TRANSACTIONS}::test_ids_that_exist_end_the_search_after_a_few"],
    ),
    22: (
        "pools that LVM made for the home discard whole devices, unlike other pools that are not files",
        [
            "tests/devices/test_pool_source.py::test_removed_devices_are_discarded_where_the_data_is_in_the_home",
            "tests/uml/guest_options.py::a_home_is_made_in_the_pool",
        ],
    ),
    23: (
        "of the pool's two files the one that is missing is made anew beside the other",
        [f"{INPUTS}::test_missing_pool_files_are_reported_and_not_made"],
    ),
    24: (
        "the base device is made without a look at the free space, and tools may run for ever",
        [
            "tests/devices/test_home_health.py::test_the_base_needs_room_too",
            f"{HERE}::test_a_tool_that_does_not_end_is_stopped",
        ],
    ),
    25: (
        "an origin in use is held still for longer than the snapshot takes",
        [f"{TRANSACTIONS}::test_an_active_parent_is_held_for_the_message_alone"],
    ),
}


@pytest.mark.parametrize("number", DEFECTS)
def test_each_defect_has_its_tests(number: int) -> None:
    _, tests = DEFECTS[number]
    assert tests
    for test in tests:
        path, name = test.split("::")
        tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, test


def test_no_defect_is_left_out() -> None:
    assert list(DEFECTS) == list(range(1, 26))


# --- 3: discards


class NodeOfThin(FakeThin):
    def discard(self, offset: int, length: int) -> None:
        self.pool.backend.steps.step("discard")
        self.pool.state.thins[self.thin_id].clear()


class PoolOfNodes(FakePool):
    """A fake pool that seems to have nodes, so that devices are discarded before they go."""

    def activate(self, name: str, thin_id: int, length_sectors: int, **options: Any) -> FakeThin:
        super().activate(name, thin_id, length_sectors, **options)
        self._active[name] = thin = NodeOfThin(self, name, thin_id, length_sectors * 512)
        return thin

    def open_nodes(self) -> dict[int, list[int]]:
        return {}

    def kept_nodes(self) -> dict[int, str]:
        return {}

    def end_kept(self, thin_id: int) -> None:
        raise NotImplementedError

    def create_snaps(self, origins: Any) -> None:
        raise NotImplementedError

    def open_data(self) -> Any:
        raise NotImplementedError

    def read_metadata(self, read: Any) -> Any:
        raise NotImplementedError

    def open_events(self) -> int:
        raise NotImplementedError

    def arm_events(self, fd: int) -> None:
        raise NotImplementedError


class NodesBackend(FakeBackend):
    def open_pool(self, name: str, table: Any, *, durable: bool = True) -> FakePool:
        pool = super().open_pool(name, table, durable=durable)
        self.pool = PoolOfNodes(self, name, table, pool.state)
        return self.pool


@pytest.fixture
def nodes(tmp_path: Path) -> NodesBackend:
    backend = NodesBackend()
    with make_home(tmp_path / "home", backend) as devices:
        assert isinstance(devices.pool, NodePool)
        devices.create("a")
        devices.active.activate("a").pwrite(0, b"precious")
        devices.active.deactivate("a")
    return backend


def test_a_crash_after_the_discard_leaves_no_empty_device(tmp_path: Path, nodes: NodesBackend) -> None:
    kinds = set()
    for point in range(10):
        home = tmp_path / "home"
        nodes.steps = Steps(point)
        devices = open_home(home, nodes)
        try:
            devices.remove("a")
        except Killed:
            kinds.add(nodes.steps.log[-1].split()[0] if nodes.steps.log else "")
        died = nodes.steps.is_dead
        devices._lock.release()
        nodes.steps = Steps()
        with open_home(home, nodes) as devices:
            if "a" in devices:
                thin = devices.active.activate("a", read_only=True)
                assert thin.pread(0, 8) == b"precious"
                devices.active.deactivate("a")
            else:
                devices.create("a")
                devices.active.activate("a").pwrite(0, b"precious")
                devices.active.deactivate("a")
            assert_whole(devices)
        if not died:
            break
    assert {"discard", "delete"} <= kinds


def test_a_device_that_could_not_be_deleted_after_its_discard_is_marked(tmp_path: Path, nodes: NodesBackend) -> None:
    nodes.fail["delete"] = [PoolIoError("a bad moment")]
    with open_home(tmp_path / "home", nodes) as devices:
        with pytest.raises(PoolIoError):
            devices.remove("a")
        with pytest.raises(DeviceBusy, match="marked for deletion"):
            devices.active.activate("a")
        assert devices.deletions.retry() == 0
        assert "a" not in devices
        assert_whole(devices)


# --- 8: what fails on the way


def test_a_get_that_fails_leaves_nothing_active(tmp_path: Path) -> None:
    class Refusing:
        def mount(self, layer_id: str, mount_label: str, **hooks: Any) -> str:
            raise FilesystemError("not today")

        def show(self, layer_id: str, **hooks: Any) -> str:
            raise FilesystemError("not today")

        def unmount(self, layer_id: str) -> None: ...

        def unmount_all(self) -> None: ...

    with opened(tmp_path / "home") as home:
        home.driver.create("a", None)
        driver = LayerDriver(home.devices, home.volumes, Refusing())
        with pytest.raises(FilesystemError):
            driver.get("a")
        assert not driver.has_mounts
        assert home.devices.active.thins() == {}
        driver.remove("a")
        assert "a" not in home.devices


# --- 9: growing


def test_two_file_systems_may_be_grown_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Node:
        node = os.devnull

        def flush(self) -> None: ...

    mounts: list[str] = []

    def run(command: str, arguments: list[str], package: str) -> None:
        if command == "mount":
            mounts.append(arguments[-1])
            assert os.listdir(mounts[-1]) == []
            if len(mounts) == 1:
                Xfs().grow(Node())  # type: ignore[arg-type]
        elif command == "xfs_growfs":
            grown.append(arguments[-1])

    grown: list[str] = []
    monkeypatch.setattr(base_xfs, "_run", run)
    monkeypatch.setattr(base_xfs, "_node", lambda device: device.node)
    Xfs().grow(Node())  # type: ignore[arg-type]
    assert len(set(mounts)) == 2
    assert grown == mounts[::-1]
    assert not any(os.path.exists(path) for path in mounts)
    assert hasattr(NodeThin, "node")


# --- 10: options


def test_options_are_those_of_one_driver(tmp_path: Path) -> None:
    sizes = ("dm.loopdatasize=64M", "dm.loopmetadatasize=4M", "dm.basesize=16M")
    never = ("dm.use_deferred_removal=false", "dm.use_deferred_deletion=false", "dm.blkdiscard=false")

    def opened(name: str, *words: str) -> OpenHome:
        return open_here(HomeSpec(tmp_path / name, durable=False, storage_options=words, make=Make.WHERE_ABSENT))

    for name, words in (("first", never), ("second", ()), ("first", ())):
        with opened(name, *sizes, *words) as home:
            settings = home.settings
            found = settings.deferred_removal, settings.deferred_deletion, home.devices.deletions.discards_removed
            assert set(found) == {not words}
    # A larger base is asked for once; a home that is opened without that keeps what it has.
    opened("first", "dm.basesize=24M").close()
    for name, size_bytes in (("first", 24 << 20), ("second", 16 << 20)):
        with opened(name) as home:
            assert home.devices.reports.status().base_size_bytes == size_bytes


# --- 11: figures


def test_a_thin_that_maps_nothing_has_a_status(tmp_path: Path) -> None:
    assert ThinStatus.parse("0 -") == ThinStatus(0, None)  # type: ignore[arg-type]
    with opened(tmp_path / "home") as home:
        home.devices.pool.create_thin(77)
        assert home.devices.pool.thin_status(77) == ThinStatus(0, None)  # type: ignore[arg-type]
        assert home.driver.status()


def test_a_pool_without_data_has_a_status(tmp_path: Path) -> None:
    backend = FakeBackend()
    with make_home(tmp_path / "home", backend) as devices:
        backend.condition = {"total_data_blocks": 0, "used_data_blocks": 0}
        with opened(tmp_path / "other") as home:
            settings = home.driver._settings
        items = dict(status_items(driver_info(devices.reports.status(), settings)))
        assert items["Data Space Total"] == items["Data Space Available"] == "0B"
        backend.condition.clear()
        backend.unreadable = UnreadableStatus.FAIL
        assert dict(status_items(driver_info(devices.reports.status(), settings)))["Data Space Total"] == "0B"


# --- 24: tools


@contextmanager
def command(tmp_path: Path, script: str) -> Iterator[str]:
    """The name of a command that is found as those of the system are."""
    path = tmp_path / "cowfs-test-tool"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    tools.find.cache_clear()
    yield path.name
    tools.find.cache_clear()


def test_a_tool_that_does_not_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(tools, "PATIENCE_SECONDS", 0.01)
    pid_file = tmp_path / "pid"
    with command(tmp_path, f"echo $$ > {pid_file}; exec sleep 600") as name:
        with pytest.raises(FilesystemError, match="stopped because it did not end") as caught:
            tools.run(name, [])
        assert caught.value.errno == errno.ETIMEDOUT
        if pid_file.exists() and (pid := pid_file.read_text().strip()):
            assert not Path("/proc", pid).exists()
    monkeypatch.undo()
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with command(tmp_path, "echo said; echo so >&2; exit 3") as name:
        assert tools.run(name, []) == (3, "said\nso\n")
