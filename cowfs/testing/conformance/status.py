"""Section 1.4 and 1.5: status lines and events."""

from __future__ import annotations

import errno
import itertools
import os
import re

from cowfs.pool import Capability, DiscardMode, NoSpacePolicy, PoolMode, PoolStatus, ThinStatus
from cowfs.testing.conformance.lab import BLOCK, Lab, LabFeature, expect_equal, expect_error, fill, status_of, used
from cowfs.testing.conformance.registry import behaviour
from cowfs.units import Sectors


@behaviour("1.4-1")
def the_pool_status_line_is_the_kernels(lab: Lab) -> None:
    pool = lab.pool(256, error_if_no_space=False, no_discard_passdown=True)
    fill(lab.thin(pool), 0, 6, 1)
    pool.set_transaction_id(0, 7)
    pattern = r"7 1\d\d/1024 6/256 - rw no_discard_passdown queue_if_no_space - 256 "
    line = status_of(pool).format()
    if not re.fullmatch(pattern, line):
        raise AssertionError(f"the status line is {line!r}, not like {pattern!r}")
    expect_equal(PoolStatus.parse(line), status_of(pool), "the line, read back")


@behaviour("1.4-2")
def used_metadata_includes_a_tenth_as_hidden_reserve(lab: Lab) -> None:
    for blocks, reserve in ((1024, 102), (64, 6), (2048, 204)):
        status = status_of(lab.pool(16, blocks))
        used_really = status.used_metadata_blocks - reserve
        if not 8 <= used_really <= 16:
            raise AssertionError(f"a fresh pool of {blocks} metadata blocks shows {status.used_metadata_blocks} used")
        expect_equal(status.total_metadata_blocks, blocks, "total metadata blocks")


@behaviour("1.4-3")
def metadata_low_water_is_a_quarter_up_to_1024(lab: Lab) -> None:
    for blocks, mark in ((64, 16), (1024, 256), (4096, 1024), (8192, 1024)):
        expect_equal(status_of(lab.pool(16, blocks)).metadata_low_water, mark, f"low water mark of {blocks} blocks")


@behaviour("1.4-4")
def metadata_over_the_formats_limit_is_not_counted(lab: Lab) -> None:
    expect_equal(status_of(lab.pool(16, 4161600 + 1000)).total_metadata_blocks, 4161600, "total metadata blocks")


@behaviour("1.4-5")
def blocks_freed_in_a_transaction_are_not_used_any_more(lab: Lab) -> None:
    """Though they cannot be allocated before the commit."""
    pool, thin = lab.pool_with_thin(8)
    pool.commit()
    thin.discard(0, 6 * BLOCK)
    expect_equal(used(pool, flush=False), 2, "used data blocks in the middle of a transaction")
    expect_equal(used(pool), 2, "used data blocks after a status that flushes")


@behaviour("1.4-6")
def held_root_discard_and_space_fields_follow_the_pool(lab: Lab) -> None:
    ignoring = status_of(lab.pool(ignore_discard=True))
    expect_equal(ignoring.discard, DiscardMode.IGNORE, "discard field")
    silent = status_of(lab.pool(no_discard_passdown=True, error_if_no_space=True))
    expect_equal(silent.discard, DiscardMode.NO_PASSDOWN, "discard field")
    expect_equal(silent.no_space, NoSpacePolicy.ERROR, "space field")
    plain = lab.pool()
    expect_equal(status_of(plain).no_space, NoSpacePolicy.QUEUE, "space field")
    plain.reserve_metadata_snap()
    held = status_of(plain).held_root
    if held is None or not 0 < held < 1024:
        raise AssertionError(f"held root is {held}")


@behaviour("1.4-7")
def a_thin_status_shows_mapped_and_highest_sectors(lab: Lab) -> None:
    _pool, thin = lab.pool_with_thin()
    expect_equal(thin.status(), ThinStatus(Sectors(0), None), "status")
    expect_equal(str(getattr(thin.status(), "format", str)()), "0 -", "line")
    fill(thin, 0, 2, 1)
    fill(thin, 9, 1, 1)
    expect_equal(thin.status(), ThinStatus(Sectors(3 * 128), Sectors(10 * 128 - 1)), "status")
    expect_equal(str(getattr(thin.status(), "format", str)()), "384 1279", "line")


