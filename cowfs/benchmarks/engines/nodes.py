"""Devices that are block device nodes of the kernel: their trees are ext4, which the kernel mounts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cowfs.benchmarks.engines.interface import Contender, Setting
from cowfs.benchmarks.engines.plain import synced
from cowfs.benchmarks.engines.tools import run_tool
from cowfs.mounts.kernel_mount import mount_node


class NodeDevices(Contender):
    """A device is a node; a file system is made on it when its tree is asked for."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting.name, setting.directory)
        self._formatted: set[str] = set()
        self._tree: Path | None = None

    def snapshot(self, origin: str, name: str) -> None:
        self.take_snapshot(origin, name)
        if origin in self._formatted:
            self._formatted.add(name)

    def take_snapshot(self, origin: str, name: str) -> None:
        """As `snapshot`."""
        raise NotImplementedError

    def remove(self, name: str) -> None:
        self._formatted.discard(name)

    @contextmanager
    def tree(self, name: str) -> Iterator[Path]:
        with self.disk(name) as node:
            if name not in self._formatted:
                run_tool("mkfs.ext4", "-q", node)
                self._formatted.add(name)
            with mounted_node(node, name, self.directory / "tree") as path:
                self._tree = path
                try:
                    yield path
                finally:
                    self._tree = None

    def settle(self) -> None:
        if self._tree is not None:
            synced(self._tree)


@contextmanager
def mounted_node(node: Path, name: str, target: Path, options: str = "") -> Iterator[Path]:
    """The file system on a block device, mounted by the kernel."""
    target.mkdir(exist_ok=True)
    fd = os.open(node, os.O_RDWR)
    try:
        mount_node(fd, name, os.fspath(target), options)
    finally:
        os.close(fd)
    try:
        yield target
    finally:
        run_tool("umount", target)
