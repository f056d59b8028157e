"""Kills at every step of every change of a home on the kernel's pool, inside a guest; see `guest_checks`.

A step is an operation on the home's files, an ioctl that changes something, or a write, discard or flush of a thin. The
process that dies there is a child which ends at once, so its descriptors, and the devices that only it used, go as they
do with any process that is killed. After each, the change is done or undone, everything else is as it was, and nothing
of device mapper is left.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from cowfs.devices.deviceset import DeviceSet
from cowfs.testing.judges import recount_findings
from cowfs_dmthin import BACKEND, Control
from cowfs_dmthin.abi import Command
from cowfs_dmthin.backend import DmThinBackend
from cowfs_dmthin.disk import DirectDisk
from tests.devices.crash_worlds import (
    Change,
    Contents,
    World,
    create,
    create_from_active,
    create_larger,
    deferred_remove,
    replace,
    resize,
)
from tests.devices.home_fakes import PAGE, DyingOs, Filesystem, Steps, assert_whole, open_home
from tests.uml.guest_checks import Check, run_checks

CHECKS: list[Check] = []
DIED: Final = 99
IS_LONG: Final = "COWFS_TEST_LONG" in os.environ
WORKERS: Final = 8  # the kernel waits more than it works
CHANGING: Final = frozenset(
    {
        Command.DEV_CREATE,
        Command.DEV_REMOVE,
        Command.DEV_SUSPEND,
        Command.TABLE_LOAD,
        Command.TABLE_CLEAR,
        Command.TARGET_MSG,
    }
)


class Ending(Steps):
    """Steps at one of which the process ends. Those before `arm` are not counted."""

    def __init__(self, die_at: int | None) -> None:
        super().__init__(die_at)
        self._is_armed = False
        self.last_words: Callable[[], object] = lambda: None

    def arm(self) -> None:
        self._is_armed = True

    def step(self, label: str) -> None:
        if not self._is_armed:
            return
        if len(self.log) == self.die_at:
            self.last_words()
            os._exit(DIED)
        self.log.append(label)


class EndingOs(DyingOs):
    def __init__(self, steps: Ending) -> None:
        super().__init__(steps)
        self._ending = steps

    def write(self, fd: int, data: bytes) -> int:
        self._ending.last_words = lambda: os.write(fd, data[: len(data) // 2])
        written = super().write(fd, data)
        self._ending.last_words = lambda: None
        return written


class EndingControl(Control):
    def __init__(self, steps: Ending) -> None:
        super().__init__()
        self._steps = steps

    def _call(self, command: Command, name: str, *arguments: Any, **options: Any) -> Any:
        if command in CHANGING:
            self._steps.step(f"{command.name} {name}")
        return super()._call(command, name, *arguments, **options)


def end_in_disks(steps: Ending) -> None:
    """Have each change of a thin's content be a step, in a process that will not live long."""

    def stepping(what: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: DirectDisk, *arguments: Any) -> Any:
            steps.step(what)
            return original(self, *arguments)

        return call

    for what in ("pwrite", "discard", "flush"):
        setattr(DirectDisk, what, stepping(what, getattr(DirectDisk, what)))


class Child:
    """A process that does something and answers with JSON, or dies at one of its `steps`."""

    def __init__(self, act: Callable[[], object]) -> None:
        receiver, sender = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            self._run(act, sender)
        os.close(sender)
        self._answers = open(receiver, "rb")  # noqa: SIM115

    def _run(self, act: Callable[[], object], sender: int) -> None:
        try:
            os.write(sender, json.dumps(act()).encode())
            os._exit(0)
        except BaseException:
            os.write(sender, traceback.format_exc().encode())
            os._exit(1)

    def answer(self) -> Any:
        """None when it died as it was to."""
        with self._answers as answers:
            answer = answers.read().decode()
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        assert status in (0, DIED), answer
        return None if status == DIED else json.loads(answer)


