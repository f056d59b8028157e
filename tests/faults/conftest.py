"""Mounted homes whose faults are cleared after each test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import cowfs
from cowfs.faults.api import Faults

SMALL = cowfs.HomeOptions(data_size_bytes=256 << 20, metadata_size_bytes=4 << 20, base_size_bytes=16 << 20)


@dataclass
class Mounted:
    """A mount of a home; `web` is the directory of the device `web`, or the file of its disk where that is shown."""

    home: cowfs.Home
    root: Path
    web: Path

    @property
    def faults(self) -> Faults:
        return self.home.faults

    @property
    def log(self) -> str:
        return (self.home.path / "cowfs.log").read_text()


@contextmanager
def mounted(directory: Path, kind: str) -> Iterator[Mounted]:
    """A new home, mounted as `tree`, `raw` or `home`."""
    with cowfs.open_home(directory / "home", create=True, options=SMALL) as home:
        home.create("web")
        home.create("other")
        device = None if kind == "home" else "web"
        with home.mount(device, raw=kind == "raw") as root:
            yield Mounted(home, root, root if kind == "tree" else root / "web")
        log = (home.path / "cowfs.log").read_text()
        assert "Traceback" not in log, log


@pytest.fixture(scope="module", params=["tree", "home"])
def shared_mount(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted(tmp_path_factory.mktemp(request.param), request.param) as mount:
        yield mount


@pytest.fixture
def mount(needs_fuse: None, shared_mount: Mounted) -> Iterator[Mounted]:
    """The device `web`, alone or in a mount of the whole home."""
    yield shared_mount
    shared_mount.faults.clear()
