"""What the options mean for a home: how a new one is made, and what changes in an existing one."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from cowfs.devices.on_disk.options import HomeOptions, PoolSource, check_block_size
from cowfs.devices.reports import HomeReport
from cowfs.errors import UsageError
from cowfs.layers.lvm_config import POOL_NAME
from cowfs.layers.options.driver import DriverOptions
from cowfs.units import METADATA_BLOCK_BYTES, SECTOR_BYTES, format_decimal_size, format_size


def home_options(options: DriverOptions, defaults: HomeOptions | None = None) -> HomeOptions:
    """A new home as the options want it; a size that is not a whole number of blocks or sectors loses the rest.

    Args:
        defaults: for what the options do not say.

    Raises:
        UsageError: a size that no pool or device can have.
    """
    made = defaults or HomeOptions()
    made = replace(made, source=pool_source(options) or made.source)
    if options.blocksize_bytes is not None:
        made = replace(made, block_bytes=options.blocksize_bytes)
        check_block_size(made.block_bytes)
    if options.loopdatasize_bytes is not None:
        made = replace(made, data_size_bytes=_whole(options.loopdatasize_bytes, made.block_bytes))
    if options.loopmetadatasize_bytes is not None:
        made = replace(made, metadata_size_bytes=_whole(options.loopmetadatasize_bytes, METADATA_BLOCK_BYTES))
    if options.basesize_bytes is not None:
        made = replace(made, base_size_bytes=_whole(options.basesize_bytes, SECTOR_BYTES))
    if options.min_free_space_percent is not None:
        made = replace(made, min_free_percent=options.min_free_space_percent)
    made.check()
    return made


def pool_source(options: DriverOptions) -> PoolSource | None:
    """Where the options say that the pool is; None where they do not say it."""
    pool = POOL_NAME if options.directlvm_device else options.thinpooldev
    if pool:
        return PoolSource(thin_pool=pool)
    if options.datadev or options.metadatadev:
        return PoolSource(data_device=options.datadev, metadata_device=options.metadatadev)
    return None


@dataclass(frozen=True, slots=True)
class HomeChanges:
    """What is to change in a home; None is nothing. Sizes in bytes, always more than the present ones."""

    data_size_bytes: int | None = None
    metadata_size_bytes: int | None = None
    base_size_bytes: int | None = None
    min_free_percent: int | None = None
    warnings: tuple[str, ...] = ()


def changes_to_home(options: DriverOptions, status: HomeReport, base_filesystem: str) -> HomeChanges:
    """What the options change in an existing home, whose base device has `base_filesystem`, empty before it is made.

    Pool files and the base device grow. A pool file that is larger already stays so, and so do the block size and the
    base device's file system; the warnings then give the wanted one.

    Raises:
        UsageError: a base device that would shrink.
    """
    warnings: list[str] = []

    def growth(option: str, wanted: int | None, unit_bytes: int, present: int) -> int | None:
        if wanted is None or not present or _whole(wanted, unit_bytes) == present:
            return None
        if wanted < present:
            warnings.append(f"{option}={format_size(wanted)} is ignored: the pool has {format_size(present)} already")
            return None
        return _whole(wanted, unit_bytes)

    has_own_pool = bool(options.thinpooldev or options.directlvm_device)
    data_wanted = None if has_own_pool or options.datadev else options.loopdatasize_bytes
    metadata_wanted = None if has_own_pool or options.metadatadev else options.loopmetadatasize_bytes
    data_size = growth("dm.loopdatasize", data_wanted, status.block_bytes, status.data_total_bytes)
    metadata_size = growth("dm.loopmetadatasize", metadata_wanted, METADATA_BLOCK_BYTES, status.metadata_total_bytes)
    if options.blocksize_bytes not in (None, status.block_bytes):
        warnings.append(f"dm.blocksize is ignored: the pool's is {format_size(status.block_bytes)}, for its life")
    if options.fs and base_filesystem not in ("", options.fs):
        warnings.append(f"dm.fs={options.fs} is ignored: the base device has {base_filesystem}")
    return HomeChanges(
        data_size_bytes=data_size,
        metadata_size_bytes=metadata_size,
        base_size_bytes=_base_growth(options.basesize_bytes, status.base_size_bytes),
        min_free_percent=options.min_free_space_percent,
        warnings=tuple(warnings),
    )


def _base_growth(wanted: int | None, present: int) -> int | None:
    if wanted is None or not present:
        return None
    if wanted < present:
        raise UsageError(f"devmapper: Base device size cannot be smaller than {format_decimal_size(present)}")
    whole = _whole(wanted, SECTOR_BYTES)
    return whole if whole > present else None


def _whole(size_bytes: int, unit_bytes: int) -> int:
    return size_bytes // unit_bytes * unit_bytes
