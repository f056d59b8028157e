"""Section 1.10 and 1.11: snapshots, suspend, resize, metadata snapshots, limits."""

from __future__ import annotations

import errno
import os

from cowfs.blockdev import BlockDevice
from cowfs.pool import Capability, PoolMode
from cowfs.testing.conformance.lab import (
    BLOCK,
    Lab,
    expect_content,
    expect_equal,
    expect_error,
    fill,
    status_of,
    used,
)
from cowfs.testing.conformance.registry import behaviour
from cowfs.thinmeta import Metadata, Superblock
from cowfs.thinmeta.delta import DeltaRange, changed_ranges
from cowfs.thinmeta.format import SUPERBLOCK_SALT, seal
from cowfs.units import MAX_SNAPSHOT_TIME, METADATA_BLOCK_BYTES, Sectors


@behaviour("1.10-1")
def origin_and_snapshot_are_peers(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(4)
    pool.create_snap(1, 0)
    pool.create_snap(2, 1)
    pool.delete(1)
    thin.close()
    pool.delete(0)
    expect_content(lab.thin(pool, 2), 0, 4, 1)
    expect_equal((pool.thin_ids(), used(pool)), ([2], 4), "ids and used data blocks")


@behaviour("1.10-2", "resize-without-io")
def growing_the_data_keeps_what_is_there(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(8, blocks=64, data_blocks=8)
    for blocks in (9, 16, 64):
        lab.grow_data(pool, blocks)
        expect_equal(status_of(pool).total_data_blocks, blocks, "total data blocks")
    expect_content(thin, 0, 8, 1)
    fill(thin, 8, 56, 2)
    expect_content(thin, 8, 56, 2)
    expect_equal(used(lab.reopen(pool)), 64, "used data blocks")


@behaviour("1.10-3", "data-smaller-than-pool-fails-on-reload")
def shrinking_the_data_is_refused_by_the_resume_and_by_opening(lab: Lab) -> None:
    pool = lab.pool(8)
    table = lab.table(pool)
    smaller = table.replace(length_sectors=Sectors(7 * 128))
    pool.reload(smaller)
    expect_error(errno.EINVAL, pool.resume)
    pool.reload(table)
    pool.resume()
    expect_equal(status_of(pool).total_data_blocks, 8, "total data blocks")
    fill(lab.thin(pool), 0, 1, 1)
    pool.close()
    expect_error(errno.EINVAL, lambda: lab.open(smaller))
    lab.open(table)


@behaviour("1.10-4", "metadata-resize-with-check-between")
def growing_the_metadata_is_seen_at_the_resume(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(4, data_blocks=16, metadata_blocks=64)
    for blocks in (65, 128, 1024, 20_000):
        lab.grow_metadata(pool, blocks)
        expect_equal(status_of(pool).total_metadata_blocks, blocks, "total metadata blocks")
        lab.judge_now(pool)
    expect_content(thin, 0, 4, 1)
    expect_equal(status_of(lab.reopen(pool)).total_metadata_blocks, 20_000, "total metadata blocks")


@behaviour("1.10-5")
def growing_with_the_table_alone_needs_no_suspend_of_ours(lab: Lab) -> None:
    """A resume with a table in the inactive slot implies a suspend; without one it does nothing."""
    pool = lab.pool(8)
    pool.resume()
    lab.grow_data(pool, 12)
    expect_equal(status_of(pool).total_data_blocks, 12, "total data blocks")


@behaviour("1.10-6", "metadata-snapshot-differs-from-live-after-overwrite")
def a_held_metadata_snapshot_keeps_the_old_mappings_readable(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(4)
    pool.reserve_metadata_snap()
    before = used(pool)
    fill(thin, 0, 8, 2)
    thin.discard(0, 2 * BLOCK)
    pool.create_thin(5)
    pool.commit()
    root = status_of(pool).held_root
    assert root is not None
    device = pool.open_metadata()
    try:
        held = Superblock.unpack(device.pread(root * METADATA_BLOCK_BYTES, METADATA_BLOCK_BYTES), root)
        expect_equal((held.location, held.held_root, held.data_space_map.nr_blocks), (root, 0, 0), "the held copy")
    finally:
        device.close()
    lab.judge_now(pool)
    expect_equal((before, used(pool)), (4, 8), "used data blocks before and after")
    pool.release_metadata_snap()
    expect_equal(used(pool), 6, "used data blocks after the release")


@behaviour("1.10-7")
def a_held_metadata_snapshot_survives_reopening(lab: Lab) -> None:
    pool = lab.pool()
    fill(lab.thin(pool), 0, 4, 1)
    pool.reserve_metadata_snap()
    root = status_of(pool).held_root
    pool = lab.reopen(pool)
    expect_equal(status_of(pool).held_root, root, "held root")
    pool.release_metadata_snap()
    expect_equal(status_of(pool).held_root, None, "held root")


@behaviour("1.10-8")
def suspending_twice_and_resuming_twice_is_harmless(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin()
    thin.suspend()
    thin.suspend()
    pool.suspend()
    pool.suspend()
    pool.resume()
    pool.resume()
    thin.resume()
    thin.resume()
    fill(thin, 0, 1, 1)
    expect_equal(status_of(pool).mode, PoolMode.WRITE, "mode")


@behaviour("1.10-9")
def closing_a_suspended_pool_keeps_everything(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(4)
    thin.suspend()
    pool.suspend()
    pool.create_snap(1, 0)
    pool = lab.reopen(pool)
    expect_content(lab.thin(pool, 1), 0, 4, 1)


@behaviour("1.10-10")
def metadata_is_read_as_of_now(lab: Lab) -> None:
    """Also with a metadata snapshot of another time; and nothing is held afterwards that was not before."""
    pool, thin = lab.pool_with_thin(4)
    pool.create_snap(1, 0)

    def changed() -> list[tuple[int, int]]:
        def read(device: BlockDevice, held: bool) -> list[DeltaRange]:
            return list(changed_ranges(device, 0, 1, held=held))

        return [(item.vblock, item.length) for item in pool.read_metadata(read)]

    expect_equal(changed(), [], "ranges in which the snapshot differs")
    fill(thin, 2, 1, 2)
    expect_equal(changed(), [(2, 1)], "ranges after a write")
    expect_equal(status_of(pool).held_root, None, "held root")
    pool.reserve_metadata_snap()
    fill(thin, 5, 2, 3)
    expect_equal(changed(), [(2, 1), (5, 2)], "ranges with a metadata snapshot held")
    expect_equal(status_of(pool).held_root is None, False, "held root gone")
    pool.release_metadata_snap()
    expect_error(
        errno.ENODATA, lambda: pool.read_metadata(lambda device, held: list(changed_ranges(device, 0, 7, held=held)))
    )
    expect_equal(status_of(pool).held_root, None, "held root after an error")


@behaviour("1.10-11")
def suspending_the_pool_commits(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin()
    for vblock in range(4):
        fill(thin, vblock, 1, 1)
        pool.suspend()
        device = pool.open_metadata()
        try:
            metadata = Metadata.open(device, read_only=True)
            expect_equal(metadata.open_thin(0).mapped_blocks, vblock + 1, "committed mapped blocks")
            metadata.close()
        finally:
            device.close()
        pool.resume()


@behaviour("1.10-12")
def shrinking_the_metadata_is_refused_by_the_resume(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(4)
    pool.suspend()
    os.truncate(lab.table(pool).metadata_device, 512 * METADATA_BLOCK_BYTES)
    expect_error(errno.EINVAL, pool.resume)
    os.truncate(lab.table(pool).metadata_device, 1024 * METADATA_BLOCK_BYTES)
    pool.resume()
    expect_equal(status_of(pool).total_metadata_blocks, 1024, "total metadata blocks")
    expect_content(thin, 0, 4, 1)
    fill(thin, 4, 1, 2)


@behaviour("1.11-1", needs=Capability.BOUNDED_TIME)
def the_last_snapshot_time_is_refused(lab: Lab) -> None:
    """A time of 2**24 would spill into the block number of a mapping."""
    pool = lab.pool()
    fill(lab.thin(pool), 0, 1, 1)

    def age(device: object) -> None:
        superblock = Superblock.unpack(device.pread(0, METADATA_BLOCK_BYTES))  # type: ignore[attr-defined]
        superblock.time = MAX_SNAPSHOT_TIME - 1
        device.pwrite(0, seal(bytearray(superblock.pack()), SUPERBLOCK_SALT))  # type: ignore[attr-defined]

    pool = lab.open(lab.edit_metadata(pool, age, damages=False))
    pool.create_snap(1, 0)
    expect_error(errno.EINVAL, lambda: pool.create_snap(2, 0))
    thin = lab.thin(pool)
    fill(thin, 0, 2, 2)
    expect_content(lab.thin(pool, 1), 0, 1, 1)
    expect_equal(pool.thin_ids(), [0, 1], "ids")


@behaviour("1.11-2", "too-small-a-metadata-dev-fails")
def a_metadata_device_of_16_kib_is_too_small(lab: Lab) -> None:
    expect_error(errno.ENOSPC, lambda: lab.pool(16, 4))


@behaviour("1.11-3")
def many_bitmaps_and_three_level_trees_work(lab: Lab) -> None:
    lab.durable = False
    pool, thin = lab.pool_with_thin(blocks=36_000, data_blocks=36_000, metadata_blocks=4096, skip_block_zeroing=True)
    for vblock in range(34_000):
        thin.pwrite(vblock * BLOCK, bytes(512))
    expect_equal(used(pool), 34_000, "used data blocks")
    pool.create_snap(1, 0)
    fill(thin, 17_000, 3, 1)
    thin.discard(100 * BLOCK, 30_000 * BLOCK)
    lab.judge_now(pool)
    snapshot = lab.thin(pool, 1, blocks=36_000)
    expect_equal(snapshot.pread(17_000 * BLOCK, 512), bytes(512), "content of the snapshot")
    metadata = Metadata.open(pool.open_metadata(), read_only=True)
    expect_equal(metadata.open_thin(1).mapped_blocks, 34_000, "mapped blocks of the snapshot")
    expect_equal(metadata.open_thin(0).mapped_blocks, 4000, "mapped blocks of the origin")
