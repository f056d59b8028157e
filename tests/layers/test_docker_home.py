"""The layers of a home that Docker left: read, packed, and moved to a new home, by a user without privileges."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tests.docker_home import BUSYBOX_BYTES, LAYER_1, LAYER_2, LAYER_3, unpack
from tests.layers.driver_home import members, opened


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return unpack(tmp_path)


def contents(tar: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return {item.name: file.read() for item in archive if (file := archive.extractfile(item))}


def test_each_layer_shows_what_docker_put_into_it(home: Path) -> None:
    with opened(home) as made:
        assert made.driver.list_layers() == sorted([LAYER_1, LAYER_2, LAYER_3])
        assert made.changes(LAYER_1) == [("A", "/busybox")]
        assert made.changes(LAYER_2, LAYER_1) == [("A", "/a")]
        assert made.changes(LAYER_3, LAYER_2) == [("A", "/b")]
        assert made.changes(LAYER_3, LAYER_1) == [("A", "/a"), ("A", "/b")]
        assert made.size(LAYER_1) == BUSYBOX_BYTES
        assert contents(made.diff(LAYER_2, LAYER_1)) == {"a": b"a\n"}
        assert contents(made.diff(LAYER_3, LAYER_2)) == {"b": b"b\n"}
        assert made.driver.metadata(LAYER_2)["DeviceId"] == "4"


def test_layers_move_to_a_new_home(home: Path, tmp_path: Path) -> None:
    with opened(home) as old, opened(tmp_path / "new") as new:
        parent = None
        for layer in (LAYER_1, LAYER_2, LAYER_3):
            new.driver.create(layer, parent)
            assert new.apply(layer, old.diff(layer, parent)) == old.size(layer, parent)
            assert new.changes(layer, parent) == old.changes(layer, parent)
            parent = layer
        assert members(new.diff(LAYER_3)) == members(old.diff(LAYER_3))
