"""Recovery of whole homes: records and pool come together again, nothing that can be kept is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cowfs.devices import opening
from cowfs.devices.deviceset import DeviceSet
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.devices.reports import HomeFinding
from cowfs.errors import HomeBusy, PoolModeError
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE
from cowfs.home.recovery import recover_home
from cowfs.pool import load_backend
from cowfs.volumes import Volumes
from tests.devices.crash_worlds import EmulatedWorld
from tests.devices.home_fakes import (
    MIB,
    UUIDS,
    FakeBackend,
    assert_whole,
    make_home,
    names,
    open_home,
    record_files,
)
from tests.home.conftest import serving
from tests.kit.contents import contents

EMULATED = load_backend("emulated")
REAL = HomeOptions(data_size_bytes=256 * MIB, metadata_size_bytes=4 * MIB, base_size_bytes=16 * MIB, durable=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Devices of an emulated pool, their thins in brackets: base (1), a (2) of base, b (3) of a; a is a used layer."""
    with make_home(tmp_path / "home", EMULATED) as devices:
        devices.create("a")
        write_id(devices, "a", "a")
        devices.create("b", parent="a")
    return tmp_path / "home"


def write_id(devices: DeviceSet, device: str, content: str) -> None:
    """The fake file system's file `id`."""
    thin = devices.active.activate(device)
    thin.pwrite(64, content.encode())
    devices.active.deactivate(device)


def recover(home: Path, *, dry_run: bool = False, delete_orphans: bool = False) -> list[HomeFinding]:
    with open_home(home, EMULATED, verify=False, read_only=dry_run) as devices:
        return devices.recover(delete_orphans=delete_orphans)


def recover_twice(home: Path, **arguments: bool) -> list[tuple[str, str | None, str]]:
    """(kind, device, action) of what a recovery does, which a dry run foretells. Afterwards all is well."""
    before = contents(home)
    foretold = recover(home, dry_run=True, **arguments)
    assert contents(home) == before
    findings = recover(home, **arguments)
    assert [(f.kind, f.found, f.device, f.thin_id) for f in findings] == [
        (f.kind, f.found, f.device, f.thin_id) for f in foretold
    ]
    assert [f.action.partition(" as /")[0] for f in findings] == [f.action for f in foretold]
    assert recover(home, **arguments) == []
    with open_home(home, EMULATED) as devices:
        assert devices.problems == ()
        assert devices.record("base").initialized
        assert_whole(devices)
        assert names(devices) == record_files(home)
        devices.create("another")
    return [(finding.kind, finding.device, finding.action.partition(" as /")[0]) for finding in findings]


def break_record(home: Path, name: str) -> None:
    (home / "metadata" / name).write_bytes(b'{"device_id":')


def records(home: Path) -> dict[str, tuple[int, int, str | None]]:
    """(thin, size, parent) by name."""
    with open_home(home, EMULATED, read_only=True) as devices:
        return {r.name: (r.device_id, r.size_bytes, r.parent) for r in devices.records()}


# --- nothing, and what opening does


def test_a_sound_home_is_left_alone(home: Path) -> None:
    before = contents(home)
    assert recover(home) == []
    assert contents(home) == before


def test_what_a_crash_left_is_reported(home: Path) -> None:
    with open_home(home, EMULATED) as devices:
        devices.active.activate("b")
        devices.remove("b", deferred=True)
        devices.pool.create_snap(4, 2)
        transaction_id = devices.reports.status().transaction_id
    pending = {"open_transaction_id": transaction_id + 1, "device_hash": "new", "device_id": 4}
    (home / "metadata/transaction-metadata").write_text(json.dumps(pending))
    assert recover_twice(home) == [
        ("unfinished_change", "new", "removed"),
        ("deleted_device", "b", "removed"),
    ]
    assert set(records(home)) == {"a", "another", "base"}


def test_unfinished_content_is_reported(home: Path) -> None:
    with open_home(home, EMULATED) as devices:
        devices.pool.create_snap(4, 2)
    (home / "cowfs.replacing").mkdir()
    (home / "cowfs.replacing/4").write_text('{"name":"a","old_id":2,"new_id":4}')
    assert recover_twice(home) == [("unfinished_change", "a", "finished")]


def test_a_transaction_file_that_cannot_be_read_is_reported(home: Path) -> None:
    (home / "metadata/transaction-metadata").write_text("{")
    assert recover_twice(home) == [("damaged_file", None, "set aside")]


