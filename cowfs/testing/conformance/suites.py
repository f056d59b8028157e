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
    expect_content,
    expect_equal,
    expect_error,
    fill,
    mapped_blocks,
    status_of,
    used,
)
from cowfs.testing.conformance.registry import behaviour

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
