"""Another name for a device: what follows it, what is refused, and what a failing disk leaves."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cowfs.devices.changes.renaming import Renames
from cowfs.devices.deviceset import DeviceSet
from cowfs.errors import CowfsError, DeviceBusy, DeviceExists, HomeError, UnknownDevice, UsageError
from tests.conftest import profile
from tests.devices.crash_worlds import FakeWorld
from tests.devices.home_fakes import FailingOs, FakeBackend, assert_whole, names, open_home, record_files
from tests.kit.contents import contents


def parents(devices: DeviceSet) -> dict[str, str | None]:
    return {record.name: record.parent for record in devices.records()}


def test_a_device_keeps_all_but_its_name(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        devices.create("layer", parent="a", is_layer=True)
        devices.create("child", parent="layer")
        thin = devices.active.activate("layer")
        thin.pwrite(0, b"content")
        devices.active.deactivate("layer")
        before = devices.record("layer")
        renamed = devices.rename("layer", "other")
        assert renamed == devices.record("other")
        assert (renamed.device_id, renamed.size_bytes, renamed.transaction_id, renamed.parent, renamed.is_layer) == (
            *(before.device_id, before.size_bytes, before.transaction_id, "a", True),
        )
    for read_only in (True, False):
        with open_home(home, backend, read_only=read_only) as devices:
            assert parents(devices) == {"a": "base", "base": None, "child": "other", "other": "a"}
            assert devices.record("other") == renamed
            assert devices.active.activate("other", read_only=True).pread(0, 7) == b"content"
            assert devices.problems == ()
            assert names(devices) == record_files(home)
            devices.active.deactivate("other")
    assert not (home / "cowfs.renaming").exists()


def test_what_made_it_is_known_by_its_new_name_alone(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        devices.rename("a", "b")
        devices.rename("b", "a")
        devices.rename("a", "c")
    assert b'"a"' not in (home / "cowfs.parents").read_bytes()
    assert b'"b"' not in (home / "cowfs.parents").read_bytes()


def test_a_new_name_brings_back_no_former_children(home: Path, backend: FakeBackend) -> None:
    """`old` is older than the child of the removed device whose name it gets."""
    with open_home(home, backend) as devices:
        devices.create("old")
        devices.create("gone")
        devices.create("child", parent="gone")
        devices.remove("gone")
        devices.rename("old", "gone")
        assert parents(devices) == {"a": "base", "base": None, "child": None, "gone": "base"}
    with open_home(home, backend) as devices:
        assert parents(devices) == {"a": "base", "base": None, "child": None, "gone": "base"}


@pytest.mark.parametrize(
    ("name", "new_name", "error", "says"),
    [
        ("nope", "b", UnknownDevice, "there is no device 'nope'"),
        ("base", "b", UsageError, "the base device cannot be renamed"),
        ("marked", "b", DeviceBusy, "'marked'.* is marked for deletion"),
        ("a", "taken", DeviceExists, "'taken' exists already"),
        ("a", "marked", DeviceExists, "'marked' exists already .*, marked for deletion"),
        ("a", "a", UsageError, "'a' has this name already"),
        ("a", "base", UsageError, "'base' cannot be the name of a device: it is reserved"),
        ("a", "transaction-metadata", UsageError, "it is reserved for the home"),
        ("a", "", UsageError, "it is empty"),
        ("a", ".b", UsageError, "starts with a dot"),
        ("a", "b/c", UsageError, "contains a slash"),
        ("a", "b\n", UsageError, "cannot be printed"),
        ("a", "b.migrated", UsageError, "marks old files"),
        ("a", "b" * 256, UsageError, "256 bytes long"),
        ("used", "b", DeviceBusy, "'used'.* is in use"),
    ],
)
def test_what_is_refused_changes_nothing(
    home: Path, backend: FakeBackend, name: str, new_name: str, error: type[CowfsError], says: str
) -> None:
    with open_home(home, backend) as devices:
        for other in ("taken", "marked", "used"):
            devices.create(other)
        devices.active.activate("marked")
        devices.active.activate("used")
        devices.remove("marked", deferred=True)
        before = contents(home)
        with pytest.raises(error, match=says) as caught:
            devices.rename(name, new_name)
        assert "\n" not in str(caught.value)
        assert contents(home) == before


def test_a_home_that_is_read_only_is_left_alone(home: Path, backend: FakeBackend) -> None:
    before = contents(home)
    with open_home(home, backend, read_only=True) as devices, pytest.raises(HomeError, match="open read-only"):
        devices.rename("a", "b")
    assert contents(home) == before


def test_not_while_its_content_is_replaced(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices, devices.replacing("a") as thin:
        thin.pwrite(0, b"new")
        with pytest.raises(DeviceBusy, match="new content is being written to device 'a'"):
            devices.rename("a", "b")


def test_a_copy_that_is_read_goes_with_the_old_name_and_leaves_nothing(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        with devices.snapshots.temporary("a") as thin:
            devices.rename("a", "b")
            devices.create("a")
            assert thin.pread(0, 1) is not None
        assert_whole(devices)


# --- a disk that fails


@pytest.mark.parametrize("step", ["open", "write", "fsync", "rename", "unlink"])
@pytest.mark.parametrize("number", range(8))
def test_a_failing_disk_leaves_one_name_or_the_other(
    home: Path, backend: FakeBackend, step: str, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "cowfs")
    with open_home(home, backend) as devices:
        devices.create("former")
        devices.create("b", parent="former")
        devices.create("child", parent="a")
        devices.remove("former")
    system = FailingOs(step, errno.EIO, skip=number)
    with open_home(home, backend, system=system) as devices:
        with suppress(HomeError):
            devices.rename("a", "former")
        system.mend()
        seen = names(devices)
        assert seen == record_files(home)
        name = "former" if "former" in devices else "a"
        expected = {"b": None, "base": None, "child": name, name: "base"}
        assert parents(devices) == expected
        devices.create("last", parent=name)
    with open_home(home, backend) as devices:
        assert names(devices) == sorted([*seen, "last"])
        assert parents(devices) == expected | {"last": name}
        assert devices.problems == ()
        other = "a" if name == "former" else "former"
        devices.rename(name, other)
        assert parents(devices) == {"b": None, "base": None, "child": other, "last": other, other: "base"}
    assert not (home / "cowfs.renaming").exists()


def test_what_a_failure_left_is_done_before_the_next_change(home: Path, backend: FakeBackend) -> None:
    """The lines of parents cannot be written after the record has its new name; then the old name is used again."""
    with open_home(home, backend) as devices:
        devices.create("child", parent="a")
    with open_home(home, backend, system=FailingOs("rename cowfs.parents", errno.EIO)) as devices:
        devices.rename("a", "b")
        assert (home / "cowfs.renaming").exists()
        assert parents(devices) == {"b": "base", "base": None, "child": "b"}
        devices.create("a")
        devices.create("later", parent="a")
        devices.remove("a")
        expected = {"b": "base", "base": None, "child": "b", "later": None}
        assert parents(devices) == expected
    with open_home(home, backend) as devices:
        assert parents(devices) == expected
    assert not (home / "cowfs.renaming").exists()


def test_a_new_name_that_a_power_cut_takes_back_is_taken_back_everywhere(
    home: Path, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of parents have it already: the directory of records could not be flushed."""
    with open_home(home, backend) as devices:
        devices.create("child", parent="a")
        before = parents(devices)
    monkeypatch.setattr(Renames, "_make_durable", fail)
    failing = FailingOs("fsync", errno.EIO, skip=2)
    told = "'a' is 'b' now, and it is not known whether"
    with open_home(home, backend, system=failing) as devices, pytest.raises(HomeError, match=told):
        devices.rename("a", "b")
    monkeypatch.undo()
    assert b'"b"' in (home / "cowfs.parents").read_bytes()
    (home / "metadata/b").rename(home / "metadata/a")
    with open_home(home, backend) as devices:
        assert parents(devices) == before
    assert b'"b"' not in (home / "cowfs.parents").read_bytes()
    with open_home(home, backend) as devices:
        assert parents(devices) == before


