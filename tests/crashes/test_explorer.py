"""The explorer on a mounted home: what a program does is recorded, and its crash states are opened."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from cowfs.crashes.explorer import Explorer
from cowfs.crashes.history import State
from cowfs.errors import DeviceBusy, DeviceExists, UnknownDevice, UsageError
from cowfs.home.requests.request import MAX_PIECE_BYTES
from cowfs.recording.recorder import Model
from tests.crashes.conftest import MountedHome

pytestmark = pytest.mark.fuse


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def replace(path: Path, text: str, *, sync_file: bool = True, sync_directory: bool = True) -> None:
    new = path.with_suffix(".tmp")
    new.write_text(text)
    if sync_file:
        sync(new)
    new.rename(path)
    if sync_directory:
        sync(path.parent)


def explore(
    mounted: MountedHome, model: Model, states: int | None = 50, *, sync_file: bool = True, sync_directory: bool = True
) -> int:
    """Replace a file three times, and open states; how many there were."""
    count = 0
    with Explorer.started(mounted.home, mounted.path, model=model, seed=1) as explorer:
        (explorer.path / "a").write_text("0" * 3000)
        with explorer.record() as path:
            for digit in "123":
                replace(path / "a", digit * 3000, sync_file=sync_file, sync_directory=sync_directory)
                explorer.mark(digit)
        for state in explorer.states(states):
            count += 1
            with state.opened() as path:
                text = (path / "a").read_text()
                assert len(text) == 3000
                assert len(set(text)) == 1
                assert text[0] >= (state.marks or ["0"])[-1]
    return count


@pytest.mark.parametrize("model", ["ext4", "posix"])
def test_a_program_that_syncs_everything_passes(mounted: MountedHome, model: Model) -> None:
    assert explore(mounted, model) > 30


@pytest.mark.parametrize(
    ("model", "sync_file", "sync_directory", "words"),
    [
        ("posix", False, True, "rename of a.tmp to a persisted before its data"),
        ("posix", True, False, "rename of a.tmp to a was lost although '1' was promised"),
        ("ext4", True, False, "rename of a.tmp to a was not written yet although '1' was promised"),
    ],
)
def test_what_is_not_synced_is_found_and_named(
    mounted: MountedHome, model: Model, sync_file: bool, sync_directory: bool, words: str
) -> None:
    with pytest.raises(AssertionError) as caught:
        explore(mounted, model, sync_file=sync_file, sync_directory=sync_directory)
    (note,) = caught.value.__notes__
    assert words in note
    assert "seed 1" in note


def test_open_files_stay_open_while_a_recording_begins_and_ends(mounted: MountedHome) -> None:
    with Explorer.started(mounted.home, mounted.path) as explorer:
        with (explorer.path / "log").open("w") as log:
            log.write("before\n")
            log.flush()
            with explorer.record() as path:
                log.write("within\n")
                log.flush()
                os.fsync(log.fileno())
                explorer.mark("within")
            log.write("after\n")
        assert (path / "log").read_text() == "before\nwithin\nafter\n"
        seen = set()
        for state in explorer.states():
            with state.opened() as path:
                seen.add((path / "log").read_text())
                assert not state.marks or (path / "log").read_text() == "before\nwithin\n"
        assert seen == {"before\n", "before\nwithin\n"}


def test_a_mark_is_set_after_what_was_done_and_forces_nothing(mounted: MountedHome) -> None:
    with Explorer.started(mounted.home, mounted.path, model="posix") as explorer, explorer.record() as path:
        file = (path / "a").open("wb", buffering=0)
        file.write(b"1")
        explorer.mark("one")
        file.write(b"2")
        file.close()
    assert explorer.device not in [row.name for row in mounted.home.devices()]
    with Explorer.started(mounted.home, mounted.path, model="ext4") as explorer:
        with explorer.record() as path, (path / "a").open("wb", buffering=0) as file:
            file.write(b"1" * 4096)
            explorer.mark("one")
            file.write(b"2" * 4096)
        recording = explorer.recording
        assert recording is not None
        (mark,) = recording.marks
        kinds = [operation.kind for operation in recording.operations]
        assert kinds == ["create", "write", "write"]
        assert mark.operations == 2
        assert "flush" not in [entry.operation for entry in recording.entries[: mark.entries]][2:]


def test_a_state_may_be_larger_than_a_piece_of_the_control_socket(mounted: MountedHome) -> None:
    count = MAX_PIECE_BYTES // (1 << 20) + 2
    mounted.home.create("large", size_bytes=4 * MAX_PIECE_BYTES)
    with Explorer.started(mounted.home, mounted.path, parent="large", model="posix") as explorer:
        with explorer.record() as path:
            for number in range(count):
                (path / f"file-{number}").write_bytes(bytes([number]) * (1 << 20))
        state = explorer.crash_state(State(explorer.history.length))
        with explorer.shown(state) as path:
            for number in range(count):
                assert (path / f"file-{number}").read_bytes() == bytes([number]) * (1 << 20)
    mounted.home.remove("large")


def test_marks_of_several_threads_are_all_there(mounted: MountedHome) -> None:
    with Explorer.started(mounted.home, mounted.path, model="posix") as explorer:
        with explorer.record() as path:

            def work(name: str) -> None:
                (path / name).write_text(name)
                explorer.mark(name)

            threads = [threading.Thread(target=work, args=(f"file-{number}",)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        recording = explorer.recording
        assert recording is not None
        for mark in recording.marks:
            done = recording.operations[: mark.operations]
            assert any(one.kind == "create" and one.name.decode() == mark.text for one in done)
            assert any(one.kind == "write" and one.content.decode() == mark.text for one in done)


def test_what_cannot_be_recorded_is_refused(mounted: MountedHome) -> None:
    home = mounted.home
    with Explorer.started(home, mounted.path) as explorer:
        with pytest.raises(UsageError, match="nothing was recorded yet; call 'record' first"):
            explorer.plan(1)
        with pytest.raises(UnknownDevice, match="is not recorded"):
            explorer.mark("too early")
        with pytest.raises(UsageError, match="no model 'xfs'"):
            Explorer(home, mounted.path, "web", model="xfs")  # type: ignore[arg-type]
        nameless = (explorer.path / "gone").open("w")
        (explorer.path / "gone").unlink()
        with pytest.raises(DeviceBusy, match="no name any more is open"), explorer.record():
            pass
        nameless.close()
        with explorer.record() as path:
            with pytest.raises(DeviceBusy, match="recorded already"):
                home.recordings.start(explorer.device, "again")
            (path / "a").write_text("a")
        with pytest.raises(UsageError, match="records once"), explorer.record():
            pass
        with pytest.raises(DeviceExists):
            home.recordings.make_disk_state(explorer.device, "base", [])


def test_a_check_that_leaves_a_file_open_stops_nothing(mounted: MountedHome) -> None:
    left = []
    with Explorer.started(mounted.home, mounted.path) as explorer:
        with explorer.record() as path:
            (path / "a").write_text("a")
        for state in explorer.states(3):
            with state.opened() as path:
                left.append((path / "left").open("w"))
    for file in left:
        file.close()
    for row in mounted.home.devices():
        if row.deleted:
            with suppress(UnknownDevice):  # it went when it was not in use any more
                mounted.home.remove(row.name)
