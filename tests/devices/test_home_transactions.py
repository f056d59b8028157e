"""Failures without a crash: what is left is what was before, or is finished later, and nothing is lost on the way."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cowfs.devices.changes.ids import last_given
from cowfs.devices.deviceset import DeviceSet
from cowfs.errors import (
    DeviceBusy,
    DeviceExists,
    HomeError,
    InvalidRequest,
    NoSuchThin,
    OutOfDataSpace,
    OutOfMetadataSpace,
    PoolError,
    PoolIoError,
    PoolModeError,
    ThinBusy,
    ThinExists,
    UnknownDevice,
    UsageError,
)
from cowfs.units import MAX_THIN_ID
from tests.devices.home_fakes import (
    FailingOs,
    FakeBackend,
    assert_whole,
    names,
    open_home,
    record_files,
)


def write_transaction(home: Path, transaction_id: int, name: str, thin_id: int) -> None:
    record = {"open_transaction_id": transaction_id, "device_hash": name, "device_id": thin_id}
    (home / "metadata/transaction-metadata").write_text(json.dumps(record))


# --- making


def test_a_failed_make_can_be_tried_again_at_once(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        for message in ("create_snap", "set_transaction_id"):
            backend.fail = {message: [PoolIoError("the disk is gone")]}
            with pytest.raises(PoolIoError, match="the disk is gone"):
                devices.create("new")
            assert names(devices) == ["a", "base"] == record_files(home)
            with pytest.raises(UnknownDevice):
                devices.record("new")
            assert_whole(devices)
        devices.create("new")
        assert_whole(devices)


@pytest.mark.parametrize("step", ["open", "write", "fsync", "rename"])
@pytest.mark.parametrize("nth", range(3))
def test_a_make_that_meets_a_full_disk_leaves_nothing(home: Path, backend: FakeBackend, step: str, nth: int) -> None:
    system = FailingOs(step, errno.ENOSPC, skip=nth)
    with open_home(home, backend, system=system) as devices:
        if step == "rename" and nth == 2:
            devices.create("new")  # two files are replaced, and one is appended to
        else:
            with pytest.raises(HomeError, match=r"cannot write .*: No space left on device") as caught:
                devices.create("new")
            assert caught.value.errno == errno.ENOSPC
            assert "new" not in devices
            devices.create("new")
        assert_whole(devices)
    with open_home(home, backend) as devices:
        assert names(devices) == ["a", "base", "new"] == record_files(home)
        assert_whole(devices)


def test_a_rollback_that_fails_is_reported_and_done_before_the_next_change(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        backend.fail = {
            "set_transaction_id": [PoolIoError("no commit")],
            "delete": [ThinBusy("thin 3 is active"), ThinBusy("thin 3 is active")],
        }
        with pytest.raises(HomeError, match=r"no commit; undoing it failed too: thin 3 is active") as caught:
            devices.create("new")
        assert isinstance(caught.value.__cause__, ExceptionGroup)
        assert "new" not in devices
        with pytest.raises(ThinBusy):  # tried again first, and in the way of every change
            devices.create("other")
        devices.create("other")
        assert devices.record("other").device_id != 3
        assert_whole(devices)


def test_a_busy_thin_survives_recovery_with_its_id_taken(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        devices.create("b")
        thin_id = devices.record("b").device_id
        transaction_id = devices.reports.status().transaction_id
    write_transaction(home, transaction_id + 1, "b", thin_id)
    backend.fail = {"delete": [ThinBusy("busy"), ThinBusy("busy")]}
    with open_home(home, backend) as devices:
        assert "b" not in devices
        assert any("could not be undone yet: busy" in problem for problem in devices.problems)
        with pytest.raises(ThinBusy):
            devices.create("c")
        assert devices.create("c").device_id != thin_id
        assert_whole(devices)
    assert record_files(home) == ["a", "base", "c"]


def test_an_id_of_another_program_is_left_alone_and_the_next_one_taken(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        devices.pool.create_thin(3)
        assert devices.create("b").device_id == 4
        assert 3 in devices.pool.thin_ids()
        assert devices.reports.status().orphan_thin_ids == [3]
    with open_home(home, backend) as devices:
        devices.create("c")
        assert devices.reports.status().orphan_thin_ids == [3]


def test_ids_that_exist_end_the_search_after_a_few(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        backend.fail = {"create_snap": [ThinExists("it exists")] * 1000}
        with pytest.raises(HomeError, match="8 ids in a row"):
            devices.create("b")
        assert len(backend.fail["create_snap"]) == 992
        assert "delete" not in " ".join(backend.events)
        backend.fail = {}
        devices.create("b")
        assert_whole(devices)


def test_an_existing_id_is_not_deleted_by_the_rollback_of_a_later_failure(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend, system=FailingOs("rename", errno.EIO, skip=1)) as devices:
        backend.fail = {"create_snap": [ThinExists("it exists")]}
        with pytest.raises(HomeError, match="Input/output error"):
            devices.create("b")
        assert "delete" not in " ".join(backend.events)


def test_interrupting_a_make_takes_it_back(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        backend.fail = {"set_transaction_id": [KeyboardInterrupt()]}  # type: ignore[list-item]
        with pytest.raises(KeyboardInterrupt):
            devices.create("b")
        assert names(devices) == ["a", "base"] == record_files(home)
        assert_whole(devices)


def test_a_parent_without_a_thin_makes_no_child(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        devices.pool.delete(devices.record("a").device_id)
        with pytest.raises(NoSuchThin):
            devices.create("b", parent="a")
        assert names(devices) == ["a", "base"]
        devices.remove("a")
        assert_whole(devices)


def test_a_minimum_stays_free_and_the_message_says_bytes(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend, min_free_percent=99) as devices:
        with pytest.raises(
            OutOfDataSpace, match=r"has 4063232 bytes \(3.88 MiB\) of data space free, less than the 41"
        ):
            devices.create("b")
        assert_whole(devices)
    with (
        open_home(home, backend, min_free_percent=90) as devices,
        pytest.raises(OutOfMetadataSpace, match=r"1851392 bytes \(1.77 MiB\) of metadata space free, less than"),
    ):
        devices.create("b")
    with open_home(home, backend, min_free_percent=0) as devices:
        devices.create("b")
    with pytest.raises(UsageError, match="100 %"):
        open_home(home, backend, min_free_percent=100)


# --- an active parent


def test_an_active_parent_is_held_for_the_message_alone(home: Path, backend: FakeBackend) -> None:
    @contextmanager
    def view() -> Iterator[None]:
        backend.events.append("view flushed")
        yield
        backend.events.append("view goes on")

    with open_home(home, backend) as devices:
        thin = devices.active.activate("a")
        remove = devices.active.add_quiescer("a", view)
        backend.events.clear()
        devices.create("b", parent="a")
        held = ["flush 2", "view flushed", "suspend 2", "create_snap 3 2", "resume 2", "view goes on"]
        assert backend.events == [*held, "set_transaction_id 2 3"]
        remove()
        backend.events.clear()
        backend.fail = {"create_snap": [PoolIoError("no")]}
        with pytest.raises(PoolIoError):
            devices.create("c", parent="a")
        assert "view flushed" not in backend.events
        assert backend.events.index("resume 2") == backend.events.index("create_snap 4 2") + 1
        assert thin in devices.pool.active()


# --- removing


def test_a_thin_that_is_busy_in_the_pool_keeps_its_device(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        backend.fail = {"delete": [ThinBusy("thin 2 is active")]}
        with pytest.raises(DeviceBusy):
            devices.remove("a")
        assert "a" in devices
        assert_whole(devices)
    with open_home(home, backend) as devices:  # no transaction was left that recovery would finish
        assert "a" in devices
        assert_whole(devices)


@pytest.mark.parametrize("error", [PoolModeError("read-only"), PoolIoError("io"), InvalidRequest("what")])
def test_a_remove_that_the_pool_refuses_changes_nothing(home: Path, backend: FakeBackend, error: PoolError) -> None:
    with open_home(home, backend) as devices:
        backend.fail = {"delete": [error]}
        with pytest.raises(type(error)):
            devices.remove("a")
    with open_home(home, backend) as devices:
        assert names(devices) == ["a", "base"] == record_files(home)
        assert_whole(devices)


@pytest.mark.parametrize("step", ["open", "write", "rename", "fsync"])
def test_a_remove_that_cannot_open_its_transaction_destroys_nothing(
    home: Path, backend: FakeBackend, step: str
) -> None:
    with open_home(home, backend, system=FailingOs(step, errno.ENOSPC)) as devices:
        with pytest.raises(HomeError):
            devices.remove("a")
        assert "delete" not in " ".join(backend.events)
    with open_home(home, backend) as devices:
        assert "a" in devices
        assert_whole(devices)


def test_a_record_that_cannot_be_unlinked_is_removed_later(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend, system=FailingOs("unlink a", errno.EIO)) as devices:
        with pytest.raises(HomeError, match=r"cannot remove .*/metadata/a: Input/output error"):
            devices.remove("a")
        assert "a" not in devices
        devices.create("b")
        assert_whole(devices)
    assert record_files(home) == ["b", "base"]


def test_a_record_that_the_disk_did_not_forget_is_removed_again(home: Path, backend: FakeBackend) -> None:
    record = home / "metadata/a"
    kept = record.read_bytes()
    with open_home(home, backend) as devices:
        devices.remove("a")
    record.write_bytes(kept)
    for read_only in (True, False):
        with open_home(home, backend, read_only=read_only) as devices:
            assert names(devices) == ["base"]
            assert devices.problems == ()
        assert record.exists() == read_only


def test_a_device_whose_thin_was_deleted_after_it_was_made_is_no_removed_one(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        devices.pool.delete(devices.create("new").device_id)
    with open_home(home, backend) as devices:
        assert "new" in devices
        assert any("device 'new' is not in the pool" in problem for problem in devices.problems)


def test_a_failed_close_of_a_remove_is_reported(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        backend.fail = {"set_transaction_id": [PoolIoError("no commit")]}
        with pytest.raises(PoolIoError):
            devices.remove("a")
        assert "a" not in devices
        devices.create("a")
        assert_whole(devices)


def test_what_is_in_use_is_not_removed(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        devices.active.activate("a")
        with pytest.raises(DeviceBusy, match="is in use"):
            devices.remove("a")
        devices.active.deactivate("a")
        devices.remove("a")
        with pytest.raises(UnknownDevice):
            devices.remove("a")
        with pytest.raises(UsageError, match="base device cannot be removed"):
            devices.remove("base")


def test_a_deferred_removal_is_made_good_at_the_last_deactivation(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        devices.active.activate("a")
        devices.active.activate("a")
        devices.remove("a", deferred=True)
        assert devices.record("a").deleted
        assert devices.reports.status().deleted_devices == 1
        with pytest.raises(DeviceBusy, match="marked for deletion"):
            devices.active.activate("a")
        with pytest.raises(DeviceBusy, match="marked for deletion"):
            devices.create("b", parent="a")
        with pytest.raises(DeviceExists, match="marked for deletion"):
            devices.create("a")
        devices.active.deactivate("a")
        assert "a" in devices
        devices.active.deactivate("a")
        assert "a" not in devices
        assert_whole(devices)


def test_deferred_removals_are_retried_when_the_home_opens(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        devices.active.activate("a")
        devices.remove("a", deferred=True)
    backend.fail = {"delete": [ThinBusy("still busy")]}
    with open_home(home, backend) as devices:
        assert devices.record("a").deleted
    with open_home(home, backend) as devices:
        assert names(devices) == ["base"]
        assert_whole(devices)


def test_two_records_of_one_thin_protect_it(home: Path, backend: FakeBackend) -> None:
    (home / "metadata/twin").write_bytes((home / "metadata/a").read_bytes())
    with open_home(home, backend) as devices:
        with pytest.raises(HomeError, match="its thin 2 is also that of 'twin'"):
            devices.remove("a")
        assert 2 in devices.pool.thin_ids()


# --- transaction files


def test_a_transaction_of_another_time_undoes_nothing(home: Path, backend: FakeBackend) -> None:
    for transaction_id in (1, 9):
        write_transaction(home, transaction_id, "a", 2)
        with open_home(home, backend) as devices:
            assert "a" in devices
            assert "out of sync" in devices.problems[0]
            assert_whole(devices)


@pytest.mark.parametrize("name", ["../../victim", "a/b", ".x", "deviceset-metadata", "x\0y"])
def test_a_transaction_cannot_point_outside(home: Path, backend: FakeBackend, name: str) -> None:
    victim = home.parent / "victim"
    victim.write_text("precious")
    write_transaction(home, 3, name, 9)
    with open_home(home, backend) as devices:
        assert names(devices) == ["a", "base"]
        assert "transaction file is damaged" in devices.problems[0]
    assert victim.read_text() == "precious"
    assert (home / "metadata/deviceset-metadata").exists()


def test_a_transaction_that_the_records_contradict_undoes_nothing(home: Path, backend: FakeBackend) -> None:
    for name, thin_id in (("a", 9), ("other", 2)):
        write_transaction(home, 3, name, thin_id)
        with open_home(home, backend) as devices:
            assert "contradict" in devices.problems[0]
            assert names(devices) == ["a", "base"]
            assert_whole(devices)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"device_id": "x"}', b"[1]", b"{}", b"x" * 70000])
def test_an_unreadable_transaction_file_is_set_aside_and_what_it_left_is_found(
    home: Path, backend: FakeBackend, content: bytes
) -> None:
    path = home / "metadata/transaction-metadata"
    record = json.loads((home / "metadata/a").read_text())

    # A device whose making was not closed.
    half = record | {"device_id": 7, "transaction_id": 3}
    (home / "metadata/half").write_text(json.dumps(half))
    backend.states[str(home / "devicemapper/metadata")].thins[7] = {}
    path.write_bytes(content)
    with open_home(home, backend) as devices:
        assert names(devices) == ["a", "base"] == record_files(home)
        assert "the transaction file is damaged" in devices.problems[0]
        assert_whole(devices)
    assert not path.exists()
    assert (home / "cowfs.damaged/transaction-metadata").read_bytes() == content

    # A device whose removal had taken the thin.
    (home / "metadata/gone").write_text(json.dumps(record | {"device_id": 8, "transaction_id": 1}))
    path.write_bytes(content)
    with open_home(home, backend) as devices:
        assert names(devices) == ["a", "base"]
        assert_whole(devices)
    assert (home / "cowfs.damaged/transaction-metadata.1").read_bytes() == content


def test_an_unreadable_transaction_file_does_not_cost_what_it_cannot_be_about(home: Path, backend: FakeBackend) -> None:
    """Two records without thins come from something else than one transaction; so does an older orphan."""
    record = json.loads((home / "metadata/a").read_text())
    for name, thin_id in (("x", 8), ("y", 9)):
        (home / f"metadata/{name}").write_text(json.dumps(record | {"device_id": thin_id, "transaction_id": 1}))
    backend.states[str(home / "devicemapper/metadata")].thins[20] = {}
    (home / "metadata/transaction-metadata").write_text("?")
    with open_home(home, backend) as devices:
        assert names(devices) == ["a", "base", "x", "y"]
        assert devices.reports.status().orphan_thin_ids == [20]
        devices.create("b")
        assert devices.record("b").device_id not in (2, 8, 9, 20)


def test_read_only_shows_what_recovery_would_leave_and_changes_nothing(home: Path, backend: FakeBackend) -> None:
    write_transaction(home, 3, "a", 2)
    before = {path: path.read_bytes() for path in (home / "metadata").iterdir()}
    with open_home(home, backend, read_only=True) as devices:
        assert names(devices) == ["base"]
        assert "not shown" in devices.problems[0]
        with pytest.raises(HomeError, match="open read-only") as caught:
            devices.create("b")
        assert caught.value.errno == errno.EROFS
        with pytest.raises(HomeError, match="open read-only"):
            devices.remove("base")
    assert {path: path.read_bytes() for path in (home / "metadata").iterdir()} == before
    with open_home(home, backend) as devices:
        assert names(devices) == ["base"]
        assert_whole(devices)


# --- opening with a pool that cannot say


def test_a_pool_without_figures_opens_and_refuses_changes(home: Path, backend: FakeBackend) -> None:
    backend.status_errors = [PoolIoError("no status")]
    with open_home(home, backend) as devices:
        assert "a" in devices
        assert "no status" in devices.problems[0]
        devices.create("b")
        assert_whole(devices)


def test_every_change_of_a_set_survives_in_any_order(home: Path, backend: FakeBackend) -> None:
    devices: DeviceSet
    with open_home(home, backend) as devices:
        for number in range(20):
            devices.create(f"d{number}", parent="a" if number % 3 else None)
        for number in range(0, 20, 2):
            devices.remove(f"d{number}")
        devices.create("d0", parent="d1")
        parents = {record.name: record.parent for record in devices.records()}
        assert_whole(devices)
    with open_home(home, backend) as devices:
        assert {record.name: record.parent for record in devices.records()} == parents
        assert parents["d0"] == "d1"
        assert parents["d3"] == "base"
        assert parents["base"] is None
        devices.remove("d1")
        assert devices.record("d0").parent is None
        devices.create("d1")
        assert devices.record("d0").parent is None  # another device of that name


@pytest.mark.parametrize(
    ("noted", "taken", "last"),
    [
        (0, [], 0),
        (5, [], 5),  # the devices with the ids up to 5 were removed
        (5, [1, 3], 5),
        (2, [1, 2, 7, 4], 7),
        (MAX_THIN_ID - 1, [MAX_THIN_ID, 0, 3], MAX_THIN_ID + 4),  # around the end
        (3, [MAX_THIN_ID, 1], 3),
    ],
)
def test_the_last_id_is_told_by_the_note_and_the_devices(noted: int, taken: list[int], last: int) -> None:
    assert last_given(noted, taken) == last


def test_the_last_id_is_noted_only_where_no_device_has_it(home: Path, backend: FakeBackend) -> None:
    noted = home / "metadata/deviceset-metadata"
    before = noted.read_bytes()
    with open_home(home, backend) as devices:
        last = devices.create("web").device_id
    assert noted.read_bytes() == before
    with open_home(home, backend) as devices:
        devices.remove("web")
    assert noted.read_bytes() != before
    with open_home(home, backend) as devices:
        assert devices.create("other").device_id == last + 1