class KernelWorld(World):
    """On the kernel's pool."""

    name = "dmthin"

    def backend(self) -> Any:
        return BACKEND

    def judge(self, devices: DeviceSet) -> None:
        device = devices.pool.open_metadata()
        assert recount_findings(device, strict=True) == []
        device.close()

    def steps_until(self, die_at: int | None, change: Change, *, in_opening: bool) -> list[str] | None:
        """Run a change that dies at a step; the steps it took, when it did not die.

        Args:
            in_opening: count the steps of opening the home, too.
        """

        def run() -> list[str]:
            steps = Ending(die_at)
            if in_opening:
                steps.arm()
            end_in_disks(steps)
            backend = DmThinBackend(EndingControl(steps))
            with open_home(self.home, backend, system=EndingOs(steps), filesystem=Filesystem(steps)) as devices:
                steps.arm()
                change(devices)
                steps.step("end")
                steps.die_at = None
                return list(steps.log)

        answer: list[str] | None = Child(run).answer()
        return answer

    def kill_at(
        self, points: Sequence[int], saved: Path, change: Change, allowed: list[Contents], *, in_opening: bool
    ) -> list[int]:
        """Kill a change at each of these steps; which of the allowed contents was found after each."""
        shutil.copytree(saved, self.home)
        seen = []
        for point in points:
            self.restore(saved)
            assert self.steps_until(point, change, in_opening=in_opening) is None
            with self.open() as devices:
                found = self.contents_of(devices)
                assert found in allowed, (point, found)
                taken = {record.device_id for record in devices.records()}
                parent = "a" if "a" in found else "b"
                assert devices.create("next", parent=parent).device_id not in taken
                assert_whole(devices)
                thin = devices.active.activate("next", read_only=True)
                assert thin.pread(0, PAGE).rstrip(b"\0") == found[parent][1]
            seen.append(allowed.index(found))
        return seen


def check_change(change: Change, prepare: Callable[[Path], object] | None = None) -> None:
    """Args: prepare: does the first half of a change, whose other half is done whenever the home opens."""
    in_opening = prepare is not None

    def run(folder: Path) -> None:
        world = KernelWorld(folder / "home")
        world.fill()
        before = world.contents()
        if prepare is not None:
            prepare(world.home)
        saved = world.save(folder / "saved")
        steps = world.steps_until(None, change, in_opening=in_opening)
        assert steps is not None
        points = chosen(steps)
        after = world.contents()
        assert before != after
        allowed = [after] if in_opening else [before, after]
        options = {"in_opening": in_opening}
        worlds = [KernelWorld(folder / str(number)) for number in range(WORKERS)]
        workers = [
            Child(partial(world.kill_at, points[number::WORKERS], saved, change, allowed, **options))
            for number, world in enumerate(worlds)
        ]
        seen = {found for worker in workers for found in worker.answer()}
        assert seen == set(range(len(allowed)))
        text = f"{change.__name__} on the kernel's pool: killed at {len(points)} of {len(steps)} points"
        print(json.dumps({"figure": text}), flush=True)

    run.__name__ = f"{change.__name__}_is_wholly_there_or_wholly_absent"
    CHECKS.append(run)


def chosen(steps: Sequence[str]) -> list[int]:
    """The steps to die at: all of them; else the first, each message and discard, and what follows the last of them.

    Between two of these the files of the home change, which pools in this process show at every step, and faster.
    """
    if IS_LONG:
        return list(range(len(steps)))
    telling = [number for number, label in enumerate(steps) if label.startswith(("TARGET_MSG", "discard"))]
    return sorted({0, *telling, telling[-1] + 1})


def remove_full(devices: DeviceSet) -> None:
    devices.remove("a")


def retry_deletion(devices: DeviceSet) -> None:
    devices.deletions.retry()


def mark(home: Path) -> None:
    record = home / "metadata/b"
    record.write_text(record.read_text().replace('"deleted":false', '"deleted":true'))


for _change in (create, remove_full, replace, resize):
    check_change(_change)
if IS_LONG:
    for _change in (create_from_active, create_larger, deferred_remove):
        check_change(_change)
check_change(retry_deletion, mark)


if __name__ == "__main__":
    run_checks(CHECKS, sys.argv[1:])
