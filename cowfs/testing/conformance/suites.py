"""Cases of the kernel's own suites (device-mapper-test-suite, dmtest-python) that need no special hardware.

Named after their originals, written anew, and smaller where only the time would differ.
"""

from __future__ import annotations

import errno
import random

from cowfs.pool import PoolMode, ThinDevice
from cowfs.testing.conformance.lab import (
    BLOCK,
    Lab,
    LabFeature,
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

_MANY = 300


@behaviour("suite-lots-of-empty-thins")
def lots_of_empty_thins(lab: Lab) -> None:
    pool = lab.pool()
    for thin_id in range(_MANY):
        pool.create_thin(thin_id)
    expect_equal(pool.thin_ids(), list(range(_MANY)), "ids")


@behaviour("suite-lots-of-empty-snaps")
def lots_of_empty_snaps(lab: Lab) -> None:
    pool = lab.pool()
    pool.create_thin(0)
    for thin_id in range(1, _MANY):
        pool.create_snap(thin_id, 0)
    expect_equal(len(pool.thin_ids()), _MANY, "thins")


@behaviour("suite-lots-of-recursive-snaps")
def lots_of_recursive_snaps(lab: Lab) -> None:
    pool, _thin = lab.pool_with_thin(4)
    for thin_id in range(1, _MANY):
        pool.create_snap(thin_id, thin_id - 1)
    expect_content(lab.thin(pool, _MANY - 1), 0, 4, 1)
    expect_equal(used(pool), 4, "used data blocks")


@behaviour("suite-create-delete-cycle")
def create_delete_cycle(lab: Lab) -> None:
    pool = lab.pool()
    before = status_of(pool)
    for _ in range(_MANY):
        pool.create_thin(0)
        pool.delete(0)
    expect_equal(status_of(pool), before, "status")


@behaviour("suite-create-many-then-delete-many")
def create_many_then_delete_many(lab: Lab) -> None:
    pool = lab.pool()
    before = status_of(pool)
    for thin_id in range(_MANY):
        pool.create_thin(thin_id)
    for thin_id in range(_MANY):
        pool.delete(thin_id)
    expect_equal(status_of(pool).used_data_blocks, before.used_data_blocks, "used data blocks")
    expect_equal(pool.thin_ids(), [], "ids")


@behaviour("suite-rolling-create-delete")
def rolling_create_delete(lab: Lab) -> None:
    pool = lab.pool()
    for thin_id in range(50):
        pool.create_thin(thin_id)
    for number in range(_MANY):
        pool.delete(number % 50)
        pool.create_thin(number % 50)
    expect_equal(pool.thin_ids(), list(range(50)), "ids")


@behaviour("suite-delete-provisioned-thin")
def delete_provisioned_thin(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(64, blocks=64)
    expect_equal(used(pool), 64, "used data blocks")
    thin.close()
    pool.delete(0)
    expect_equal(used(pool), 0, "used data blocks")


@behaviour("suite-delete-after-out-of-space")
def delete_after_out_of_space(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(blocks=64, data_blocks=32, error_if_no_space=True)
    expect_error(errno.ENOSPC, lambda: fill(thin, 0, 64, 1))
    expect_equal(status_of(pool).mode, PoolMode.OUT_OF_DATA_SPACE, "mode")
    thin.close()
    pool.delete(0)
    status = status_of(pool)
    expect_equal((status.mode, status.used_data_blocks), (PoolMode.WRITE, 0), "mode and used data blocks")


@behaviour("suite-discard-fragmented")
def discard_alternate_blocks_then_everything(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(128, blocks=128, data_blocks=128)
    for vblock in range(0, 128, 2):
        thin.discard(vblock * BLOCK, BLOCK)
    expect_equal((used(pool), mapped_blocks(thin)), (64, 64), "used and mapped blocks")
    for vblock in range(128):
        expect_content(thin, vblock, 1, vblock % 2)
    thin.discard(0, 128 * BLOCK)
    expect_equal(used(pool), 0, "used data blocks")


@behaviour("suite-discard-same-blocks")
def discard_same_blocks_many_times(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin()
    for number in range(100):
        fill(thin, 0, 4, number + 1)
        thin.discard(0, 4 * BLOCK)
    expect_equal(used(pool), 0, "used data blocks")


@behaviour("suite-discard-previously-shared")
def discard_of_a_previously_shared_block_frees_it(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(4)
    pool.create_snap(1, 0)
    pool.delete(1)
    thin.discard(0, 4 * BLOCK)
    expect_equal(used(pool), 0, "used data blocks")


@behaviour("suite-discard-origin-leaves-snapshot")
def discard_of_the_origin_does_not_affect_the_snapshot(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin()
    stamps = _stomp(thin, random.Random(1), 16, {})  # noqa: S311
    pool.create_snap(1, 0)
    thin.discard(0, 16 * BLOCK)
    _verify(lab.thin(pool, 1), stamps)


@behaviour("suite-snapshot-space-use")
def snapshot_space_use(lab: Lab) -> None:
    pool, _thin = lab.pool_with_thin(16)
    expect_equal(used(pool), 16, "used data blocks")
    pool.create_snap(1, 0)
    fill(lab.thin(pool, 1), 0, 16, 2)
    expect_equal(used(pool), 32, "used data blocks")


@behaviour("suite-many-snapshots-of-same-volume")
def many_snapshots_of_the_same_volume(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(16, data_blocks=64, metadata_blocks=2048)
    for thin_id in range(1, _MANY):
        pool.create_snap(thin_id, 0)
    fill(thin, 0, 16, 2)
    snapshot = lab.thin(pool, 7)
    expect_content(snapshot, 0, 16, 1)
    fill(snapshot, 0, 16, 3)
    expect_content(lab.thin(pool, 8), 0, 16, 1)
    expect_equal(used(pool), 48, "used data blocks")


@behaviour("suite-ref-count-tree")
def six_sharers_overwritten_in_turn(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(16, data_blocks=128)
    for thin_id in range(1, 6):
        pool.create_snap(thin_id, 0)
    for thin_id in range(6):
        device = thin if thin_id == 0 else lab.thin(pool, thin_id)
        fill(device, 0, 16, thin_id + 10)
    for thin_id in range(1, 6):
        expect_content(lab.thin(pool, thin_id, name=f"again-{thin_id}"), 0, 16, thin_id + 10)
    expect_equal(used(pool), 6 * 16, "used data blocks")


@behaviour("suite-pattern-stomper")
def pattern_stomper(lab: Lab) -> None:
    """Stamp, snapshot, stamp one side: the other shows the old pattern; in both directions."""
    rng = random.Random(42)  # noqa: S311
    for written in (0, 1):
        pool, thin = lab.pool_with_thin(blocks=32, data_blocks=128)
        before = _stomp(thin, rng, 20, {})
        pool.create_snap(1, 0)
        sides = (thin, lab.thin(pool, 1, blocks=32))
        after = _stomp(sides[written], rng, 20, before)
        _verify(sides[written], after)
        _verify(sides[1 - written], before)


def _stomp(thin: ThinDevice, rng: random.Random, count: int, stamps: dict[int, int]) -> dict[int, int]:
    """Write random blocks with random stamps; the stamps there are then."""
    stamps = dict(stamps)
    for _ in range(count):
        vblock, stamp = rng.randrange(thin.size_bytes // BLOCK), rng.randrange(1, 256)
        fill(thin, vblock, 1, stamp)
        stamps[vblock] = stamp
    return stamps


def _verify(thin: ThinDevice, stamps: dict[int, int]) -> None:
    for vblock in range(thin.size_bytes // BLOCK):
        expect_content(thin, vblock, 1, stamps.get(vblock, 0))


@behaviour("suite-external-origin-sizes")
def external_origins_of_equal_smaller_and_larger_size(lab: Lab) -> None:
    for origin_bytes in (8 * BLOCK, 3 * BLOCK + 16 * 512, 20 * BLOCK):
        pool = lab.pool()
        thin = lab.thin(pool, blocks=8, external_origin=lab.origin(b"\x09" * origin_bytes))
        inside = min(8 * BLOCK, origin_bytes)
        expect_equal(thin.pread(0, 8 * BLOCK), b"\x09" * inside + bytes(8 * BLOCK - inside), "content")
        for vblock in range(8):
            thin.pwrite(vblock * BLOCK + 512, b"\x01" * 512)
        content = bytearray(b"\x09" * inside + bytes(8 * BLOCK - inside))
        for vblock in range(8):
            content[vblock * BLOCK + 512 : vblock * BLOCK + 1024] = b"\x01" * 512
        expect_equal(thin.pread(0, 8 * BLOCK), bytes(content), "content after writing to every block")


@behaviour("suite-io-to-provisioned-region-after-out-of-space")
def io_to_the_provisioned_region_goes_on(lab: Lab) -> None:
    _pool, thin = lab.pool_with_thin(blocks=32, data_blocks=16, error_if_no_space=True)
    expect_error(errno.ENOSPC, lambda: fill(thin, 0, 32, 1))
    for number in range(20):
        fill(thin, number % 16, 1, number + 1)
        expect_content(thin, number % 16, 1, number + 1)


@behaviour("suite-resize-in-steps")
def resize_in_eight_steps_while_writing(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(blocks=64, data_blocks=8, error_if_no_space=True)
    for step in range(1, 9):
        fill(thin, (step - 1) * 8, 8, step)
        if step < 8:
            lab.grow_data(pool, (step + 1) * 8)
    for step in range(1, 9):
        expect_content(thin, (step - 1) * 8, 8, step)
    pool.suspend()
    pool.resume()
    expect_equal(status_of(pool).mode, PoolMode.WRITE, "mode")


@behaviour("suite-metadata-resize-in-steps")
def resize_metadata_in_steps(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(8, data_blocks=64, metadata_blocks=256)
    blocks = 256
    for step_blocks in (1, 3, 7, 31, 67, 511, 1023):
        blocks += step_blocks
        lab.grow_metadata(pool, blocks)
        expect_equal(status_of(pool).total_metadata_blocks, blocks, "total metadata blocks")
    expect_content(thin, 0, 8, 1)


@behaviour("suite-hold-release-cycle")
def hold_and_release_many_times_under_io(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin()
    for number in range(100):
        pool.reserve_metadata_snap()
        fill(thin, number % 16, 1, number + 1)
        pool.release_metadata_snap()
    expect_equal(used(pool), 16, "used data blocks")


@behaviour("suite-two-pools")
def two_pools_side_by_side(lab: Lab) -> None:
    first, second = lab.pool(), lab.pool()
    one, two = lab.thin(first), lab.thin(second)
    fill(one, 0, 4, 1)
    fill(two, 0, 4, 2)
    expect_content(one, 0, 4, 1)
    expect_content(two, 0, 4, 2)


@behaviour("suite-stacked-pools")
def a_pool_on_the_content_of_another_pools_thin(lab: Lab) -> None:
    """Stacking by copy: what a pool wrote into a thin is a pool again when it is read out."""
    lower = lab.pool(64)
    carrier = lab.thin(lower, blocks=32)
    upper = lab.pool(8, 64)
    fill(lab.thin(upper), 0, 4, 5)
    table = lab.table(upper)
    upper.close()
    for number, path in enumerate((table.metadata_device, table.data_device)):
        with open(path, "rb") as file:
            content = file.read()
        carrier.pwrite(number * 16 * BLOCK, content)
        copy = lab.origin(carrier.pread(number * 16 * BLOCK, len(content)))
        table = table.replace(**{("metadata_device", "data_device")[number]: copy})
    expect_content(lab.thin(lab.open(table)), 0, 4, 5)


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


@behaviour("suite-abort-on-fresh-pool", "abort-during-io", lab_features=LabFeature.FAULTS)
def an_abort_leaves_the_last_commit_also_of_a_fresh_pool(lab: Lab) -> None:
    for provisioned in (False, True):
        pool = lab.failing_pool()
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