def test_a_transaction_of_another_time_is_set_aside(home: Path) -> None:
    for pending in (
        {"open_transaction_id": 99, "device_hash": "a", "device_id": 2},
        {"open_transaction_id": 4, "device_hash": "a", "device_id": 3},
    ):
        (home / "metadata/transaction-metadata").write_text(json.dumps(pending))
        assert recover_twice(home)[0] == ("stale_transaction", None, "set aside")
        with open_home(home, EMULATED) as devices:
            devices.remove("another")
            pool = devices.pool
            pool.set_transaction_id(devices.reports.status().transaction_id, 3)
    assert len(list((home / "cowfs.damaged").iterdir())) == 2


# --- records


def test_a_record_without_its_thin_is_set_aside(home: Path) -> None:
    with open_home(home, EMULATED) as devices:
        devices.pool.delete(2)
    assert recover_twice(home) == [("missing_thin", "a", "set aside")]
    assert json.loads((home / "cowfs.damaged/a").read_text())["device_id"] == 2


def test_a_record_that_cannot_be_read_comes_back_from_the_file_id(home: Path) -> None:
    break_record(home, "a")
    assert recover_twice(home) == [("damaged_file", None, "set aside"), ("orphan_thin", "a", "recorded as 'a'")]
    assert records(home)["a"] == (2, MIB, "base")
    assert records(home)["b"] == (3, MIB, "a")


def test_a_record_that_is_not_there_comes_back_from_the_transaction(home: Path) -> None:
    """Device b was never used, so its file `id` is its parent's."""
    (home / "metadata/b").unlink()
    assert recover_twice(home) == [("orphan_thin", "b", "recorded as 'b'")]
    assert records(home)["b"] == (3, MIB, "a")


@pytest.mark.parametrize("is_former_name_taken", [False, True])
def test_a_renamed_layer_comes_back_under_its_new_name(home: Path, is_former_name_taken: bool) -> None:
    """Its file `id` has the former one until it is changed."""
    with open_home(home, EMULATED) as devices:
        devices.rename("a", "renamed")
        if is_former_name_taken:
            devices.create("a")
    before = records(home)
    break_record(home, "renamed")
    assert recover_twice(home) == [
        ("damaged_file", None, "set aside"),
        ("orphan_thin", "renamed", "recorded as 'renamed'"),
    ]
    assert {name: record[0] for name, record in records(home).items() if name != "another"} == {
        name: record[0] for name, record in before.items()
    }


def test_parent_and_child_come_back_under_their_own_names(home: Path) -> None:
    for name in "ab":
        break_record(home, name)
    assert {found[1:] for found in recover_twice(home)} >= {("a", "recorded as 'a'"), ("b", "recorded as 'b'")}
    assert records(home)["a"][0] == 2


def test_a_layer_whose_content_was_replaced_comes_back(home: Path) -> None:
    """Its thin was not made in the transaction that made the layer, but in the one of the next."""
    with open_home(home, EMULATED) as devices:
        with devices.replacing("a") as thin:
            thin.pwrite(64, b"a")
        devices.create("next")
        assert devices.record("a").device_id == 4
    break_record(home, "a")
    break_record(home, "next")
    recover_twice(home)
    found = records(home)
    assert (found["a"][0], found["next"][0]) == (4, 5)


def test_the_size_is_that_of_the_file_system_or_of_what_is_mapped(home: Path) -> None:
    with open_home(home, EMULATED) as devices:
        devices.create("large", size_bytes=8 * MIB)
        devices.create("raw", size_bytes=8 * MIB)
        thin = devices.active.activate("raw")
        thin.pwrite(0, bytes(4096))
        thin.pwrite(3 * MIB, b"x")
        devices.active.deactivate("raw")
        devices.pool.create_thin(20)
    for name in ("large", "raw"):
        (home / "metadata" / name).unlink()
    assert [found[1:] for found in recover_twice(home)] == [
        ("large", "recorded as 'large'"),
        ("raw", "recorded as 'raw'"),
        ("recovered-20", "adopted as 'recovered-20'"),
    ]
    found = records(home)
    assert found["large"][1] == 8 * MIB
    assert found["raw"][1] == 3 * MIB + (64 << 10)
    assert found["recovered-20"][1] == 64 << 10


def test_of_two_records_of_one_thin_the_one_that_made_it_stays(home: Path) -> None:
    shutil.copy(home / "metadata/a", home / "metadata/twin")
    record = json.loads((home / "metadata/a").read_text()) | {"transaction_id": 1}
    (home / "metadata/twin").write_text(json.dumps(record))
    assert recover_twice(home) == [("conflict", "twin", "set aside")]