def fail(*_arguments: object) -> None:
    raise HomeError("the disk fails again", errno=errno.EIO)


def test_a_record_with_both_names_keeps_the_new_one(home: Path, backend: FakeBackend) -> None:
    """As a crash leaves it in a file system whose rename is not atomic."""
    with open_home(home, backend) as devices:
        devices.create("child", parent="a")
        made = devices.record("a").transaction_id
    os.link(home / "metadata/a", home / "metadata/b")
    (home / "cowfs.renaming").write_text(f'{{"name":"a","new_name":"b","transaction_id":{made}}}')
    with open_home(home, backend) as devices:
        assert parents(devices) == {"b": "base", "base": None, "child": "b"}
        assert names(devices) == record_files(home)
        assert devices.problems == ()


@pytest.mark.parametrize("is_renamed", [False, True])
def test_a_rename_that_was_cut_short_keeps_parents_of_a_file_with_many_old_lines(
    home: Path, backend: FakeBackend, is_renamed: bool
) -> None:
    """Lines of devices that are gone are dropped at times: not those of a device that is about to follow its record."""
    with open_home(home, backend) as devices:
        devices.create("b", parent="a")
        devices.create("c", parent="b")
        made = devices.record("b").transaction_id
    parents_file = home / "cowfs.parents"
    text = parents_file.read_text()
    if is_renamed:
        (home / "metadata/b").rename(home / "metadata/new")
    else:  # the lines were changed, and the record has its former name again after a power cut
        text = text.replace('"b"', '"new"')
    gone = "".join(f'\n{{"name":"gone{number}","transaction_id":{90 + number},"parent":"a"}}' for number in range(200))
    parents_file.write_text(text + gone)
    (home / "cowfs.renaming").write_text(f'{{"name":"b","new_name":"new","transaction_id":{made}}}')
    for _ in range(2):
        with open_home(home, backend) as devices:
            name = "new" if is_renamed else "b"
            assert parents(devices) == {"a": "base", "base": None, name: "a", "c": name}
    assert b"gone" not in parents_file.read_bytes()


