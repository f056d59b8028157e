"""Section 1.8: failing devices and damaged metadata."""

from __future__ import annotations

import errno

from cowfs.blockdev import FileDevice
from cowfs.pool import Capability, PoolMode, UnreadableStatus
from cowfs.testing.conformance.lab import (
    BLOCK,
    Lab,
    LabFeature,
    expect_content,
    expect_equal,
    expect_error,
    fill,
    mapped_blocks,
    status_of,
    used,
)
from cowfs.testing.conformance.registry import behaviour
from cowfs.thinmeta import Superblock
from cowfs.thinmeta.check import clear_needs_check
from cowfs.units import METADATA_BLOCK_BYTES


@behaviour(
    "1.8-20",
    "commit-failure-sets-needs-check",
    "commit-failure-falls-back",
    "abort-on-provisioned-thin",
    lab_features=LabFeature.FAULTS,
)
def a_failed_commit_sets_needs_check_and_falls_back(lab: Lab) -> None:
    pool, thin = lab.failing_pool_with_thin(4)
    fill(thin, 4, 4, 2)
    before = pool.event_counter
    lab.fail_writes(pool, "metadata")
    expect_error(errno.EIO, thin.flush)
    status = status_of(pool)
    expect_equal((status.mode, status.needs_check), (PoolMode.READ_ONLY, True), "mode and needs_check")
    expect_equal(pool.event_counter, before + 1, "events")
    shown = 4 if lab.has(Capability.EXACT_AFTER_ABORT) else 8
    expect_equal((mapped_blocks(thin), used(pool)), (shown, 4), "mapped and used blocks")
    expect_content(thin, 0, 4, 1)
    expect_content(thin, 4, 4, 0)
    fill(thin, 0, 1, 3)
    expect_content(thin, 0, 1, 3)
    expect_error(errno.EIO, lambda: fill(thin, 4, 1, 2))
    expect_error(errno.EOPNOTSUPP, lambda: pool.create_thin(9))
    thin.discard(0, BLOCK)
    expect_content(thin, 0, 1, 3)
    lab.heal(pool)
    pool = lab.reopen(pool)
    expect_equal(mapped_blocks(lab.thin(pool)), 4, "mapped blocks after reopening")


@behaviour("1.8-21", "needs-check-survives-reactivation-until-cleared", lab_features=LabFeature.FAULTS)
def needs_check_survives_reopening_until_it_is_cleared(lab: Lab) -> None:
    pool, thin = lab.failing_pool_with_thin(4)
    fill(thin, 4, 1, 2)
    lab.fail_writes(pool, "metadata")
    expect_error(errno.EIO, thin.flush)
    lab.heal(pool)
    pool = lab.reopen(pool)
    expect_equal((status_of(pool).mode, status_of(pool).needs_check), (PoolMode.READ_ONLY, True), "mode, needs_check")
    pool.suspend()
    pool.resume()
    expect_equal(status_of(pool).mode, PoolMode.READ_ONLY, "mode after a resume")
    lab.grow_data(pool, 128)
    lab.grow_metadata(pool, 2048)
    status = status_of(pool)
    expect_equal((status.total_data_blocks, status.total_metadata_blocks), (64, 1024), "sizes while it needs a check")
    expect_content(lab.thin(pool), 0, 4, 1)
    table = lab.edit_metadata(pool, _clear_needs_check, damages=False)
    pool = lab.open(table)
    expect_equal((status_of(pool).mode, status_of(pool).needs_check), (PoolMode.WRITE, False), "mode, needs_check")
    expect_equal(status_of(pool).total_data_blocks, 128, "total data blocks")
    fill(lab.thin(pool), 4, 1, 2)


@behaviour("1.8-22", lab_features=LabFeature.FAULTS)
def needs_check_reaches_the_disk_once_the_device_works_again(lab: Lab) -> None:
    pool, thin = lab.failing_pool_with_thin()
    fill(thin, 0, 1, 1)
    lab.fail_writes(pool, "metadata")
    expect_error(errno.EIO, thin.flush)
    expect_equal((status_of(pool).mode, status_of(pool).needs_check), (PoolMode.READ_ONLY, True), "mode, needs_check")
    lab.heal(pool)
    pool = lab.reopen(pool)
    expect_equal((status_of(pool).mode, status_of(pool).needs_check), (PoolMode.READ_ONLY, True), "mode, needs_check")


