"""A file and a directory, on the file system that everything else is on, too: what no engine can be quicker than."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from cowfs.benchmarks.engines.interface import WORKS, Contender, Engine, Offer, Setting, only

DISK: Final = "disk"
TREE: Final = "tree"


class DirectoryContender(Contender):
    """A device is a directory; its disk is a file in it, and its tree another directory."""

    @property
    def devices(self) -> Path:
        return self.directory

    def create(self, name: str, size_bytes: int) -> None:
        (self.devices / name).mkdir()
        self.fill(name, size_bytes)

    def fill(self, name: str, size_bytes: int) -> None:
        (self.devices / name / TREE).mkdir()
        with (self.devices / name / DISK).open("wb") as file:
            file.truncate(size_bytes)

    def remove(self, name: str) -> None:
        shutil.rmtree(self.devices / name)

    @contextmanager
    def disk(self, name: str) -> Iterator[Path]:
        yield self.devices / name / DISK

    @contextmanager
    def tree(self, name: str) -> Iterator[Path]:
        yield self.devices / name / TREE

    def settle(self) -> None:
        synced(self.devices)


def synced(path: Path) -> None:
    """Bring the file system that a path is on to its disk: syncfs(2), which Python does not have."""
    fd = os.open(path, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fspath(path))
    finally:
        os.close(fd)


class _Plain(DirectoryContender):
    def settle(self) -> None:
        """Nothing is counted below it."""


def _set_up(setting: Setting) -> AbstractContextManager[Contender]:
    return only(_Plain(setting.name, setting.directory))


PLAIN: Final = Engine("plain", "a file, a directory", Offer.DISK | Offer.TREE, lambda: WORKS, _set_up)
