"""What a driver reports about itself: the status items of `docker info`, and the metadata of a layer.

The figures come first, as bytes (`DriverInfo`, which is the JSON form, too); the items are their text, under moby's
names, in its order, with its number formats. Where the pool is not well, items of our own follow.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from cowfs.devices.on_disk.records import DeviceRecord
from cowfs.devices.reports import HomeReport
from cowfs.layers.options.settings import Settings
from cowfs.units import format_decimal_size

_MODE_WORDS: Final = {"write": "rw", "read_only": "ro"}  # of pool modes, where it is another than their name


class DriverInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The figures behind the status items; zero and empty is what could not be read.

    `data_file` and `metadata_file` are what the pool is made of, also of a pool that cowfs did not make. The loop files
    have names where the pool is on loop devices. What is available is no more than the file system under a
    pool file has left.
    """

    pool_name: str = ""
    pool_block_bytes: int = 0
    base_size_bytes: int = 0
    backing_filesystem: str = ""
    udev_sync: bool = True
    data_file: str = ""
    metadata_file: str = ""
    data_loop_file: str = ""
    metadata_loop_file: str = ""
    data_used_bytes: int = 0
    data_total_bytes: int = 0
    data_available_bytes: int = 0
    metadata_used_bytes: int = 0
    metadata_total_bytes: int = 0
    metadata_available_bytes: int = 0
    min_free_bytes: int = 0
    deferred_removal: bool = False
    deferred_deletion: bool = False
    deferred_deleted_count: int = 0
    library_version: str = ""
    pool_mode: str = "fail"
    needs_check: bool = False
    problems: tuple[str, ...] = ()


def driver_info(
    status: HomeReport | None,
    settings: Settings,
    *,
    base_filesystem: str = "",
    data_loop: str = "",
    metadata_loop: str = "",
    library_version: str = "",
) -> DriverInfo:
    """Never fails.

    Args:
        status: None where it could not be had.
        data_loop, metadata_loop: the loop devices over the pool's files, where there are any.
        library_version: of what drives the devices.
    """
    if status is None:
        return DriverInfo(
            deferred_removal=settings.deferred_removal,
            deferred_deletion=settings.deferred_deletion,
            library_version=library_version,
        )
    return DriverInfo(
        pool_name=status.pool,
        pool_block_bytes=status.block_bytes,
        base_size_bytes=status.base_size_bytes,
        backing_filesystem=base_filesystem,
        data_file=data_loop or status.data_file,
        metadata_file=metadata_loop or status.metadata_file,
        data_loop_file=status.data_file if data_loop else "",
        metadata_loop_file=status.metadata_file if metadata_loop else "",
        data_used_bytes=status.data_used_bytes,
        data_total_bytes=status.data_total_bytes,
        data_available_bytes=_available(
            status.data_file, status.data_total_bytes - status.data_used_bytes, status.host_free_bytes
        ),
        metadata_used_bytes=status.metadata_used_bytes,
        metadata_total_bytes=status.metadata_total_bytes,
        metadata_available_bytes=_available(
            status.metadata_file, status.metadata_total_bytes - status.metadata_used_bytes, status.host_free_bytes
        ),
        min_free_bytes=_min_free(status),
        deferred_removal=settings.deferred_removal,
        deferred_deletion=settings.deferred_deletion,
        deferred_deleted_count=status.deleted_devices,
        library_version=library_version,
        pool_mode=_MODE_WORDS.get(status.mode, status.mode),
        needs_check=status.needs_check,
        problems=tuple(status.problems),
    )


def status_items(info: DriverInfo) -> list[tuple[str, str]]:
    """(name, value) in order."""
    items = [
        ("Pool Name", info.pool_name),
        ("Pool Blocksize", format_decimal_size(info.pool_block_bytes)),
        ("Base Device Size", format_decimal_size(info.base_size_bytes)),
        ("Backing Filesystem", info.backing_filesystem),
        ("Udev Sync Supported", _word(info.udev_sync)),
    ]
    files = [
        ("Data file", info.data_file),
        ("Metadata file", info.metadata_file),
        ("Data loop file", info.data_loop_file),
        ("Metadata loop file", info.metadata_loop_file),
    ]
    items += [(name, path) for name, path in files if path]
    items += [
        ("Data Space Used", format_decimal_size(info.data_used_bytes)),
        ("Data Space Total", format_decimal_size(info.data_total_bytes)),
        ("Data Space Available", format_decimal_size(info.data_available_bytes)),
        ("Metadata Space Used", format_decimal_size(info.metadata_used_bytes)),
        ("Metadata Space Total", format_decimal_size(info.metadata_total_bytes)),
        ("Metadata Space Available", format_decimal_size(info.metadata_available_bytes)),
        ("Thin Pool Minimum Free Space", format_decimal_size(info.min_free_bytes)),
        ("Deferred Removal Enabled", _word(info.deferred_removal)),
        ("Deferred Deletion Enabled", _word(info.deferred_deletion)),
        ("Deferred Deleted Device Count", str(info.deferred_deleted_count)),
    ]
    if info.library_version:
        items.append(("Library Version", info.library_version))
    if info.pool_mode != _MODE_WORDS["write"]:
        items.append(("Pool Mode", info.pool_mode))
    if info.needs_check:
        items.append(("Pool Needs Check", _word(info.needs_check)))
    return items + [("Problem", problem) for problem in info.problems]


def metadata_items(record: DeviceRecord, prefix: str) -> dict[str, str]:
    """What `docker inspect` shows of a layer; `prefix` is that of the home's device names."""
    return {
        "DeviceId": str(record.device_id),
        "DeviceName": f"{prefix}-{record.name}",
        "DeviceSize": str(record.size_bytes),
    }


def loop_device_of(path: str, block_devices: str = "/sys/block") -> str:
    """The loop device through which the kernel uses a file, empty where there is none."""
    try:
        names = [name for name in os.listdir(block_devices) if name.startswith("loop")]
    except OSError:
        return ""
    return next((f"/dev/{name}" for name in sorted(names) if _backing_file(block_devices, name) == path), "")


def _backing_file(block_devices: str, name: str) -> str:
    try:
        with open(os.path.join(block_devices, name, "loop", "backing_file")) as file:
            return file.read().removesuffix("\n")
    except OSError:  # a loop device that is free has none
        return ""


def _available(path: str, free_bytes: int, backing_free_bytes: int) -> int:
    """Of the free blocks of a sparse file, only so many can be filled as its file system has left."""
    return max(0, min(free_bytes, backing_free_bytes) if os.path.isfile(path) else free_bytes)


def _min_free(status: HomeReport) -> int:
    if status.min_free_bytes is not None:
        return status.min_free_bytes
    blocks = status.data_total_bytes // status.block_bytes if status.data_total_bytes else 0
    return blocks * status.min_free_percent // 100 * status.block_bytes


def _word(value: bool) -> str:
    return "true" if value else "false"