@behaviour("1.4-8")
def a_status_without_flush_does_not_commit(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(blocks=64)
    fresh = itertools.count()

    def provision_and_flush() -> None:
        fill(thin, next(fresh), 1, 1)
        thin.flush()

    def steps() -> None:
        before = lab.superblock(pool)
        fill(thin, next(fresh), 1, 1)
        for _ in range(2):
            status_of(pool, flush=False)
            expect_equal(lab.superblock(pool), before, "superblock after a status without flush")
        status_of(pool)
        if lab.superblock(pool) == before:
            raise AssertionError("a status that flushes wrote no superblock")

    lab.before_a_commit_is_due(provision_and_flush, steps)


@behaviour("1.4-9", needs=Capability.KERNEL_NODES, lab_features=LabFeature.FAULTS)
def passdown_that_the_data_device_does_not_take_shows_as_none(lab: Lab) -> None:
    """A device that takes discards only of less than a block is like one that takes none."""
    table = lab.failing_table()
    queue = f"/sys/block/{os.path.basename(table.data_device)}/queue"
    with open(f"{queue}/discard_max_bytes", "w", encoding="ascii") as file:
        file.write("32768")
    pool = lab.open(table)
    expect_equal(status_of(pool).discard, DiscardMode.NO_PASSDOWN, "discard in force")
    expect_equal(pool.table().no_discard_passdown, False, "no_discard_passdown asked for")
    thin = lab.thin(pool)
    fill(thin, 0, 4, 1)
    thin.discard(0, 4 * BLOCK)
    expect_equal(used(pool), 0, "used data blocks")


@behaviour("1.5-1")
def the_low_water_event_comes_at_or_below_the_mark(lab: Lab) -> None:
    for mark, silent in ((0, 4), (1, 3), (3, 1)):
        pool, thin = lab.pool_with_thin(data_blocks=4, low_water_blocks=mark, error_if_no_space=True)
        before = pool.event_counter
        fill(thin, 0, silent, 1)
        expect_equal(pool.event_counter, before, f"events with mark {mark} after {silent} of 4 blocks")
        if silent < 4:
            fill(thin, silent, 1, 1)
            expect_equal(pool.event_counter, before + 1, f"events with mark {mark} after {silent + 1} of 4 blocks")


@behaviour("1.5-2")
def running_out_of_data_space_is_one_event_and_coming_back_another(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(4, data_blocks=4, low_water_blocks=4, error_if_no_space=True)
    before = pool.event_counter
    expect_error(errno.ENOSPC, lambda: fill(thin, 4, 1, 1))
    expect_equal(pool.event_counter, before + 1, "events after running out")
    expect_error(errno.ENOSPC, lambda: fill(thin, 4, 1, 1))
    expect_equal(pool.event_counter, before + 1, "events after running out again")
    thin.discard(0, BLOCK)
    pool.commit()
    expect_equal(status_of(pool).mode, PoolMode.WRITE, "mode")
    expect_equal(pool.event_counter, before + 2, "events after coming back")


@behaviour("1.5-3")
def the_metadata_low_water_mark_raises_an_event(lab: Lab) -> None:
    pool = lab.pool(16, 64)
    before = pool.event_counter
    for thin_id in range(40):
        if status_of(pool).mode is not PoolMode.WRITE or pool.event_counter > before:
            break
        pool.create_thin(thin_id)
    if pool.event_counter == before:
        raise AssertionError("no event although metadata ran low")
    expect_equal(status_of(pool).mode, PoolMode.WRITE, "mode when the event comes")


@behaviour("1.5-4")
def suspend_and_resume_raise_no_event(lab: Lab) -> None:
    pool = lab.pool(low_water_blocks=100)
    before = pool.event_counter
    for _ in range(3):
        pool.suspend()
        pool.resume()
    expect_equal(pool.event_counter, before, "events")
