"""Which way is taken, and that it is the right one."""

from __future__ import annotations

import stat
from collections.abc import Callable

import pytest

from cowfs.devices.base.base_ext4 import Ext4
from cowfs.errors import MetadataCorrupt, NoSuchThin
from cowfs.ext4.tools import fsck
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE
from cowfs.layers.changes import ThinPair, block_changes, find, find_changes
from cowfs.layers.changes.walk import Walk
from cowfs.layers.interface import LayerRoot
from cowfs.layers.roots import find_root
from cowfs.steps import finish
from cowfs.units import SECTOR_BYTES
from tests.layers.changes.conftest import SMALL_GROUPS, Kinds, Lab, Layer, kinds

MakeBase = Callable[..., Layer]


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which ways were taken."""
    taken: list[str] = []

    def watch(name: str) -> None:
        original = getattr(find, name)

        def call(*arguments: object) -> Walk:
            taken.append(name)
            return original(*arguments)  # type: ignore[no-any-return]

        monkeypatch.setattr(find, name, call)

    watch("Walk")
    watch("BlockWalk")
    return taken


@pytest.fixture
def parent(make_base: MakeBase) -> Layer:
    parent = make_base()
    parent.mkdir(b"/d")
    parent.write(b"/d/f", b"content")
    return parent


def thins(layer: Layer, parent: Layer) -> ThinPair:
    return ThinPair(layer.lab.pool, layer.thin.thin_id, parent.thin.thin_id)


def found(layer: Layer, parent: Layer) -> Kinds:
    return kinds(finish(find_changes(layer.layer_root, parent.layer_root, thins(layer, parent))))


def test_snapshots_are_compared_by_blocks(parent: Layer, ways: list[str]) -> None:
    layer = parent.branch()
    layer.write(b"/d/f", b"X")  # and not synced
    parent.write(b"/d/g")
    assert found(layer, parent) == {b"/d": "C", b"/d/f": "C", b"/d/g": "D"}
    assert ways == ["BlockWalk"]


def test_grandparents_too(parent: Layer, ways: list[str]) -> None:
    layer = parent.branch()
    layer.write(b"/d/f", b"X")
    last = layer.branch()
    last.write(b"/d/g")
    assert found(last, parent) == {b"/d": "C", b"/d/f": "C", b"/d/g": "A"}
    assert ways == ["BlockWalk"]


def test_unknown_thins_are_walked(parent: Layer, ways: list[str]) -> None:
    layer = parent.branch()
    layer.unlink(b"/d/f")
    assert kinds(finish(find_changes(layer.layer_root, parent.layer_root))) == {b"/d": "C", b"/d/f": "D"}
    assert ways == ["Walk"]


def test_against_nothing(parent: Layer, ways: list[str]) -> None:
    expected = {b"/d": "A", b"/d/f": "A"}
    assert kinds(finish(find_changes(parent.layer_root, None))) == expected
    nothing = LayerRoot(parent.volume, 0)
    assert kinds(finish(find_changes(parent.layer_root, nothing, thins(parent, parent)))) == expected
    assert kinds(finish(find_changes(nothing, parent.layer_root, thins(parent, parent)))) == {b"/d": "D"}
    assert ways == ["Walk"] * 3


def test_other_file_systems_are_walked(parent: Layer, make_base: MakeBase, ways: list[str]) -> None:
    other = make_base([*SMALL_GROUPS, "-O", "metadata_csum_seed"])
    other.write(b"/f")
    assert found(parent, other) == {b"/d": "A", b"/d/f": "A", b"/f": "D"}
    assert ways == ["Walk"]


def test_inodes_without_nanoseconds_are_walked(make_base: MakeBase, ways: list[str]) -> None:
    parent = make_base(["-b", "4096", "-I", "128"])
    layer = parent.branch()
    layer.write(b"/f")
    assert found(layer, parent) == {b"/f": "A"}
    assert ways == ["Walk"]


def test_a_layer_that_grew_is_walked(parent: Layer, lab: Lab, ways: list[str]) -> None:
    layer = parent.branch()
    layer.write(b"/f")
    layer.close()
    layer.thin = lab.activate(layer.thin.thin_id)
    layer.thin.resize(2 * layer.thin.size_bytes // SECTOR_BYTES)
    Ext4().grow(layer.thin)
    grown = Layer(lab, layer.thin)
    assert found(grown, parent) == {b"/f": "A"}
    assert ways == ["Walk"]


def test_a_repaired_layer_is_walked(parent: Layer, lab: Lab, ways: list[str]) -> None:
    """A repair removes names, and the time of the directory stays what it was."""
    parent.volume._fs.super.s_lastcheck = 1_000_000_000  # repairs are recognised by their time, in seconds
    parent.volume._fs.superblock_changed()
    layer = parent.branch()
    number = layer.inode(b"/d/f")
    layer.volume.quiesce()
    geometry = layer.volume.inode_tables().geometry
    lab.layers.remove(layer)
    layer.volume.close()
    layer.thin.pwrite(geometry.offset(number), bytes(geometry.inode_bytes))
    assert fsck.check_volume(layer.thin, repair=True).usable
    repaired = Layer(lab, layer.thin)
    assert found(repaired, parent) == {b"/d": "C", b"/d/f": "D"}
    assert ways == ["Walk"]
    ranges = lab.ranges(repaired.thin.thin_id, parent.thin.thin_id)
    by_blocks = block_changes(repaired.layer_root, parent.layer_root, ranges, lab.pool.block_bytes)
    assert finish(by_blocks) == []  # which is why


def test_volumes_that_are_open_for_reading(parent: Layer, lab: Lab, ways: list[str]) -> None:
    layer = parent.branch()
    layer.write(b"/d/f", b"X")
    layer.volume.quiesce()
    parent.volume.quiesce()
    volumes = [Volume.open(lab.activate(one.thin.thin_id, read_only=True), read_only=True) for one in (layer, parent)]
    roots = [find_root(volume) for volume in volumes]
    assert kinds(finish(find_changes(roots[0], roots[1], thins(layer, parent)))) == {b"/d": "C", b"/d/f": "C"}
    assert ways == ["BlockWalk"]
    for volume in volumes:
        volume.close()


def test_wrong_thins_are_refused(parent: Layer, lab: Lab) -> None:
    layer = parent.branch()
    pair = ThinPair(lab.pool, 12345, parent.thin.thin_id)
    with pytest.raises(NoSuchThin):
        finish(find_changes(layer.layer_root, parent.layer_root, pair))


def test_damaged_metadata_is_reported(parent: Layer, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = parent.branch()

    def read_metadata(_read: object) -> None:
        raise MetadataCorrupt("planted", block=7, path="superblock")

    monkeypatch.setattr(lab.pool, "read_metadata", read_metadata)
    with pytest.raises(MetadataCorrupt):
        finish(find_changes(layer.layer_root, parent.layer_root, thins(layer, parent)))


def test_the_file_beside_the_root_is_not_reported(parent: Layer, ways: list[str]) -> None:
    layer = parent.branch()
    inode = layer.volume.make_node(ROOT_INODE, b"beside", stat.S_IFREG | 0o600, 0, 0).inode
    layer.volume.write(inode, 0, b"content")
    assert found(layer, parent) == {}
    assert ways == ["BlockWalk"]
