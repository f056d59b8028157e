"""The fixtures of homes, disks and mounts."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cowfs import Home
    from cowfs.pool import ThinDevice
    from cowfs.pytest_plugin.clock import Clock
    from cowfs.pytest_plugin.mounted import MountedDevice
    from cowfs.pytest_plugin.session import CowSession


@pytest.fixture(scope="session")
def cow_session(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CowSession]:
    """What the tests of a session share; each worker of xdist has its own."""
    from cowfs.pytest_plugin.session import CowSession

    directory = tmp_path_factory.mktemp("cowfs")
    with CowSession(directory, cache=_cache(pytestconfig), keeps_failed=pytestconfig.option.cow_keep) as session:
        yield session


def _cache(config: pytest.Config) -> Path | None:
    if config.pluginmanager.hasplugin("cacheprovider"):
        with suppress(OSError):  # the directory of the tests cannot be written
            return config.cache.mkdir("cowfs")
    return None


@pytest.fixture
def cow_home(request: pytest.FixtureRequest, cow_session: CowSession) -> Iterator[Home]:
    """A home of the test's own, open in this process. It needs no FUSE as long as the test does not mount it."""
    from cowfs.pytest_plugin.wishes import wishes_of

    with cow_session.own_home(request, wishes_of(request)) as home:
        _set_clock(request, home)
        yield home


@pytest.fixture
def cow_device(cow_home: Home) -> Iterator[ThinDevice]:
    """A disk: the device `device` of `cow_home`, with an empty ext4 in it, for pread, pwrite, discard and flush."""
    cow_home.create("device")
    with cow_home.device("device") as disk:
        yield disk


@pytest.fixture(scope="session")
def cow_prepare() -> Callable[[Path], object] | None:
    """What every `cow_mount` begins with. A fixture of this name in a conftest.py returns a function in its place,
    which is called once, with the path of an empty file system to put files into."""
    return None


@pytest.fixture
def cow_mount(
    request: pytest.FixtureRequest, cow_session: CowSession, cow_prepare: Callable[[Path], object] | None
) -> Iterator[MountedDevice]:
    """A mounted file system of the test's own: an ext4 with what `cow_prepare` has put there. It goes with the test."""
    from cowfs.pytest_plugin.wishes import wishes_of

    with cow_session.mounted_device(request, wishes_of(request), cow_prepare) as device:
        _set_clock(request, device.home)
        yield device


@pytest.fixture
def cow_clock() -> Clock:
    """The clock of the test's homes: it stands still, and `cow_clock.advance(60)` lets time pass."""
    from cowfs.pytest_plugin.clock import Clock

    return Clock()


def _set_clock(request: pytest.FixtureRequest, home: Home) -> None:
    if "cow_clock" in request.fixturenames:
        clock: Clock = request.getfixturevalue("cow_clock")
        clock.follow(home)


@pytest.fixture
def cow_seed(request: pytest.FixtureRequest) -> int:
    """A number that is the same in each run with the same --cow-seed, and another one for each test."""
    return zlib.crc32(f"{request.config.option.cow_seed} {request.node.nodeid}".encode())
