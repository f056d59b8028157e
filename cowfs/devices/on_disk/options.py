"""What a new home is made of, and the rules its sizes obey."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from cowfs.devices.on_disk.records import MAX_DEVICE_BYTES
from cowfs.errors import UsageError
from cowfs.thinmeta.format import ENTRIES_PER_BITMAP
from cowfs.units import (
    MAX_METADATA_BLOCKS,
    METADATA_BLOCK_BYTES,
    SECTOR_BYTES,
    format_size,
    is_data_block_size,
)

_GIB: Final = 1 << 30
_MIN_METADATA_BYTES: Final = 2 << 20  # the kernel's documented minimum
_MIN_BASE_BYTES: Final = 1 << 20  # the smallest that holds an ext4 with something in it
_MAX_DATA_BLOCKS: Final = 1 << 40  # a mapping has 40 bits for the data block


class PoolSource(msgspec.Struct, frozen=True):
    """Where the pool of a home is, when it is not in the home's own two files.

    Attributes:
        data_device, metadata_device: paths of block devices or files, used whole. Where one is empty, the home's own
            file takes its place.
        thin_pool: name of a pool of the kernel that another program made; a leading /dev/mapper/ is left out. It is
            never made, changed nor removed.
    """

    data_device: str = ""
    metadata_device: str = ""
    thin_pool: str = ""

    @property
    def pool_name(self) -> str:
        return self.thin_pool.removeprefix("/dev/mapper/")

    def check(self) -> None:
        """Raises UsageError for a combination that cannot be."""
        if not self.thin_pool:
            return
        if self.data_device or self.metadata_device:
            raise UsageError(
                f"pool '{self.thin_pool}' brings its own devices; give either a pool or data and metadata devices"
            )
        if not self.pool_name or "/" in self.pool_name:
            raise UsageError(
                f"'{self.thin_pool}' is not the name of a pool; 'dmsetup ls --target thin-pool' lists them"
            )


class MinimumFree(msgspec.Struct, frozen=True):
    """Below this no device is made or grown; below twice as much there are warnings.

    Attributes:
        percent: of the data and of the metadata; 0 turns it off.
        data_bytes: for the data, in place of the percentage.
    """

    percent: int = 10
    data_bytes: int | None = None

    def check(self) -> None:
        """Raises UsageError when it cannot be."""
        if not 0 <= self.percent < 100:
            raise UsageError(f"minimum free space of {self.percent} % is not possible; take 0 (no minimum) to 99")
        if self.data_bytes is not None and self.data_bytes < 0:
            raise UsageError(f"minimum free space of {self.data_bytes} bytes is not possible; take 0 or more")


class HomeOptions(msgspec.Struct, frozen=True):
    """Sizes in bytes; the defaults are moby's. `msgspec.structs.replace` makes a changed copy.

    `data_size_bytes` and `metadata_size_bytes` are for the home's own files; devices that `source` names are used
    whole. `overwrite`: what is on them may be lost.

    `low_water_blocks` is in data blocks. `min_free_percent` of data and of metadata stay free, or `min_free_bytes` of
    data in place of the percentage: below it no device is made; 0 turns that off. `error_if_no_space`: writes to a full
    pool fail at once; else they wait for `no_space_timeout_seconds` (0: for ever; None: the backend's own).
    `durable=False` gives up flushes, for
    homes that live no longer than a test.
    """

    data_size_bytes: int = 100 * _GIB
    metadata_size_bytes: int = 2 * _GIB
    block_bytes: int = 64 << 10
    base_size_bytes: int = 10 * _GIB
    low_water_blocks: int = 32768
    skip_block_zeroing: bool = True
    error_if_no_space: bool = False
    no_space_timeout_seconds: float | None = None
    no_discard_passdown: bool = False
    min_free_percent: int = 10
    min_free_bytes: int | None = None
    durable: bool = True
    source: PoolSource = PoolSource()
    overwrite: bool = False

    @property
    def has_less_than_a_block(self) -> bool:
        return 0 < self.data_size_bytes < self.block_bytes

    @property
    def minimum_free(self) -> MinimumFree:
        return MinimumFree(self.min_free_percent, self.min_free_bytes)

    def check(self) -> None:
        """Raises UsageError naming the first option that cannot be, and the nearest value that can.

        Data of less than a block is left to `make_home`, which knows what the base device takes of it.
        """
        self.source.check()
        check_block_size(self.block_bytes)
        if not self.has_less_than_a_block:
            check_data_size(self.data_size_bytes, self.block_bytes)
        check_metadata_size(self.metadata_size_bytes, self.data_size_bytes // self.block_bytes)
        _check_base_size(self.base_size_bytes)
        if self.low_water_blocks < 0:
            raise UsageError(f"low water mark {self.low_water_blocks} is negative; take 0 or more data blocks")
        self.minimum_free.check()
        check_no_space_timeout(self.no_space_timeout_seconds)


def check_no_space_timeout(seconds: float | None) -> None:
    """Raises UsageError."""
    if seconds is not None and not 0 <= seconds < math.inf:
        raise UsageError(f"{seconds} s is not a time that writes can wait for space; take 0 (for ever) or more seconds")


def check_block_size(block_bytes: int) -> None:
    if block_bytes % SECTOR_BYTES or not is_data_block_size(block_bytes // SECTOR_BYTES):
        raise UsageError(f"block size {_show(block_bytes)} is not possible; take a multiple of 64K from 64K to 1G")


def check_device_size(size_bytes: int, what: str) -> None:
    """Raises UsageError unless a thin device can have this size."""
    _check_positive(size_bytes, what)
    _check_multiple(size_bytes, SECTOR_BYTES, what, "the sector size")
    if size_bytes > MAX_DEVICE_BYTES:
        raise UsageError(f"{what} {_show(size_bytes)} is too large; {_show(MAX_DEVICE_BYTES)} is the most")


def check_not_smaller(what: str, size_bytes: int, new_bytes: int, remedy: str = "") -> None:
    """Raises UsageError unless something of `size_bytes` would grow or stay."""
    if new_bytes < size_bytes:
        raise UsageError(
            f"{what} has {size_bytes} bytes ({format_size(size_bytes)}) and cannot shrink to {_show(new_bytes)}{remedy}"
        )


def _check_base_size(size_bytes: int) -> None:
    check_device_size(size_bytes, "base size")
    if size_bytes < _MIN_BASE_BYTES:
        raise UsageError(
            f"base size {_show(size_bytes)} is too small for an ext4 file system; "
            f"take at least {_show(_MIN_BASE_BYTES)}"
        )


def data_bitmaps(data_blocks: int) -> int:
    """How many metadata blocks the reference counts of so many data blocks take."""
    return -(-data_blocks // ENTRIES_PER_BITMAP)


def min_metadata_bytes(data_blocks: int) -> int:
    """The least metadata with which a pool over so many data blocks can be formatted and then written.

    Their bitmaps, the index tree of these, the few blocks of an empty pool, room for one transaction's copies, and the
    tenth that the pool keeps in reserve.
    """
    bitmaps = data_bitmaps(data_blocks)
    blocks = bitmaps + bitmaps // 60 + 64
    return max(_MIN_METADATA_BYTES, -(-blocks * 10 // 9) * METADATA_BLOCK_BYTES)


def check_data_size(size_bytes: int, block_bytes: int) -> None:
    """Raises UsageError unless a pool of such blocks can have so much data."""
    _check_positive(size_bytes, "data size")
    if size_bytes < block_bytes:
        raise UsageError(f"data size {_show(size_bytes)} is less than one block; take at least {_show(block_bytes)}")
    _check_multiple(size_bytes, block_bytes, "data size", "the block size")
    if size_bytes // block_bytes > _MAX_DATA_BLOCKS or size_bytes > MAX_DEVICE_BYTES:
        most = min(_MAX_DATA_BLOCKS * block_bytes, MAX_DEVICE_BYTES // block_bytes * block_bytes)
        raise UsageError(f"data size {_show(size_bytes)} is too large; {_show(most)} is the most")


def check_metadata_size(size_bytes: int, data_blocks: int) -> None:
    """Raises UsageError unless a pool of so many data blocks can have so much metadata."""
    _check_positive(size_bytes, "metadata size")
    _check_multiple(size_bytes, METADATA_BLOCK_BYTES, "metadata size", "the metadata block size")
    least = min_metadata_bytes(data_blocks)
    if size_bytes < least:
        raise UsageError(
            f"metadata size {_show(size_bytes)} is too small for {data_blocks} data blocks; "
            f"take at least {_show(least)}"
        )
    most = MAX_METADATA_BLOCKS * METADATA_BLOCK_BYTES
    if size_bytes > most:
        raise UsageError(f"metadata size {_show(size_bytes)} is more than a pool can use; {_show(most)} is the most")


def _check_positive(size_bytes: int, what: str) -> None:
    if size_bytes <= 0:
        raise UsageError(f"{what} {size_bytes} is not possible; it must be more than 0")


def _check_multiple(size_bytes: int, unit_bytes: int, what: str, unit: str) -> None:
    if size_bytes % unit_bytes:
        below = size_bytes // unit_bytes * unit_bytes
        nearest = f"{below} or {below + unit_bytes}" if below else str(unit_bytes)
        raise UsageError(f"{what} {size_bytes} is not a multiple of {unit}, {unit_bytes} bytes; take {nearest}")


def _show(size_bytes: int) -> str:
    return f"{size_bytes} ({format_size(size_bytes)})"
