"""Kill at every step of every change: what was being done is done or undone, and everything else is untouched."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cowfs.devices.changes.importing import Imports
from cowfs.devices.deviceset import DeviceSet
from cowfs.devices.on_disk.files import HomeFiles
from cowfs.devices.on_disk.making import HomeState, state_of
from cowfs.devices.on_disk.records import DeviceFile
from cowfs.errors import HomeError, NotAHome
from tests.devices.crash_worlds import (
    Change,
    EmulatedWorld,
    FakeWorld,
    World,
    create,
    create_from_active,
    create_larger,
    create_many,
    create_many_larger,
    deferred_remove,
    import_chain,
    import_disk,
    import_files,
    remove,
    rename,
    replace,
    resize,
    roll_back,
    roll_back_keeping,
    roll_back_to_active_of_another_size,
)
from tests.devices.home_fakes import MIB, PAGE, DyingOs, Steps, assert_whole, make_home, names

WORLDS = [FakeWorld, EmulatedWorld]


@pytest.fixture(params=WORLDS, ids=lambda world: world.name)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    world: World = request.param(tmp_path / "home")
    world.fill()
    return world


def grow_base(devices: DeviceSet) -> None:
    devices.resize("base", 2 * MIB)


def resize_pool(devices: DeviceSet) -> None:
    devices.resize_pool(data_size_bytes=8 * MIB, metadata_size_bytes=4 * MIB)


def set_no_space(devices: DeviceSet) -> None:
    devices.set_no_space(error=True, timeout_seconds=None)


CHANGES = [
    *(create, create_from_active, create_larger, remove, rename, deferred_remove, replace),
    *(roll_back, roll_back_keeping, roll_back_to_active_of_another_size, create_many, create_many_larger),
    *(resize, grow_base, resize_pool, set_no_space, import_disk, import_files, import_chain),
]


@pytest.mark.parametrize("power_cut", [False, True], ids=["kill", "power-cut"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_wholly_there_or_wholly_absent(
    world: World, tmp_path: Path, change: Change, power_cut: bool
) -> None:
    if change is roll_back_to_active_of_another_size:
        with world.open() as devices:
            devices.create("larger", parent="b", size_bytes=2 * MIB)
    before = world.contents()
    saved = world.save(tmp_path / "saved")
    with world.open() as devices:
        change(devices)
    after = world.contents()
    assert before != after
    points, seen, states = 0, set(), set()
    while True:
        world.restore(saved)
        if not world.run_until(points, change, power_cut=power_cut):
            break
        points += 1
        if (state := world.digest()) in states:
            continue
        states.add(state)
        found = world.contents()
        if change is resize_pool:  # two changes, one after the other
            assert found in (before, before | {"metadata": after["metadata"]}, after), points
        else:
            assert found in (before, after), points
        seen.add(found == after)
        with world.open() as devices:
            assert world.contents_of(devices) == found  # opening again changes nothing
            taken = {record.device_id for record in devices.records()}
            parent = "a" if "a" in devices else "renamed"
            assert devices.create("next", parent=parent).device_id not in taken
            assert_whole(devices)
        assert world.contents()["next"] == world.contents()[parent]
    seen.add(world.contents() == after)  # of the run that nothing cut short
    assert seen == {True, False}
    how = " with power cut" if power_cut else ""
    print(f"{change.__name__} on the {world.name} pool: {len(states)} states of {points} kills{how}")


def test_a_copy_of_the_home_is_whole_or_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kill leaves of a copy does not stand in the way of the next one."""
    world, copy = EmulatedWorld(tmp_path / "home"), EmulatedWorld(tmp_path / "copy")
    world.fill()
    expected = world.contents()
    points, states = 0, set()
    is_dead = True
    while is_dead:
        with monkeypatch.context() as dying:
            dying.setattr(shutil, "rmtree", lambda *_, **__: None)  # which a killed process does not do any more
            is_dead = world.run_until(points, lambda devices: devices.clone(str(copy.home)), power_cut=False)
        points += 1
        state = state_of(HomeFiles(str(copy.home)))
        states.add(state)
        if state is not HomeState.HOME:
            with pytest.raises(NotAHome):
                copy.open()
            with world.open() as devices:
                devices.clone(str(copy.home))
        assert copy.contents() == world.contents() == expected
        shutil.rmtree(copy.home)
    assert states == {HomeState.EMPTY, HomeState.HALF_MADE, HomeState.HOME}


