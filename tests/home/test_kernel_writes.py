"""Having the kernel write what it keeps: by whom it is waited for, and by how many threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from cowfs.devices.active import ActiveDevices
from cowfs.home.serving import kernel_writes
from cowfs.home.serving.kernel_writes import KernelWrites

PATIENCE_SECONDS = 60  # of a test that fails


class SlowKernel:
    """Writes what it keeps when `go_on` is set, and notes how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.is_asked = threading.Event()
        self.go_on = threading.Event()

    def sync(self, path: str) -> None:
        self.asked.append(path)
        self.is_asked.set()
        assert self.go_on.wait(PATIENCE_SECONDS)


class Active:
    """Devices whose nodes are in use: all of them, or those that are named; `kept` have nodes with names."""

    def __init__(self, *names: str, kept: tuple[str, ...] = ()) -> None:
        self._names = names
        self._kept = kept

    def open_nodes(self) -> dict[str, list[int]]:
        return {name: [number] for number, name in enumerate(self._names)}

    def kept_nodes(self) -> dict[str, str]:
        return {name: f"/dev/mapper/{name}" for name in self._kept}


class Mount:
    def __init__(self, target: Path) -> None:
        self.target = str(target)


def writes_of(active: Active, *syncs: Callable[[str], None]) -> KernelWrites:
    return KernelWrites(cast(ActiveDevices, active), *syncs)


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Where devices are mounted; a test puts them in."""
    at: dict[str, Path] = {}

    def mounts(nodes: dict[str, Any]) -> list[tuple[str, Mount]]:
        return [(name, Mount(at[name])) for name in nodes if name in at]

    monkeypatch.setattr(kernel_writes, "kernel_mounts", mounts)
    return at


async def test_what_is_given_up_goes_on_and_is_waited_for_by_the_next(tmp_path: Path, mounted: dict[str, Path]) -> None:
    mounted["a"] = tmp_path
    kernel = SlowKernel()
    writes = writes_of(Active("a"), kernel.sync)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writes.write, "a")
            await trio.to_thread.run_sync(kernel.is_asked.wait, PATIENCE_SECONDS)
            scope.cancel()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(writes.write, "a")
        await trio.testing.wait_all_tasks_blocked()
        assert len(kernel.asked) == 1, "one thread for a device"
        kernel.go_on.set()
    # Once more for what was written after the first had begun, and by one thread for all who waited.
    assert kernel.asked == [str(tmp_path)] * 2


async def test_what_cannot_be_written_does_not_fail(tmp_path: Path, mounted: dict[str, Path]) -> None:
    def fail(path: str) -> None:
        raise OSError(5, "of the disk", path)

    mounted["a"] = tmp_path
    writes = writes_of(Active("a", "b", kept=("b",)), fail, fail)
    await writes.write("a")
    await writes.write("b")


async def test_a_device_is_written_through_its_mount_or_its_node(tmp_path: Path, mounted: dict[str, Path]) -> None:
    """Its node, where it is mounted in another mount namespace only; one that nothing uses is left as it is."""
    mounted |= {"here": tmp_path, "gone": tmp_path / "none"}
    kept = ("here", "elsewhere", "gone", "idle")
    written: list[tuple[str, str]] = []
    writes = writes_of(
        Active("here", "elsewhere", "gone", "nameless", kept=kept),
        lambda path: written.append(("mount", path)),
        lambda path: written.append(("node", path)),
    )
    for name in ("here", "elsewhere", "gone", "nameless", "idle", "none"):
        await writes.write(name)
    assert written == [("mount", str(tmp_path)), ("node", "/dev/mapper/elsewhere"), ("node", "/dev/mapper/gone")]
