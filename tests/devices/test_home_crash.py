"""Kill at every step of every change: what was being done is done or undone, and everything else is untouched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cowfs.devices import DeviceSet
from cowfs.errors import NotAHome
from tests.devices.home_fakes import (
    MIB,
    PAGE,
    SMALL,
    DyingOs,
    FakeBackend,
    FakeState,
    Filesystem,
    Steps,
    assert_whole,
    killed,
    make_home,
    names,
    open_home,
    record_files,
    uuids,
)

Change = Callable[[DeviceSet], object]


@dataclass
class World:
    """A home and its fake pool, which can be copied and brought back."""

    home: Path
    backend: FakeBackend = field(default_factory=FakeBackend)

    def save(self, where: Path) -> tuple[Path, FakeState]:
        shutil.copytree(self.home, where, symlinks=True)
        state = self._state
        copy = FakeState()
        copy.transaction_id = state.transaction_id
        copy.thins = {thin_id: dict(pages) for thin_id, pages in state.thins.items()}
        copy.commit()
        return where, copy

    def restore(self, saved: tuple[Path, FakeState]) -> None:
        where, state = saved
        shutil.rmtree(self.home)
        shutil.copytree(where, self.home, symlinks=True)
        self.backend = FakeBackend()
        copy = FakeState()
        copy.transaction_id = state.transaction_id
        copy.thins = {thin_id: dict(pages) for thin_id, pages in state.thins.items()}
        copy.commit()
        self.backend.states[str(self.home / "devicemapper/metadata")] = copy

    @property
    def _state(self) -> FakeState:
        return self.backend.states[str(self.home / "devicemapper/metadata")]

    def contents(self) -> dict[str, tuple[int, bytes]]:
        """Size and first page of each device; the pool's data and metadata have no page."""
        with open_home(self.home, self.backend) as devices:
            assert_whole(devices)
            assert devices.problems == ()
            thins = self._state.thins
            found = {r.name: (r.size_bytes, thins[r.device_id].get(0, b"").rstrip(b"\0")) for r in devices.records()}
            assert sorted(found) == record_files(self.home)
            assert not list((self.home / "cowfs.replacing").glob("[!.]*"))
            status = devices.status()
        return found | {"data": (status.data_total_bytes, b""), "metadata": (status.metadata_total_bytes, b"")}


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "home")
    with make_home(world.home, world.backend) as devices:
        devices.create("a")
        devices.create("b", parent="a")
        thin = devices.activate("a")
        thin.pwrite(0, b"written to a".ljust(36))
        devices.deactivate("a")
    return world


def create(devices: DeviceSet) -> None:
    devices.create("new", parent="a")


def create_from_active(devices: DeviceSet) -> None:
    devices.activate("a")
    devices.create("new", parent="a")


def remove(devices: DeviceSet) -> None:
    devices.remove("b")


def deferred_remove(devices: DeviceSet) -> None:
    devices.activate("b")
    devices.remove("b", deferred=True)
    devices.deactivate("b")


def replace(devices: DeviceSet) -> None:
    with devices.replacing("a") as thin:
        thin.pwrite(0, b"new content of a".ljust(36))
        thin.pwrite(PAGE, b"more of it")


def create_larger(devices: DeviceSet) -> None:
    devices.create("new", parent="a", size_bytes=2 * MIB)


def resize(devices: DeviceSet) -> None:
    devices.resize("a", 3 * MIB)


def grow_base(devices: DeviceSet) -> None:
    devices.resize("base", 2 * MIB)


def resize_pool(devices: DeviceSet) -> None:
    devices.resize_pool(data_size_bytes=8 * MIB, metadata_size_bytes=4 * MIB)


CHANGES = [create, create_from_active, create_larger, remove, deferred_remove, replace, resize, grow_base, resize_pool]


def run_until(world: World, change: Change, die_at: int, *, power_cut: bool) -> bool:
    """Run a change that dies at a step; whether it died. The first steps are those of the opening itself."""
    steps = Steps(die_at)
    system = DyingOs(steps, power_cut=power_cut)
    world.backend.steps = steps
    with killed():
        devices = open_home(world.home, world.backend, system=system, filesystem=Filesystem(steps))
        change(devices)
        devices.close()
    if not steps.is_dead:
        return False
    system.lose_power()
    _drop_lock()
    world.backend.steps = Steps()
    world.backend.crash()
    return True


def _drop_lock() -> None:
    """A killed process has no open files; this one still has the lock's descriptor."""
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").endswith("cowfs.lock"):
                os.close(int(fd))
        except FileNotFoundError:
            continue