@behaviour("1.8-23", lab_features=LabFeature.FAULTS)
def a_thin_that_lost_changes_fails_its_flushes_until_the_pool_is_reopened(lab: Lab) -> None:
    """Seen where the data device fails, which a commit flushes first: a kernel that came further keeps no record."""
    pool = lab.failing_pool()
    loser, bystander = lab.thin(pool, 0), lab.thin(pool, 1)
    for thin in (loser, bystander):
        fill(thin, 0, 1, 1)
        thin.flush()
    fill(loser, 1, 1, 1)
    lab.fail_writes(pool, "data")
    expect_error(errno.EIO, loser.flush)
    lab.heal(pool)
    expect_error(errno.EIO, loser.flush)
    bystander.flush()
    pool = lab.reopen(pool)
    lab.thin(pool, 0).flush()


@behaviour("1.8-24", lab_features=LabFeature.FAULTS)
def a_data_device_that_cannot_flush_fails_the_commit(lab: Lab) -> None:
    pool, thin = lab.failing_pool_with_thin()
    fill(thin, 0, 1, 1)
    lab.fail_writes(pool, "data")
    expect_error(errno.EIO, thin.flush)
    expect_equal((status_of(pool).mode, status_of(pool).needs_check), (PoolMode.READ_ONLY, True), "mode, needs_check")
    lab.heal(pool)
    expect_content(thin, 0, 1, 0)


@behaviour("1.8-25", "metadata-on-an-error-target", lab_features=LabFeature.FAULTS)
def an_abort_that_fails_fails_the_pool(lab: Lab) -> None:
    pool, thin = lab.failing_pool_with_thin(4)
    fill(thin, 4, 4, 2)
    lab.fail_everything(pool, "metadata")
    expect_error(errno.EIO, thin.flush)
    expect_equal(pool.status(), UnreadableStatus.FAIL, "status")
    expect_equal(thin.status(), UnreadableStatus.FAIL, "status of a thin")
    expect_equal(pool.thin_status(0), UnreadableStatus.FAIL, "status of a thin by id")
    for call in (lambda: thin.pread(0, 512), lambda: fill(thin, 0, 1, 1), thin.flush):
        expect_error(errno.EIO, call)
    expect_error(errno.EOPNOTSUPP, lambda: pool.create_thin(9))
    expect_error(errno.EINVAL, lambda: pool.activate("another", 0, 128))
    lab.heal(pool)
    pool.suspend()
    pool.resume()
    expect_equal(pool.status(), UnreadableStatus.FAIL, "status after a resume")
    pool = lab.reopen(pool)
    expect_equal(status_of(pool).mode, PoolMode.WRITE, "mode after reopening")
    expect_content(lab.thin(pool), 0, 4, 1)
    expect_content(lab.thin(pool, name="again"), 4, 4, 0)


@behaviour("1.8-26", lab_features=LabFeature.FAULTS)
def a_data_error_is_reported_and_changes_no_mapping(lab: Lab) -> None:
    lab.expect_leaks()
    pool, thin = lab.failing_pool_with_thin()
    fill(thin, 0, 4, 1)
    pool.create_snap(1, 0)
    before = list(thin.extents())
    lab.fail_writes(pool, "data")
    for call in (lambda: fill(thin, 4, 2, 2), lambda: thin.pwrite(5, b"x"), lambda: fill(thin, 0, 2, 2)):
        expect_error(errno.EIO, call)
    lab.heal(pool)
    expect_equal(list(thin.extents()), before, "mappings")
    expect_equal(status_of(pool).mode, PoolMode.WRITE, "mode")
    expect_content(thin, 0, 4, 1)
    if lab.has(Capability.NO_LEAKS):
        expect_equal(used(pool), 4, "used data blocks")
    lab.fail_everything(pool, "data")
    expect_error(errno.EIO, lambda: thin.pread(0, 512))
    expect_error(errno.EIO, lambda: thin.pwrite(5, b"x"))  # the copy cannot read
    lab.heal(pool)
    expect_content(thin, 0, 4, 1)