def test_two_records_of_which_neither_is_known_to_be_right_are_left(home: Path) -> None:
    shutil.copy(home / "metadata/a", home / "metadata/twin")
    before = contents(home)
    (finding,) = recover(home)
    assert (finding.kind, finding.action, finding.thin_id) == ("conflict", "", 2)
    assert "'a' and 'twin'" in finding.found
    assert contents(home) == before


# --- thins without a record


def test_orphan_thins_become_devices(home: Path) -> None:
    with open_home(home, EMULATED) as devices:
        devices.create("recovered-20", parent="a")
        devices.pool.create_snap(20, 2)
    (found,) = recover_twice(home)
    assert found == ("orphan_thin", "recovered-20-2", "adopted as 'recovered-20-2'")
    with open_home(home, EMULATED) as devices:
        thin = devices.active.activate("recovered-20-2")
        assert thin.pread(64, 1) == b"a"


@pytest.mark.parametrize(
    "name", ["base", "../a", "x/y", ".x", "x.migrated", "deviceset-metadata", "\n", "a\0b", "x" * 256]
)
def test_what_is_no_name_is_not_taken_for_one(home: Path, name: str) -> None:
    with open_home(home, EMULATED) as devices:
        devices.pool.create_thin(20)
        thin = devices.pool.activate("x", 20, 128)
        thin.pwrite(0, UUIDS[0].encode().ljust(64, b"\0") + name.encode())
        thin.close()
    assert [found[1] for found in recover_twice(home)] == ["recovered-20"]


def test_orphans_are_deleted_when_asked_but_not_those_of_damaged_records(home: Path) -> None:
    with open_home(home, EMULATED) as devices:
        devices.create("gone", parent="a")
        devices.pool.create_snap(20, 2)
    (home / "metadata/gone").unlink()
    break_record(home, "b")
    assert recover_twice(home, delete_orphans=True) == [
        ("damaged_file", None, "set aside"),
        ("orphan_thin", "b", "recorded as 'b'"),
        ("orphan_thin", None, "deleted"),
        ("orphan_thin", None, "deleted"),
    ]


def test_an_orphan_that_is_in_use_is_reported(home: Path) -> None:
    with open_home(home, EMULATED) as devices:
        devices.pool.create_thin(20)
    with open_home(home, EMULATED, verify=False) as devices:
        devices.pool.activate("somebody", 20, 128)
        (finding,) = devices.recover(delete_orphans=True)
        assert finding.action == ""
        assert "cannot be deleted: thin 20 of pool" in finding.found


# --- the base device


def test_the_base_comes_back_from_its_thin(home: Path) -> None:
    break_record(home, "base")
    assert recover_twice(home) == [("damaged_file", None, "set aside"), ("orphan_thin", "base", "recorded as 'base'")]
    assert records(home)["base"][0] == 1


def test_all_records_come_back_but_the_base_s_which_had_nothing_but_its_uuid(home: Path) -> None:
    before = records(home)
    shutil.rmtree(home / "metadata")
    actions = {f"recorded as {name!r}" for name in before if name != "base"} | {"adopted as 'recovered-1'", "made anew"}
    assert {action for _, _, action in recover_twice(home)} == actions
    after = records(home)
    assert {name: after[name][:2] for name in before if name != "base"} == {
        name: row[:2] for name, row in before.items() if name != "base"
    }


def test_a_base_without_its_thin_is_made_anew(home: Path) -> None:
    with open_home(home, EMULATED) as devices:
        devices.pool.delete(1)
    assert recover_twice(home) == [("missing_thin", "base", "made anew")]
    assert records(home)["base"][1] == MIB


def test_a_base_that_is_not_there_at_all_is_made_anew(home: Path) -> None:
    with open_home(home, EMULATED) as devices:
        devices.pool.delete(1)
    (home / "metadata/base").unlink()
    assert recover_twice(home) == [("base", "base", "made anew")]


def test_a_base_without_a_file_system_is_made_anew(home: Path) -> None:
    with open_home(home, EMULATED) as devices:
        devices.active.activate("base").pwrite(0, bytes(4096))
    assert recover_twice(home) == [("base", "base", "made anew")]


def test_a_base_that_cannot_be_made_is_reported(home: Path) -> None:
    (home / "metadata/base").unlink()
    with open_home(home, EMULATED) as devices:
        devices.pool.delete(1)
    with open_home(home, EMULATED, verify=False, min_free_percent=99) as devices:
        (finding,) = devices.recover()
        assert finding.action == ""
        assert "none can be made" in finding.found


def test_a_record_of_the_set_that_was_lost_is_made_again(home: Path) -> None:
    """Without it the base's UUID is not known; the devices say that the pool is theirs."""
    text = (home / "metadata/deviceset-metadata").read_text()
    (home / "metadata/deviceset-metadata").write_text(text.replace(UUIDS[0], UUIDS[1]))
    assert recover_twice(home) == [("base", "base", "noted as it is")]


