"""Pools on files: locks, links, sizes, and the devices a pool is handed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cowfs.errors import InvalidRequest
from cowfs.pool import Capability, PoolTable, load_backend
from cowfs.units import Sectors
from cowfs_emulated import BACKEND
from tests.conftest import Account

BLOCK = 65536


@pytest.fixture
def table(tmp_path: Path) -> PoolTable:
    for name, size in (("metadata", 256 * 4096), ("data", 16 * BLOCK)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    return PoolTable(Sectors(16 * 128), str(tmp_path / "metadata"), str(tmp_path / "data"), Sectors(128))


def test_the_backend_is_registered_and_says_what_it_does() -> None:
    assert load_backend("emulated") is BACKEND
    assert BACKEND.probe().usable
    promised = Capability.UNPRIVILEGED | Capability.ZEROED_REUSE | Capability.NO_LEAKS | Capability.FREED_SPACE_RETURNED
    assert promised in BACKEND.capabilities


def test_another_process_that_holds_the_metadata_is_respected(table: PoolTable) -> None:
    code = (
        "import sys; from cowfs.pool import PoolTable; from cowfs_emulated import BACKEND\n"
        "pool = BACKEND.open_pool('held', PoolTable.parse(sys.argv[1]))\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, table.format()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "open\n"
            with pytest.raises(InvalidRequest, match="in use by another pool") as raised:
                BACKEND.open_pool("pool", table)
            assert raised.value.errno == errno.EBUSY
        finally:
            holder.kill()
            holder.wait(timeout=30)
    BACKEND.open_pool("pool", table).close()


@pytest.mark.parametrize("where", ["directory", "shared memory"])
def test_a_symbolic_link_is_not_followed(table: PoolTable, tmp_path: Path, fast_directory: Path, where: str) -> None:
    link = (tmp_path if where == "directory" else fast_directory) / "link"
    link.symlink_to(table.data_device)
    with pytest.raises(InvalidRequest, match="symbolic link"):
        BACKEND.open_pool("pool", table.replace(data_device=str(link)))


def test_a_refused_open_leaves_no_descriptor_and_no_lock(table: PoolTable) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(InvalidRequest):
            BACKEND.open_pool("pool", table.replace(length_sectors=Sectors(17 * 128)))
    assert len(os.listdir("/proc/self/fd")) == before
    BACKEND.open_pool("pool", table).close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_pool_leaves_no_descriptor_not_even_of_origins(table: PoolTable, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.write_bytes(b"o" * BLOCK)
    before = len(os.listdir("/proc/self/fd"))
    pool = BACKEND.open_pool("pool", table)
    pool.create_thin(0)
    pool.activate("a", 0, 128, external_origin=str(origin))
    pool.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_view_of_the_metadata_is_for_reading_and_does_not_close_it(table: PoolTable) -> None:
    pool = BACKEND.open_pool("pool", table)
    view = pool.open_metadata()
    assert view.size_bytes == 256 * 4096
    calls: list[Callable[[], object]] = [
        lambda: view.pwrite(0, b"x"),
        lambda: view.zero(0, 1),
        lambda: view.discard(0, 1),
        lambda: view.copy(0, 4096, 1),
    ]
    for call in calls:
        with pytest.raises(InvalidRequest) as raised:
            call()
        assert raised.value.errno == errno.EROFS
    view.close()
    pool.create_thin(0)
    pool.close()


def test_a_provisioned_pool_takes_no_more_of_the_host_than_it_maps(table: PoolTable) -> None:
    pool = BACKEND.open_pool("pool", table)
    pool.create_thin(0)
    thin = pool.activate("a", 0, 16 * 128)
    thin.pwrite(3 * BLOCK + 100, b"x" * 100)
    thin.flush()
    assert os.stat(table.data_device).st_blocks * 512 <= BLOCK
    pool.close()


@pytest.mark.parametrize("role", ["metadata", "data"])
def test_a_file_without_permission_is_named(ordinary_user: Account, role: str) -> None:
    directory = ordinary_user.mkdir(f"closed-{role}")
    for name in ("metadata", "data"):
        with (directory / name).open("wb") as file:
            file.truncate(16 * BLOCK)
        os.chown(directory / name, ordinary_user.uid, ordinary_user.gid)
    (directory / role).chmod(0)
    table = PoolTable(Sectors(16 * 128), str(directory / "metadata"), str(directory / "data"), Sectors(128))
    code = (
        "import sys; from cowfs.pool import PoolTable; from cowfs_emulated import BACKEND\n"
        "try: BACKEND.open_pool('pool', PoolTable.parse(sys.argv[1]))\n"
        "except OSError as error: print(error.errno, error)"
    )
    result = ordinary_user.run([sys.executable, "-c", code, table.format()])
    assert result.stdout == (f"{errno.EACCES} {role} device {directory / role} cannot be opened: permission denied\n")


def test_a_message_is_two_writes_and_waits_for_the_disk_twice(
    table: PoolTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a snapshot or a removal changes lies in neighbouring blocks, before the superblock."""
    calls: list[tuple[str, int]] = []
    with closing(load_backend("emulated").open_pool("pool", table)) as pool:
        pool.create_thin(0)
        thin = pool.activate("thin", 0, Sectors(8 * 128))
        thin.pwrite(0, b"a" * (4 * BLOCK))
        thin.close()
        for name in ("pwrite", "pwritev", "fdatasync"):
            call = getattr(os, name)

            def noted(*arguments: object, name: str = name, call: Any = call) -> object:
                calls.append((name, arguments[2] if name != "fdatasync" else 0))  # type: ignore[arg-type]
                return call(*arguments)

            monkeypatch.setattr(os, name, noted)
        for _ in range(6):  # from some message on, blocks that one frees are those that the next but one takes
            pool.create_snap(1, 0)
            pool.delete(1)
        calls.clear()
        for message in ("create_snap 1 0", "delete 1", "create_snap 1 0", "delete 1"):
            pool.message(message)
            assert [name for name, _ in calls] == ["pwritev", "pwritev"], message
            assert [bool(offset) for _, offset in calls] == [True, False], message
            calls.clear()
        monkeypatch.undo()
