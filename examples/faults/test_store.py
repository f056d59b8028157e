"""The store on a disk that fails, is full, is slow, tears writes and turns bits over.

pytest examples/faults
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import cowfs
from cowfs.faults.api import Faults
from examples.faults.store import DamagedStore, Store

OPTIONS = cowfs.HomeOptions(data_size_bytes=256 << 20, metadata_size_bytes=4 << 20, base_size_bytes=16 << 20)


@pytest.fixture(scope="module")
def home() -> Iterator[tuple[cowfs.Home, Path]]:
    """A home, with all of its devices mounted."""
    with (
        tempfile.TemporaryDirectory() as directory,
        cowfs.open_home(f"{directory}/home", create=True, options=OPTIONS) as home,
        home.mount() as tree,
    ):
        yield home, tree


@pytest.fixture
def disk(home: tuple[cowfs.Home, Path], request: pytest.FixtureRequest) -> Path:
    """An empty file system of the test's own."""
    opened, tree = home
    name = str(request.node.name).replace("[", "-").replace("]", "")
    opened.create(name)
    return tree / name


@pytest.fixture
def faults(home: tuple[cowfs.Home, Path], disk: Path) -> Iterator[Faults]:
    """Faults of that file system; none is left for the next test."""
    yield Faults(home[0], device=disk.name)
    home[0].faults.clear()


@pytest.mark.parametrize("name", ["EIO", "ENOSPC"])
def test_a_failed_write_loses_nothing_else(disk: Path, faults: Faults, name: str) -> None:
    with Store(disk / "log") as store:
        store.put(b"a", b"1")
        reason = os.strerror(getattr(errno, name))
        with faults.fail("write", path="log", errno=name, times=1), pytest.raises(OSError, match=reason):
            store.put(b"b", b"2")
        store.put(b"c", b"3")
    with Store(disk / "log") as store:
        assert [store.get(key) for key in (b"a", b"b", b"c")] == [b"1", None, b"3"]


def test_a_short_write_is_completed(disk: Path, faults: Faults) -> None:
    with Store(disk / "log") as store, faults.short("write", keep_bytes=5, times=3) as fault:
        store.put(b"a", b"x" * 1000)
        assert fault.hits == 3
    with Store(disk / "log") as store:
        assert store.get(b"a") == b"x" * 1000


def test_a_failed_fsync_is_no_promise(disk: Path, faults: Faults) -> None:
    with Store(disk / "log") as store:
        store.put(b"a", b"1")
        with faults.fail("fsync", nth=1), pytest.raises(OSError, match="Input/output error"):
            store.put(b"a", b"2")
        assert store.get(b"a") == b"1"
    with Store(disk / "log") as store:
        assert store.get(b"a") == b"1"


@pytest.mark.parametrize("keep_bytes", [0, 1, 11, 12, 13, 511])
def test_a_torn_last_record_is_dropped(disk: Path, faults: Faults, keep_bytes: int) -> None:
    with Store(disk / "log") as store:
        store.put(b"a", b"1")
        with faults.tear("write", keep_bytes=keep_bytes):
            store.put(b"b", b"x" * 1000)
    with Store(disk / "log") as store:
        assert store.get(b"a") == b"1"
        assert store.get(b"b") is None
        store.put(b"c", b"3")
    with Store(disk / "log") as store:
        assert store.get(b"c") == b"3"


def test_a_torn_record_before_the_end_is_told(disk: Path, faults: Faults) -> None:
    with Store(disk / "log") as store, faults.tear("write", keep_sectors=[1], nth=2):
        for number in range(4):
            store.put(b"%d" % number, b"x" * 1000)
    with pytest.raises(DamagedStore, match="the record at 1013 is damaged"):
        Store(disk / "log")


def test_a_wrong_bit_is_told(disk: Path, faults: Faults) -> None:
    with Store(disk / "log") as store:
        for number in range(4):
            store.put(b"%d" % number, b"x" * 1000)
    with faults.flip("read", path="log", offset_bytes=1500, bit=3), pytest.raises(DamagedStore):
        Store(disk / "log")
    with Store(disk / "log") as store:
        assert store.get(b"3") == b"x" * 1000


def test_any_of_many_writes_may_fail(disk: Path, faults: Faults) -> None:
    promised: dict[bytes, bytes] = {}
    with Store(disk / "log") as store, faults.fail("write", probability=0.2, seed=7, errno="EIO") as fault:
        for number in range(100):
            key, value = b"%d" % (number % 10), b"%d" % number * 50
            try:
                store.put(key, value)
            except OSError:
                continue
            promised[key] = value
        assert 5 < fault.hits < 40
    with Store(disk / "log") as store:
        assert {key: store.get(key) for key in promised} == promised
