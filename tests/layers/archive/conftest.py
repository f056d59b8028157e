"""Layers in volumes in image files. What is beside a layer's root must be as it was, and the volume clean, after
every test."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowfs.filetree import ROOT_INODE
from cowfs.layers import LayerRoot
from tests.ext4.conftest import MIB, Image
from tests.layers.archive.trees import Tree, build, directory, file, look, symlink

BESIDE: Tree = {
    b"victim": directory(0o755),
    b"victim/hello": file(b"of another user", 0o600),
    b"victim/link": symlink(b"../rootfs"),
    b"id": file(b"name", 0o600),
}


class LayerVolume:
    """A volume that holds any number of layers, each with its own root directory."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.image = Image(path, size_bytes)
        self._count = 0
        build(LayerRoot(self.image.volume, ROOT_INODE), {b"": directory(), **BESIDE})
        self._before = self._look_beside()

    def new_layer(self, tree: Tree | None = None) -> LayerRoot:
        self._count += 1
        mode = stat.S_IFDIR | 0o755
        root = self.image.volume.restore(ROOT_INODE, b"rootfs-%d" % self._count, mode, 0, 0, mtime_ns=0)
        layer = LayerRoot(self.image.volume, root)
        if tree:
            build(layer, tree)
        return layer

    def clear(self) -> None:
        """Remove all layers, before a test makes more and more of them."""
        pending = [(ROOT_INODE, b"rootfs-%d" % number, False) for number in range(1, self._count + 1)]
        self._count = 0
        while pending:
            parent, name, is_emptied = pending.pop()
            if is_emptied:
                self.image.volume.remove_directory(parent, name)
                continue
            pending.append((parent, name, True))
            inode = self.image.volume.lookup(parent, name).inode
            for entry in list(self.image.volume.list_directory(inode)):
                if entry.name in (b".", b".."):
                    continue
                if stat.S_ISDIR(entry.mode):
                    pending.append((inode, entry.name, False))
                else:
                    self.image.volume.unlink(inode, entry.name)

    def _look_beside(self) -> Tree:
        found = look(LayerRoot(self.image.volume, ROOT_INODE), without="rootfs-")
        del found[b""]
        return found

    def judge(self) -> None:
        assert self._look_beside() == self._before
        self.image.close()
        self.image.require_clean()


@pytest.fixture
def make_volume(tmp_path: Path) -> Iterator[Callable[[int], LayerVolume]]:
    volumes: list[LayerVolume] = []

    def make(size_bytes: int) -> LayerVolume:
        volumes.append(LayerVolume(tmp_path / f"volume-{len(volumes)}.img", size_bytes))
        return volumes[-1]

    yield make
    for volume in volumes:
        volume.judge()


@pytest.fixture
def layers(make_volume: Callable[[int], LayerVolume]) -> LayerVolume:
    """`layers.new_layer(tree)`"""
    return make_volume(128 * MIB)


@pytest.fixture
def layer(layers: LayerVolume) -> LayerRoot:
    return layers.new_layer()
