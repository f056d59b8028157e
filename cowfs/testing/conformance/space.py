"""Section 1.8: running out of data and of metadata space."""

from __future__ import annotations

import errno
import math

from cowfs.pool import Capability, NoSpacePolicy, Pool, PoolMode, ThinDevice
from cowfs.testing.conformance.lab import (
    BLOCK,
    NO_SPACE_TIMEOUT_SECONDS,
    Lab,
    LabFeature,
    PendingWrite,
    expect_content,
    expect_equal,
    expect_error,
    fill,
    mapped_blocks,
    mode_word,
    status_of,
    used,
)
from cowfs.testing.conformance.registry import behaviour


def _full(lab: Lab, *, error_if_no_space: bool = False) -> tuple[Pool, ThinDevice]:
    pool, thin = lab.pool_with_thin(4, data_blocks=4, error_if_no_space=error_if_no_space)
    thin.flush()
    return pool, thin


@behaviour("1.8-1", "out-of-space-errors-immediately-if-requested")
def a_full_pool_still_reads_and_overwrites(lab: Lab) -> None:
    pool, thin = _full(lab, error_if_no_space=True)
    expect_error(errno.ENOSPC, lambda: fill(thin, 4, 1, 2))
    fill(thin, 0, 1, 3)
    expect_content(thin, 0, 1, 3)
    expect_content(thin, 1, 3, 1)
    expect_content(thin, 4, 4, 0)
    expect_equal(status_of(pool).mode, PoolMode.OUT_OF_DATA_SPACE, "mode")
    expect_equal(status_of(pool).needs_check, False, "needs_check")


@behaviour("1.8-2")
def a_shared_block_cannot_be_written_in_a_full_pool(lab: Lab) -> None:
    pool, thin = _full(lab, error_if_no_space=True)
    pool.create_snap(1, 0)
    expect_error(errno.ENOSPC, lambda: fill(thin, 0, 1, 2))
    expect_error(errno.ENOSPC, lambda: thin.pwrite(BLOCK, b"x"))
    expect_content(thin, 0, 4, 1)
    expect_content(lab.thin(pool, 1), 0, 4, 1)


