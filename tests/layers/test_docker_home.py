"""The layers of a home that Docker left: read, packed, and moved to a new home, by a user without privileges."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tests.devices.test_docker_home import LAYERS, unpack
from tests.layers.driver_home import members, opened

BUSYBOX, A, B = (name for name in LAYERS if name != "base")
BUSYBOX_BYTES = 1_982_256


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return unpack(tmp_path)


def contents(tar: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return {item.name: file.read() for item in archive if (file := archive.extractfile(item))}


def test_each_layer_tells_what_docker_put_into_it(home: Path) -> None:
    with opened(home) as made:
        assert made.driver.list_layers() == sorted([BUSYBOX, A, B])
        assert made.changes(BUSYBOX) == [("A", "/busybox")]
        assert made.changes(A, BUSYBOX) == [("A", "/a")]
        assert made.changes(B, A) == [("A", "/b")]
        assert made.changes(B, BUSYBOX) == [("A", "/a"), ("A", "/b")]
        assert made.size(BUSYBOX) == BUSYBOX_BYTES
        assert contents(made.diff(A, BUSYBOX)) == {"a": b"a\n"}
        assert contents(made.diff(B, A)) == {"b": b"b\n"}
        assert made.driver.metadata(A)["DeviceId"] == "4"


def test_layers_move_to_a_new_home(home: Path, tmp_path: Path) -> None:
    with opened(home) as old, opened(tmp_path / "new") as new:
        parent = None
        for layer in (BUSYBOX, A, B):
            new.driver.create(layer, parent)
            assert new.apply(layer, old.diff(layer, parent)) == old.size(layer, parent)
            assert new.changes(layer, parent) == old.changes(layer, parent)
            parent = layer
        assert members(new.diff(B)) == members(old.diff(B))
