"""Small homes, Debian's registry on a free port, and a registry that does as it is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

import cowfs
from cowfs import Home
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.home.requests.devices import Inspect
from cowfs.oci.credentials import DockerConfig
from cowfs.oci.documents import Platform
from cowfs.oci.http import Connection
from cowfs.oci.pulling import Pulled, pull
from cowfs.oci.pushing import Push, Pushed
from cowfs.oci.reference import parse_reference
from cowfs.oci.registry import Repository
from tests.oci.small_registry import SmallRegistry

SMALL = HomeOptions(data_size_bytes=256 << 20, metadata_size_bytes=4 << 20, base_size_bytes=16 << 20, durable=False)
AMD64 = Platform("amd64", "linux")
EPOCH = "1970-01-01T00:00:00Z"


@dataclass
class Puller:
    """Pulls and pushes as the command line does, in this process and without waiting."""

    config: DockerConfig
    said: list[str] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)

    def pull(self, home: Path, reference: str, name: str | None = None, platform: Platform = AMD64) -> Pulled:
        wanted = parse_reference(reference)
        with closing(self._connection(wanted.host, f"repository:{wanted.repository}:pull")) as connection:
            return pull(
                home,
                partial(cowfs.open_home, home),
                Repository(connection, wanted),
                wanted,
                platform,
                name=name,
                report=lambda _done, _total: None,
                say=self.said.append,
            )

    def push(
        self,
        home: Path,
        layer: str,
        reference: str,
        *,
        platform: Platform = AMD64,
        with_blocks: bool = True,
        into_index: bool = False,
    ) -> Pushed:
        wanted = parse_reference(reference)
        open_home = partial(cowfs.open_home, home)
        with (
            closing(self._connection(wanted.host, f"repository:{wanted.repository}:pull,push")) as connection,
            Push(
                open_home,
                Repository(connection, wanted),
                wanted,
                lambda _done, _total: None,
                self.said.append,
                created=EPOCH,
            ) as push,
        ):
            return push.push(layer, platform, with_blocks=with_blocks, into_index=into_index)

    def _connection(self, host: str, scope: str) -> Connection:
        return Connection(host, scope, self.config, sleep=self.slept.append)


@pytest.fixture
def puller(tmp_path: Path) -> Puller:
    return Puller(DockerConfig(tmp_path / "docker" / "config.json"))


def make_home(path: Path, options: HomeOptions = SMALL) -> Path:
    with cowfs.open_home(path, create=True, options=options):
        pass
    return path


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[list[Path]]:
    """Two empty homes, which are checked at the end."""
    paths = [make_home(tmp_path / name) for name in ("one", "other")]
    yield paths
    for path in paths:
        require_sound(path)


def require_sound(path: Path) -> None:
    with cowfs.open_home(path) as home:
        assert home.check().clean
        assert home.status().problems == []


def names_in(path: Path) -> list[str]:
    with cowfs.open_home(path) as home:
        return sorted(home.layers.list())


def mapped_bytes(home: Home, name: str) -> int:
    return home._session.call(Inspect(name)).mapped_bytes


@pytest.fixture
def registry() -> Iterator[SmallRegistry]:
    with SmallRegistry() as running:
        yield running
