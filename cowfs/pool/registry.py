"""Finding backends by name, through the entry-point group `cowfs.backends`; loaded on use."""

from __future__ import annotations

from importlib.metadata import entry_points

from cowfs.errors import MissingRequirement, UsageError
from cowfs.pool.interface import Backend

GROUP = "cowfs.backends"


def backend_names() -> list[str]:
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def load_backend(name: str) -> Backend:
    """The backend registered under `name`.

    Raises:
        UsageError: no such name.
        MissingRequirement: it is registered but cannot be imported here.
    """
    for entry in entry_points(group=GROUP, name=name):
        try:
            backend = entry.load()
        except ImportError as error:
            raise MissingRequirement(f"backend '{name}' cannot be loaded: {error}") from error
        if not isinstance(backend, Backend):
            raise UsageError(f"backend '{name}' ({entry.value}) does not implement cowfs.pool.Backend")
        return backend
    raise UsageError(f"there is no backend '{name}'; registered: {', '.join(backend_names()) or 'none'}")
