"""What calls answer while the pool cannot be changed or is full, and what is there when it can be again.

On the emulated backend; the kernel's pools are in `tests/uml/guest_snapshotter_faults.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from cowfs.containerd.grpc import Code
from cowfs.containerd.messages import ACTIVE
from cowfs.containerd.snapshots import Snapshotter
from cowfs.errors import OutOfDataSpace
from cowfs.home.executor import Executor
from cowfs.home.maintenance import check_home, repair_home
from cowfs.home.opened.open_home import OpenHome
from cowfs.pool import BreakablePool, PoolMode
from tests.containerd.held_up import snapshotter
from tests.containerd.killed_snapshotter import answer, found_state, opened, removing
from tests.containerd.server import names, refused
from tests.containerd.test_held_up import CALLS, prepared
from tests.containerd.test_removals import Stuck

BLOCK_BYTES = 64 << 10


def degraded(mode: PoolMode, *, needs_check: bool = False) -> Callable[[OpenHome], None]:
    def degrade(home: OpenHome) -> None:
        pool = home.devices.pool
        assert isinstance(pool, BreakablePool)
        pool.degrade(mode, needs_check=needs_check)

    return degrade


def full(home: OpenHome) -> None:
    """A device that is no snapshot's takes all that there is, as a container may."""
    home.devices.create("greedy", size_bytes=128 << 20)
    thin = home.devices.active.activate("greedy")

    def fill() -> None:
        for offset in range(0, thin.size_bytes, BLOCK_BYTES):
            thin.pwrite(offset, b"x" * BLOCK_BYTES)

    with pytest.raises(OutOfDataSpace):
        fill()
    home.devices.active.deactivate("greedy")


async def begin(snapshotter: Snapshotter) -> None:
    async with removing(snapshotter):
        await snapshotter.begin()


STATES: dict[str, tuple[Callable[[OpenHome], None], Code]] = {
    "read-only": (degraded(PoolMode.READ_ONLY), Code.UNAVAILABLE),
    "needs a check": (degraded(PoolMode.READ_ONLY, needs_check=True), Code.UNAVAILABLE),
    "failed": (degraded(PoolMode.FAIL), Code.UNAVAILABLE),
    "out of metadata space": (degraded(PoolMode.OUT_OF_METADATA_SPACE), Code.RESOURCE_EXHAUSTED),
    "out of data space": (full, Code.RESOURCE_EXHAUSTED),
}


@pytest.mark.parametrize("state", STATES)
def test_calls_end_whatever_the_pool_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    """No call waits for it: the deadlines' clock stands still. What needs the pool is refused and changes nothing.

    The next snapshotter, on a pool that was repaired where it had to be, has each snapshot, and no device without one.
    """
    spoil, code = STATES[state]
    with snapshotter(tmp_path, monkeypatch) as held_up, held_up.connected() as client:
        prepared(client)
        held_up.settle()
        mounts = client.call("Mounts", key="box")
        held_up.in_engine(lambda: spoil(held_up.home))
        assert refused(client, "Prepare", **CALLS["Prepare"]) is code
        assert refused(client, "Prepare", key="empty") is code
        assert refused(client, "Commit", **CALLS["Commit"]) is code
        assert client.call("Mounts", key="box") == mounts
        assert client.call("Stat", key="box").info.kind == ACTIVE
        assert client.call("Usage", key="image").inodes == 0
        assert names(client) == ["box", "image", "old"]
        for method in ("View", "Update", "Remove"):  # which change the database alone
            client.call(method, **CALLS[method])
        client.call("Cleanup")
        assert names(client) == ["box", "image", "view"]
    if state in ("needs a check", "failed"):
        repair_home(tmp_path / "home")
    with opened(tmp_path / "home") as (home, store, next_one):
        if "greedy" in home.devices:
            home.devices.remove("greedy")
        trio.run(begin, next_one)
        assert found_state(home, store) == {
            "box": ("active", "image", {}),
            "image": ("committed", "", {}),
            "view": ("view", "image", {}),
        }
        box = store.find("box")
        assert box is not None
        assert box.labels == {"c": "d"}
    found = check_home(tmp_path / "home", "emulated")
    assert not found.findings, found.findings


async def test_a_snapshotter_ends_well_whatever_the_pool_does(tmp_path: Path) -> None:
    """What it could not remove any more, the next one removes."""
    with opened(tmp_path / "home") as (home, store, _):
        snapshotter = Snapshotter(Executor(home, Stuck()), store)
        async with removing(snapshotter):
            await answer(snapshotter, store, ("Prepare", "gone", ""))
            await answer(snapshotter, store, ("Remove", "gone", ""))
            degraded(PoolMode.READ_ONLY)(home)
    with opened(tmp_path / "home") as (home, store, snapshotter):
        assert len(store.orphans(record.name for record in home.devices.records())) == 1
        await begin(snapshotter)
        assert found_state(home, store) == {}