def test_parents_that_cannot_be_read_are_not_written_over(home: Path, backend: FakeBackend) -> None:
    parents_file = home / "cowfs.parents"
    kept = home / "kept"
    parents_file.rename(kept)
    parents_file.symlink_to(kept)
    text = kept.read_bytes()
    with open_home(home, backend) as devices:
        with pytest.raises(HomeError, match=r"cannot read .*cowfs\.parents"):
            devices.rename("a", "b")
        assert names(devices) == ["a", "base"]
    assert kept.read_bytes() == text
    assert parents_file.is_symlink()


# --- notes

NOTES = [
    b"",
    b"{",
    b'{"name":"a"}',
    b'{"name":1,"new_name":"b","transaction_id":2}',
    b'{"name":"../cowfs.json","new_name":"a","transaction_id":2}',
    b'{"name":"a","new_name":"","transaction_id":2}',
]


@pytest.mark.parametrize("note", NOTES)
def test_a_note_that_cannot_be_understood_is_set_aside(home: Path, backend: FakeBackend, note: bytes) -> None:
    (home / "cowfs.renaming").write_bytes(note)
    with open_home(home, backend) as devices:
        assert "the note about a new name of a device is damaged" in devices.problems[0]
        assert names(devices) == ["a", "base"]
        devices.rename("a", "b")
    assert (home / "cowfs.damaged/cowfs.renaming").read_bytes() == note
    with open_home(home, backend) as devices:
        assert devices.problems == ()


@pytest.mark.parametrize(("name", "new_name"), [("a", "b"), ("b", "a"), ("b", "c"), ("a", "base")])
def test_a_note_about_nothing_does_nothing(home: Path, backend: FakeBackend, name: str, new_name: str) -> None:
    before = contents(home)
    (home / "cowfs.renaming").write_text(f'{{"name":"{name}","new_name":"{new_name}","transaction_id":99}}')
    with open_home(home, backend) as devices:
        assert devices.problems == ()
    assert contents(home) == before


# --- any history


NAMES = st.sampled_from(["a", "b", "c", "d", "e"])


class Histories(RuleBasedStateMachine):
    """Devices beside a model of dicts: numbers by name, and each device's parent by number, which no name changes."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="cowfs-names-")
        self.world = FakeWorld(Path(self.directory.name) / "home")
        self.world.fill()
        self.devices = self.world.open()
        self.numbers = {"base": 0, "a": 1, "b": 2}
        self.parent_of: dict[int, int | None] = {0: None, 1: 0, 2: 1}

    def teardown(self) -> None:
        self.devices.close()
        self.directory.cleanup()

    @rule(name=NAMES, parent=st.none() | NAMES)
    def create(self, name: str, parent: str | None) -> None:
        if name in self.numbers or (parent is not None and parent not in self.numbers):
            with pytest.raises((DeviceExists, UnknownDevice)):
                self.devices.create(name, parent=parent)
            return
        self.devices.create(name, parent=parent)
        number = self.numbers[name] = len(self.parent_of)
        self.parent_of[number] = self.numbers[parent or "base"]

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        if name in self.numbers:
            self.devices.remove(name)
            del self.numbers[name]

    @rule(name=NAMES, new_name=NAMES)
    def rename(self, name: str, new_name: str) -> None:
        if name not in self.numbers or new_name in self.numbers:
            with pytest.raises((DeviceExists, UnknownDevice, UsageError)):
                self.devices.rename(name, new_name)
            return
        self.devices.rename(name, new_name)
        self.numbers[new_name] = self.numbers.pop(name)

    @rule(name=NAMES, new_name=NAMES, die_at=st.integers(0, 25), power_cut=st.booleans())
    def die_while_renaming(self, name: str, new_name: str, die_at: int, power_cut: bool) -> None:
        if name not in self.numbers or new_name in self.numbers:
            return
        self.devices.close()
        self.world.run_until(die_at, lambda devices: devices.rename(name, new_name), power_cut=power_cut)
        self.devices = self.world.open()
        if new_name in self.devices:
            self.numbers[new_name] = self.numbers.pop(name)

    @rule()
    def open_again(self) -> None:
        self.devices.close()
        self.devices = self.world.open()

    @invariant()
    def is_as_the_model_says(self) -> None:
        assert names(self.devices) == sorted(self.numbers)
        by_number = {number: name for name, number in self.numbers.items()}
        expected = {name: self.parent_of[number] for name, number in self.numbers.items()}
        assert parents(self.devices) == {
            name: by_number.get(number) if number is not None else None for name, number in expected.items()
        }
        assert_whole(self.devices)
        assert self.devices.problems == ()


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=max(profile().max_examples // 4, 25),
    stateful_step_count=max(profile().stateful_step_count, 30),
    suppress_health_check=list(HealthCheck),
)