@behaviour("1.8-3")
def a_write_that_runs_out_halfway_keeps_what_fits(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(data_blocks=4, error_if_no_space=True)
    expect_error(errno.ENOSPC, lambda: fill(thin, 0, 6, 1))
    expect_equal((used(pool), mapped_blocks(thin)), (4, 4), "used and mapped blocks")
    expect_content(thin, 0, 4, 1)
    expect_content(thin, 4, 2, 0)


@behaviour("1.8-4", "resize-after-out-of-space-with-held-io")
def queued_writes_complete_when_the_pool_grows(lab: Lab) -> None:
    pool, thin = _full(lab)
    write = PendingWrite(thin, 4 * BLOCK, b"\x02" * BLOCK)
    expect_equal(write.waiting(), True, "the write waits")
    status = status_of(pool, flush=False)
    expect_equal((status.mode, status.no_space), (PoolMode.OUT_OF_DATA_SPACE, NoSpacePolicy.QUEUE), "mode and policy")
    lab.grow_data(pool, 8)
    expect_equal(write.result(), 0, "the write after growing")
    expect_equal(status_of(pool).mode, PoolMode.WRITE, "mode")
    expect_content(thin, 4, 1, 2)


@behaviour("1.8-5")
def queued_writes_complete_when_something_is_discarded(lab: Lab) -> None:
    pool, thin = _full(lab)
    write = PendingWrite(thin, 4 * BLOCK, b"\x02" * BLOCK)
    expect_equal(write.waiting(), True, "the write waits")
    thin.discard(0, BLOCK)
    pool.commit()
    expect_equal(write.result(), 0, "the write after a discard")
    expect_content(thin, 4, 1, 2)
    expect_content(thin, 0, 1, 0)


@behaviour("1.8-6", "out-of-space-times-out", "resize-after-out-of-space-timeout", lab_features=LabFeature.TIMEOUT)
def queueing_ends_after_the_timeout_and_the_policy_comes_back(lab: Lab) -> None:
    timeout = lab.choose_timeout()
    pool, thin = lab.pool_with_thin(4, data_blocks=4, low_water_blocks=4)
    before, begin = pool.event_counter, lab.now()
    write = PendingWrite(thin, 4 * BLOCK, b"\x02" * BLOCK)
    lab.pass_time(pool, timeout - 1)
    if not write.waiting() and lab.now() - begin < timeout:
        raise AssertionError("the write did not wait until the end")
    lab.pass_time(pool, 1.5)
    lab.wait_until(lambda: status_of(pool).no_space is NoSpacePolicy.ERROR, "the policy in force is to fail")
    expect_equal(pool.event_counter, before + 2, "events when space ran out and after the timeout")
    expect_equal(write.result(), errno.ENOSPC, "the write after the timeout")
    expect_error(errno.ENOSPC, lambda: fill(thin, 4, 1, 2))
    expect_equal(pool.extra_space_wait_seconds(), 0.0, "seconds to wait")
    expect_equal(pool.table().error_if_no_space, False, "policy asked for")
    lab.grow_data(pool, 8)
    expect_equal(status_of(pool).no_space, NoSpacePolicy.QUEUE, "policy after growing")
    expect_equal(pool.event_counter, before + 3, "events after coming back")
    fill(thin, 4, 1, 2)


@behaviour("1.8-7", lab_features=LabFeature.TIMEOUT)
def a_timeout_of_zero_queues_for_ever(lab: Lab) -> None:
    timeout = lab.choose_timeout()
    lab.set_no_space_timeout(0)
    pool, thin = _full(lab)
    write = PendingWrite(thin, 4 * BLOCK, b"\x02" * BLOCK)
    lab.pass_time(pool, timeout / 2)
    expect_equal(pool.extra_space_wait_seconds(), math.inf, "seconds to wait")
    expect_equal(write.waiting(), True, "the write waits")
    thin.discard(0, BLOCK)
    pool.commit()
    expect_equal(write.result(), 0, "the write after a discard")


@behaviour("1.8-8", lab_features=LabFeature.TIMEOUT)
def the_time_left_to_wait_is_told(lab: Lab) -> None:
    timeout = NO_SPACE_TIMEOUT_SECONDS
    lab.set_no_space_timeout(timeout)
    pool, thin = _full(lab)
    error = expect_error(errno.ENOSPC, lambda: fill(thin, 4, 1, 2))
    expect_equal(getattr(error, "may_queue", None), True, "may_queue")
    left = pool.extra_space_wait_seconds()
    lab.pass_time(pool, 1)
    later = pool.extra_space_wait_seconds()
    if not 0 < later <= left - 1 <= timeout - 1:
        raise AssertionError(f"of {timeout} seconds {left} were left, and after one second {later}")
    failing = lab.pool(1, error_if_no_space=True)
    device = lab.thin(failing)
    fill(device, 0, 1, 1)
    error = expect_error(errno.ENOSPC, lambda: fill(device, 1, 1, 1))
    expect_equal(getattr(error, "may_queue", None), False, "may_queue with the error policy")


@behaviour("1.8-9")
def deleting_a_thin_brings_a_full_pool_back(lab: Lab) -> None:
    pool, thin = _full(lab, error_if_no_space=True)
    other = lab.thin(pool, 1)
    expect_error(errno.ENOSPC, lambda: fill(other, 0, 1, 2))
    thin.close()
    pool.delete(0)
    expect_equal(status_of(pool).mode, PoolMode.WRITE, "mode")
    fill(other, 0, 4, 2)
    expect_content(other, 0, 4, 2)


@behaviour("1.8-10")
def a_new_table_lets_a_full_pool_try_again_and_a_resume_alone_does_not(lab: Lab) -> None:
    pool, thin = _full(lab, error_if_no_space=True)
    expect_error(errno.ENOSPC, lambda: fill(thin, 4, 1, 2))
    pool.suspend()
    pool.resume()
    expect_equal(status_of(pool).mode, PoolMode.OUT_OF_DATA_SPACE, "mode after a resume")
    lab.reload(pool)
    expect_equal(status_of(pool).mode, PoolMode.WRITE, "mode after a reload")
    expect_error(errno.ENOSPC, lambda: fill(thin, 4, 1, 2))
    expect_equal(status_of(pool).mode, PoolMode.OUT_OF_DATA_SPACE, "mode after the next write")


def _exhaust_metadata(pool: Pool, first_id: int = 100) -> int:
    """Create thins until the pool has no metadata left; how many were created."""
    for count in range(10_000):
        if status_of(pool).mode is not PoolMode.WRITE:
            return count
        pool.create_thin(first_id + count)
    raise AssertionError("ten thousand thins fit")


@behaviour("1.8-15", needs=Capability.PROMPT_REUSE)
def a_write_to_a_full_pool_gets_what_was_just_freed(lab: Lab) -> None:
    pool, thin = _full(lab, error_if_no_space=True)
    events = pool.event_counter
    thin.discard(0, 2 * BLOCK)
    fill(thin, 4, 2, 2)
    expect_content(thin, 4, 2, 2)
    expect_equal((used(pool), mode_word(pool)), (4, "rw"), "used data blocks and mode")
    expect_equal(pool.event_counter, events, "events")


@behaviour("1.8-16", unless=Capability.PROMPT_REUSE)
def a_write_to_a_full_pool_may_fail_until_what_was_freed_is_committed(lab: Lab) -> None:
    """The allocator commits only where it counts no free block, and it counts those that wait for the commit."""
    pool, thin = _full(lab, error_if_no_space=True)
    thin.discard(0, 2 * BLOCK)
    try:
        fill(thin, 4, 1, 2)
    except OSError as error:  # no commit by the clock came in between
        expect_equal((error.errno, mode_word(pool, flush=False)), (errno.ENOSPC, "out_of_data_space"), "errno and mode")
    pool.commit()
    expect_equal(mode_word(pool), "rw", "mode after a commit")
    fill(thin, 4, 2, 2)
    expect_content(thin, 4, 2, 2)


@behaviour("1.8-17")
def while_a_write_waits_everything_else_goes_on(lab: Lab) -> None:
    pool, thin = _full(lab)
    other = lab.thin(pool, 1)
    write = PendingWrite(thin, 4 * BLOCK, b"\x02" * BLOCK)
    fill(thin, 1, 1, 3)
    thin.pwrite(2 * BLOCK + 512, b"\x04" * 512)
    expect_equal(
        thin.pread(2 * BLOCK, 1536), b"\x01" * 512 + b"\x04" * 512 + b"\x01" * 512, "a block overwritten in part"
    )
    expect_content(thin, 4, 1, 0)
    expect_content(other, 0, 1, 0)
    thin.flush()
    other.flush()
    thin.suspend()
    pool.create_snap(2, 0)
    thin.resume()
    shared = PendingWrite(thin, 0, b"\x05")
    other_write = PendingWrite(other, 0, b"\x06" * BLOCK)
    expect_content(lab.thin(pool, 2), 0, 1, 1)
    expect_equal([one.waiting() for one in (write, shared, other_write)], [True] * 3, "the writes wait")
    lab.grow_data(pool, 8)
    expect_equal([one.result() for one in (write, shared, other_write)], [0] * 3, "the writes after growing")
    expect_content(thin, 4, 1, 2)
    expect_content(other, 0, 1, 6)
    expect_equal(thin.pread(0, 2), b"\x05\x01", "the block whose sharing was broken")
    expect_content(lab.thin(pool, 2, name="again"), 0, 1, 1)
    expect_equal(used(pool), 7, "used data blocks")


@behaviour("1.8-18")
def closing_a_thin_gives_up_the_write_that_waits(lab: Lab) -> None:
    pool, thin = _full(lab)
    for end in (thin.close, lambda: pool.message("create_thin 7")):
        write = PendingWrite(thin, 4 * BLOCK, b"\x02" * BLOCK)
        expect_equal(write.waiting(), True, "the write waits")
        end()
        thin.close()
        thin = lab.thin(pool, name="again" if end is not thin.close else "")
    lab.grow_data(pool, 8)
    expect_content(thin, 4, 1, 0)
    expect_equal(used(pool), 4, "used data blocks")
    fill(thin, 4, 4, 3)
    expect_content(thin, 4, 4, 3)
    expect_equal(PendingWrite(thin, 8 * BLOCK, b"\x02" * BLOCK).waiting(), True, "the write waits")
    pool.suspend()
    pool = lab.reopen(pool)
    expect_equal((used(pool), mapped_blocks(lab.thin(pool))), (8, 8), "used and mapped blocks after reopening")


@behaviour("1.8-19")
def a_discard_is_not_undone_by_a_write_that_waits(lab: Lab) -> None:
    """An abandoned write must not overwrite what was done after it."""
    pool, thin = _full(lab)
    pool.create_snap(1, 0)
    expect_equal(PendingWrite(thin, 0, b"\x02" * BLOCK).waiting(), True, "the write waits")
    thin.discard(0, 4 * BLOCK)
    lab.grow_data(pool, 8)
    expect_content(thin, 0, 8, 0)
    expect_content(lab.thin(pool, 1), 0, 4, 1)
    expect_equal((mapped_blocks(thin), used(pool)), (0, 4), "mapped and used blocks")


@behaviour("1.8-11", "exhausting-metadata-makes-read-only")
def exhausted_metadata_makes_the_pool_read_only_and_loses_nothing(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(4, data_blocks=64, metadata_blocks=64)
    count = _exhaust_metadata(pool)
    status = status_of(pool)
    expect_equal((mode_word(pool), status.needs_check), ("ro", False), "mode and needs_check")
    expect_equal(status.used_metadata_blocks, 64, "used metadata blocks")
    expect_error(errno.EOPNOTSUPP, lambda: pool.create_thin(99))
    expect_error(errno.EIO, lambda: fill(thin, 4, 1, 2))
    expect_content(thin, 0, 4, 1)
    fill(thin, 0, 1, 3)
    thin.flush()
    expect_content(thin, 0, 1, 3)
    expect_equal(len(pool.thin_ids()), count + 1, "thins")


@behaviour("1.8-12", "metadata-resize-after-exhaustion")
def growing_exhausted_metadata_and_resuming_recovers(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(data_blocks=64, metadata_blocks=64)
    count = _exhaust_metadata(pool)
    thin.close()
    pool = lab.reopen(pool)
    expect_equal(mode_word(pool), "ro", "mode after reopening")
    lab.grow_metadata(pool, 128)
    expect_equal(status_of(pool).mode, PoolMode.WRITE, "mode after growing")
    expect_equal(status_of(pool).total_metadata_blocks, 128, "total metadata blocks")
    pool.create_thin(99)
    expect_equal(len(pool.thin_ids()), count + 2, "thins")
    fill(lab.thin(pool), 0, 4, 1)


@behaviour("1.8-13", needs=Capability.GENTLE_METADATA_END)
def provisioning_exhausts_metadata_gracefully(lab: Lab) -> None:
    lab.durable = False
    pool, thin = lab.pool_with_thin(blocks=1 << 20, data_blocks=40_000, metadata_blocks=64)
    written = 0
    for number in range(10_000):
        try:
            thin.pwrite((number * 7919 % (1 << 20)) * BLOCK, b"\x05" * 4096)
        except OSError as error:
            expect_equal(error.errno, errno.EIO, "errno of the write that found no metadata space")
            break
        written += 1
    status = status_of(pool)
    expect_equal((mode_word(pool), status.needs_check), ("ro", False), "mode and needs_check")
    expect_equal(mapped_blocks(thin), written, "mapped blocks")
    for number in range(0, written, 97):
        expect_equal(thin.pread((number * 7919 % (1 << 20)) * BLOCK, 4096), b"\x05" * 4096, f"write {number}")


@behaviour("1.8-14", needs=Capability.GENTLE_METADATA_END)
def one_huge_write_exhausts_metadata_gracefully(lab: Lab) -> None:
    lab.durable = False
    pool, thin = lab.pool_with_thin(blocks=12_000, data_blocks=12_000, metadata_blocks=40)
    begin = 0
    try:
        while begin < 12_000:
            fill(thin, begin, 500, 1)
            begin += 500
    except OSError as error:
        expect_equal(error.errno, errno.EIO, "errno")
    status = status_of(pool)
    expect_equal((mode_word(pool), status.needs_check), ("ro", False), "mode and needs_check")
    if mapped_blocks(thin) < begin:
        raise AssertionError(f"{begin} blocks were written and {mapped_blocks(thin)} are mapped")


@behaviour("1.8-40", "metadata-exhausted-within-a-transaction", unless=Capability.GENTLE_METADATA_END)
def provisioning_that_exhausts_metadata_keeps_what_was_flushed(lab: Lab) -> None:
    lab.expect_leaks()
    pool, thin = lab.pool_with_thin(data_blocks=20_000, metadata_blocks=32, blocks=1 << 20, skip_block_zeroing=True)
    flushed = 0
    for number in range(10_000):
        try:
            thin.pwrite((number * 7919 % (1 << 20)) * BLOCK, number.to_bytes(2, "big") * 2048)
            if number % 200 == 199:
                thin.flush()
                flushed = number + 1
        except OSError as error:
            expect_equal(error.errno, errno.EIO, "errno of the request that found no metadata space")
            break
    expect_equal(mode_word(pool), "ro", "mode")
    expect_error(errno.EOPNOTSUPP, lambda: pool.create_thin(99))
    if mapped_blocks(thin) < flushed:
        raise AssertionError(f"{flushed} blocks were flushed and {mapped_blocks(thin)} are mapped")
    for number in range(flushed):
        found = thin.pread((number * 7919 % (1 << 20)) * BLOCK, 4096)
        expect_equal(found, number.to_bytes(2, "big") * 2048, f"write {number}, which was flushed")