@behaviour("1.8-27", lab_features=LabFeature.NTH_FAULT)
def a_full_host_file_system_is_an_error_of_the_write_alone(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(1)
    lab.inject(pool, "data", "write", errno="ENOSPC")
    error = expect_error(errno.ENOSPC, lambda: fill(thin, 1, 1, 1))
    expect_equal(getattr(error, "may_queue", False), False, "may_queue")
    lab.heal(pool)
    expect_equal((status_of(pool).mode, used(pool)), (PoolMode.WRITE, 1), "mode and used blocks")
    fill(thin, 1, 1, 1)


def _clear_needs_check(device: FileDevice) -> None:
    report = clear_needs_check(device)
    if not report.clean:
        raise AssertionError(f"the pool that needs a check is not clean: {report.summary}")


def _scramble(device: FileDevice, block: int) -> None:
    content = bytearray(device.pread(block * METADATA_BLOCK_BYTES, METADATA_BLOCK_BYTES))
    content[2000] ^= 0xFF
    device.pwrite(block * METADATA_BLOCK_BYTES, content)


@behaviour("1.8-28")
def a_damaged_mapping_leaf_fails_its_io_and_the_pool_stays(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(4)
    fill(lab.thin(pool, 1), 0, 2, 2)

    def damage(device: FileDevice) -> None:
        superblock = Superblock.unpack(device.pread(0, METADATA_BLOCK_BYTES))
        top = device.pread(superblock.mapping_root * METADATA_BLOCK_BYTES, METADATA_BLOCK_BYTES)
        # A leaf of u64 values: 252 keys after the header of 32 bytes, then the values; the first is thin 0's subtree.
        _scramble(device, int.from_bytes(top[32 + 252 * 8 : 40 + 252 * 8], "little"))

    pool = lab.open(lab.edit_metadata(pool, damage))
    thin, other = lab.thin(pool, 0), lab.thin(pool, 1)
    expect_equal(thin.status(), UnreadableStatus.ERROR, "status of the thin")
    expect_error(errno.EIO, lambda: thin.pread(0, 512))
    expect_error(errno.EIO, lambda: fill(thin, 0, 1, 1))
    expect_equal((status_of(pool).mode, status_of(pool).needs_check), (PoolMode.WRITE, False), "mode, needs_check")
    expect_content(other, 0, 2, 2)
    fill(other, 2, 1, 2)
    other.flush()


@behaviour("1.8-29")
def damaged_details_are_eilseq_for_activation_and_messages(lab: Lab) -> None:
    pool = lab.pool()
    fill(lab.thin(pool), 0, 4, 1)

    def damage(device: FileDevice) -> None:
        _scramble(device, Superblock.unpack(device.pread(0, METADATA_BLOCK_BYTES)).details_root)

    pool = lab.open(lab.edit_metadata(pool, damage))
    expect_error(errno.EILSEQ, lambda: pool.activate("a", 0, 128))
    expect_error(errno.EILSEQ, lambda: pool.create_thin(5))
    expect_error(errno.EILSEQ, lambda: pool.delete(0))
    expect_equal((status_of(pool).mode, status_of(pool).needs_check), (PoolMode.WRITE, False), "mode, needs_check")


@behaviour("1.8-30")
def a_damaged_bitmap_met_while_allocating_is_a_failed_operation(lab: Lab) -> None:
    pool = lab.pool()
    fill(lab.thin(pool), 0, 4, 1)

    def damage(device: FileDevice) -> None:
        superblock = Superblock.unpack(device.pread(0, METADATA_BLOCK_BYTES))
        index = device.pread(superblock.data_space_map.bitmap_root * METADATA_BLOCK_BYTES, METADATA_BLOCK_BYTES)
        # A leaf of index entries: 168 keys, then the values; each begins with its bitmap's block.
        _scramble(device, int.from_bytes(index[32 + 168 * 8 : 40 + 168 * 8], "little"))

    pool = lab.open(lab.edit_metadata(pool, damage))
    thin = lab.thin(pool)
    expect_content(thin, 0, 4, 1)
    expect_error(errno.EIO, lambda: fill(thin, 4, 1, 2))
    expect_equal((status_of(pool).mode, status_of(pool).needs_check), (PoolMode.READ_ONLY, True), "mode, needs_check")
    expect_content(thin, 0, 4, 1)


@behaviour("1.8-31", lab_features=LabFeature.NTH_FAULT)
def every_single_fault_of_the_metadata_device_leaves_a_commit(lab: Lab) -> None:
    """One write or flush fails, each in turn: what the pool shows then is a commit, and so is what is on the disk."""
    for operation in ("write", "flush"):
        for position in range(4):
            pool, thin = lab.pool_with_thin(2)
            thin.flush()
            fault = lab.inject(pool, "metadata", operation, after=position, times=1)
            fill(thin, 2, 2, 2)
            failed = _fails(thin.flush)
            expect_equal(failed, fault.hits == 1, f"flush with {operation} {position} failing: it failed")
            if failed:
                expect_equal(status_of(pool).needs_check, True, "needs_check")
            thin.close()
            mapped = mapped_blocks(lab.thin(pool))
            if mapped not in ((2, 4) if failed else (4,)):
                raise AssertionError(f"{mapped} blocks are mapped after {operation} {position} failed")
            lab.heal(pool)
            pool = lab.reopen(pool)
            again = lab.thin(pool)
            expect_equal(mapped_blocks(again), mapped, "mapped blocks after reopening")
            expect_content(again, 0, 2, 1)


def _fails(call: object) -> bool:
    try:
        call()  # type: ignore[operator]
    except OSError:
        return True
    return False
