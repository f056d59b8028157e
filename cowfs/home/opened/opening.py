"""Making and opening a home in this process: done here and nowhere else."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cowfs.devices import opening
from cowfs.devices.on_disk import making
from cowfs.devices.on_disk.files import HomeFiles
from cowfs.errors import UsageError
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.opened.spec import HomeSpec, Make
from cowfs.pool import Backend, BackendWithClock, load_backend

if TYPE_CHECKING:
    from cowfs.home.opened.virtual_clock import VirtualClock


def open_here(spec: HomeSpec) -> OpenHome:
    """Open a home, or make it; it grows to what its storage options ask for.

    Raises:
        UsageError: an unknown backend, an option or size that cannot be, or a base device that would shrink.
        NotAHome, HomeVersionError, HomeBusy, HomeError, MetadataCorrupt: as in `cowfs.devices.opening`.
        MissingRequirement: an option needs a program or a kernel that is not present.
    """
    files = HomeFiles(os.path.abspath(spec.path))
    backend, clock = _backend(spec)
    is_opened = spec.make is Make.NEVER or (spec.make is Make.WHERE_ABSENT and making.is_home(files))
    if is_opened and not spec.storage_options:
        devices = opening.open_home(files.home, backend, spec.how_opened())
        return OpenHome(devices, spec.backend, clock=clock)

    from cowfs.home.opened.storage_options import make_devices, open_devices, resolve_settings
    from cowfs.layers.options import parse_storage_options

    options = parse_storage_options(spec.storage_options)
    settings = resolve_settings(spec.backend, options)
    if is_opened:
        devices = open_devices(spec, backend, files, options)
    else:
        devices = make_devices(spec, backend, files, options, settings)
    return OpenHome(devices, spec.backend, settings, clock)


def _backend(spec: HomeSpec) -> tuple[Backend, VirtualClock | None]:
    backend = load_backend(spec.backend)
    if not spec.virtual_clock:
        return backend, None
    if not isinstance(backend, BackendWithClock):
        raise UsageError(
            f"the backend '{spec.backend}' has a clock that cannot be moved, so it cannot have a virtual one; name "
            "another backend, or open the home without virtual_clock"
        )
    from cowfs.home.opened.virtual_clock import VirtualClock

    clock = VirtualClock()
    return backend.with_clock(clock), clock
