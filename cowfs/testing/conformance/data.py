"""Section 1.6 and 1.9: reading, provisioning, sharing, durability, external origins."""

from __future__ import annotations

import errno
import itertools

from cowfs.pool import Capability
from cowfs.testing.conformance.lab import (
    BLOCK,
    Lab,
    LabFeature,
    allocated_bytes,
    expect_content,
    expect_equal,
    expect_error,
    fill,
    mapped_blocks,
    used,
)
from cowfs.testing.conformance.registry import behaviour


@behaviour("1.6-1")
def reading_allocates_nothing(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin()
    thin.pread(0, 16 * BLOCK)
    fill(thin, 3, 1, 1)
    expect_equal(thin.pread(2 * BLOCK, 3 * BLOCK), bytes(BLOCK) + b"\x01" * BLOCK + bytes(BLOCK), "content")
    expect_equal(used(pool), 1, "used data blocks")


@behaviour("1.6-2")
def any_offset_and_length_reads_and_writes(lab: Lab) -> None:
    thin = lab.thin(lab.pool())
    expected = bytearray(16 * BLOCK)
    for number, (offset, length) in enumerate(
        ((1, 1), (511, 2), (BLOCK - 1, 2), (3 * BLOCK - 7, 2 * BLOCK + 14), (6 * BLOCK, BLOCK), (0, 16 * BLOCK - 1))
    ):
        data = bytes([number + 1]) * length
        thin.pwrite(offset, data)
        expected[offset : offset + length] = data
        expect_equal(thin.pread(offset, length), data, "what was written")
        expect_equal(thin.pread(0, 16 * BLOCK), bytes(expected), "everything")
    for buffer in (bytearray(b"ab"), memoryview(b"ab")):
        thin.pwrite(7, buffer)
    expect_equal(thin.pread(7, 2), b"ab", "written from other buffers")


@behaviour("1.6-3")
def a_whole_block_over_a_shared_one_moves_and_the_other_side_stays(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(6)
    pool.create_snap(1, 0)
    snapshot = lab.thin(pool, 1)
    thin.pwrite(BLOCK // 2, b"\x02" * (3 * BLOCK))
    half = BLOCK // 2
    content = b"\x01" * half + b"\x02" * (3 * BLOCK) + b"\x01" * half + b"\x01" * (2 * BLOCK)
    expect_equal(thin.pread(0, 6 * BLOCK), content, "the side that was written")
    expect_content(snapshot, 0, 6, 1)
    expect_equal(used(pool), 10, "used data blocks")


@behaviour("1.6-4")
def sharing_is_broken_once_too_often_but_space_is_not_lost(lab: Lab) -> None:
    """After one side has copied, the other copies once more; the block it leaves is free again."""
    pool, thin = lab.pool_with_thin(1)
    pool.create_snap(1, 0)
    snapshot = lab.thin(pool, 1)
    (old,) = (extent.dblock for extent in thin.extents())
    fill(snapshot, 0, 1, 2)
    expect_equal(used(pool), 2, "used data blocks")
    fill(thin, 0, 1, 3)
    expect_equal(used(pool), 2, "used data blocks after the origin copied as well")
    (new,) = (extent.dblock for extent in thin.extents())
    if new == old:
        raise AssertionError("the origin wrote in place a block that is older than its snapshot")
    fill(thin, 0, 1, 4)
    expect_equal([extent.dblock for extent in thin.extents()], [new], "data block of an unshared mapping")
    expect_content(snapshot, 0, 1, 2)


@behaviour("1.6-5")
def a_snapshot_of_an_unwritten_snapshot_shares_everything(lab: Lab) -> None:
    pool = lab.pool()
    fill(lab.thin(pool), 0, 4, 1)
    pool.create_snap(1, 0)
    pool.create_snap(2, 1)
    third = lab.thin(pool, 2)
    expect_content(third, 0, 4, 1)
    fill(third, 0, 1, 2)
    expect_content(lab.thin(pool, 1), 0, 4, 1)
    expect_equal(used(pool), 5, "used data blocks")


@behaviour("1.6-6", "flush-triggers-commit")
def flush_of_a_changed_thin_commits_and_of_an_unchanged_one_does_not(lab: Lab) -> None:
    """Seen at block 0 of the metadata, as the suites' flush-triggers-commit has it."""
    pool = lab.pool()
    first, second = lab.thin(pool, 0, blocks=64), lab.thin(pool, 1)
    fresh = itertools.count()

    def provision_and_flush() -> None:
        fill(first, next(fresh), 1, 1)
        first.flush()

    def steps() -> None:
        start, vblock = lab.superblock(pool), next(fresh)
        fill(first, vblock, 1, 1)
        expect_equal(lab.superblock(pool), start, "superblock after a write")
        second.flush()
        expect_equal(lab.superblock(pool), start, "superblock after a flush of the other thin")
        first.flush()
        provisioned = lab.superblock(pool)
        if provisioned == start:
            raise AssertionError("a flush after provisioning wrote no superblock")
        fill(first, vblock, 1, 2)
        first.flush()
        expect_equal(lab.superblock(pool), provisioned, "superblock after an overwrite and a flush")

    lab.before_a_commit_is_due(provision_and_flush, steps)


@behaviour("1.6-7")
def changes_are_committed_within_a_second_or_so_without_a_flush(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin()
    pool.commit()
    before = lab.superblock(pool)
    fill(thin, 0, 1, 1)
    lab.wait_for_a_commit(pool, before)


@behaviour("1.6-8", "pool-without-activity-does-not-commit")
def a_pool_without_activity_does_not_commit(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(1)
    thin.flush()
    before = lab.superblock(pool)
    lab.pass_time(pool, 1.5)
    thin.pread(0, 4 * BLOCK)
    thin.flush()
    expect_equal(lab.superblock(pool), before, "superblock")


@behaviour("1.6-9", lab_features=LabFeature.CLOCK)
def the_first_change_after_a_quiet_second_is_committed_at_once(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin()
    lab.pass_time(pool, 1.5)
    before = lab.superblock(pool)
    fill(thin, 0, 1, 1)
    if lab.superblock(pool) == before:
        raise AssertionError("the first change after a quiet second was not committed")
    after = lab.superblock(pool)
    fill(thin, 1, 1, 1)
    expect_equal(lab.superblock(pool), after, "superblock after a second change at once")


@behaviour("1.6-10")
def a_suspended_thin_or_pool_serves_no_io_and_goes_on_after_the_resume(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(1)
    thin.suspend()
    for call in (lambda: thin.pread(0, 512), lambda: fill(thin, 0, 1, 2), lambda: thin.discard(0, BLOCK), thin.flush):
        expect_error(errno.EAGAIN, call)
    thin.resume()
    expect_content(thin, 0, 1, 1)
    pool.suspend()
    expect_error(errno.EAGAIN, lambda: thin.pread(0, 512))
    thin.suspend()
    pool.resume()
    expect_error(errno.EAGAIN, lambda: thin.pread(0, 512))
    thin.resume()
    fill(thin, 0, 1, 2)
    expect_content(thin, 0, 1, 2)


@behaviour("1.6-11")
def zero_and_copy_do_what_they_say(lab: Lab) -> None:
    _pool, thin = lab.pool_with_thin(8)
    thin.zero(BLOCK // 2, 3 * BLOCK)
    half = BLOCK // 2
    content = b"\x01" * half + bytes(3 * BLOCK) + b"\x01" * half + b"\x01" * (4 * BLOCK)
    expect_equal(thin.pread(0, 8 * BLOCK), content, "after zero")
    thin.copy(0, 8 * BLOCK + 100, BLOCK)
    expect_equal(thin.pread(8 * BLOCK + 100, BLOCK), content[:BLOCK], "after copy")
    thin.zero(12 * BLOCK, BLOCK - 512)
    if mapped_blocks(thin) > 8 + 2:
        raise AssertionError("zeroing an unmapped range mapped it")


@behaviour("1.6-12", needs=Capability.ZEROED_REUSE)
def a_reused_block_never_shows_what_it_held(lab: Lab) -> None:
    for features in ({}, {"skip_block_zeroing": True}, {"no_discard_passdown": True}, {"ignore_discard": True}):
        pool = lab.pool(4, **features)
        first = lab.thin(pool, 0)
        fill(first, 0, 4, 0xAA)
        first.close()
        pool.delete(0)
        second = lab.thin(pool, 1)
        second.pwrite(BLOCK + 5000, b"x")
        second.pwrite(3 * BLOCK - 1, b"yz")
        expect_equal(second.pread(0, 4 * BLOCK).strip(b"\0xyz"), b"", f"old bytes with {features}")


@behaviour("1.6-13", needs=Capability.FREED_SPACE_RETURNED)
def freed_blocks_are_given_back_to_the_host(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(32, blocks=32)
    thin.flush()
    path = lab.table(pool).data_device
    full = allocated_bytes(path)
    thin.discard(0, 16 * BLOCK)
    pool.commit()
    if allocated_bytes(path) > full - 12 * BLOCK:
        raise AssertionError(f"{full} bytes were allocated before a discard and {allocated_bytes(path)} after it")
    thin.close()
    pool.delete(0)
    if allocated_bytes(path) > 4 * BLOCK:
        raise AssertionError(f"{allocated_bytes(path)} bytes are allocated for an empty pool")


@behaviour("1.6-14", needs=Capability.FREED_SPACE_RETURNED)
def a_block_written_and_discarded_between_two_commits_is_given_back_too(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(blocks=32)
    pool.commit()
    path = lab.table(pool).data_device
    fill(thin, 0, 32, 1)
    thin.discard(0, 32 * BLOCK)
    fill(thin, 3, 2, 2)
    thin.discard(3 * BLOCK, BLOCK)
    pool.commit()
    if allocated_bytes(path) > 3 * BLOCK:
        raise AssertionError(f"{allocated_bytes(path)} bytes are allocated for one mapped block")
    expect_content(thin, 4, 1, 2)


@behaviour("1.9-1")
def past_the_end_of_an_origin_there_are_zeros(lab: Lab) -> None:
    content = b"\x07" * (BLOCK + 1024)
    pool = lab.pool()
    thin = lab.thin(pool, blocks=4, external_origin=lab.origin(content))
    expect_equal(thin.pread(0, 4 * BLOCK), content + bytes(4 * BLOCK - len(content)), "content")
    expect_equal(thin.pread(BLOCK + 512, 1024), b"\x07" * 512 + bytes(512), "a read across the end")
    thin.pwrite(BLOCK + 4096, b"\x01" * 512)
    expected = content[BLOCK:] + bytes(4096 - 1024) + b"\x01" * 512
    expect_equal(thin.pread(BLOCK, BLOCK), expected + bytes(BLOCK - len(expected)), "the block with the end")
    thin.pwrite(3 * BLOCK + 512, b"\x02" * 512)
    expect_equal(thin.pread(3 * BLOCK, 2048), bytes(512) + b"\x02" * 512 + bytes(1024), "a block past the end")


@behaviour("1.9-2")
def discarding_exposes_the_origin_again(lab: Lab) -> None:
    pool = lab.pool()
    thin = lab.thin(pool, blocks=4, external_origin=lab.origin(b"\x07" * (4 * BLOCK)))
    fill(thin, 0, 4, 1)
    thin.discard(BLOCK, 2 * BLOCK)
    expect_content(thin, 0, 1, 1)
    expect_content(thin, 1, 2, 7)
    expect_content(thin, 3, 1, 1)


@behaviour("1.9-3")
def snapshots_need_the_origin_named_again(lab: Lab) -> None:
    pool = lab.pool()
    origin = lab.origin(b"\x07" * (4 * BLOCK))
    thin = lab.thin(pool, blocks=4, external_origin=origin)
    fill(thin, 0, 1, 1)
    pool.create_snap(1, 0)
    pool.create_snap(2, 0)
    named, bare = lab.thin(pool, 1, blocks=4, external_origin=origin), lab.thin(pool, 2, blocks=4)
    for snapshot, stamp in ((named, 7), (bare, 0)):
        expect_content(snapshot, 0, 1, 1)
        expect_content(snapshot, 1, 3, stamp)
    named.pwrite(BLOCK, b"\x02" * 512)
    expect_equal(named.pread(BLOCK, 1024), b"\x02" * 512 + b"\x07" * 512, "partial write over the origin")


@behaviour("1.9-4")
def zero_does_not_show_the_origin(lab: Lab) -> None:
    thin = lab.thin(lab.pool(), blocks=4, external_origin=lab.origin(b"\x07" * (4 * BLOCK)))
    thin.zero(512, 2 * BLOCK)
    expect_equal(thin.pread(0, 3 * BLOCK), b"\x07" * 512 + bytes(2 * BLOCK) + b"\x07" * (BLOCK - 512), "content")


@behaviour("1.9-5")
def an_origin_that_is_not_there_is_named(lab: Lab) -> None:
    pool = lab.pool()
    pool.create_thin(0)
    error = expect_error(errno.ENOENT, lambda: pool.activate("a", 0, 128, external_origin="/nonexistent/origin"))
    if "/nonexistent/origin" not in str(error):
        raise AssertionError(f"the error does not name the origin: {error}")
    expect_equal(pool.active(), [], "active")
    pool.delete(0)
