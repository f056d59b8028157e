"""A file and a directory, on the file system that everything else is on, too: what no engine can be quicker than."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from cowfs.benchmarks.engines.interface import WORKS, Contender, Engine, Offer, Setting, only

_DISK = "disk"


class DirectoryContender(Contender):
    """A device is a directory `devices/NAME`; its disk is a file in it, and its tree another directory."""

    @property
    def devices(self) -> Path:
        return self.directory

    def create(self, name: str, size_bytes: int) -> None:
        path = self.devices / name
        (path / "tree").mkdir(parents=True)
        with (path / _DISK).open("wb") as file:
            file.truncate(size_bytes)

    def remove(self, name: str) -> None:
        shutil.rmtree(self.devices / name)

    @contextmanager
    def disk(self, name: str) -> Iterator[Path]:
        yield self.devices / name / _DISK

    @contextmanager
    def tree(self, name: str) -> Iterator[Path]:
        yield self.devices / name / "tree"

    def settle(self) -> None:
        fd = os.open(self.devices, os.O_RDONLY)
        try:
            sync_filesystem(fd)
        finally:
            os.close(fd)


def sync_filesystem(fd: int) -> None:
    """syncfs(2), which Python does not have."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class _Plain(DirectoryContender):
    def settle(self) -> None:
        """Nothing is counted below it."""


def _set_up(setting: Setting) -> AbstractContextManager[Contender]:
    return only(_Plain(setting.name, setting.directory))


PLAIN = Engine("plain", "a file, a directory", Offer.DISK | Offer.TREE, lambda: WORKS, _set_up)
