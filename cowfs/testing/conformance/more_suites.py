"""More cases of the kernel's own suites: I/O beside messages, resizing and metadata space. See `suites`."""

from __future__ import annotations

import errno
import random

from cowfs.pool import PoolMode, ThinDevice
from cowfs.testing.conformance.lab import (
    BLOCK,
    Lab,
    Means,
    expect_any_error,
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
from cowfs.units import Sectors


@behaviour("suite-huge-block-size")
def blocks_of_a_quarter_gibibyte(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(data_blocks=4, blocks=4, block_sectors=524288, skip_block_zeroing=True)
    for vblock in range(4):
        thin.pwrite((vblock << 28) + 4096 * vblock, bytes([vblock + 1]) * 4096)
    for vblock in range(4):
        found = thin.pread((vblock << 28) + 4096 * vblock, 4096)
        expect_equal(found, bytes([vblock + 1]) * 4096, f"content of block {vblock}")
    expect_equal(used(pool), 4, "used data blocks")


@behaviour("suite-discard-fully-provisioned-device", "discard-single-block")
def discard_of_a_full_device_leaves_others_alone(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(16)
    other = lab.thin(pool, 1)
    fill(other, 0, 16, 2)
    thin.discard(7 * BLOCK, BLOCK)
    expect_content(thin, 7, 1, 0)
    expect_equal((mapped_blocks(thin), used(pool)), (15, 31), "mapped and used blocks")
    thin.discard(0, 16 * BLOCK)
    expect_content(thin, 0, 16, 0)
    expect_content(other, 0, 16, 2)
    expect_equal((mapped_blocks(thin), used(pool)), (0, 16), "mapped and used blocks")


@behaviour("suite-discard-random-sectors")
def discard_of_random_sectors_unmaps_whole_blocks_only(lab: Lab) -> None:
    rng = random.Random(7)  # noqa: S311
    pool, thin = lab.pool_with_thin(16)
    mapped = set(range(16))
    for _ in range(60):
        begin = rng.randrange(16 * 128)
        length = rng.randrange(1, 16 * 128 - begin + 1)
        thin.discard(begin * 512, length * 512)
        mapped -= set(range(-(-begin // 128), (begin + length) // 128))
        if rng.random() < 0.3:
            vblock = rng.randrange(16)
            fill(thin, vblock, 1, 1)
            mapped.add(vblock)
    for vblock in range(16):
        expect_content(thin, vblock, 1, int(vblock in mapped))
    expect_equal((mapped_blocks(thin), used(pool)), (len(mapped), len(mapped)), "mapped and used blocks")


@behaviour("suite-discard-with-background-io")
def discard_while_others_write(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(16, data_blocks=128)
    busy = lab.thin(pool, 1, blocks=32)
    for number in range(32):
        fill(busy, number, 1, number + 1)
        thin.discard(number % 16 * BLOCK, BLOCK)
        if number < 16:
            fill(thin, number, 1, 100 + number)
    expect_content(thin, 0, 16, 0)
    for number in range(32):
        expect_content(busy, number, 1, number + 1)
    expect_equal(used(pool), 32, "used data blocks")


@behaviour("suite-parallel-io-to-shared-thins")
def six_sharers_written_in_turns(lab: Lab) -> None:
    """Their writes alternate at random, as those of six threads do."""
    rng = random.Random(3)  # noqa: S311
    pool, thin = lab.pool_with_thin(8, data_blocks=128, blocks=8)
    sharers = [thin]
    for thin_id in range(1, 6):
        pool.create_snap(thin_id, 0)
        sharers.append(lab.thin(pool, thin_id, blocks=8))
    stamps = {(number, vblock): 1 for number in range(6) for vblock in range(8)}
    for _ in range(150):
        number, vblock, stamp = rng.randrange(6), rng.randrange(8), rng.randrange(2, 256)
        fill(sharers[number], vblock, 1, stamp)
        stamps[number, vblock] = stamp
    for (number, vblock), stamp in stamps.items():
        expect_content(sharers[number], vblock, 1, stamp)


@behaviour("suite-many-snaps-with-changes", "try-and-create-duplicates")
def every_generation_keeps_its_changes(lab: Lab) -> None:
    """A chain of snapshots, each with the same change to one block and another to a second."""
    pool, thin = lab.pool_with_thin(8, data_blocks=128, blocks=8)
    generations: list[ThinDevice] = [thin]
    for number in range(1, 20):
        pool.create_snap(number, number - 1)
        generations.append(lab.thin(pool, number, blocks=8))
        fill(generations[-1], 0, 1, 200)
        fill(generations[-1], 1 + number % 7, 1, number + 1)
    stamps = [1] * 8
    for number, device in enumerate(generations):
        if number:
            stamps[0], stamps[1 + number % 7] = 200, number + 1
        for vblock, stamp in enumerate(stamps):
            expect_content(device, vblock, 1, stamp)
    expect_equal(used(pool), 8 + 19 * 2, "used data blocks")


@behaviour("suite-filling-pool-or-thin-returns-enospc", "filling-thin-past-its-end-fails")
def filling_a_pool_and_a_thin_ends_in_an_error(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(4, data_blocks=8, blocks=4, error_if_no_space=True)
    expect_any_error(lambda: fill(thin, 4, 1, 1))
    expect_equal(used(pool), 4, "used data blocks when the thin is full")
    other = lab.thin(pool, 1)
    error = expect_error(errno.ENOSPC, lambda: fill(other, 0, 5, 2))
    if "space" not in str(error):
        raise AssertionError(f"the error does not speak of space: {error}")
    expect_content(other, 0, 4, 2)


@behaviour("suite-resize-after-out-of-space-with-preloaded-table")
def a_table_loaded_before_the_pool_was_full_lets_it_go_on(lab: Lab) -> None:
    table = lab.new_table(8, error_if_no_space=True)
    pool = lab.open(table.replace(length_sectors=Sectors(4 * 128)))
    thin = lab.thin(pool)
    fill(thin, 0, 2, 1)
    pool.reload(table)
    fill(thin, 2, 2, 1)
    expect_error(errno.ENOSPC, lambda: fill(thin, 4, 1, 2))
    expect_equal(status_of(pool).total_data_blocks, 4, "total data blocks before the resume")
    pool.resume()
    expect_equal((status_of(pool).total_data_blocks, mode_word(pool)), (8, "rw"), "total data blocks and mode")
    fill(thin, 4, 4, 2)
    expect_content(thin, 4, 4, 2)


@behaviour("suite-extra-data-space-is-not-used-after-reload", "reload-with-io")
def a_reload_of_the_same_table_takes_no_more_space(lab: Lab) -> None:
    table = lab.new_table(8, error_if_no_space=True)
    pool = lab.open(table.replace(length_sectors=Sectors(4 * 128)))
    thin = lab.thin(pool)
    for vblock in range(4):
        fill(thin, vblock, 1, vblock + 1)
        pool.reload(table.replace(length_sectors=Sectors(4 * 128)))
        pool.resume()
        expect_equal(status_of(pool).total_data_blocks, 4, "total data blocks")
    expect_error(errno.ENOSPC, lambda: fill(thin, 4, 1, 1))
    for vblock in range(4):
        expect_content(thin, vblock, 1, vblock + 1)


@behaviour("suite-metadata-resize-with-io", "thin-remove-works-after-metadata-resize")
def metadata_grows_while_a_thin_is_written(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(data_blocks=256, metadata_blocks=64, blocks=256)
    for number, blocks in enumerate((65, 67, 99, 610, 2048)):
        fill(thin, 40 * number, 40, number + 1)
        lab.grow_metadata(pool, blocks)
        expect_equal(status_of(pool).total_metadata_blocks, blocks, "total metadata blocks")
    for number in range(5):
        expect_content(thin, 40 * number, 40, number + 1)
    thin.close()
    pool.delete(0)
    expect_equal((pool.thin_ids(), used(pool)), ([], 0), "ids and used data blocks")


@behaviour("suite-abort-on-fresh-pool", "abort-during-io", means=Means.FAULTS)
def an_abort_leaves_the_last_commit_also_of_a_fresh_pool(lab: Lab) -> None:
    for provisioned in (False, True):
        pool = lab.breakable_pool()
        thin = lab.thin(pool)
        if provisioned:
            fill(thin, 0, 4, 1)
            thin.flush()
        lab.fail_writes(pool, "metadata")
        fill(thin, 4, 8, 2)
        expect_error(errno.EIO, thin.flush)
        expect_equal((mode_word(pool), status_of(pool).needs_check), ("ro", True), "mode and needs_check")
        expect_content(thin, 0, 4, int(provisioned))
        expect_content(thin, 4, 8, 0)
        lab.heal(pool)
        pool = lab.reopen(pool)
        expect_equal(status_of(pool).mode, PoolMode.READ_ONLY, "mode after reopening")
        expect_equal(mapped_blocks(lab.thin(pool)), 4 if provisioned else 0, "mapped blocks")
