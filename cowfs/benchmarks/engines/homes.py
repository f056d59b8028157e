"""cowfs itself: homes of its two backends, in this process, or served by a mount.

A disk of emulated is the file of a raw mount, one of dmthin the kernel's node. A tree of emulated is a mount through
FUSE; one of dmthin is mounted by the kernel, and through FUSE by the engine `dmthin-fuse`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cowfs.benchmarks.engines.interface import Contender, Engine, Offer, Setting
from cowfs.benchmarks.engines.nodes import mounted_node
from cowfs.benchmarks.engines.plain import synced
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.errors import CowfsError
from cowfs.home.api.home import Home, open_home
from cowfs.pool.counters import PoolCounters
from cowfs.pool.interface import NodeThin, ProbeResult
from cowfs.pool.registry import load_backend
from cowfs.units import format_size
from cowfs.version import VERSION

_DATA_BYTES: Final = 256 << 30  # sparse
_METADATA_BYTES: Final = 256 << 20
_BASE_BYTES: Final = 256 << 20
_BLOCK_BYTES: Final = 64 << 10


class HomeContender(Contender):
    """The devices of a home, which is open here."""

    def __init__(self, setting: Setting, home: Home, backend: str, block_bytes: int) -> None:
        super().__init__(setting.name, setting.directory)
        self._home = home
        self._backend = backend
        self._block_bytes = block_bytes
        self._shown: Path | None = None

    def create(self, name: str, size_bytes: int) -> None:
        self._home.create(name, size_bytes=max(size_bytes, _BASE_BYTES))

    def snapshot(self, origin: str, name: str) -> None:
        self._home.snapshot(origin, name)

    def snapshot_many(self, origin: str, names: Sequence[str]) -> None:
        self._home.create_many(names, parent=origin)

    def remove(self, name: str) -> None:
        self._home.remove(name)

    @contextmanager
    def disk(self, name: str) -> Iterator[Path]:
        with self._home.mount(name, raw=True) as directory, self._seen(directory):
            yield directory / name

    @contextmanager
    def tree(self, name: str) -> Iterator[Path]:
        with self._home.mount(name) as directory, self._seen(directory):
            yield directory

    @contextmanager
    def _seen(self, path: Path) -> Iterator[None]:
        self._shown = path
        try:
            yield
        finally:
            self._shown = None

    def settle(self) -> None:
        if self._shown is not None:
            synced(self._shown)

    def processes(self) -> list[int]:
        holder = self._home.holder_pid
        return [] if holder is None else [holder]

    def counters(self) -> PoolCounters | None:
        return self._home.io().pool

    def written_bytes(self) -> int | None:
        pool = self._home.io().pool
        if pool.data_written_bytes is None or pool.metadata_written_bytes is None:
            return None
        return pool.data_written_bytes + pool.metadata_written_bytes

    def details(self) -> dict[str, str]:
        return {
            "version": VERSION,
            "backend": self._backend,
            "block size": format_size(self._block_bytes),
            "disk": "raw mount through FUSE",
            "tree": "mount through FUSE",
        }

    @property
    def backend(self) -> str:
        return self._backend

    @contextmanager
    def home(self) -> Iterator[Path]:
        path = self.directory / "given"
        with open_home(path, backend=self._backend, create=True, options=_options(self._block_bytes)):
            pass
        try:
            yield path
        finally:
            shutil.rmtree(path)


class NodeContender(HomeContender):
    """A home whose devices are nodes of the kernel, which tools use and the kernel mounts."""

    def __init__(self, setting: Setting, home: Home, backend: str, block_bytes: int) -> None:
        super().__init__(setting, home, backend, block_bytes)
        self._disk: NodeThin | None = None

    @contextmanager
    def disk(self, name: str) -> Iterator[Path]:
        with self._home.device(name) as disk:
            assert isinstance(disk, NodeThin)
            self._disk = disk
            try:
                yield Path(disk.node)
            finally:
                self._disk = None

    @contextmanager
    def tree(self, name: str) -> Iterator[Path]:
        with self.disk(name) as node, mounted_node(node, name, self.directory / "tree") as path, self._seen(path):
            yield path

    def settle(self) -> None:
        super().settle()
        if self._disk is not None:
            self._disk.flush()

    def details(self) -> dict[str, str]:
        mount = "mounted by the kernel: ext4"
        return super().details() | {"disk": "node of the kernel", "tree": mount}


def _options(block_bytes: int) -> HomeOptions:
    return HomeOptions(
        data_size_bytes=_DATA_BYTES,
        metadata_size_bytes=_METADATA_BYTES,
        base_size_bytes=_BASE_BYTES,
        block_bytes=block_bytes,
        min_free_percent=0,
        error_if_no_space=True,
    )


@dataclass(frozen=True)
class _Homes:
    """Sets up homes of one backend."""

    backend: str
    kind: type[HomeContender]

    def look(self) -> ProbeResult:
        try:
            return load_backend(self.backend).probe()
        except CowfsError as error:
            return ProbeResult(usable=False, problem=error.message)

    @contextmanager
    def set_up(self, setting: Setting) -> Iterator[Contender]:
        block_bytes = setting.block_bytes or _BLOCK_BYTES
        path = setting.directory / "home"
        with open_home(path, backend=self.backend, create=True, options=_options(block_bytes)) as home:
            yield self.kind(setting, home, self.backend, block_bytes)

    def engine(self, name: str, title: str) -> Engine:
        offers = Offer.DISK | Offer.TREE | Offer.SNAPSHOTS | Offer.MANY | Offer.HOME | Offer.BLOCK_SIZE
        return Engine(name, title, offers, self.look, self.set_up)


EMULATED = _Homes("emulated", HomeContender).engine("emulated", "cowfs in user space: raw mount, tree through FUSE")
DMTHIN = _Homes("dmthin", NodeContender).engine("dmthin", "dm-thin of the kernel: its node, ext4 mounted by the kernel")
DMTHIN_FUSE = _Homes("dmthin", HomeContender).engine(
    "dmthin-fuse", "dm-thin of the kernel, shown by cowfs through FUSE"
)
