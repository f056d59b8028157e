"""Devices that are rolled back, and many made at once: what follows, what is refused, what a failing disk leaves."""

from __future__ import annotations

import errno
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cowfs.devices.deviceset import DeviceSet
from cowfs.errors import (
    CowfsError,
    DeviceBusy,
    DeviceExists,
    HomeError,
    OutOfDataSpace,
    PoolModeError,
    UnknownDevice,
    UsageError,
)
from cowfs.pool import PoolMode
from tests.conftest import profile
from tests.devices.crash_worlds import EmulatedWorld
from tests.devices.home_fakes import MIB, PAGE, FailingOs, FakeBackend, assert_whole, names, open_home, record_files
from tests.kit.contents import contents

MANY = ["m1", "m2", "m3"]


def parents(devices: DeviceSet) -> dict[str, str | None]:
    return {record.name: record.parent for record in devices.records()}


def write(devices: DeviceSet, name: str, text: bytes) -> None:
    devices.active.activate(name).pwrite(0, text)
    devices.active.deactivate(name)


def read(devices: DeviceSet, name: str) -> bytes:
    text = devices.active.activate(name, read_only=True).pread(0, PAGE).split(b"\0", 1)[0]
    devices.active.deactivate(name)
    return text


@pytest.fixture
def chain(home: Path, backend: FakeBackend) -> Path:
    """The device a, its snapshots old and larger, and later, a snapshot of a as it is now."""
    with open_home(home, backend) as devices:
        write(devices, "a", b"old")
        devices.create("old", parent="a")
        devices.create("larger", parent="old", size_bytes=2 * MIB)
        write(devices, "a", b"new")
        devices.create("later", parent="a")
    return home


def test_a_device_keeps_all_but_its_content_and_size(chain: Path, backend: FakeBackend) -> None:
    with open_home(chain, backend) as devices:
        before, records = devices.record("a"), parents(devices)
        after = devices.roll_back("a", "larger")
        assert (after.name, after.transaction_id, after.parent) == ("a", before.transaction_id, "base")
        assert (after.size_bytes, devices.record("old").size_bytes) == (2 * MIB, MIB)
        assert after.device_id not in (before.device_id, devices.record("larger").device_id)
        assert parents(devices) == records
        assert [read(devices, name) for name in ("a", "old", "later")] == [b"old", b"old", b"new"]
        write(devices, "a", b"other")
        devices.roll_back("a", "later")
        assert devices.record("a").size_bytes == MIB
    for read_only in (True, False):
        with open_home(chain, backend, read_only=read_only) as devices:
            assert parents(devices) == records
            assert [read(devices, name) for name in ("a", "old", "later")] == [b"new", b"old", b"new"]
            assert devices.problems == ()
            assert names(devices) == record_files(chain)
            assert_whole(devices)


def test_what_it_held_is_kept_as_a_snapshot_of_it(chain: Path, backend: FakeBackend) -> None:
    with open_home(chain, backend) as devices:
        devices.roll_back("a", "larger", keep="kept")
        assert [read(devices, name) for name in ("a", "kept")] == [b"old", b"new"]
        kept = devices.record("kept")
        assert (kept.parent, kept.size_bytes) == ("a", MIB)
        assert devices.create("next", parent="kept").parent == "kept"
        devices.roll_back("a", "kept", keep="kept 2")
        assert [read(devices, name) for name in ("a", "kept", "kept 2")] == [b"new", b"new", b"old"]
        assert devices.record("kept 2").size_bytes == 2 * MIB
        assert_whole(devices)


def test_the_base_is_what_every_device_can_be_rolled_back_to(chain: Path, backend: FakeBackend) -> None:
    with open_home(chain, backend) as devices:
        empty = read(devices, "base")
        devices.roll_back("a", "base")
        assert read(devices, "a") == empty
        assert parents(devices)["old"] == "a"


def test_relatives_share_a_device_other_than_the_base(chain: Path, backend: FakeBackend) -> None:
    with open_home(chain, backend) as devices:
        devices.create("other")
        related = [("a", "larger"), ("larger", "later"), ("old", "a"), ("a", "base"), ("base", "other")]
        assert all(devices.are_related(*pair) for pair in related)
        assert not devices.are_related("a", "other")
        assert not devices.are_related("other", "larger")


