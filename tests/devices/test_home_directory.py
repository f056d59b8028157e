"""Directories near a home that are taken for it: the right one is named, and nothing is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cowfs.devices import opening
from cowfs.devices.on_disk.files import HomeFiles
from cowfs.devices.on_disk.making import HomeState, is_home, state_of
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.errors import NotAHome
from cowfs.pool import load_backend

SMALL = HomeOptions(data_size_bytes=16 << 20, metadata_size_bytes=4 << 20, base_size_bytes=8 << 20, durable=False)


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    """The directory of a daemon, with a home where its devicemapper driver has one, and another driver's directory."""
    root = tmp_path / "docker"
    (root / "overlay2" / "l").mkdir(parents=True)
    with opening.make_home(root / "devicemapper", load_backend("emulated"), SMALL):
        pass
    return root


def refusal(directory: Path) -> str:
    before = sorted(os.listdir(directory)) if directory.is_dir() else None
    with pytest.raises(NotAHome) as caught, opening.open_home(directory, load_backend("emulated")):
        pass
    assert before == (sorted(os.listdir(directory)) if directory.is_dir() else None)
    assert not is_home(HomeFiles(str(directory)))
    return str(caught.value)


@pytest.mark.parametrize("below", [".", "devicemapper/devicemapper", "devicemapper/metadata"])
def test_the_home_above_or_below_is_named(docker: Path, below: str) -> None:
    directory = Path(os.path.normpath(docker / below))
    home = docker / "devicemapper"
    assert refusal(directory) == f"{directory} is not a home, but {home} is one; name that: --home {home}"


def test_other_directories_and_files(docker: Path) -> None:
    (docker / "file").write_bytes(b"x")
    (docker / "empty").mkdir()
    for name, what in {
        "overlay2": "it is something else",
        "file": "it is not a directory",
        "empty": "it is an empty directory",
        "absent": "it does not exist",
    }.items():
        assert refusal(docker / name) == (
            f"{docker / name} is not a home: {what}; make one with init, or name another directory"
        )


def test_no_home_is_made_over_another_ones_directory(docker: Path) -> None:
    assert state_of(HomeFiles(str(docker))) is HomeState.OTHER
