"""Changing what writes do in a full pool, while it is in use."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from cowfs.devices.on_disk.files import HomeFiles
from cowfs.devices.on_disk.making import read_settings
from cowfs.errors import CowfsError
from cowfs.pool import NoSpacePolicy, Pool


def set_no_space(files: HomeFiles, pool: Pool, policy: NoSpacePolicy) -> None:
    """Record the policy, then let the pool have it; neither where one fails. Raises HomeError, PoolError."""
    settings, table = read_settings(files), pool.table()
    is_error = policy is NoSpacePolicy.ERROR
    files.write(files.home_file, msgspec.json.encode(msgspec.structs.replace(settings, error_if_no_space=is_error)))
    try:
        pool.reload(table.replace(error_if_no_space=is_error))
        pool.resume()
    except BaseException:
        with suppress(CowfsError):
            pool.reload(table)
            pool.resume()
        files.write(files.home_file, msgspec.json.encode(settings))
        raise
