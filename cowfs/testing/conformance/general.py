"""Behaviours 1-20: the list every backend starts with."""

from __future__ import annotations

import errno

from cowfs.errors import NoSuchThin, ThinExists
from cowfs.pool import PoolMode
from cowfs.testing.conformance.lab import (
    BLOCK,
    Lab,
    expect_content,
    expect_equal,
    expect_error,
    fill,
    mapped_blocks,
    status_of,
    used,
)
from cowfs.testing.conformance.registry import behaviour


@behaviour("1")
def a_fresh_thin_reads_as_zeros_and_uses_no_data_blocks(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin()
    expect_content(thin, 0, 16, 0)
    expect_equal(used(pool), 0, "used data blocks")
    expect_equal(thin.status().__class__.__name__, "ThinStatus", "status")
    expect_equal(mapped_blocks(thin), 0, "mapped blocks")


@behaviour("2")
def a_write_is_read_back_with_zeros_around_it(lab: Lab) -> None:
    _pool, thin = lab.pool_with_thin()
    data = bytes(range(1, 252)) * 20
    thin.pwrite(3 * BLOCK + 1000, data)
    expect_equal(
        thin.pread(3 * BLOCK, BLOCK), bytes(1000) + data + bytes(BLOCK - 1000 - len(data)), "the block written to"
    )
    expect_equal(mapped_blocks(thin), 1, "mapped blocks")


@behaviour("3")
def used_blocks_equal_the_distinct_blocks_written(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(blocks=32)
    written = [7, 3, 31, 7, 0, 3, 12, 13, 7, 30]
    for number, vblock in enumerate(written):
        thin.pwrite(vblock * BLOCK + 512 * number, bytes([number + 1]) * 512)
    expect_equal(used(pool), len(set(written)), "used data blocks")
    expect_equal(mapped_blocks(thin), len(set(written)), "mapped blocks")


@behaviour("4")
def writing_a_mapped_unshared_block_allocates_nothing(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(8)
    before = [extent.dblock for extent in thin.extents()]
    fill(thin, 0, 8, 2)
    thin.pwrite(BLOCK // 2, b"\x03" * BLOCK)
    expect_equal(used(pool), 8, "used data blocks")
    expect_equal([extent.dblock for extent in thin.extents()], before, "data blocks")


@behaviour("5")
def a_snapshot_equals_its_origin_and_costs_no_data_block(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(8)
    thin.flush()
    thin.suspend()
    pool.create_snap(1, 0)
    thin.resume()
    snapshot = lab.thin(pool, 1)
    expect_equal(snapshot.pread(0, 16 * BLOCK), thin.pread(0, 16 * BLOCK), "content")
    expect_equal(list(snapshot.extents()), list(thin.extents()), "mappings")
    expect_equal(used(pool), 8, "used data blocks")


@behaviour("6")
def after_a_snapshot_either_side_may_be_written_and_the_other_stays(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(8)
    pool.create_snap(1, 0)
    snapshot = lab.thin(pool, 1)
    fill(thin, 0, 2, 2)
    expect_equal(used(pool), 10, "used data blocks after the origin broke sharing")
    snapshot.pwrite(4 * BLOCK + 100, b"\x03" * 100)
    expect_equal(used(pool), 11, "used data blocks after the snapshot broke sharing")
    expect_content(thin, 0, 2, 2)
    expect_content(thin, 2, 6, 1)
    expect_content(snapshot, 0, 4, 1)
    block = b"\x01" * 100 + b"\x03" * 100 + b"\x01" * (BLOCK - 200)
    expect_equal(snapshot.pread(4 * BLOCK, BLOCK), block, "the block written in part")


@behaviour("7")
def a_chain_of_snapshots_32_deep_reads_right(lab: Lab) -> None:
    pool = lab.pool(128)
    for depth in range(32):
        if depth:
            pool.create_snap(depth, depth - 1)
        thin = lab.thin(pool, depth, blocks=40)
        fill(thin, depth, 1, depth + 1)
        thin.close()
    last = lab.thin(pool, 31, blocks=40)
    for depth in range(32):
        expect_content(last, depth, 1, depth + 1)
    middle = lab.thin(pool, 15, blocks=40)
    expect_content(middle, 15, 1, 16)
    expect_content(middle, 16, 24, 0)
    expect_equal(used(pool), 32, "used data blocks")


@behaviour("8")
def deleting_the_origin_leaves_snapshots_and_the_last_holder_frees(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(8)
    pool.create_snap(1, 0)
    thin.close()
    pool.delete(0)
    expect_equal(used(pool), 8, "used data blocks")
    snapshot = lab.thin(pool, 1)
    expect_content(snapshot, 0, 8, 1)
    snapshot.close()
    pool.delete(1)
    expect_equal(used(pool), 0, "used data blocks")


@behaviour("9")
def existing_and_unknown_ids_raise_their_own_errors(lab: Lab) -> None:
    pool = lab.pool()
    pool.create_thin(5)
    before = status_of(pool)
    expect_equal(type(expect_error(errno.EEXIST, lambda: pool.create_thin(5))), ThinExists, "error")
    expect_equal(type(expect_error(errno.ENODATA, lambda: pool.delete(6))), NoSuchThin, "error")
    expect_equal(type(expect_error(errno.ENODATA, lambda: pool.create_snap(7, 6))), NoSuchThin, "error")
    expect_equal(type(expect_error(errno.ENODATA, lambda: pool.activate("x", 6, 128))), NoSuchThin, "error")
    expect_equal(status_of(pool), before, "status")
    expect_equal(pool.thin_ids(), [5], "ids")


@behaviour("10", "thin-id-out-of-range-fails", "largest-thin-id-succeeds")
def ids_outside_24_bits_are_refused(lab: Lab) -> None:
    pool = lab.pool()
    for thin_id in (2**24, 2**24 + 5, 2**32, -1):
        expect_error(errno.EINVAL, pool.create_thin, thin_id)
        expect_error(errno.EINVAL, pool.activate, "x", thin_id, 128)
    pool.create_thin(2**24 - 1)
    expect_equal(pool.thin_ids(), [2**24 - 1], "ids")


@behaviour("11")
def discard_unmaps_whole_blocks_and_leaves_partial_ones(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(8)
    thin.discard(BLOCK + 512, 4 * BLOCK)
    expect_content(thin, 0, 2, 1)
    expect_content(thin, 2, 3, 0)
    expect_content(thin, 5, 3, 1)
    expect_equal(mapped_blocks(thin), 5, "mapped blocks")
    expect_equal(used(pool), 5, "used data blocks")


@behaviour("12")
def an_external_origin_shows_through_and_is_merged_with(lab: Lab) -> None:
    content = bytes(range(256)) * (4 * BLOCK // 256)
    pool = lab.pool()
    thin = lab.thin(pool, blocks=6, external_origin=lab.origin(content))
    expect_equal(thin.pread(0, 6 * BLOCK), content + bytes(2 * BLOCK), "unprovisioned content")
    thin.pwrite(BLOCK + 512, b"\xff" * 512)
    merged = content[: BLOCK + 512] + b"\xff" * 512 + content[BLOCK + 1024 :]
    expect_equal(thin.pread(0, 4 * BLOCK), merged, "merged content")
    expect_equal(used(pool), 1, "used data blocks")


@behaviour("13")
def crossing_the_low_water_mark_gives_one_event_until_a_resume(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(data_blocks=10, low_water_blocks=3)
    before = pool.event_counter
    fill(thin, 0, 7, 1)
    expect_equal(pool.event_counter, before, "events after 7 of 10 blocks")
    fill(thin, 7, 1, 1)
    expect_equal(pool.event_counter, before + 1, "events after the allocation that found 3 free")
    fill(thin, 8, 1, 1)
    pool.suspend()
    pool.resume()
    expect_equal(pool.event_counter, before + 1, "events after another allocation and a resume")
    fill(thin, 9, 1, 1)
    expect_equal(pool.event_counter, before + 2, "events after the first allocation since the resume")


@behaviour("14", "resize-after-out-of-space-error-mode")
def a_full_pool_with_the_error_policy_fails_and_growing_recovers(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(4, data_blocks=4, error_if_no_space=True)
    expect_error(errno.ENOSPC, lambda: fill(thin, 4, 1, 2))
    expect_equal(status_of(pool).mode, PoolMode.OUT_OF_DATA_SPACE, "mode")
    expect_content(thin, 0, 4, 1)
    lab.grow_data(pool, 8)
    expect_equal(status_of(pool).mode, PoolMode.WRITE, "mode after growing")
    fill(thin, 4, 4, 2)
    expect_content(thin, 4, 4, 2)
    expect_equal(used(pool), 8, "used data blocks")


@behaviour("15", "transaction-id")
def the_transaction_id_is_compared_and_swapped(lab: Lab) -> None:
    pool = lab.pool()
    expect_equal(status_of(pool).transaction_id, 0, "transaction id")
    pool.set_transaction_id(0, 7)
    expect_error(errno.EINVAL, lambda: pool.set_transaction_id(0, 8))
    expect_equal(status_of(pool).transaction_id, 7, "transaction id")
    pool.set_transaction_id(7, 2**64 - 1)
    pool.set_transaction_id(2**64 - 1, 3)
    expect_equal(status_of(lab.reopen(pool)).transaction_id, 3, "transaction id after reopening")


@behaviour("16")
def reopening_after_a_commit_preserves_everything(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(4)
    pool.create_snap(1, 0)
    fill(thin, 2, 4, 2)
    pool.commit()
    before = status_of(pool)
    pool = lab.reopen(pool)
    expect_equal(status_of(pool), before, "status")
    thin, snapshot = lab.thin(pool), lab.thin(pool, 1)
    expect_content(thin, 0, 2, 1)
    expect_content(thin, 2, 4, 2)
    expect_content(snapshot, 0, 4, 1)
    expect_content(snapshot, 4, 12, 0)


@behaviour("17")
def files_copied_while_the_pool_runs_hold_a_commit_not_older_than_the_last_flush(lab: Lab) -> None:
    """What a crash leaves, without one: the files as they are in the middle of a transaction."""
    pool, thin = lab.pool_with_thin(4)
    thin.flush()
    fill(thin, 4, 4, 2)
    table = lab.table(pool)
    copies = []
    for path in (table.metadata_device, table.data_device):
        with open(path, "rb") as source:
            content = source.read()
        copies.append(lab.origin(content))
    copy = lab.open(table.replace(metadata_device=copies[0], data_device=copies[1]), f"{pool.name}-copy")
    crashed = lab.thin(copy, name="crashed")
    mapped = mapped_blocks(crashed)
    if not 4 <= mapped <= 8:
        raise AssertionError(f"{mapped} blocks are mapped")
    expect_content(crashed, 0, 4, 1)
    expect_content(crashed, 4, mapped - 4, 2)
    expect_content(crashed, mapped, 8 - mapped, 0)
    expect_equal(used(copy), mapped, "used data blocks")


@behaviour("18")
def closing_twice_and_deleting_an_active_thin_have_one_outcome(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(2)
    expect_error(errno.EBUSY, lambda: pool.delete(0))
    thin.close()
    thin.close()
    expect_error(errno.EBADF, lambda: thin.pread(0, 512))
    thin = lab.thin(pool)
    thin.resize(128)
    expect_error(errno.EINVAL, lambda: thin.pread(BLOCK, 512))
    expect_equal(mapped_blocks(thin), 2, "mapped blocks, the hidden one too")
    pool.close()
    pool.close()
    expect_error(errno.EBADF, lambda: pool.create_thin(9))


@behaviour("19")
def every_figure_agrees_with_the_mappings(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(8)
    pool.create_snap(1, 0)
    snapshot = lab.thin(pool, 1)
    fill(snapshot, 6, 4, 2)
    thin.discard(0, 2 * BLOCK)
    pool.commit()
    blocks = set()
    for device in (thin, snapshot):
        extents = list(device.extents())
        expect_equal(mapped_blocks(device), sum(extent.length for extent in extents), f"mapped by '{device.name}'")
        expect_equal(pool.thin_status(device.thin_id), device.status(), "status of the thin by id")
        blocks |= {extent.dblock + i for extent in extents for i in range(extent.length)}
    expect_equal(used(pool), len(blocks), "used data blocks")
    expect_equal(pool.thin_ids(), [0, 1], "ids")


@behaviour("20")
def the_metadata_is_clean_for_all_judges_after_a_mixed_history(lab: Lab) -> None:
    """The judging is done when the lab closes."""
    pool, thin = lab.pool_with_thin(blocks=200, data_blocks=256)
    for number in range(100):
        fill(thin, number * 37 % 200, 1, number + 1)
        if number % 10 == 9:
            pool.create_snap(number, 0)
    for number in range(9, 60, 20):
        pool.delete(number)
    thin.discard(50 * BLOCK, 60 * BLOCK)
    pool.reserve_metadata_snap()
    fill(thin, 0, 50, 200)
    expect_content(thin, 0, 50, 200)
