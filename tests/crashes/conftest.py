"""A mounted home for crash tests, one for each test process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import cowfs

OPTIONS = cowfs.HomeOptions(data_size_bytes=256 << 20, metadata_size_bytes=4 << 20, base_size_bytes=16 << 20)


class MountedHome(NamedTuple):
    home: cowfs.Home
    path: Path


@pytest.fixture(scope="module")
def mounted(fast_directory: Path) -> Iterator[MountedHome]:
    """A home that is mounted as a whole."""
    with cowfs.open_home(fast_directory / "home", create=True, options=OPTIONS, durable=False) as home:
        with home.mount() as path:
            yield MountedHome(home, path)
        assert home.check().clean
        assert [row.name for row in home.devices()] == ["base"]
