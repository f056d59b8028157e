"""New content for a device: all of it or nothing, and no other user meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from cowfs.devices.deviceset import DeviceSet
from cowfs.errors import DeviceBusy, UnknownDevice
from tests.devices.home_fakes import PAGE, FakeBackend, assert_whole, make_home, open_home


def content(devices: DeviceSet, name: str) -> bytes:
    data = devices.active.activate(name).pread(0, 8)
    devices.active.deactivate(name)
    return data


def overwrite_and_fail(devices: DeviceSet) -> None:
    with devices.replacing("a") as thin:
        thin.pwrite(0, b"all new!")
        raise ZeroDivisionError


@pytest.fixture
def home(tmp_path: Path) -> tuple[Path, FakeBackend]:
    backend = FakeBackend()
    with make_home(tmp_path / "home", backend) as devices:
        devices.create("a")
        devices.active.activate("a").pwrite(0, b"as it is")
        devices.active.deactivate("a")
    return tmp_path / "home", backend


def test_it_takes_the_place_at_the_end_of_the_block(home: tuple[Path, FakeBackend]) -> None:
    with open_home(*home) as devices:
        devices.create("child", parent="a")
        with devices.replacing("a") as thin:
            assert thin.pread(0, 8) == b"as it is"
            thin.pwrite(0, b"all new!")
            assert devices.reports.status().orphan_thin_ids == []
        assert (content(devices, "a"), content(devices, "child")) == (b"all new!", b"as it is")
        assert_whole(devices)
    with open_home(*home) as devices:
        assert content(devices, "a") == b"all new!"
        assert devices.record("child").parent == "a"
        assert devices.problems == ()


def test_an_error_leaves_the_device_as_it_was(home: tuple[Path, FakeBackend]) -> None:
    with open_home(*home) as devices:
        with pytest.raises(ZeroDivisionError):
            overwrite_and_fail(devices)
        assert content(devices, "a") == b"as it is"
        assert_whole(devices)
        with devices.replacing("a") as thin:
            thin.pwrite(PAGE, b"again")
        assert_whole(devices)


def test_the_device_cannot_be_used_meanwhile(home: tuple[Path, FakeBackend]) -> None:
    with open_home(*home) as devices, devices.replacing("a"):
        for action in (
            lambda: devices.active.activate("a"),
            lambda: devices.remove("a"),
            lambda: devices.create("b", parent="a"),
            lambda: devices.replacing("a").__enter__(),
        ):
            with pytest.raises(DeviceBusy, match="new content"):
                action()


def test_a_device_in_use_or_unknown_is_refused(home: tuple[Path, FakeBackend]) -> None:
    with open_home(*home) as devices:
        devices.active.activate("a")
        with pytest.raises(DeviceBusy, match="in use"), devices.replacing("a"):
            pass
        devices.active.deactivate("a")
        with pytest.raises(UnknownDevice), devices.replacing("x"):
            pass
        assert_whole(devices)


def test_a_frozen_copy_stays_as_it_was(home: tuple[Path, FakeBackend]) -> None:
    with open_home(*home) as devices:
        thin = devices.active.activate("a")
        with devices.snapshots.temporary("a") as first, devices.snapshots.temporary("a") as second:
            thin.pwrite(0, b"changed!")
            assert first.pread(0, 8) == second.pread(0, 8) == b"as it is"
            assert devices.reports.status().orphan_thin_ids == []
        devices.active.deactivate("a")
        assert_whole(devices)
        assert content(devices, "a") == b"changed!"


def test_a_note_that_cannot_be_read_is_set_aside(home: tuple[Path, FakeBackend]) -> None:
    note = home[0] / "cowfs.replacing" / "9"
    note.parent.mkdir()
    note.write_bytes(b'{"old_id":')
    with open_home(*home) as devices:
        assert any("the note '9' about new content" in problem for problem in devices.problems)
        assert content(devices, "a") == b"as it is"
    assert not note.exists()
