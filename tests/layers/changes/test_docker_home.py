"""The layers of a home that Docker left: written by the kernel, compared without root."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cowfs.devices import opening
from cowfs.devices.deviceset import DeviceSet
from cowfs.layers.changes import ThinPair, find, find_changes, walk_changes
from cowfs.layers.roots import find_root
from cowfs.pool import load_backend
from cowfs.steps import finish
from cowfs.volumes import Volumes
from tests.docker_home import LAYER_1, LAYER_2, LAYER_3, unpack
from tests.layers.changes.conftest import Kinds, kinds, oracle


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceSet]:
    home = unpack(tmp_path_factory.mktemp("home"))
    with opening.open_home(home, load_backend("emulated")) as devices:
        yield devices


def changes(devices: DeviceSet, layer: str, parent: str) -> Kinds:
    """What all ways agree on."""
    volumes = Volumes(devices, read_only=True)
    with volumes.opened(layer) as one, volumes.opened(parent) as other:
        roots = find_root(one), find_root(other)
        assert find.can_be_told_by_blocks(*roots) or not roots[1].inode
        ids = {record.name: record.device_id for record in devices.records()}
        found = finish(find_changes(*roots, ThinPair(devices.pool, ids[layer], ids[parent])))
        assert found == finish(walk_changes(*roots)) == oracle(*roots)
    return kinds(found)


@pytest.mark.parametrize(
    ("layer", "parent", "expected"),
    [
        (LAYER_2, LAYER_1, {b"/a": "A"}),
        (LAYER_3, LAYER_2, {b"/b": "A"}),
        (LAYER_3, LAYER_1, {b"/a": "A", b"/b": "A"}),
        (LAYER_1, LAYER_3, {b"/a": "D", b"/b": "D"}),
    ],
)
def test_layers_against_each_other(devices: DeviceSet, layer: str, parent: str, expected: Kinds) -> None:
    assert changes(devices, layer, parent) == expected


def test_first_layer_against_the_base(devices: DeviceSet) -> None:
    assert set(changes(devices, LAYER_1, "base").values()) == {"A"}
