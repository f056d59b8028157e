"""The store on a disk that fails, is full, cuts writes short, and tears them."""

from __future__ import annotations

import pytest
from store import Store

from cowfs.pytest_plugin import Faults, MountedDevice


@pytest.mark.parametrize("name", ["EIO", "ENOSPC"])
def test_a_failed_write_loses_nothing_else(cow_mount: MountedDevice, cow_faults: Faults, name: str) -> None:
    with Store(cow_mount.path) as store:
        store.put("a", 1)
        with cow_faults.fail("write", path="log", errno=name, times=1), pytest.raises(OSError, match=r"error|space"):
            store.put("b", 2)
        store.put("c", 3)
    with Store(cow_mount.path) as store:
        assert [store.get(key) for key in "abc"] == [1, None, 3]


def test_a_write_that_is_cut_short_is_completed(cow_mount: MountedDevice, cow_faults: Faults) -> None:
    with Store(cow_mount.path) as store, cow_faults.short("write", keep_bytes=5, times=3) as fault:
        store.put("a", "x" * 1000)
        assert fault.hits == 3
    with Store(cow_mount.path) as store:
        assert store.get("a") == "x" * 1000


@pytest.mark.parametrize("on", ["files", "device"])
def test_a_failed_fsync_is_no_promise(cow_mount: MountedDevice, cow_faults: Faults, on: str) -> None:
    with Store(cow_mount.path) as store:
        store.put("a", 1)
        fault = cow_faults.fail("fsync") if on == "files" else cow_faults.fail("flush", on="device")
        with fault, pytest.raises(OSError, match="Input/output error"):
            store.put("a", 2)
        assert store.get("a") == 1
    with Store(cow_mount.path) as store:
        assert store.get("a") == 1


@pytest.mark.parametrize("operation", ["create", "write", "fsync", "rename"])
def test_a_compaction_that_fails_changes_nothing(cow_mount: MountedDevice, cow_faults: Faults, operation: str) -> None:
    with Store(cow_mount.path) as store:
        store.put("a", 1)
        with cow_faults.fail(operation, path="log.new"), pytest.raises(OSError, match="Input/output error"):
            store.compact()
        store.put("b", 2)
    with Store(cow_mount.path) as store:
        assert [store.get(key) for key in "ab"] == [1, 2]


@pytest.mark.parametrize("keep_bytes", [0, 1, 5, 511])
def test_a_torn_last_change_is_dropped(cow_mount: MountedDevice, cow_faults: Faults, keep_bytes: int) -> None:
    with Store(cow_mount.path) as store:
        store.put("a", 1)
        with cow_faults.tear("write", path="log", keep_bytes=keep_bytes):
            store.put("b", "x" * 1000)
    with Store(cow_mount.path) as store:
        assert [store.get(key) for key in "ab"] == [1, None]
        store.put("c", 3)
    with Store(cow_mount.path) as store:
        assert store.get("c") == 3


def test_any_of_many_writes_may_fail(cow_mount: MountedDevice, cow_faults: Faults, cow_seed: int) -> None:
    promised: dict[str, int] = {}
    with Store(cow_mount.path) as store, cow_faults.fail("write", "fsync", probability=0.2, seed=cow_seed) as fault:
        for number in range(100):
            try:
                store.put(f"{number % 10}", number)
            except OSError:
                continue
            promised[f"{number % 10}"] = number
        assert fault.hits
    with Store(cow_mount.path) as store:
        assert {key: store.get(key) for key in promised} == promised