def test_a_layer_stays_a_layer(home: Path, backend: FakeBackend) -> None:
    with open_home(home, backend) as devices:
        devices.create("layer", is_layer=True)
        devices.create("child", parent="layer")
        devices.roll_back("layer", "child", keep="kept")
        assert [devices.record(name).is_layer for name in ("layer", "child", "kept")] == [True] * 3
        with pytest.raises(UsageError, match="'layer' is a layer and 'a' is not"):
            devices.roll_back("layer", "a")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("nope", "old"), UnknownDevice, "there is no device 'nope'"),
        (("a", "nope"), UnknownDevice, "there is no device 'nope'"),
        (("base", "old"), UsageError, "the base device cannot be rolled back"),
        (("a", "a"), UsageError, "'a' cannot be rolled back to itself"),
        (("used", "old"), DeviceBusy, "'used' is in use, so it cannot be rolled back"),
        (("marked", "old"), DeviceBusy, "'marked'.* is marked for deletion"),
        (("a", "marked"), DeviceBusy, "'marked'.* is marked for deletion"),
        (("a", "old", "old"), DeviceExists, "'old' exists already"),
        (("a", "old", "a"), DeviceExists, "'a' exists already"),
        (("a", "old", "base"), UsageError, "it is reserved for the home"),
        (("a", "old", ""), UsageError, "it is empty"),
        (("a", "old", "b/c"), UsageError, "contains a slash"),
    ],
)
def test_a_rollback_that_is_refused_changes_nothing(
    chain: Path, backend: FakeBackend, arguments: tuple[str, ...], error: type[CowfsError], says: str
) -> None:
    with open_home(chain, backend) as devices:
        for other in ("marked", "used"):
            devices.create(other)
            devices.active.activate(other)
        devices.remove("marked", deferred=True)
        before = contents(chain)
        with pytest.raises(error, match=says) as caught:
            devices.roll_back(*arguments[:2], keep=arguments[2] if len(arguments) > 2 else None)
        assert "\n" not in str(caught.value)
        assert contents(chain) == before
        assert_whole(devices)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (([], None), UsageError, "no device is named"),
        ((["n", "o", "n"], None), UsageError, "'n' is named twice"),
        ((["n", "a"], None), DeviceExists, "'a' exists already"),
        ((["n", "b/c"], None), UsageError, "contains a slash"),
        ((["n", "o"], "nope"), UnknownDevice, "there is no device 'nope'"),
        ((["n", "o"], "a", 512), UsageError, "less than that of its parent 'a'"),
    ],
)
def test_many_that_are_refused_change_nothing(
    chain: Path, backend: FakeBackend, arguments: Any, error: type[CowfsError], says: str
) -> None:
    with open_home(chain, backend) as devices:
        before = contents(chain)
        with pytest.raises(error, match=says) as caught:
            devices.create_many(arguments[0], parent=arguments[1], size_bytes=arguments[2] if arguments[2:] else None)
        assert "\n" not in str(caught.value)
        assert contents(chain) == before
        assert_whole(devices)


def test_many_are_of_one_moment_and_in_order(chain: Path, backend: FakeBackend) -> None:
    quiesced: list[str] = []

    @contextmanager
    def quiescer() -> Iterator[None]:
        quiesced.append("a")
        yield

    with open_home(chain, backend) as devices:
        devices.active.activate("a").pwrite(0, b"written")
        devices.active.add_quiescer("a", quiescer)
        made = devices.create_many(MANY, parent="a", size_bytes=2 * MIB)
        assert [(record.name, record.parent, record.size_bytes) for record in made] == [
            (name, "a", 2 * MIB) for name in MANY
        ]
        assert len({record.transaction_id for record in made}) == 3
        assert quiesced == ["a"]
        assert devices.create("next", parent="m2").parent == "m2"
        assert devices.reports.status().transaction_id == devices.record("next").transaction_id
    with open_home(chain, backend) as devices:
        assert [read(devices, name) for name in MANY] == [b"written"] * 3
        assert devices.problems == ()
        devices.remove("m3")
        assert_whole(devices)
    assert not (chain / "cowfs.making").exists()


def test_a_pool_or_home_that_cannot_change_is_left_alone(chain: Path, backend: FakeBackend) -> None:
    before = contents(chain)
    with open_home(chain, backend, read_only=True) as devices:
        for change in (lambda: devices.roll_back("a", "old"), lambda: devices.create_many(MANY)):
            with pytest.raises(HomeError, match="open read-only"):
                change()
    with open_home(chain, backend) as devices:
        backend.condition = {"mode": PoolMode.READ_ONLY}
        for change in (lambda: devices.roll_back("a", "old"), lambda: devices.create_many(MANY)):
            with pytest.raises(PoolModeError):
                change()
        backend.condition = {}
    assert contents(chain) == before


