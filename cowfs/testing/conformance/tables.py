"""Section 1.1 and 1.2: tables of pools and thins, what they mean and what is refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from cowfs.blockdev import FileDevice
from cowfs.errors import InvalidRequest
from cowfs.pool import Capability, NodeThin, PoolMode, PoolTable, ThinTable
from cowfs.testing.conformance.lab import (
    BLOCK,
    Lab,
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
from cowfs.thinmeta.format import SUPERBLOCK_SALT, seal
from cowfs.units import METADATA_BLOCK_BYTES, Sectors

# Offsets in the superblock.
_BLOCKNR, _MAGIC, _COMPAT, _COMPAT_RO, _INCOMPAT = 8, 32, 352, 356, 360


@behaviour("1.1-1")
def the_table_length_decides_the_size_and_a_tail_is_unused(lab: Lab) -> None:
    table = lab.new_table(11)
    pool = lab.open(table.replace(length_sectors=Sectors(10 * 128 + 100)))
    expect_equal(status_of(pool).total_data_blocks, 10, "total data blocks")


@behaviour("1.1-2", "data-smaller-than-pool-fails-on-load")
def a_pool_longer_than_its_data_device_is_refused(lab: Lab) -> None:
    table = lab.new_table(10)
    expect_error(errno.EINVAL, lambda: lab.open(table.replace(length_sectors=Sectors(11 * 128))))


@behaviour("1.1-3", "extra-data-space-is-not-used")
def data_space_beyond_the_table_is_not_used(lab: Lab) -> None:
    table = lab.new_table(10, error_if_no_space=True)
    pool = lab.open(table.replace(length_sectors=Sectors(4 * 128)))
    thin = lab.thin(pool)
    fill(thin, 0, 4, 1)
    expect_error(errno.ENOSPC, lambda: fill(thin, 4, 1, 1))
    expect_equal(status_of(pool).total_data_blocks, 4, "total data blocks")
    pool.suspend()
    pool.resume()
    expect_equal(status_of(pool).total_data_blocks, 4, "total data blocks after a resume")


@behaviour("1.1-4", "non-power-of-2-block-size-fails", "too-small-block-size-fails", "too-large-block-size-fails")
def impossible_block_sizes_are_refused(lab: Lab) -> None:
    table = lab.new_table(64)
    for sectors in (0, 64, 100, 192, 128 + 57, 2097152 + 128, 2097280):
        bad = table.replace(block_sectors=Sectors(sectors))
        expect_error(errno.EINVAL, lab.open, bad)


@behaviour("1.1-5")
def a_block_need_not_be_a_power_of_two(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(blocks=8, data_blocks=16, block_sectors=384)
    expect_equal(pool.block_bytes, 384 * 512, "block size")
    fill(thin, 0, 2, 1)
    pool.create_snap(1, 0)
    thin.pwrite(384 * 512 - 512, b"\x02" * 1024)
    expect_equal(thin.pread(384 * 512 - 1024, 2048), b"\x01" * 512 + b"\x02" * 1024 + b"\x01" * 512, "content")
    expect_content(lab.thin(pool, 1, blocks=8), 0, 2, 1)
    expect_equal(used(pool), 4, "used data blocks")


@behaviour("1.1-6", "largest-block-size-succeeds")
def the_largest_block_is_one_gibibyte(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(blocks=2, data_blocks=2, block_sectors=2097152, skip_block_zeroing=True)
    thin.pwrite((1 << 30) + 12345, b"here")
    expect_equal(thin.pread((1 << 30) + 12344, 6), b"\0here\0", "content")
    expect_equal(used(pool), 1, "used data blocks")


@behaviour("1.1-7")
def metadata_and_data_on_one_device_are_refused(lab: Lab) -> None:
    table = lab.new_table()
    expect_error(errno.EINVAL, lambda: lab.open(table.replace(metadata_device=table.data_device)))
    link = table.data_device + "-link"
    os.link(table.data_device, link)
    expect_error(errno.EINVAL, lambda: lab.open(table.replace(metadata_device=link)))


@behaviour("1.1-8", "two-pools-on-one-metadata-fail")
def metadata_in_use_by_another_pool_is_refused(lab: Lab) -> None:
    pool = lab.pool()
    other = lab.new_table()
    table = other.replace(metadata_device=lab.table(pool).metadata_device)
    expect_error(errno.EBUSY, lambda: lab.open(table))
    pool.close()
    lab.open(table)


@behaviour("1.1-9")
def missing_devices_are_named(lab: Lab) -> None:
    table = lab.new_table()
    for change in ({"metadata_device": table.metadata_device + "x"}, {"data_device": table.data_device + "x"}):
        bad = table.replace(**change)
        error = expect_error(errno.ENOENT, lab.open, bad)
        if next(iter(change.values())) not in str(error):
            raise AssertionError(f"the error does not name the device: {error}")


@behaviour("1.1-10")
def another_block_size_than_the_superblock_has_is_refused(lab: Lab) -> None:
    pool = lab.pool()
    table = lab.table(pool)
    pool.close()
    expect_error(errno.EINVAL, lambda: lab.open(table.replace(block_sectors=Sectors(256))))


def _superblock_edit(offset: int, value: bytes, *, reseal: bool) -> Callable[[FileDevice], None]:
    def edit(device: FileDevice) -> None:
        block = bytearray(device.pread(0, METADATA_BLOCK_BYTES))
        block[offset : offset + len(value)] = value
        device.pwrite(0, seal(block, SUPERBLOCK_SALT) if reseal else block)

    return edit


@behaviour("1.1-11")
def a_damaged_superblock_is_refused_with_its_own_errno(lab: Lab) -> None:
    for offset, value, reseal, number in (
        (_BLOCKNR, b"\x01", True, errno.ENOTBLK),
        (_MAGIC, b"\x01", True, errno.EILSEQ),
        (100, b"\xff", False, errno.EILSEQ),
        (_COMPAT_RO, b"\x01", True, errno.EINVAL),
        (_INCOMPAT, b"\x01", True, errno.EINVAL),
    ):
        table = lab.edit_metadata(lab.pool(), _superblock_edit(offset, value, reseal=reseal))
        expect_error(number, lab.open, table)


@behaviour("1.1-12")
def an_unknown_compat_bit_is_accepted(lab: Lab) -> None:
    table = lab.edit_metadata(lab.pool(), _superblock_edit(_COMPAT, b"\x01", reseal=True), damages=False)
    expect_equal(status_of(lab.open(table)).mode, PoolMode.WRITE, "mode")


@behaviour("1.1-13")
def zeroing_the_first_4_kib_makes_a_new_pool(lab: Lab) -> None:
    pool = lab.pool()
    fill(lab.thin(pool), 0, 4, 1)
    pool.set_transaction_id(0, 9)
    table = lab.edit_metadata(pool, lambda device: device.pwrite(0, bytes(METADATA_BLOCK_BYTES)), damages=False)
    pool = lab.open(table)
    status = status_of(pool)
    expect_equal((status.transaction_id, status.used_data_blocks), (0, 0), "transaction id and used blocks")
    expect_equal(pool.thin_ids(), [], "ids")


@behaviour("1.1-14", "read-only-pool-is-not-formatted")
def a_read_only_pool_is_not_formatted(lab: Lab) -> None:
    expect_error(errno.EPERM, lambda: lab.open(lab.new_table(read_only=True)))


@behaviour("1.1-15", "read-only-pool")
def a_read_only_pool_serves_what_is_mapped_and_changes_nothing(lab: Lab) -> None:
    pool = lab.pool()
    fill(lab.thin(pool), 0, 4, 1)
    pool = lab.reopen(pool, read_only=True)
    expect_equal(status_of(pool).mode, PoolMode.READ_ONLY, "mode")
    expect_equal(status_of(pool).needs_check, False, "needs_check")
    thin = lab.thin(pool)
    expect_content(thin, 0, 4, 1)
    expect_content(thin, 4, 4, 0)
    fill(thin, 0, 1, 2)
    expect_content(thin, 0, 1, 2)
    expect_error(errno.EIO, lambda: fill(thin, 4, 1, 2))
    thin.discard(0, 2 * BLOCK)
    expect_content(thin, 0, 1, 2)
    for text in ("create_thin 5", "delete 0", "set_transaction_id 0 1", "reserve_metadata_snap", "nonsense"):
        expect_error(errno.EOPNOTSUPP, pool.message, text)
    expect_equal(mapped_blocks(thin), 4, "mapped blocks")


@behaviour("1.1-16", unless=Capability.ZEROED_REUSE)
def skipping_block_zeroing_shows_old_bytes(lab: Lab) -> None:
    _expect_around_partial_write(lab, 0xEE, skip_block_zeroing=True)


@behaviour("1.1-17", needs=Capability.ZEROED_REUSE)
def skipping_block_zeroing_shows_zeros_all_the_same(lab: Lab) -> None:
    _expect_around_partial_write(lab, 0, skip_block_zeroing=True)


@behaviour("1.1-18")
def a_partial_write_to_a_new_block_zeroes_the_rest(lab: Lab) -> None:
    _expect_around_partial_write(lab, 0, skip_block_zeroing=False)


def _expect_around_partial_write(lab: Lab, stamp: int, **features: bool) -> None:
    table = lab.new_table(4, **features)
    with open(table.data_device, "r+b") as file:
        file.write(b"\xee" * (4 * BLOCK))
    thin = lab.thin(lab.open(table))
    thin.pwrite(BLOCK + 4096, b"\x01" * 4096)
    rest = bytes([stamp])
    expect_equal(thin.pread(BLOCK, BLOCK), rest * 4096 + b"\x01" * 4096 + rest * (BLOCK - 8192), "the block")
    thin.pwrite(3 * BLOCK - 512, b"\x02" * 1024)
    expect_equal(
        thin.pread(2 * BLOCK, 2 * BLOCK), rest * (BLOCK - 512) + b"\x02" * 1024 + rest * (BLOCK - 512), "two blocks"
    )


@behaviour("1.1-19", "change-discard-with-reload-fails")
def a_reload_keeps_the_devices_and_discard_support(lab: Lab) -> None:
    pool = lab.pool()
    table = lab.table(pool)
    other = lab.new_table()
    for change in (
        {"metadata_device": other.metadata_device},
        {"data_device": other.data_device},
        {"block_sectors": Sectors(256)},
        {"ignore_discard": True},
        {"length_sectors": Sectors(65 * 128)},
    ):
        bad = table.replace(**change)
        expect_error(errno.EINVAL, pool.reload, bad)
    lab.reload(pool, low_water_blocks=5, error_if_no_space=True)
    expect_equal(pool.table().low_water_blocks, 5, "low water mark")
    expect_equal(status_of(pool).no_space.value, "error_if_no_space", "policy")


@behaviour("1.1-20")
def the_table_tells_the_requested_features_in_the_kernels_order(lab: Lab) -> None:
    table = lab.new_table(4, error_if_no_space=True, skip_block_zeroing=True, no_discard_passdown=True)
    words = lab.open(table).table().format().split(" ")
    expect_equal(
        words[5:], ["128", "0", "3", "skip_block_zeroing", "no_discard_passdown", "error_if_no_space", ""], "words"
    )


@behaviour("1.1-21")
def feature_words_are_counted_and_known(lab: Lab) -> None:
    table = lab.new_table(4)
    line = f"0 512 thin-pool {table.metadata_device} {table.data_device} 128 0"
    for words in ("1", "2 read_only", "1 nonsense", "x", "-1", "5 a b c d e"):
        expect_error(errno.EINVAL, PoolTable.parse, f"{line} {words}")
    parsed = PoolTable.parse(f"{line} 2 SKIP_Block_Zeroing error_if_no_space")
    expect_equal((parsed.skip_block_zeroing, parsed.error_if_no_space), (True, True), "features")
    lab.open(parsed)


@behaviour("1.2-1", "activate-thin-while-pool-suspended-fails")
def activation_checks_id_and_pool(lab: Lab) -> None:
    pool = lab.pool()
    pool.create_thin(1)
    expect_error(errno.EINVAL, lambda: pool.activate("a", 2**24, 128))
    expect_error(errno.ENODATA, lambda: pool.activate("a", 2, 128))
    expect_error(errno.EINVAL, lambda: pool.activate("a", 1, 0))
    pool.suspend()
    expect_error(errno.EINVAL, lambda: pool.activate("a", 1, 128))
    pool.resume()
    pool.activate("a", 1, 128)
    error = expect_error(errno.EBUSY, lambda: pool.activate("a", 1, 128))
    expect_equal(type(error), InvalidRequest, "error for a name in use")


@behaviour("1.2-2")
def a_shorter_thin_hides_its_tail_which_stays_mapped(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(1, blocks=16)
    fill(thin, 15, 1, 2)
    full = thin.status()
    thin.close()
    thin = lab.thin(pool, blocks=4)
    expect_equal(thin.status(), full, "status")
    expect_error(errno.EINVAL, lambda: thin.pread(15 * BLOCK, 1))
    thin.resize(20 * 128)
    expect_content(thin, 15, 1, 2)
    fill(thin, 19, 1, 3)
    expect_equal(mapped_blocks(thin), 3, "mapped blocks")


@behaviour("1.2-3")
def one_id_may_be_active_under_several_names(lab: Lab) -> None:
    pool = lab.pool()
    first = lab.thin(pool, name="first")
    second = lab.thin(pool, name="second", blocks=4)
    fill(first, 0, 1, 1)
    expect_content(second, 0, 1, 1)
    fill(second, 1, 1, 2)
    expect_content(first, 1, 1, 2)
    expect_equal(sorted(thin.name for thin in pool.active()), ["first", "second"], "active")
    first.close()
    expect_error(errno.EBUSY, lambda: pool.delete(0))
    second.close()
    pool.delete(0)
    expect_equal(pool.active(), [], "active")


@behaviour("1.2-4")
def a_thin_tells_its_table(lab: Lab) -> None:
    pool = lab.pool()
    origin = lab.origin(bytes(BLOCK))
    thin = lab.thin(pool, 7, blocks=8, external_origin=origin)
    expect_equal((thin.table().length_sectors, thin.table().thin_id), (1024, 7), "length and id")
    expect_equal(ThinTable.parse(thin.table().format()), thin.table(), "the line, read back")
    expect_equal(thin.table().external_origin, origin, "external origin")
    expect_equal(lab.thin(pool, 8).table().format().split()[5:], [], "words after the id")


@behaviour("1.2-5")
def requests_outside_a_thin_are_refused(lab: Lab) -> None:
    thin = lab.thin(lab.pool(), blocks=4)
    for offset, length in ((4 * BLOCK, 1), (4 * BLOCK - 1, 2), (-1, 1), (-512, 1024), (2**60, 512)):
        for call in (
            lambda offset=offset, length=length: thin.pread(offset, length),
            lambda offset=offset, length=length: thin.pwrite(offset, bytes(length)),
            lambda offset=offset, length=length: thin.discard(offset, length),
        ):
            expect_any_error(call)
    expect_equal(thin.pread(4 * BLOCK, 0), b"", "a read of nothing at the end")
    thin.pwrite(0, b"")
    expect_equal(mapped_blocks(thin), 0, "mapped blocks")


@behaviour("1.2-6")
def a_thin_activated_read_only_refuses_writes(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(1)
    reader = lab.thin(pool, name="reader", read_only=True)
    expect_content(reader, 0, 1, 1)
    expect_error(errno.EROFS, lambda: fill(reader, 0, 1, 2))
    expect_error(errno.EROFS, lambda: reader.discard(0, BLOCK))
    expect_content(thin, 0, 1, 1)


@behaviour("1.2-7", "discard-granularity-is-the-block-size", needs=Capability.KERNEL_NODES)
def a_nodes_limits_are_the_pools_blocks(lab: Lab) -> None:
    for block_sectors in (128, 2048):
        thin = lab.thin(lab.pool(block_sectors=block_sectors))
        assert isinstance(thin, NodeThin)
        queue = f"/sys/block/{os.path.basename(os.path.realpath(thin.node))}/queue"
        for limit in ("minimum_io_size", "optimal_io_size", "discard_granularity"):
            with open(f"{queue}/{limit}", encoding="ascii") as file:
                expect_equal(int(file.read()), block_sectors * 512, limit)
        with open(f"{queue}/write_zeroes_max_bytes", encoding="ascii") as file:
            expect_equal(int(file.read()), 0, "write_zeroes_max_bytes")
        thin.close()
