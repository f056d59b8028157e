"""Section 1.7: discard."""

from __future__ import annotations

import errno

from cowfs.pool import Capability, DiscardMode, PoolMode
from cowfs.testing.conformance.lab import (
    BLOCK,
    Lab,
    allocated_bytes,
    expect_any_error,
    expect_content,
    expect_equal,
    expect_error,
    fill,
    mapped_blocks,
    status_of,
    used,
)
from cowfs.testing.conformance.registry import behaviour


@behaviour("1.7-1", "discard-with-and-without-passdown")
def discard_with_and_without_passdown_frees_the_blocks(lab: Lab) -> None:
    for passdown in (True, False):
        pool, thin = lab.pool_with_thin(16, no_discard_passdown=not passdown)
        thin.discard(0, 16 * BLOCK)
        expect_equal((used(pool), mapped_blocks(thin)), (0, 0), f"used and mapped blocks, passdown {passdown}")
        if not passdown:
            expect_equal(status_of(pool).discard, DiscardMode.NO_PASSDOWN, "discard field")


@behaviour("1.7-2", "discard-disabled-fails")
def a_pool_that_ignores_discards_refuses_them(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(4, ignore_discard=True)
    expect_error(errno.EOPNOTSUPP, lambda: thin.discard(0, 4 * BLOCK))
    expect_content(thin, 0, 4, 1)
    expect_equal(used(pool), 4, "used data blocks")


@behaviour("1.7-3", "discard-empty-device")
def discarding_what_is_not_mapped_does_nothing(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin()
    thin.discard(0, 16 * BLOCK)
    fill(thin, 5, 1, 1)
    for _ in range(3):
        thin.discard(0, 5 * BLOCK)
        thin.discard(6 * BLOCK, 10 * BLOCK)
    expect_content(thin, 5, 1, 1)
    expect_equal(used(pool), 1, "used data blocks")


@behaviour("1.7-4", "discard-partial-blocks")
def partial_blocks_are_left_alone(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(4)
    for offset, length in ((0, BLOCK - 512), (512, BLOCK - 512), (BLOCK + 512, BLOCK), (BLOCK // 2, BLOCK), (0, 512)):
        thin.discard(offset, length)
    expect_content(thin, 0, 4, 1)
    expect_equal(used(pool), 4, "used data blocks")


@behaviour("1.7-5", "discard-shared-block")
def a_shared_block_is_unmapped_and_stays_for_the_other(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(4)
    pool.create_snap(1, 0)
    thin.discard(0, 4 * BLOCK)
    snapshot = lab.thin(pool, 1)
    expect_content(thin, 0, 4, 0)
    expect_content(snapshot, 0, 4, 1)
    expect_equal(used(pool), 4, "used data blocks")
    snapshot.discard(0, 2 * BLOCK)
    expect_equal(used(pool), 2, "used data blocks when no thin maps two of them")


@behaviour("1.7-6", "discard-past-the-end-fails")
def a_discard_past_the_end_fails(lab: Lab) -> None:
    thin = lab.thin(lab.pool(), blocks=4)
    fill(thin, 0, 4, 1)
    expect_any_error(lambda: thin.discard(3 * BLOCK, 2 * BLOCK))
    expect_any_error(lambda: thin.discard(8 * BLOCK, BLOCK))
    expect_content(thin, 0, 4, 1)


@behaviour("1.7-7", "discard-after-out-of-space")
def discarding_in_a_full_pool_brings_it_back(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(4, data_blocks=4, error_if_no_space=True)
    expect_error(errno.ENOSPC, lambda: fill(thin, 4, 1, 2))
    thin.discard(0, 2 * BLOCK)
    pool.commit()
    expect_equal(status_of(pool).mode, PoolMode.WRITE, "mode")
    fill(thin, 4, 2, 2)
    expect_content(thin, 4, 2, 2)
    expect_content(thin, 0, 2, 0)


@behaviour("1.7-8", "discard-triggers-commit")
def a_discard_is_committed_in_time_without_a_flush(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(8)
    pool.commit()
    before = lab.superblock(pool)
    thin.discard(0, 8 * BLOCK)
    lab.wait_for_a_commit(pool, before)


@behaviour("1.7-9")
def a_block_discarded_and_written_again_holds_the_new_content(lab: Lab) -> None:
    thin = lab.thin(lab.pool(8))
    for number in range(30):
        fill(thin, number % 4, 2, number + 1)
        thin.discard((number % 4) * BLOCK, BLOCK)
        expect_content(thin, number % 4, 1, 0)
        expect_content(thin, number % 4 + 1, 1, number + 1)


@behaviour("1.7-10", "discard-previously-shared-block-is-passed-down")
def a_discard_is_passed_down_to_the_data_but_not_for_shared_blocks(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(16)
    thin.flush()
    path = lab.table(pool).data_device
    full = allocated_bytes(path)
    pool.create_snap(1, 0)
    thin.discard(0, 8 * BLOCK)
    pool.commit()
    expect_equal(allocated_bytes(path), full, "bytes allocated for the data after shared blocks were discarded")
    pool.delete(1)
    thin.discard(8 * BLOCK, 8 * BLOCK)
    pool.commit()
    lab.wait_until(lambda: allocated_bytes(path) <= full - 7 * BLOCK, "what is not shared is given back")


@behaviour("1.7-11", unless=Capability.FREED_SPACE_RETURNED)
def deleting_a_thin_and_discards_that_are_not_passed_down_keep_the_space_of_the_data(lab: Lab) -> None:
    for passdown in (True, False):
        pool, thin = lab.pool_with_thin(16, no_discard_passdown=not passdown)
        thin.flush()
        path = lab.table(pool).data_device
        full = allocated_bytes(path)
        if not passdown:
            thin.discard(0, 16 * BLOCK)
        thin.close()
        pool.delete(0)
        expect_equal((used(pool), allocated_bytes(path)), (0, full), "used blocks and allocated bytes")
