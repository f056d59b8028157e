"""Modules of cowfs are loaded as they were compiled, although pytest would rewrite them.

pytest rewrites the assertions of every module in a distribution that has a plugin, for better messages of those that
fail. It compiles the modules anew for that, which takes as long as the start of a server (measured: 0.8 s instead of
0.1 s), in each session where it cannot write the outcome down: PYTHONDONTWRITEBYTECODE, or packages of another user.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Final

_PACKAGES: Final = ("cowfs", "cowfs_emulated", "cowfs_dmthin")


class PlainFinder:
    """Before pytest's own: finds the modules in the packages of this distribution."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, dot, _ = name.partition(".")
        return PathFinder.find_spec(name, path, target) if dot and package in _PACKAGES else None


def install() -> None:
    if PlainFinder not in sys.meta_path:
        sys.meta_path.insert(0, PlainFinder)