@pytest.mark.parametrize("power_cut", [False, True], ids=["kill", "power-cut"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_wholly_there_or_wholly_absent(
    world: World, tmp_path: Path, change: Change, power_cut: bool
) -> None:
    before = world.contents()
    saved = world.save(tmp_path / "saved")
    with open_home(world.home, world.backend) as devices:
        change(devices)
    after = world.contents()
    assert before != after
    points, seen = 0, set()
    while True:
        world.restore(saved)
        if not run_until(world, change, points, power_cut=power_cut):
            break
        points += 1
        found = world.contents()
        if change is resize_pool:  # two changes, one after the other
            assert found in (before, before | {"metadata": after["metadata"]}, after), points
        else:
            assert found in (before, after), points
        seen.add(found == after)
        assert world.contents() == found  # opening again changes nothing
        with open_home(world.home, world.backend) as devices:
            taken = {record.device_id for record in devices.records()}
            assert devices.create("next", parent="a").device_id not in taken
            assert_whole(devices)
        assert world.contents()["next"] == world.contents()["a"]
    assert seen == {True, False}
    print(f"{change.__name__}: killed at {points} points{' with power cut' if power_cut else ''}")


@pytest.mark.parametrize("change", [create, create_larger, remove, resize])
def test_recovery_may_be_cut_short_at_every_step_too(world: World, tmp_path: Path, change: Change) -> None:
    before = world.contents()
    saved = world.save(tmp_path / "saved")
    with open_home(world.home, world.backend) as devices:
        change(devices)
    after = world.contents()
    points = first = 0
    while True:
        world.restore(saved)
        if not run_until(world, change, first, power_cut=True):
            break
        crashed = world.save(tmp_path / f"crashed{first}")
        second = 0
        while True:
            world.restore(crashed)
            if not run_until(world, lambda _devices: None, second, power_cut=True):
                break
            assert world.contents() in (before, after)
            points += 1
            second += 1
        first += 1
    assert points > first
    print(f"{change.__name__}: recovery killed at {points} points after {first} kills")


@pytest.mark.parametrize("power_cut", [False, True], ids=["kill", "power-cut"])
def test_making_a_home_is_finished_by_the_next_init(tmp_path: Path, power_cut: bool) -> None:
    points, finished = 0, 0
    while True:
        home = tmp_path / f"home{points}"
        backend, steps = FakeBackend(), Steps(points)
        backend.steps = steps
        system = DyingOs(steps, power_cut=power_cut)
        with killed():
            devices = DeviceSet.init(
                home, backend, SMALL, filesystem=Filesystem(steps), new_uuid=uuids(), system=system
            )
            devices.close()
        if not steps.is_dead:
            break
        points += 1
        system.lose_power()
        _drop_lock()
        backend.steps = Steps()
        backend.crash()
        try:
            devices = open_home(home, backend)
            finished += 1
        except NotAHome:
            devices = make_home(home, backend)
        with devices:
            assert names(devices) == ["base"]
            assert devices.record("base").initialized
            assert_whole(devices)
            assert devices.problems == ()
            devices.create("a")
        with open_home(home, backend) as devices:
            assert names(devices) == ["a", "base"]
            thin = devices.activate("a", read_only=True)
            assert thin.pread(0, 36).decode() == devices.status().base_uuid
    assert finished > 0
    assert points > 30
    print(f"init: killed at {points} points{' with power cut' if power_cut else ''}, {finished} times after its end")


@pytest.mark.parametrize("power_cut", [False, True], ids=["kill", "power-cut"])
def test_making_the_base_again_survives_a_kill_at_every_step(world: World, tmp_path: Path, power_cut: bool) -> None:
    record = world.home / "metadata/base"
    record.write_text(record.read_text().replace('"initialized":true', '"initialized":false'))
    saved = world.save(tmp_path / "saved")
    points = 0
    while True:
        world.restore(saved)
        if not run_until(world, lambda devices: devices.create("new"), points, power_cut=power_cut):
            break
        points += 1
        with open_home(world.home, world.backend) as devices:
            assert {"a", "b"} <= set(names(devices)) <= {"a", "b", "base", "new"}
            assert_whole(devices)
            fresh = devices.create("fresh")
            assert devices.record("base").initialized
            thin = devices.activate("fresh", read_only=True)
            assert thin.pread(0, 36).decode() == devices.status().base_uuid
            assert fresh.parent == "base"
    assert points > 20
    print(f"base again: killed at {points} points")


def test_the_seams_undo_what_was_not_synced(tmp_path: Path) -> None:
    system = DyingOs(Steps(), power_cut=True)
    path = str(tmp_path / "file")
    fd = system.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    system.write(fd, b"lost")
    os.close(fd)
    system.lose_power()
    assert not os.path.exists(path)
    Path(path).write_bytes(b"old" * PAGE)
    system.unlink(path)
    system.lose_power()
    assert Path(path).read_bytes() == b"old" * PAGE
