"""The layers of a home that Docker left: written by the kernel, compared without root."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowfs.devices import DeviceSet
from cowfs.devices.volumes import Volumes
from cowfs.layers.changes import ThinPair, find, find_changes, walk_changes
from cowfs.layers.interface import finish
from cowfs.layers.roots import find_root
from cowfs.pool import load_backend
from tests.conftest import REPOSITORY
from tests.layers.changes.conftest import Kinds, kinds, oracle

LAYER_1 = "24c83653a1c70b91eb9dec6a7548ce22c3252fe1c2b36218b4c5b4f1047ecb08"
LAYER_2 = "024658c994ece2802602c35db717b3000e9cadcbd98b86c93e367996b4471ca0"
LAYER_3 = "2075416a65d6de41d0b8ca356081c465747776be6c53a63d4137ffde98a019a8"


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceSet]:
    directory = tmp_path_factory.mktemp("home")
    archive = REPOSITORY / "tests/data/moby-home-20.10.tar.xz"
    subprocess.run(["tar", "-S", "-xJf", archive, "-C", directory, "--no-same-owner"], check=True)
    with DeviceSet.open(Path(directory) / "devicemapper", load_backend("emulated")) as devices:
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
