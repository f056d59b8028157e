"""What every backend refuses, in the same words."""

from __future__ import annotations

from cowfs.errors import InvalidRequest, PoolModeError
from cowfs.pool.status import PoolMode
from cowfs.pool.table import PoolTable
from cowfs.units import SECTOR_BYTES


def refusal_by_mode(request: str, pool: str, mode: PoolMode, *, needs_check: bool, errno: int) -> PoolModeError:
    """The error of a request that a pool's mode does not allow."""
    if mode is PoolMode.FAIL:
        state, remedy = "failed", "close it"
    elif mode is PoolMode.OUT_OF_METADATA_SPACE:
        state, remedy = "out of metadata space", "grow its metadata device and resume it"
    elif needs_check:
        state, remedy = "read-only and needs a check", "close it and repair its metadata"
    else:
        state, remedy = "read-only", "open it without read_only"
    return PoolModeError(f"{request} is refused: pool '{pool}' is {state}; {remedy}", errno=errno)


def check_reload(pool: str, live: PoolTable, table: PoolTable) -> None:
    """Raises InvalidRequest for a table that cannot take the place of the live one, whatever its devices hold."""
    table.check()
    if (table.metadata_device, table.data_device) != (live.metadata_device, live.data_device):
        raise InvalidRequest(
            f"pool '{pool}' is on {live.metadata_device} and {live.data_device}; a reload cannot move it"
        )
    if table.block_sectors != live.block_sectors:
        raise InvalidRequest(
            f"pool '{pool}' has data blocks of {live.block_sectors} sectors, not {table.block_sectors}"
        )
    if table.ignore_discard != live.ignore_discard:
        raise InvalidRequest(f"pool '{pool}': a reload cannot turn discard support on or off")


def check_data_device(pool: str, table: PoolTable, have_bytes: int) -> None:
    """Raises InvalidRequest for a pool that is longer than its data device."""
    if table.length_sectors * SECTOR_BYTES > have_bytes:
        raise InvalidRequest(
            f"pool '{pool}' of {table.length_sectors} sectors does not fit {table.data_device}, which has "
            f"{have_bytes // SECTOR_BYTES}; enlarge it or give a shorter table"
        )


def check_thin_length(name: str, length_sectors: int) -> None:
    """Raises InvalidRequest for a length that no thin can have."""
    if length_sectors <= 0:
        raise InvalidRequest(f"'{name}' cannot be {length_sectors} sectors long; give at least 1")
