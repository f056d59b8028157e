"""Checks of the dmthin backend that run inside a guest; see `guest_checks`."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cowfs.errors import InvalidRequest, MetadataCorrupt, ThinBusy
from cowfs.pool import PoolTable
from cowfs.units import Sectors
from cowfs_dmthin import BACKEND, ControlError, DmPool, DmThin, nodes
from cowfs_dmthin.loop import loop_devices_of
from tests.uml.guest_checks import (
    CONTROL,
    Check,
    attached_loops,
    expected,
    run_checks,
    somebody_has_open,
    wait_until,
)

CHECKS: list[Check] = []
BLOCK = 65536


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


def make_table(folder: Path, *, metadata: str = "metadata", data: str = "data", blocks: int = 64) -> PoolTable:
    for name, size in ((metadata, 4 << 20), (data, blocks * BLOCK)):
        if not (folder / name).exists():
            with (folder / name).open("xb") as file:
                file.truncate(size)
    return PoolTable(Sectors(blocks * 128), str(folder / metadata), str(folder / data), Sectors(128))


def open_pool(table: PoolTable, name: str = "check-pool") -> DmPool:
    pool = BACKEND.open_pool(name, table)
    assert isinstance(pool, DmPool)
    return pool


def activate(pool: DmPool, name: str = "a", thin_id: int = 1) -> DmThin:
    thin = pool.activate(name, thin_id, 32 * 128)
    assert isinstance(thin, DmThin)
    return thin


def crash(table: PoolTable) -> None:
    """Leave a pool and an active thin behind, as a process that is killed at the worst moment, or another program."""
    program = (
        "import os, sys; from tests.uml.guest_dmthin import *\n"
        "folder = Path(sys.argv[1]); pool = open_pool(make_table(folder)); pool.create_thin(1)\n"
        "thin = activate(pool); thin.pwrite(0, b'kept' * 1024); thin.flush()\n"
        "CONTROL.cancel_deferred_remove('check-a'); CONTROL.cancel_deferred_remove('check-pool'); os._exit(0)\n"
    )
    folder = os.path.dirname(table.metadata_device)
    subprocess.run([sys.executable, "-c", program, folder], check=True)


@check
def what_a_crash_left_is_cleared_and_nothing_is_lost(folder: Path) -> None:
    table = make_table(folder)
    crash(table)
    assert set(CONTROL.devices()) == {"check-pool", "check-a"}
    loops = loop_devices_of(os.stat(table.metadata_device))
    assert len(loops) == 1
    pool = open_pool(table)
    assert loop_devices_of(os.stat(table.metadata_device)) == loops
    thin = activate(pool)
    assert thin.pread(0, 4096) == b"kept" * 1024
    pool.close()


@check
def what_a_crash_left_and_somebody_uses_stays_in_use(folder: Path) -> None:
    table = make_table(folder)
    crash(table)
    number = CONTROL.devices()["check-a"]
    CONTROL.suspend("check-a")  # killed in the middle of a snapshot
    with somebody_has_open(nodes.node_path(number)) as pid:
        pool = open_pool(table)
        info = CONTROL.info("check-a")
        assert info is not None
        assert not info.suspended
        assert pool.lent() == {1: [number]}
        with expected(ThinBusy, errno.EBUSY, f"process {pid}"):
            activate(pool)
        with expected(ThinBusy, errno.EBUSY, "active", f"process {pid}"):
            pool.delete(1)
        pool.create_snap(2, 1)
        assert activate(pool, "b", 2).pread(0, 4096) == b"kept" * 1024
        pool.close()
        assert set(CONTROL.devices()) == {"check-pool", "check-a"}
        larger = table.replace(low_water_blocks=7)
        pool = open_pool(larger)
        assert pool.table().low_water_blocks == 7
        pool.close()
    pool = open_pool(table)
    assert not pool.lent()
    pool.close()


@check
def a_process_that_is_killed_leaves_nothing(folder: Path) -> None:
    program = (
        "import os, sys; from tests.uml.guest_dmthin import *\n"
        "pool = open_pool(make_table(Path(sys.argv[1]))); pool.create_thin(1); activate(pool).pwrite(0, bytes(4096))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program, folder], check=False)
    table = make_table(folder)
    pool = open_pool(table)  # also while the kernel is still about it
    assert pool.thin_ids() == [1]
    pool.close()


@check
def a_device_of_somebody_else_is_left_alone(folder: Path) -> None:
    theirs = open_pool(make_table(folder, metadata="m2", data="d2"))
    with expected(InvalidRequest, errno.EBUSY, "check-pool", "somebody else"):
        open_pool(make_table(folder))
    assert theirs.thin_ids() == []
    theirs.close()


@check
def metadata_of_an_open_pool_is_refused(folder: Path) -> None:
    table = make_table(folder)
    pool = open_pool(table)
    with expected(InvalidRequest, errno.EBUSY, "in use"):
        open_pool(table, "other-pool")
    pool.close()


@check
def closing_what_somebody_uses_names_them_and_may_be_tried_again(folder: Path) -> None:
    pool = open_pool(make_table(folder))
    pool.create_thin(1)
    thin = activate(pool)
    with somebody_has_open(thin.node) as pid:
        with expected(ThinBusy, errno.EBUSY, f"process {pid}"):
            thin.close()
        thin.pwrite(0, b"still here")
        with expected(ThinBusy, errno.EBUSY):
            pool.close()
    thin.close()
    pool.close()


@check
def a_thin_that_is_lent_goes_with_its_last_user_and_the_pool_too(folder: Path) -> None:
    table = make_table(folder)
    pool = open_pool(table)
    pool.create_thin(1)
    thin = activate(pool)
    node = thin.node
    fd = thin.lend()
    assert pool.active() == []
    with somebody_has_open(node) as pid:
        os.close(fd)
        pool.close()
        assert set(CONTROL.devices()) == {"check-pool", "check-a"}
        with expected(InvalidRequest, errno.EBUSY, "'check-pool'"):
            open_pool(table, "other-pool")
        pool = open_pool(table)
        with expected(ThinBusy, errno.EBUSY, f"process {pid}"):
            pool.delete(1)
        pool.close()
    wait_until(lambda: not CONTROL.devices() and not attached_loops())


@check
def a_removal_that_is_due_may_be_cancelled(folder: Path) -> None:
    pool = open_pool(make_table(folder))
    pool.create_thin(1)
    thin = activate(pool)
    name = thin.dm_name
    CONTROL.cancel_deferred_remove(name)
    os.close(thin.lend())
    info = CONTROL.info(name)
    assert info is not None
    assert not info.deferred_remove
    assert not pool.lent()
    activate(pool).close()  # takes it over
    pool.delete(1)
    pool.close()


@check
def a_pool_that_cannot_be_opened_leaves_nothing(folder: Path) -> None:
    table = make_table(folder)
    with expected(InvalidRequest, errno.EINVAL, "does not fit"):
        open_pool(table.replace(length_sectors=Sectors(128 * 65)))
    with expected(InvalidRequest, errno.EPERM, "not formatted"):
        open_pool(table.replace(read_only=True))
    with expected(InvalidRequest, errno.ENOENT, "nowhere"):
        open_pool(table.replace(data_device="/nowhere"))
    with expected(InvalidRequest, errno.ENOTBLK, "neither"):
        open_pool(table.replace(data_device="/dev/null"))
    with expected(InvalidRequest, errno.EINVAL, "same"):
        open_pool(table.replace(data_device=table.metadata_device))
    open_pool(table).close()
    with expected(InvalidRequest, errno.EINVAL, "128 sectors, not 256"):
        open_pool(table.replace(block_sectors=Sectors(256)))
    with expected(InvalidRequest, errno.EINVAL, "too small"):
        open_pool(table.replace(length_sectors=Sectors(128)))
    with open(table.metadata_device, "r+b") as file:
        file.seek(100)
        file.write(b"damage")
    with expected(MetadataCorrupt, errno.EILSEQ, "metadata block 0"):
        open_pool(table)


@check
def a_thin_that_cannot_be_activated_leaves_nothing(folder: Path) -> None:
    pool = open_pool(make_table(folder))
    for thin_id in (1, 1 << 24):
        with contextlib.suppress(OSError):
            activate(pool, thin_id=thin_id)
            raise AssertionError("it was activated")
    assert set(CONTROL.devices()) == {"check-pool"}
    pool.close()


@check
def block_devices_are_used_as_they_are(folder: Path) -> None:
    table = make_table(folder)
    attach = ["losetup", "--find", "--show"]
    loops = [
        subprocess.run([*attach, path], check=True, capture_output=True, text=True).stdout.strip()
        for path in (table.metadata_device, table.data_device)
    ]
    pool = open_pool(table.replace(metadata_device=loops[0], data_device=loops[1]))
    pool.create_thin(1)
    activate(pool).pwrite(5, b"through the nodes")
    assert list(activate(pool, "b").extents())
    assert pool.table().metadata_device == loops[0]
    pool.close()
    subprocess.run(["losetup", "--detach", *loops], check=True)
    pool = open_pool(table)
    assert activate(pool).pread(0, 22) == bytes(5) + b"through the nodes"
    pool.close()


@check
def answers_larger_than_the_buffer_are_read_whole(folder: Path) -> None:
    names = {f"{'long-name-' * 8}{number}" for number in range(150)}
    for name in names:
        CONTROL.create(name)
    assert set(CONTROL.devices()) == names
    for name in names:
        CONTROL.remove(name)


@check
def nodes_are_found_by_number_whatever_their_names(folder: Path) -> None:
    pool = open_pool(make_table(folder))
    pool.create_thin(1)
    thin = activate(pool)
    os.unlink(thin.node)
    fd = nodes.open_block(thin.device_number, os.O_RDONLY)
    assert os.fstat(fd).st_rdev == thin.device_number
    os.close(fd)
    os.mknod(thin.node, 0o600 | 0o060000, os.makedev(7, 0))  # a stale node of another device
    fd = nodes.open_block(thin.device_number, os.O_RDONLY)
    assert os.fstat(fd).st_rdev == thin.device_number
    os.close(fd)
    pool.close()


@check
def an_event_wakes_who_waits(folder: Path) -> None:
    pool = open_pool(make_table(folder).replace(low_water_blocks=60))
    pool.create_thin(1)
    before = pool.event_counter
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(pool.wait_for_event(before)))
    thread.start()
    activate(pool).pwrite(0, bytes(8 * BLOCK))
    thread.join(20)
    assert seen == [pool.event_counter]
    assert seen[0] > before
    pool.close()


@check
def errors_keep_the_errno_of_the_kernel(folder: Path) -> None:
    with expected(ControlError, errno.ENXIO, "'nobody'"):
        CONTROL.remove("nobody")
    with expected(ControlError, errno.ENXIO, "'nobody'"):
        CONTROL.message("nobody", "create_thin 1")
    assert CONTROL.info("nobody") is None
    assert CONTROL.target_version("no-such-target") is None


@check
def the_ioctls_are_five_times_as_fast_as_dmsetup(folder: Path) -> None:
    pool = open_pool(make_table(folder))

    def seconds(send: Callable[[str], object], rounds: int) -> float:
        begin = time.monotonic()
        for number in range(rounds):
            send(f"create_thin {number}")
            send(f"create_snap {number + 1000} {number}")
            send(f"delete {number + 1000}")
            send(f"delete {number}")
        return (time.monotonic() - begin) / rounds

    def dmsetup(text: str) -> None:
        subprocess.run(["dmsetup", "message", "check-pool", "0", text], check=True)

    ours, theirs = seconds(pool.message, 50), seconds(dmsetup, 10)
    print(json.dumps({"figure": f"four messages: {ours * 1e3:.2f} ms ours, {theirs * 1e3:.1f} ms dmsetup"}))
    assert theirs >= 5 * ours
    pool.close()


if __name__ == "__main__":
    run_checks(CHECKS)
