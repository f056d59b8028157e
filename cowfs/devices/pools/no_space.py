"""What writes to a full pool do: they wait for space, for a time, or fail at once."""

from __future__ import annotations

from typing import Final

import msgspec

from cowfs.devices.on_disk import making
from cowfs.devices.on_disk.files import HomeFiles
from cowfs.devices.on_disk.options import check_no_space_timeout
from cowfs.devices.on_disk.records import HomeFile
from cowfs.devices.pools.pool_files import use_table
from cowfs.errors import UsageError
from cowfs.pool import Backend, NodeBackend, NodePool, Pool, PoolWithTimeout

_KERNEL_PARAMETER: Final = "/sys/module/dm_thin_pool/parameters/no_space_timeout"


def check_timeout(maker: Pool | Backend, seconds: float | None) -> None:
    """Raises UsageError when a pool, or those of a backend, have no time-out of their own to set."""
    if seconds is not None and not isinstance(maker, PoolWithTimeout) and isinstance(maker, NodePool | NodeBackend):
        raise UsageError(
            f"{maker.name}: the kernel has one time-out for all of its pools; as root, write {seconds:.0f} to "
            f"{_KERNEL_PARAMETER}"
        )


def apply(pool: Pool, settings: HomeFile) -> None:
    """Have an open pool do as a home's settings say. Raises PoolError; the pool is then as it was."""
    if settings.no_space_timeout_seconds is not None and isinstance(pool, PoolWithTimeout):
        pool.set_no_space_timeout(settings.no_space_timeout_seconds)
    table = pool.table()
    if table.error_if_no_space != settings.error_if_no_space:
        use_table(pool, table.replace(error_if_no_space=settings.error_if_no_space))


def change(files: HomeFiles, pool: Pool, *, error: bool | None, timeout_seconds: float | None) -> None:
    """Change a home's settings, and have its pool follow; see `DeviceSet.set_no_space`."""
    check_no_space_timeout(timeout_seconds)
    check_timeout(pool, timeout_seconds)
    before = making.stored_settings(files)
    if before.thin_pool:
        raise UsageError(f"pool {pool.name} was not made by this home; set it by the tools that made it")
    after = msgspec.structs.replace(
        before,
        error_if_no_space=before.error_if_no_space if error is None else error,
        no_space_timeout_seconds=before.no_space_timeout_seconds if timeout_seconds is None else float(timeout_seconds),
    )
    making.store_settings(files, after)
    try:
        apply(pool, after)
    except BaseException:
        making.store_settings(files, before)
        raise