def test_a_copy_is_without_what_an_interrupted_write_left(tmp_path: Path) -> None:
    """Its name is one that the copy uses for its own records."""
    world, copy = EmulatedWorld(tmp_path / "home"), EmulatedWorld(tmp_path / "copy")
    world.fill()
    expected = world.contents()
    for number in range(3, 30):  # so that some are the places of records, in any order of the directory
        (world.home / "metadata" / f".tmp-cowfs-{number}").write_bytes((world.home / "metadata" / "a").read_bytes())
    with world.open() as devices:
        devices.clone(str(copy.home))
    assert copy.contents() == expected


def test_completing_an_import_may_be_cut_short_at_every_step(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What decides is the note; from then on all devices are there, in the process too that could do no more."""

    def fail(self: Imports, records: Mapping[str, DeviceFile]) -> None:
        raise HomeError("the disk is gone", errno=errno.EIO)

    with monkeypatch.context() as patched:
        patched.setattr(Imports, "_finish", fail)
        with world.open() as devices:
            import_chain(devices)
            assert not any(record.deleted for record in devices.records())
            assert {"new1", "new2"} <= set(names(devices))
    assert (world.home / "cowfs.importing").exists()
    saved = world.save(tmp_path / "saved")
    with world.open(read_only=True) as devices:
        assert {"new1", "new2"} <= set(names(devices))
    assert (world.home / "cowfs.importing").exists()
    after = world.contents()
    assert after.keys() >= {"new1", "new2"}
    points = 0
    while True:
        world.restore(saved)
        if not world.run_until(points, lambda _devices: None, power_cut=True):
            break
        points += 1
        assert world.contents() == after
    assert points > 4


@pytest.mark.parametrize("change", [create, create_larger, create_many, remove, rename, resize, roll_back_keeping])
def test_recovery_may_be_cut_short_at_every_step_too(world: World, tmp_path: Path, change: Change) -> None:
    before = world.contents()
    saved = world.save(tmp_path / "saved")
    with world.open() as devices:
        change(devices)
    after = world.contents()
    points = first = 0
    states, recovered = set(), set()
    while True:
        world.restore(saved)
        if not world.run_until(first, change, power_cut=True):
            break
        first += 1
        if (state := world.digest()) in states:
            continue
        states.add(state)
        crashed = world.save(tmp_path / f"crashed{first}")
        second = 0
        while True:
            world.restore(crashed)
            if not world.run_until(second, lambda _devices: None, power_cut=True):
                break
            points += 1
            second += 1
            if (state := world.digest()) not in recovered:
                recovered.add(state)
                assert world.contents() in (before, after)
    assert points > len(states)
    print(
        f"{change.__name__} on the {world.name} pool: recovery of {len(states)} states of {first} kills, "
        f"killed at {points} points, which left {len(recovered)}"
    )


@pytest.mark.parametrize("power_cut", [False, True], ids=["kill", "power-cut"])
def test_a_rename_cut_short_is_seen_whole_by_readers_and_leaves_nothing_to_recover(
    world: World, tmp_path: Path, power_cut: bool
) -> None:
    """Also where there were devices that had the new name, and children of these."""
    with world.open() as devices:
        devices.create("renamed")
        devices.create("c", parent="renamed")
        devices.create("d", parent="b")
        devices.remove("renamed")
    before = parents(world, read_only=True)
    saved = world.save(tmp_path / "saved")
    after = {"renamed": "base", "b": "renamed", "d": "b", "c": None, "base": None}
    points, seen = 0, set()
    while True:
        world.restore(saved)
        if not world.run_until(points, rename, power_cut=power_cut):
            break
        points += 1
        found = parents(world, read_only=True)
        assert found in (before, after), points
        assert parents(world, read_only=False) == found
        if isinstance(world, EmulatedWorld):
            with world.open(read_only=True, verify=False) as devices:
                assert devices.recover() == []
        seen.add(found == after)
        with world.open() as devices:
            name = "renamed" if found == after else "a"
            devices.rename(name, "elsewhere")
            devices.create(name, parent="elsewhere")
        expected = {"elsewhere": "base", name: "elsewhere", "b": "elsewhere", "d": "b", "c": None, "base": None}
        assert parents(world, read_only=False) == expected
    assert seen == {True, False}
    print(f"rename on the {world.name} pool: killed at {points} points")


def parents(world: World, *, read_only: bool) -> dict[str, str | None]:
    with world.open(read_only=read_only) as devices:
        return {record.name: record.parent for record in devices.records()}


@pytest.mark.parametrize("power_cut", [False, True], ids=["kill", "power-cut"])
@pytest.mark.parametrize("make_world", WORLDS, ids=lambda world: world.name)
def test_making_a_home_is_finished_by_the_next_init(
    make_world: Callable[[Path], World], tmp_path: Path, power_cut: bool
) -> None:
    points, finished = 0, 0
    while True:
        world = make_world(tmp_path / f"home{points}")
        home = world.home
        if not world.dies(points, lambda **where: make_home(home, **where).close(), power_cut=power_cut):  # noqa: B023
            break
        points += 1
        try:
            devices = world.open()
            finished += 1
        except NotAHome:
            devices = make_home(world.home, world.backend())
        with devices:
            assert names(devices) == ["base"]
            assert devices.record("base").initialized
            assert_whole(devices)
            assert devices.problems == ()
            devices.create("a")
        with world.open() as devices:
            assert names(devices) == ["a", "base"]
            thin = devices.active.activate("a", read_only=True)
            assert thin.pread(0, 36).decode() == devices.reports.status().base_uuid
        shutil.rmtree(world.home)
    with world.open() as devices:  # of the run that nothing cut short
        finished += names(devices) == ["base"]
    assert finished > 0
    assert points > 30
    print(f"init on the {world.name} pool: killed at {points} points, {finished} times after its end")


@pytest.mark.parametrize("power_cut", [False, True], ids=["kill", "power-cut"])
def test_making_the_base_again_survives_a_kill_at_every_step(world: World, tmp_path: Path, power_cut: bool) -> None:
    record = world.home / "metadata/base"
    record.write_text(record.read_text().replace('"initialized":true', '"initialized":false'))
    saved = world.save(tmp_path / "saved")
    points = 0
    while True:
        world.restore(saved)
        if not world.run_until(points, lambda devices: devices.create("new"), power_cut=power_cut):
            break
        points += 1
        with world.open() as devices:
            assert {"a", "b"} <= set(names(devices)) <= {"a", "b", "base", "new"}
            assert_whole(devices)
            fresh = devices.create("fresh")
            assert devices.record("base").initialized
            thin = devices.active.activate("fresh", read_only=True)
            assert thin.pread(0, 36).decode() == devices.reports.status().base_uuid
            assert fresh.parent == "base"
    assert points > 20
    print(f"base again: killed at {points} points")


def test_a_record_whose_transaction_file_a_crash_kept_from_the_disk_is_removed(tmp_path: Path) -> None:
    """Two names in a directory become durable in any order, until that is synced; nothing of it is in the pool."""
    world = EmulatedWorld(tmp_path / "home")
    world.fill()
    before = world.contents()
    saved = world.save(tmp_path / "saved")
    with world.open() as devices:
        devices.create("new", parent="a")
    record = (world.home / "metadata/new").read_bytes()
    world.restore(saved)
    (world.home / "metadata/new").write_bytes(record)
    assert world.contents() == before
    with world.open() as devices:
        devices.create("new", parent="a")
        assert_whole(devices)


@pytest.mark.parametrize("larger", [False, True])
def test_how_often_making_a_device_waits_for_the_directory_of_records(tmp_path: Path, larger: bool) -> None:
    """Once for both names in it, unless something of the new thin is in the pool before its record."""
    world = EmulatedWorld(tmp_path / "home")
    world.fill()
    steps = Steps()
    system = DyingOs(steps)
    synced: list[str] = []
    fsync = system.fsync

    def noted(fd: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    system.fsync = noted  # type: ignore[method-assign]
    with world.open(system=system) as devices:
        synced.clear()
        devices.create("new", parent="a", size_bytes=2 * MIB if larger else None)
        assert synced.count("metadata") == (2 if larger else 1)
        assert len(synced) == 4 + larger


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
