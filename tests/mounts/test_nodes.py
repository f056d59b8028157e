"""Block devices in /sys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cowfs.mounts import nodes

LOOP, POOL, THIN = os.makedev(7, 0), os.makedev(254, 0), os.makedev(254, 1)


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pool on a loop device and a thin device on the pool, as folders."""
    monkeypatch.setattr(nodes, "folder", lambda number: f"{tmp_path}/{os.major(number)}:{os.minor(number)}")
    for used, number, name, user in ((LOOP, POOL, "pool", "dm-0"), (POOL, THIN, "thin", "dm-1")):
        description = f"{os.major(number)}:{os.minor(number)}"
        (tmp_path / description / "dm").mkdir(parents=True)
        (tmp_path / description / "dm" / "name").write_text(f"{name}\n")
        holder = Path(nodes.folder(used)) / "holders" / user
        holder.mkdir(parents=True)
        (holder / "dev").write_text(f"{description}\n")
    return tmp_path


def test_what_uses_a_device(devices: Path) -> None:
    assert nodes.targets_above(LOOP) == [POOL]
    assert nodes.targets_above(POOL) == [THIN]
    assert nodes.targets_above(THIN) == []


def test_a_target_that_is_being_removed_uses_nothing_any_more(devices: Path) -> None:
    """It has lost its name, and still holds what it was made of."""
    (devices / "254:0" / "dm" / "name").unlink()
    assert nodes.targets_above(LOOP) == []
