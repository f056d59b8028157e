"""Finding backends by name: the package `cowfs_<name>`, else the entry-point group `cowfs.backends`; loaded on use.

The packages are looked at first because reading entry points costs every command some 20 ms.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING

from cowfs.errors import MissingRequirement, UsageError
from cowfs.pool.interface import Backend

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

GROUP = "cowfs.backends"


def backend_names() -> list[str]:
    return sorted({entry.name for entry in _entry_points(group=GROUP)})


def load_backend(name: str) -> Backend:
    """The backend called `name`: BACKEND of the package `cowfs_<name>`, or what an entry point names.

    Raises:
        UsageError: no such name, or it is no backend.
        MissingRequirement: it is there but cannot be imported here.
    """
    try:
        backend = _load(name)
    except ImportError as error:
        raise MissingRequirement(f"backend '{name}' cannot be loaded: {error}") from error
    if backend is None:
        raise UsageError(f"there is no backend '{name}'; registered: {', '.join(backend_names()) or 'none'}")
    if not isinstance(backend, Backend):
        raise UsageError(f"backend '{name}' does not implement cowfs.pool.Backend")
    return backend


def _load(name: str) -> object | None:
    package = f"cowfs_{name}"
    if name.isidentifier() and find_spec(package) is not None:
        return getattr(importlib.import_module(package), "BACKEND", None)
    for entry in _entry_points(group=GROUP, name=name):
        backend: object = entry.load()
        return backend
    return None


def _entry_points(**selection: str) -> EntryPoints:
    from importlib.metadata import entry_points  # noqa: PLC0415 - the slow import this module avoids

    return entry_points(**selection)
