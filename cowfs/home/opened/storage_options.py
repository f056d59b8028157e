"""Storage options of the layer driver, as far as they say how a home is made, opened, and grows.

    resolve_settings(...)                what they mean on this machine
    make_devices(...), open_devices(...) a home by them; `cowfs.home.opened.opening` decides which
    apply_options(...)                   those that come later, with another daemon of Docker's

A pool that LVM makes (`dm.directlvm_device`) is prepared first in both cases: the home only remembers where it is.
"""

from __future__ import annotations

import logging

import msgspec

from cowfs.devices import opening
from cowfs.devices.base.base_device import filesystem_named
from cowfs.devices.deviceset import DeviceSet
from cowfs.devices.injected import Injected
from cowfs.devices.on_disk import making
from cowfs.devices.on_disk.files import HomeFiles
from cowfs.devices.on_disk.names import BASE
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.devices.pools import no_space
from cowfs.home.opened.backend_facts import driver_facts
from cowfs.home.opened.spec import HomeSpec
from cowfs.layers.options import (
    DriverOptions,
    Settings,
    changes_to_home,
    home_options,
    pool_source,
    resolve_options,
)
from cowfs.pool import Backend, load_backend

_log = logging.getLogger(__name__)


def resolve_settings(backend: str, options: DriverOptions) -> Settings:
    """What storage options mean on this machine. Raises UsageError, MissingRequirement."""
    return resolve_options(options, driver_facts(load_backend(backend)))


def apply_options(devices: DeviceSet, options: DriverOptions) -> None:
    """Let an open home be as the options ask, and grow. Raises UsageError for a base device that would shrink."""
    _apply_discards(devices, options)
    changes = changes_to_home(options, devices.reports.status(), devices.base.filesystem_name)
    for warning in changes.warnings:
        _log.warning("%s", warning)
    if devices.read_only:
        return
    if changes.data_size_bytes or changes.metadata_size_bytes:
        devices.resize_pool(data_size_bytes=changes.data_size_bytes, metadata_size_bytes=changes.metadata_size_bytes)
    if changes.base_size_bytes:
        devices.resize(BASE, changes.base_size_bytes)


def make_devices(
    spec: HomeSpec, backend: Backend, files: HomeFiles, options: DriverOptions, settings: Settings
) -> DeviceSet:
    """Make a home and open it, as `spec.options` say where the storage options say nothing."""
    wanted = home_options(options, msgspec.structs.replace(spec.options or HomeOptions(), durable=spec.durable))
    no_space.check_timeout(backend, wanted.no_space_timeout_seconds)
    injected = Injected(filesystem=filesystem_named(settings.filesystem, settings.mkfs_args))
    opening.check_options(wanted, injected)
    making.require_room_for_home(files)  # before a disk is taken for its pool
    files.make_directory(files.home)
    _prepare_pool(files, options)
    devices = opening.make_home(
        files.home,
        backend,
        wanted,
        progress=spec.progress,
        injected=injected,
    )
    _apply_discards(devices, options)
    return devices


def open_devices(spec: HomeSpec, backend: Backend, files: HomeFiles, options: DriverOptions) -> DeviceSet:
    """Open a home, which grows to what the options ask for."""
    _prepare_pool(files, options)
    devices = opening.open_home(
        files.home,
        backend,
        msgspec.structs.replace(
            spec.how_opened(), min_free_percent=options.min_free_space_percent, source=pool_source(options)
        ),
    )
    try:
        apply_options(devices, options)
    except BaseException:
        devices.close()
        raise
    return devices


def _prepare_pool(files: HomeFiles, options: DriverOptions) -> None:
    if not options.lvm.is_empty:
        from cowfs.layers.direct_lvm import prepare_pool

        prepare_pool(files, options.lvm, force=bool(options.directlvm_device_force))


def _apply_discards(devices: DeviceSet, options: DriverOptions) -> None:
    if options.blkdiscard is not None:
        devices.deletions.discards_removed = options.blkdiscard
