"""The store on a file system of each test's own: what it writes, a full disk, power cuts, and time that passes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from store import Store

from cowfs.pytest_plugin import Clock, MountedDevice


def test_compaction_changes_one_file(cow_mount: MountedDevice) -> None:
    with Store(cow_mount.path) as store:
        store.put("key 1", "new")
        before = cow_mount.snapshot()
        store.compact()
    assert [change.path for change in cow_mount.changes(before)] == ["/log"]
    assert (cow_mount.path / "log").stat().st_size < (before.path / "log").stat().st_size


@pytest.mark.parametrize("value", [1, "text", [None, {"a": 1.5}]])
def test_one_state_is_the_begin_of_many_tries(cow_mount: MountedDevice, value: object) -> None:
    before = cow_mount.snapshot()
    for key in ("key 1", "another"):
        with Store(cow_mount.path) as store:
            store.put(key, value)
        with Store(cow_mount.path) as store:
            assert store.get(key) == value
        cow_mount.rollback(before)
        with Store(cow_mount.path) as store:
            assert store.get(key) == (1 if key == "key 1" else None)


def test_another_program_reads_it(cow_mount: MountedDevice) -> None:
    script = "import sys, pathlib, store; print(store.Store(pathlib.Path(sys.argv[1])).get('key 99'))"
    words = [sys.executable, "-c", script, str(cow_mount.path)]
    assert subprocess.run(words, cwd=Path(__file__).parent, check=True, capture_output=True).stdout == b"99\n"


@pytest.mark.cow(data_size="16M", no_space="error")
def test_a_full_disk_loses_nothing(cow_mount: MountedDevice) -> None:
    with Store(cow_mount.path) as store:
        store.put("large", "x" * (1 << 20))
        with pytest.raises(OSError, match="No space left"):
            store.put("too large", "x" * (32 << 20))
        assert store.get("key 7") == 7
    with Store(cow_mount.path) as store:
        assert store.get("large") == "x" * (1 << 20)
        assert store.get("too large") is None


@pytest.mark.parametrize("number", range(10))
def test_what_was_put_survives_a_power_cut(cow_mount: MountedDevice, cow_seed: int, number: int) -> None:
    with Store(cow_mount.path) as store:
        store.put("a", number)
        store.compact()
        store.put("b", number)
        cow_mount.power_cut(seed=cow_seed)
    with Store(cow_mount.path) as store:
        assert [store.get("a"), store.get("b"), store.get("key 50")] == [number, number, 50]


@pytest.mark.cow(data_size="16M")
def test_a_write_waits_a_minute_for_space(cow_mount: MountedDevice, cow_clock: Clock) -> None:
    """Without a minute of waiting: the time is the test's."""
    problems = []

    def fill() -> None:
        try:
            (cow_mount.path / "large").write_bytes(bytes(64 << 20))
        except OSError as error:
            problems.append(error)

    writer = threading.Thread(target=fill)
    writer.start()
    while cow_mount.home.status().mode != "out_of_data_space":
        time.sleep(0.001)
    assert writer.is_alive()
    cow_clock.advance(61)
    writer.join()
    assert "No space left" in str(problems[0])