def test_a_pool_of_another_home_is_left_alone(home: Path, tmp_path: Path) -> None:
    with make_home(tmp_path / "other", EMULATED) as devices:
        for number in range(5):
            devices.create(f"d{number}")
            devices.remove(f"d{number}")
        devices.create("x")
    text = (home / "metadata/deviceset-metadata").read_text()
    (home / "metadata/deviceset-metadata").write_text(text.replace(UUIDS[0], UUIDS[1]))
    for file in ("data", "metadata"):
        shutil.copy(tmp_path / "other/devicemapper" / file, home / "devicemapper" / file)
    before = contents(home)
    (finding,) = recover(home)
    assert (finding.kind, finding.action) == ("foreign_pool", "")
    assert "do not belong together" in finding.found
    assert contents(home) == before


def test_a_pool_that_needs_a_check_comes_first(tmp_path: Path, backend: FakeBackend) -> None:
    make_home(tmp_path / "home", backend).close()
    backend.condition = {"needs_check": True}
    with open_home(tmp_path / "home", backend, verify=False) as devices, pytest.raises(PoolModeError, match="--repair"):
        devices.recover()


# --- real file systems, real commands


def test_layers_of_a_real_home_come_back(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with opening.make_home(home, EMULATED, REAL) as devices:
        volumes = Volumes(devices)
        for name, parent in (("lower", None), ("upper", "lower")):
            devices.create(name, parent=parent, size_bytes=32 * MIB)
            with volumes.opened(name) as volume:
                for entry in [e for e in volume.list_directory(ROOT_INODE) if e.name == b"id"]:
                    volume.unlink(ROOT_INODE, entry.name)
                volume.write(volume.make_node(ROOT_INODE, b"id", 0o100600, 0, 0).inode, 0, name.encode())
        devices.create("killed", parent="lower")
        volume = Volume.open(devices.active.activate("killed"))
        volume.unlink(ROOT_INODE, b"id")
        volume.write(volume.make_node(ROOT_INODE, b"id", 0o100600, 0, 0).inode, 0, b"killed\n")
        volume.sync()  # and never unmounted
        devices.active.deactivate("killed")
    for path in (home / "metadata").glob("[klub]*"):
        path.write_text("")
    (home / "cowfs.parents").unlink()
    report = recover_home(home, "emulated")
    assert {f.device: f.action for f in report.findings if f.kind == "orphan_thin"} == {
        name: f"recorded as {name!r}" for name in ("base", "lower", "upper", "killed")
    }
    assert report.left == []
    with opening.open_home(home, EMULATED) as devices:
        assert {r.name: r.size_bytes // MIB for r in devices.records()} == {
            "base": 16, "lower": 32, "upper": 32, "killed": 32,
        }  # fmt: skip
        assert devices.problems == ()


def test_a_mounted_home_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    opening.make_home(home, EMULATED, REAL).close()
    with serving(home), pytest.raises(HomeBusy, match=r"recovering needs the home .* to itself"):
        recover_home(home, "emulated", wait_seconds=0)
    assert recover_home(home, "emulated").findings == []


# --- cut short


def damage(devices: DeviceSet) -> None:
    devices.create("c", parent="a")
    devices.create("d")
    write_id(devices, "d", "d")
    devices.pool.delete(devices.record("c").device_id)
    devices.pool.create_snap(20, 2)
    devices.pool.create_thin(21)


@pytest.mark.parametrize("power_cut", [False, True], ids=["kill", "power-cut"])
def test_it_may_be_cut_short_at_every_step(tmp_path: Path, power_cut: bool) -> None:
    world = EmulatedWorld(tmp_path / "home")
    world.fill()
    with world.open() as devices:
        damage(devices)
    for name in ("base", "d"):
        break_record(world.home, name)
    saved = world.save(tmp_path / "saved")
    run: Callable[[DeviceSet], object] = DeviceSet.recover
    with world.open(verify=False) as devices:
        run(devices)
    after = world.contents()
    assert {"a", "b", "d", "base", "recovered-20", "recovered-21"} <= set(after)
    points = 0
    while True:
        world.restore(saved)
        if not world.run_until(points, run, power_cut=power_cut, verify=False):
            break
        points += 1
        with world.open(verify=False) as devices:
            run(devices)
        assert world.contents() == after, points
        with world.open(verify=False) as devices:
            assert run(devices) == []
    assert points > 20
    print(f"recover: killed at {points} points{' with power cut' if power_cut else ''}")
