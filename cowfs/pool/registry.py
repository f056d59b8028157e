"""Finding backends by name, through the entry-point group `cowfs.backends`; loaded on use.

Entry points are read from the `entry_points.txt` of the installed distributions, as importlib.metadata does; loading
that module takes as long as most commands.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Final

from cowfs.errors import MissingRequirement, UsageError
from cowfs.pool.interface import Backend

GROUP: Final = "cowfs.backends"


def backend_names() -> list[str]:
    return sorted(_registered(tuple(sys.path)))


def load_backend(name: str) -> Backend:
    """The backend registered under `name`.

    Raises:
        UsageError: no such name.
        MissingRequirement: it is registered but cannot be imported here.
    """
    return _load(name, tuple(sys.path))


@functools.cache  # a process that opens many homes looks through its directories once
def _load(name: str, path: tuple[str, ...]) -> Backend:
    registered = _registered(path)
    if name not in registered:
        raise UsageError(f"there is no backend '{name}'; registered: {', '.join(sorted(registered)) or 'none'}")
    value = registered[name]
    module, _, attribute = value.partition(":")
    try:
        backend = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise MissingRequirement(f"backend '{name}' cannot be loaded: {error}") from error
    if not isinstance(backend, Backend):
        raise UsageError(f"backend '{name}' ({value}) does not implement cowfs.pool.Backend")
    return backend


def _registered(path: tuple[str, ...]) -> dict[str, str]:
    """`module:attribute` by backend name; of two distributions the one that imports find first wins."""
    found: dict[str, str] = {}
    for directory in path:
        for text in _entry_point_files(directory or os.curdir):
            for name, value in _parse(text):
                found.setdefault(name, value)
    return found


def _entry_point_files(directory: str) -> Iterator[str]:
    try:
        with os.scandir(directory) as entries:
            distributions = [entry.path for entry in entries if entry.name.endswith((".dist-info", ".egg-info"))]
    except OSError:
        return  # a zip file, or a directory that is not there
    for path in distributions:
        try:
            with open(os.path.join(path, "entry_points.txt"), encoding="utf-8") as file:
                yield file.read()
        except OSError:
            continue


def _parse(text: str) -> Iterator[tuple[str, str]]:
    """Names and values of our group: `name = module:attribute`, in a section of an INI file."""
    section = ""
    for line in text.splitlines():
        line = line.strip()  # noqa: PLW2901
        if line.startswith("["):
            section = line.strip("[]").strip()
        elif section == GROUP and "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            yield name.strip(), value.partition("[")[0].strip()
