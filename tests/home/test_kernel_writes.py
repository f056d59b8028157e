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


class Mounted(KernelWrites):
    """Of devices that are mounted below a directory."""

    def __init__(self, directory: Path, sync: Callable[[str], None]) -> None:
        super().__init__(cast(ActiveDevices, None), sync)
        self._directory = directory

    def _mount_point(self, device: str) -> str | None:
        return str(self._directory / device) if device != "none" else None


async def test_what_is_given_up_goes_on_and_is_waited_for_by_the_next(tmp_path: Path) -> None:
    kernel = SlowKernel()
    writes = Mounted(tmp_path, kernel.sync)
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
    assert kernel.asked == [str(tmp_path / "a")] * 2


async def test_a_device_that_is_not_mounted_is_not_waited_for(tmp_path: Path) -> None:
    kernel = SlowKernel()
    await Mounted(tmp_path, kernel.sync).write("none")
    assert not kernel.asked


async def test_what_cannot_be_written_does_not_fail(tmp_path: Path) -> None:
    def fail(path: str) -> None:
        raise OSError(5, "of the disk", path)

    await Mounted(tmp_path, fail).write("a")


async def test_only_mounts_of_the_device_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mount:
        target = str(tmp_path)

    class Active:
        def open_nodes(self) -> dict[str, list[int]]:
            return {"a": [1], "b": [2]}

    asked: list[dict[str, Any]] = []

    def mounts(nodes: dict[str, Any]) -> list[tuple[str, Mount]]:
        asked.append(nodes)
        return [(name, Mount()) for name in nodes]

    monkeypatch.setattr(kernel_writes, "kernel_mounts", mounts)
    written: list[str] = []
    writes = KernelWrites(cast(ActiveDevices, Active()), written.append)
    await writes.write("a")
    await writes.write("c")
    assert (asked, written) == ([{"a": [1]}, {}], [str(tmp_path)])
