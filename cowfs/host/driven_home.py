"""A home opened the way a layer driver's storage options say."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cowfs.devices import BASE, DeviceSet, making
from cowfs.devices.base import filesystem_named
from cowfs.devices.files import HomeFiles
from cowfs.host.machine import driver_facts
from cowfs.layers.direct_lvm import prepare_pool
from cowfs.layers.options import (
    DriverOptions,
    Settings,
    changes_to_home,
    home_options,
    parse_storage_options,
    pool_source,
    settle,
)
from cowfs.pool import load_backend

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Driven:
    """An open home, and what its layer driver goes by."""

    devices: DeviceSet
    settings: Settings


def open_driven(
    home: Path,
    backend_name: str,
    options: DriverOptions,
    *,
    make: bool = False,
    read_only: bool = False,
    durable: bool = True,
) -> Driven:
    """Open a home, which grows to what the options ask for.

    Args:
        make: make the home where there is none.
        read_only: change nothing, so that it does not grow either.
        durable: False gives up flushes, for homes that live no longer than a test.

    Raises:
        UsageError: an option that cannot be, or a base device that would shrink.
        CowfsError: as `DeviceSet.init` and `DeviceSet.open`.
    """
    backend = load_backend(backend_name)
    settings = settle_for(backend_name, options)
    files = HomeFiles(os.path.abspath(home))
    makes = make and making.look_at(files) is not making.HomeState.HOME
    if not options.lvm.is_empty:
        if makes:
            files.make_directory(files.home)
        prepare_pool(files, options.lvm, force=bool(options.directlvm_device_force))
    if makes:
        wanted = replace(home_options(options), durable=durable)
        filesystem = filesystem_named(settings.filesystem, settings.mkfs_args)
        devices = DeviceSet.init(home, backend, wanted, filesystem=filesystem)
        _apply_discards(devices, options)
        return Driven(devices, settings)
    percent, source = options.min_free_space_percent, pool_source(options)
    devices = DeviceSet.open(
        home, backend, read_only=read_only, durable=durable, min_free_percent=percent, source=source
    )
    try:
        apply_options(devices, options)
    except BaseException:
        devices.close()
        raise
    return Driven(devices, settings)


def settle_for(backend_name: str, options: DriverOptions) -> Settings:
    """What storage options mean on this machine. Raises UsageError, MissingRequirement."""
    return settle(options, driver_facts(load_backend(backend_name)))


def are_mounted_by_kernel(backend_name: str, storage_options: Sequence[str]) -> bool:
    """Whether the kernel mounts layers that are got, not FUSE. Raises UsageError, MissingRequirement."""
    return settle_for(backend_name, parse_storage_options(storage_options)).kernel_mounts


def apply_options(devices: DeviceSet, options: DriverOptions) -> None:
    """Let an open home be as the options ask, and grow. Raises UsageError for a base device that would shrink."""
    _apply_discards(devices, options)
    changes = changes_to_home(options, devices.status())
    for warning in changes.warnings:
        _log.warning("%s", warning)
    if devices.read_only:
        return
    if changes.data_size_bytes or changes.metadata_size_bytes:
        devices.resize_pool(data_size_bytes=changes.data_size_bytes, metadata_size_bytes=changes.metadata_size_bytes)
    if changes.base_size_bytes:
        devices.resize(BASE, changes.base_size_bytes)


def _apply_discards(devices: DeviceSet, options: DriverOptions) -> None:
    if options.blkdiscard is not None:
        devices.discards_removed = options.blkdiscard
