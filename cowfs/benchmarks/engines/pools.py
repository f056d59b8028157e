"""Thins of a pool that is there already, the user's own (`--thin-pool`): it loses nothing but what this run has made.

The ids of the thins are taken from the top of the range, those that the pool has are left out. The pool's transaction
id stays what it is, and all thins of the run are deleted at its end; by the janitor, where the run is killed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cowfs.benchmarks.engines.interface import WORKS, Contender, Engine, Offer, Setting
from cowfs.benchmarks.engines.nodes import NodeDevices
from cowfs.benchmarks.engines.tools import lacking
from cowfs.benchmarks.left_behind import THINS_FILE
from cowfs.errors import CowfsError, UsageError
from cowfs.pool.counters import CountingPool, PoolCounters
from cowfs.pool.interface import NodeBackend, NodeThin, Pool, ProbeResult
from cowfs.pool.registry import load_backend
from cowfs.units import format_size

_BACKEND: Final = "dmthin"
_LAST_ID: Final = (1 << 24) - 1
_SECTOR_BYTES: Final = 512


@dataclass
class _Thin:
    """A thin of this run."""

    thin_id: int
    size_bytes: int


class PoolContender(NodeDevices):
    """Thins by name, which the pool knows by number."""

    def __init__(self, setting: Setting, pool: Pool) -> None:
        super().__init__(setting)
        self._pool = pool
        self._thins: dict[str, _Thin] = {}
        self._record = setting.directory / THINS_FILE
        self._shown: tuple[str, NodeThin] | None = None

    def _free_id(self) -> int:
        taken = set(self._pool.thin_ids())
        return next(thin_id for thin_id in itertools.count(_LAST_ID, -1) if thin_id not in taken)

    def create(self, name: str, size_bytes: int) -> None:
        thin_id = self._free_id()
        self._pool.create_thin(thin_id)
        self._thins[name] = _Thin(thin_id, size_bytes)
        self._note()

    def take_snapshot(self, origin: str, name: str) -> None:
        thin_id, old = self._free_id(), self._thins[origin]
        shown = self._shown[1] if self._shown is not None and self._shown[0] == origin else None
        if shown is not None:
            shown.suspend()
        try:
            self._pool.create_snap(thin_id, old.thin_id)
        finally:
            if shown is not None:
                shown.resume()
        self._thins[name] = _Thin(thin_id, old.size_bytes)
        self._note()

    def remove(self, name: str) -> None:
        super().remove(name)
        self._note(without=name)
        self._pool.delete(self._thins[name].thin_id)
        del self._thins[name]

    def _note(self, *, without: str = "") -> None:
        """Tell the janitor what there is: after it was made, and before it is removed, as another program may then use
        the id.
        """
        ids = [str(thin.thin_id) for name, thin in self._thins.items() if name != without]
        self._record.write_text("\n".join([self._pool.name, *ids]))

    def remove_all(self) -> None:
        for name in list(self._thins):
            self.remove(name)

    @contextmanager
    def disk(self, name: str) -> Iterator[Path]:
        thin = self._thins[name]
        node_name = f"cowfs-bench-{thin.thin_id:x}"
        opened = self._pool.activate(node_name, thin.thin_id, thin.size_bytes // _SECTOR_BYTES)
        try:
            assert isinstance(opened, NodeThin)
            self._shown = name, opened
            yield Path(opened.node)
        finally:
            self._shown = None
            opened.close()

    def settle(self) -> None:
        super().settle()
        if self._shown is not None:
            self._shown[1].flush()
        self._pool.commit()

    def counters(self) -> PoolCounters | None:
        return self._pool.counters().pool if isinstance(self._pool, CountingPool) else None

    def written_bytes(self) -> int | None:
        counters = self.counters()
        if counters is None or counters.data_written_bytes is None or counters.metadata_written_bytes is None:
            return None
        return counters.data_written_bytes + counters.metadata_written_bytes

    def host_bytes(self) -> int | None:
        """The pool's own space is not a matter of files."""
        return None

    def details(self) -> dict[str, str]:
        return {
            "pool": self._pool.name,
            "block size": format_size(self._pool.block_bytes),
            "tree": "ext4 of the kernel",
        }


def thin_pool_engine(path: str) -> Engine:
    """The engine `dmthin` on a pool of the user's: its name, or the path of its node below /dev/mapper."""
    name = path.removeprefix("/dev/mapper/")
    if not name or "/" in name:
        raise UsageError(
            f"--thin-pool {path} is not the name of a pool; 'dmsetup ls --target thin-pool' lists them, as in "
            "--thin-pool /dev/mapper/vg-pool"
        )

    def look() -> ProbeResult:
        try:
            found = load_backend(_BACKEND).probe()
        except CowfsError as error:
            return ProbeResult(usable=False, problem=error.message)
        return (lacking("e2fsprogs", "mkfs.ext4") or WORKS) if found.usable else found

    @contextmanager
    def set_up(setting: Setting) -> Iterator[Contender]:
        backend = load_backend(_BACKEND)
        assert isinstance(backend, NodeBackend)
        pool = backend.open_existing_pool(name)
        try:
            contender = PoolContender(setting, pool)
            try:
                yield contender
            finally:
                contender.remove_all()
        finally:
            pool.close()

    offers = Offer.DISK | Offer.TREE | Offer.SNAPSHOTS | Offer.MANY
    return Engine(_BACKEND, f"dm-thin of the kernel, in the pool {name}", offers, look, set_up)
