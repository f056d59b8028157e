"""Checks of the dmthin backend that run inside a guest; see `guest_checks`."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
import trio.testing

from cowfs.errors import InvalidRequest, MetadataCorrupt, MissingRequirement, PoolError, ThinBusy
from cowfs.home.serving.events import describe, wait_for_event
from cowfs.pool import PoolTable
from cowfs.units import Sectors
from cowfs_dmthin import BACKEND, Control, ControlError, DmPool, DmThin, DmThinBackend, nodes
from cowfs_dmthin.abi import Command
from cowfs_dmthin.loop import loop_devices_of
from tests.uml.guest_checks import (
    CONTROL,
    Checks,
    attached_loops,
    expected,
    run_checks,
    somebody_has_open,
    wait_until,
)

check = Checks()
BLOCK = 65536


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
        assert pool.open_nodes() == {1: [number]}
        with expected(ThinBusy, errno.EBUSY, f"process {pid}"):
            activate(pool)
        with expected(ThinBusy, errno.EBUSY, "thin 1 of pool 'check-pool' is in use", f"process {pid}"):
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
    assert not pool.open_nodes()
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
    with expected(InvalidRequest, errno.EBUSY, "check-pool", "another program"):
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
def a_thin_that_is_used_goes_with_its_last_user_and_the_pool_too(folder: Path) -> None:
    table = make_table(folder)
    pool = open_pool(table)
    pool.create_thin(1)
    thin = activate(pool)
    node = thin.node
    fd = thin.hand_over()
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
def counters_tell_what_was_copied_and_made_zeros(folder: Path) -> None:
    pool = open_pool(make_table(folder))
    block = pool.block_bytes
    pool.create_thin(1)
    thin = activate(pool)
    thin.pwrite(512, b"new" + bytes(509))
    found = pool.counters().pool.requests
    assert (found.provisioned_blocks, found.unmapped_blocks) == (1, 0)
    assert (found.copied_bytes, found.zeroed_bytes) == (0, block)
    pool.create_snap(2, 1)
    thin.pwrite(1024, b"copied" + bytes(506))
    thin.pwrite(block, bytes(block))  # new, and whole
    found = pool.counters().pool.requests
    assert (found.provisioned_blocks, found.copied_bytes, found.zeroed_bytes) == (2, block, block)
    thin.pread(0, 4096)
    found = pool.counters().pool.requests
    assert found.copied_bytes is None  # what was read may have been read for this
    assert found.provisioned_blocks == 2
    thin.close()
    assert pool.counters().thins[1].provisioned_blocks == 2  # of a device that is not active any more
    thin = activate(pool)
    thin.discard(0, block)
    found = pool.counters().pool.requests
    assert (found.discards, found.provisioned_blocks, found.unmapped_blocks) == (1, None, None)
    pool.close()


@check
def a_removal_that_is_due_may_be_cancelled(folder: Path) -> None:
    pool = open_pool(make_table(folder))
    pool.create_thin(1)
    thin = activate(pool)
    name = thin.dm_name
    CONTROL.cancel_deferred_remove(name)
    os.close(thin.hand_over())
    info = CONTROL.info(name)
    assert info is not None
    assert not info.deferred_remove
    assert not pool.open_nodes()
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
def an_event_wakes_the_task_that_waits_while_others_go_on(folder: Path) -> None:
    pool = open_pool(make_table(folder).replace(low_water_blocks=60))
    pool.create_thin(1)
    thin = activate(pool)
    before = pool.event_counter
    order: list[str] = []

    async def wait() -> None:
        order.append(f"event {await wait_for_event(pool, before)}")

    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                # An event of another device wakes it, and it waits on.
                CONTROL.create("other-pool")
                CONTROL.remove("other-pool")
                await trio.testing.wait_all_tasks_blocked()
                order.append("written")
                thin.pwrite(0, bytes(8 * BLOCK))

    trio.run(main)
    assert order == ["written", f"event {before + 1}"]
    assert describe(pool).startswith("mode write; 3.5 MiB of data and ")
    pool.close()


@check
def errors_keep_the_errno_of_the_kernel(folder: Path) -> None:
    with expected(ControlError, errno.ENXIO, "'nobody'"):
        CONTROL.remove("nobody")
    with expected(ControlError, errno.ENXIO, "'nobody'"):
        CONTROL.message("nobody", "create_thin 1")
    assert CONTROL.info("nobody") is None
    assert CONTROL.target_version("no-such-target") is None


def session(backend: DmThinBackend, table: PoolTable) -> None:
    """Everything a command asks of the kernel: open, snapshot of a used thin, write, resize, hand over, close."""
    pool = backend.open_pool("check-pool", table)
    try:
        pool.create_thin(2)
        thin = pool.activate("check-a", 1, 32 * 128)
        thin.pwrite(0, b"written")
        thin.suspend()
        pool.create_snap(3, 1)
        thin.resume()
        thin.resize(16 * 128)
        assert isinstance(thin, DmThin)
        fd = thin.hand_over()
        try:
            pool.create_snap(4, 1)
        finally:
            os.close(fd)
        pool.activate("check-b", 4, 128).close()
        pool.reload(table.replace(low_water_blocks=1))
        pool.resume()
        for thin_id in (2, 3, 4):
            pool.delete(thin_id)
    finally:
        with contextlib.suppress(OSError):  # ours is the first error
            pool.close()


class Broken(Control):
    """Acts instead of request number `at`, or before it; keeps the commands of all."""

    def __init__(self, at: int, act: Callable[[Command, str], None]) -> None:
        super().__init__()
        self.at = at
        self.act = act
        self.commands: list[Command] = []

    def _call(self, command: Command, name: str, *rest: Any, **options: Any) -> Any:
        self.commands.append(command)
        if len(self.commands) - 1 == self.at:
            self.act(command, name)
        return super()._call(command, name, *rest, **options)


QUESTIONS = {
    *(Command.LIST_DEVICES, Command.GET_TARGET_VERSION),
    *(Command.DEV_STATUS, Command.TABLE_STATUS, Command.TABLE_DEPS),
}


def requests_of_a_session(table: PoolTable) -> list[Command]:
    pool = open_pool(table)
    pool.create_thin(1)
    pool.close()
    counting = Broken(-1, lambda *_: None)
    session(DmThinBackend(counting), table)
    counting.close()
    assert len(counting.commands) > 40
    return counting.commands


def tidy(table: PoolTable) -> None:
    """Open the pool, whatever was left, and make it as it was before the session; nothing is left then."""
    pool = open_pool(table)
    for thin_id in set(pool.thin_ids()) - {1}:
        pool.delete(thin_id)
    for name in ("check-a", "check-b"):
        pool.activate(name, 1, 128).close()
    pool.close()
    assert not CONTROL.devices()
    assert not attached_loops()


@check
def a_request_that_fails_leaves_nothing_behind(folder: Path) -> None:
    table = make_table(folder)
    count = len(requests_of_a_session(table))

    def fail(command: Command, name: str) -> None:
        raise ControlError(command, name, errno.ENOMEM)

    told = 0
    for at in range(count):
        control = Broken(at, fail)
        try:
            session(DmThinBackend(control), table)
        except (PoolError, MissingRequirement):  # the first requests find out what this kernel has
            told += 1
        control.close()
        try:
            wait_until(lambda: not CONTROL.devices() and not attached_loops())
        except AssertionError:
            raise AssertionError(f"request {at} left {CONTROL.devices()} {attached_loops()}") from None
        tidy(table)
    print(json.dumps({"figure": f"{told} of {count} failing requests were errors of the session; nothing was left"}))
    assert told > count // 2


@check
def a_process_that_dies_at_a_request_leaves_what_the_next_one_clears(folder: Path) -> None:
    """Before the second of two questions there is what there was before the first."""
    table = make_table(folder)
    commands = requests_of_a_session(table)
    points = [at for at in range(len(commands)) if at == 0 or not QUESTIONS.issuperset(commands[at - 1 : at + 1])]
    left = died = 0
    for at in points:
        pid = os.fork()
        if pid == 0:
            try:
                session(DmThinBackend(Broken(at, lambda *_: os._exit(9))), table)
            except BaseException:
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, 9)  # how soon the kernel removes a thin makes a session a few requests longer or shorter
        died += status == 9
        left += bool(CONTROL.devices())
        tidy(table)
    assert died > 30
    print(json.dumps({"figure": f"right after {left} of {len(points)} deaths something was there, and was cleared"}))


if __name__ == "__main__":
    run_checks(check, sys.argv[1:])