def test_a_rollback_needs_no_free_space_but_for_what_is_kept(chain: Path, backend: FakeBackend) -> None:
    settings_file = chain / "cowfs.json"
    settings_file.write_text(settings_file.read_text().replace('"min_free_percent":0', '"min_free_percent":100'))
    with open_home(chain, backend) as devices:
        devices.roll_back("a", "old")
        with pytest.raises(OutOfDataSpace, match="less than"):
            devices.roll_back("a", "later", keep="kept")
        assert read(devices, "a") == b"old"


@pytest.mark.parametrize("step", ["open", "write", "fsync", "rename", "unlink", "mkdir"])
@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize(
    "change",
    [
        lambda devices: devices.roll_back("a", "old", keep="kept"),
        lambda devices: devices.create_many(MANY, parent="old"),
    ],
    ids=["roll back", "create many"],
)
def test_a_failing_disk_leaves_all_or_nothing(
    chain: Path,
    backend: FakeBackend,
    step: str,
    number: int,
    change: Callable[[DeviceSet], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL, "cowfs")
    with open_home(chain, backend) as devices:
        before = names(devices)

    def state(devices: DeviceSet) -> bool:
        """Whether the change is there; it is wholly or not at all."""
        made = [name for name in names(devices) if name not in before]
        assert made in ([], ["kept"], MANY)
        assert read(devices, "a") == (b"old" if made == ["kept"] else b"new")
        if made == ["kept"]:
            assert read(devices, "kept") == b"new"
        return bool(made)

    failing = FailingOs(step, errno.EIO, skip=number)
    with open_home(chain, backend, system=failing) as devices:
        said = None
        try:
            change(devices)
        except CowfsError as error:
            said = str(error)
        is_done = state(devices)
        assert is_done or said is not None
        assert "\n" not in (said or "")
        failing.mend()
        devices.create("next", parent="a")
    with open_home(chain, backend) as devices:
        before.append("next")
        assert state(devices) == is_done
        assert devices.problems == ()
        assert_whole(devices)
    assert not (chain / "cowfs.making").exists()


@pytest.mark.parametrize("note", [b"", b"{", b'{"transaction_id":1}', b'{"transaction_id":1,"thin_ids":{"../a":7}}'])
def test_a_note_that_cannot_be_understood_is_set_aside(chain: Path, backend: FakeBackend, note: bytes) -> None:
    (chain / "cowfs.making").write_bytes(note)
    with open_home(chain, backend) as devices:
        assert "the note about devices that were being made is damaged" in devices.problems[0]
        devices.create_many(MANY)
    assert (chain / "cowfs.damaged/cowfs.making").read_bytes() == note


def test_a_note_about_others_undoes_nothing(chain: Path, backend: FakeBackend) -> None:
    """Of devices that are there by another transaction, in a home that was put back perhaps."""
    with open_home(chain, backend) as devices:
        thin_id, transaction_id = devices.record("a").device_id, devices.reports.status().transaction_id
    (chain / "cowfs.making").write_text(f'{{"transaction_id":{transaction_id - 1},"thin_ids":{{"a":{thin_id}}}}}')
    with open_home(chain, backend) as devices:
        assert read(devices, "a") == b"new"
        assert_whole(devices)
    (chain / "cowfs.making").write_text(f'{{"transaction_id":{transaction_id},"thin_ids":{{"a":{thin_id + 900}}}}}')
    with open_home(chain, backend) as devices:
        assert read(devices, "a") == b"new"
        assert_whole(devices)


# --- any history

NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
BLOCK = 64 << 10


@dataclass
class Model:
    """A device: what it holds by block, its size, and the number of its parent, which no name changes."""

    number: int
    parent: int | None
    size_bytes: int
    blocks: dict[int, bytes]


class Histories(RuleBasedStateMachine):
    """A home on the emulated pool beside a model of dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="cowfs-rollback-")
        self.world = EmulatedWorld(Path(self.directory.name) / "home")
        self.world.fill()
        self.devices = self.world.open()
        self.made = 3
        base = read(self.devices, "base")
        first = b"written to a".ljust(36) + base[36:]
        self.model = {
            "base": Model(0, None, MIB, {0: base}),
            "a": Model(1, 0, MIB, {0: first}),
            "b": Model(2, 1, MIB, {0: base}),
        }

    def teardown(self) -> None:
        self.devices.close()
        self.directory.cleanup()

    def new(self, parent: str) -> Model:
        origin = self.model[parent]
        self.made += 1
        return Model(self.made - 1, origin.number, origin.size_bytes, dict(origin.blocks))

    @rule(made=st.lists(NAMES, min_size=1, max_size=3, unique=True), parent=st.none() | NAMES)
    def create(self, made: list[str], parent: str | None) -> None:
        if any(name in self.model for name in made) or (parent or "base") not in self.model:
            with pytest.raises((DeviceExists, UnknownDevice)):
                self.devices.create_many(made, parent=parent)
            return
        self.devices.create_many(made, parent=parent)
        for name in made:
            self.model[name] = self.new(parent or "base")

    @rule(name=NAMES, snapshot=NAMES | st.just("base"), keep=st.none() | NAMES)
    def roll_back(self, name: str, snapshot: str, keep: str | None) -> None:
        if name == snapshot or not {name, snapshot} <= self.model.keys() or keep in self.model:
            with pytest.raises((DeviceExists, UnknownDevice, UsageError)):
                self.devices.roll_back(name, snapshot, keep=keep)
            return
        self.devices.roll_back(name, snapshot, keep=keep)
        self._rolled_back(name, snapshot, keep)

    def _rolled_back(self, name: str, snapshot: str, keep: str | None) -> None:
        if keep is not None:
            self.model[keep] = self.new(name)
        origin = self.model[snapshot]
        self.model[name].size_bytes, self.model[name].blocks = origin.size_bytes, dict(origin.blocks)

    @rule(
        name=NAMES,
        snapshot=NAMES | st.just("base"),
        keep=st.none() | NAMES,
        die_at=st.integers(0, 60),
        power_cut=st.booleans(),
    )
    def die_while_rolling_back(self, name: str, snapshot: str, keep: str | None, die_at: int, power_cut: bool) -> None:
        if name == snapshot or not {name, snapshot} <= self.model.keys() or keep in self.model:
            return
        self.devices.close()
        before = {record.name: record.device_id for record in self._records()}

        def change(devices: DeviceSet) -> None:
            devices.roll_back(name, snapshot, keep=keep)

        self.world.run_until(die_at, change, power_cut=power_cut)
        self.devices = self.world.open()
        if self.devices.record(name).device_id != before[name]:
            self._rolled_back(name, snapshot, keep)

    def _records(self) -> list[Any]:
        with self.world.open(read_only=True) as devices:
            return devices.records()

    @rule(name=NAMES, new_name=NAMES)
    def rename(self, name: str, new_name: str) -> None:
        if name in self.model and new_name not in self.model:
            self.devices.rename(name, new_name)
            self.model[new_name] = self.model.pop(name)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        if name in self.model:
            self.devices.remove(name)
            del self.model[name]

    @rule(name=NAMES, block=st.integers(0, 7), text=st.binary(min_size=1, max_size=8))
    def write(self, name: str, block: int, text: bytes) -> None:
        if name in self.model:
            thin = self.devices.active.activate(name)
            thin.pwrite(block * BLOCK, text)
            self.devices.active.deactivate(name)
            held = self.model[name].blocks.get(block, b"")
            self.model[name].blocks[block] = text + held[len(text) :]

    @rule()
    def open_again(self) -> None:
        self.devices.close()
        self.devices = self.world.open()

    @precondition(lambda self: self.devices.problems == ())
    @rule()
    def check(self) -> None:
        self.world.judge(self.devices)

    @invariant()
    def is_as_the_model_says(self) -> None:
        assert names(self.devices) == sorted(self.model)
        by_number = {model.number: name for name, model in self.model.items()}
        for name, model in self.model.items():
            record = self.devices.record(name)
            assert record.size_bytes == model.size_bytes
            assert record.parent == (None if model.parent is None else by_number.get(model.parent))
            thin = self.devices.active.activate(name, read_only=True)
            for block in range(8):
                expected = model.blocks.get(block, b"").rstrip(b"\0")
                assert thin.pread(block * BLOCK, PAGE).rstrip(b"\0") == expected, (name, block)
            self.devices.active.deactivate(name)
        assert_whole(self.devices)
        assert self.devices.problems == ()


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=max(profile().max_examples // 10, 10),
    stateful_step_count=max(profile().stateful_step_count, 30),
    suppress_health_check=list(HealthCheck),
)
