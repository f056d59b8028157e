"""Every operation gives the same answer, or the same error, here and through the holder of the home."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import cowfs
from cowfs import errors
from cowfs.devices import opening
from cowfs.devices.on_disk.names import pool_prefix
from cowfs.devices.reports import HomeReport
from cowfs.error_record import record_error, restore_error
from cowfs.faults.plan import Error, Rule
from cowfs.home.control.client import Client
from cowfs.home.executor import Executor
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.opened.spec import HomeSpec
from cowfs.home.requests.devices import Status
from cowfs.home.requests.recordings import Write
from cowfs.home.session import connect, metadata_of
from cowfs.pool import load_backend
from cowfs.recording.tree_change import TreeChange
from cowfs.thinmeta.check import check
from tests.home.conftest import SMALL, serving

BASE_BYTES = 16 << 20

Act = Callable[[cowfs.Home], object]


def dump(home: cowfs.Home) -> str:
    parts: list[str] = []

    class Sink:
        def write(self, text: str, /) -> None:
            parts.append(text)

    home.dump(Sink())
    return "".join(parts)


def delta(home: cowfs.Home) -> str:
    parts: list[str] = []

    class Sink:
        def write(self, text: str, /) -> None:
            parts.append(text)

    home.delta("base", "web", Sink())
    return "".join(parts)


def traced(home: cowfs.Home, name: str) -> None:
    with home.trace(name, os.fspath(home.path / "t.trace")):
        pass


def cut_power(home: cowfs.Home) -> object:
    home.watch_unsynced("web")
    return home.power_cut("web"), home.power_cut("web", seed=1)


SUCCEEDING: dict[str, Act] = {
    "create": lambda home: home.create("new"),
    "create larger": lambda home: home.create("new", parent="web", size_bytes=2 * BASE_BYTES),
    "snapshot": lambda home: home.snapshot("web", "new"),
    "create many": lambda home: home.create_many(["new", "newer"], parent="web"),
    "rollback": lambda home: home.rollback("web", "base"),
    "rollback keeping": lambda home: (home.snapshot("web", "new"), home.rollback("web", "new", keep="kept")),
    "rename": lambda home: home.rename("web", "new"),
    "remove": lambda home: home.remove("web"),
    "remove deferred": lambda home: home.remove("web", deferred=True),
    "usage": lambda home: home.usage(),
    "trim": lambda home: home.trim("web"),
    "resize": lambda home: home.resize("web", 2 * BASE_BYTES),
    "resize pool": lambda home: home.resize_pool(data_size_bytes=512 << 20),
    "set no space": lambda home: home.set_no_space("error", timeout_seconds=5),
    "devices": lambda home: home.devices(),
    "inspect": lambda home: home.inspect("base"),
    "list faults": lambda home: home.list_faults(),
    "add and clear faults": lambda home: (
        home.add_faults([Rule(effect=Error(), operations=("read",), on="device", device="none")]),
        home.clear_faults(["rule-1"]),
    ),
    "record": lambda home: (
        home.recordings.start("web", "origin"),
        home.recordings.mark("web", "promised"),
        home.recordings.stop("web", "origin").marks,
    ),
    "make crash states": lambda home: (
        home.recordings.make_disk_state("state", "web", [Write(4096, 4, b"data"), Write(0, 512)]),
        home.recordings.make_file_state("other", "web", TreeChange([], [], [], [])),
    ),
    "cut the power": cut_power,
    "message": lambda home: home.message("create_snap 7 1"),
    "table": lambda home: home.table(),
    "target_status": lambda home: home.target_status(),
    "check": lambda home: home.check(),
    "dump": dump,
    "delta": delta,
}

FAILING: dict[str, tuple[Act, type[errors.CowfsError], int, int]] = {
    "create taken": (lambda home: home.create("web"), errors.DeviceExists, 17, 5),
    "create bad name": (lambda home: home.create("a/b"), errors.UsageError, 22, 2),
    "create without parent": (lambda home: home.create("new", parent="nope"), errors.UnknownDevice, 2, 5),
    "create smaller": (lambda home: home.create("new", size_bytes=512), errors.UsageError, 22, 2),
    "create many taken": (lambda home: home.create_many(["new", "web"]), errors.DeviceExists, 17, 5),
    "create many twice": (lambda home: home.create_many(["new", "new"]), errors.UsageError, 22, 2),
    "create none": (lambda home: home.create_many([]), errors.UsageError, 22, 2),
    "rollback unknown": (lambda home: home.rollback("nope", "web"), errors.UnknownDevice, 2, 5),
    "rollback to unknown": (lambda home: home.rollback("web", "nope", force=True), errors.UnknownDevice, 2, 5),
    "rollback to itself": (lambda home: home.rollback("web", "web"), errors.UsageError, 22, 2),
    "rollback base": (lambda home: home.rollback("base", "web"), errors.UsageError, 22, 2),
    "rollback keep taken": (lambda home: home.rollback("web", "base", keep="web"), errors.DeviceExists, 17, 5),
    "rename unknown": (lambda home: home.rename("nope", "new"), errors.UnknownDevice, 2, 5),
    "rename taken": (lambda home: home.rename("web", "web"), errors.UsageError, 22, 2),
    "rename bad name": (lambda home: home.rename("web", "a/b"), errors.UsageError, 22, 2),
    "rename base": (lambda home: home.rename("base", "new"), errors.UsageError, 22, 2),
    "remove unknown": (lambda home: home.remove("nope"), errors.UnknownDevice, 2, 5),
    "remove base": (lambda home: home.remove("base"), errors.UsageError, 22, 2),
    "trim unknown": (lambda home: home.trim("nope"), errors.UnknownDevice, 2, 5),
    "resize smaller": (lambda home: home.resize("web", 512), errors.UsageError, 22, 2),
    "resize unknown": (lambda home: home.resize("nope", 2 * BASE_BYTES), errors.UnknownDevice, 2, 5),
    "resize pool smaller": (lambda home: home.resize_pool(data_size_bytes=65536), errors.UsageError, 22, 2),
    "inspect unknown": (lambda home: home.inspect("nope"), errors.UnknownDevice, 2, 5),
    "trace of a device that is not in use": (lambda home: traced(home, "web"), errors.UsageError, 22, 2),
    "trace of no device": (lambda home: traced(home, "nope"), errors.UnknownDevice, 2, 5),
    "clear unknown fault": (lambda home: home.clear_faults(["nope"]), errors.UsageError, 22, 2),
    "add wrong fault": (
        lambda home: home.add_faults([Rule(effect=Error("EFOO"), operations=("read",), on="device")]),
        errors.UsageError,
        22,
        2,
    ),
    "record unknown": (lambda home: home.recordings.start("nope", "origin"), errors.UnknownDevice, 2, 5),
    "record from a taken name": (lambda home: home.recordings.start("web", "web"), errors.DeviceExists, 17, 5),
    "mark what is not recorded": (lambda home: home.recordings.mark("web", "text"), errors.UnknownDevice, 2, 5),
    "crash state beyond the disk": (
        lambda home: home.recordings.make_disk_state("state", "web", [Write(1 << 40, 4, b"data")]),
        errors.UsageError,
        22,
        2,
    ),
    "power cut of what is not watched": (lambda home: home.power_cut("web"), errors.UsageError, 22, 2),
    "power cut unknown": (lambda home: home.power_cut("nope"), errors.UnknownDevice, 2, 5),
    "watch unknown": (lambda home: home.watch_unsynced("nope"), errors.UnknownDevice, 2, 5),
    "advance a real clock": (lambda home: home.advance_clock(1), errors.UsageError, 22, 2),
    "message taken": (lambda home: home.message("create_thin 1"), errors.ThinExists, 17, 4),
    "message unknown origin": (lambda home: home.message("create_snap 9 8"), errors.NoSuchThin, 61, 4),
    "message unknown thin": (lambda home: home.message("delete 9"), errors.NoSuchThin, 61, 4),
    "message 25 bits": (lambda home: home.message("create_thin 16777216"), errors.InvalidRequest, 22, 4),
    "message nonsense": (lambda home: home.message("make_coffee"), errors.InvalidRequest, 22, 4),
    "message transaction": (lambda home: home.message("set_transaction_id 99 100"), errors.InvalidRequest, 22, 4),
    "delta unknown": (
        lambda home: home.delta("web", "nope", None),  # type: ignore[arg-type]
        errors.UnknownDevice,
        2,
        5,
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_errors_keep_class_errno_and_exit_code(opened: cowfs.Home, name: str) -> None:
    act, kind, number, exit_code = FAILING[name]
    with pytest.raises(kind) as caught:
        act(opened)
    assert type(caught.value) is kind
    assert (caught.value.errno, caught.value.exit_code) == (number, exit_code)
    assert "\n" not in str(caught.value)
    assert [row.name for row in opened.devices()] == ["base", "web"]


@pytest.mark.parametrize("name", SUCCEEDING)
def test_answers_are_the_same_through_the_holder(home: Path, tmp_path: Path, name: str) -> None:
    twin = tmp_path / "twin"
    with opening.make_home(twin, load_backend("emulated"), SMALL) as devices:
        devices.create("web")
    with cowfs.open_home(home, durable=False) as here:
        expected = SUCCEEDING[name](here)
        after = here.devices()
    with serving(twin), cowfs.open_home(twin) as there:
        assert normal(SUCCEEDING[name](there), twin) == normal(expected, home)
        assert there.devices() == after


def normal(value: object, home: Path) -> str:
    """An answer without what differs between two homes: where they are, and their names as dm devices."""
    text = repr(value).replace(str(home), "HOME")
    return text.replace(pool_prefix(str(home)), "PREFIX")


def test_status_names_the_holder(home: Path) -> None:
    with cowfs.open_home(home) as here:
        assert here.status().holder_pid is None
    with serving(home), cowfs.open_home(home) as there:
        report = there.status()
        assert isinstance(report, HomeReport)
        assert report.holder_pid == there.holder_pid == os.getpid()


class Paths:
    """A mounter of layers that mounts nothing."""

    def mount(self, layer_id: str, mount_label: str, **preparations: object) -> str:
        return f"/shown/{layer_id}"

    def show(self, layer_id: str, **preparations: object) -> str:
        return f"/shown/{layer_id}"

    def unmount(self, layer_id: str) -> None:
        pass

    def unmount_all(self) -> None:
        pass


def test_each_get_of_a_layer_is_a_use_in_the_reports_of_a_served_home(home: Path) -> None:
    def show_layers(opened: OpenHome) -> None:
        opened.use_driver(opened.settings, mounter=Paths())

    with serving(home, prepare=show_layers), cowfs.open_home(home) as there:
        there.layers.create("one")
        assert there.layers.get("one") == there.layers.get("one") == "/shown/one"
        uses = there.inspect("one").uses
        assert [(use.device, use.kind, use.where) for use in uses] == 2 * [("one", "layer", "/shown/one")]
        assert there.status().uses == uses
        with pytest.raises(errors.DeviceBusy, match="mounted as a layer at /shown/one"):
            there.remove("one")
        there.layers.put("one")
        assert there.status().uses == there.inspect("one").uses == uses[:1]
        there.layers.put("one")
        assert there.status().uses == there.inspect("one").uses == []
        there.remove("one")


def test_metadata_is_read_while_the_home_is_held(served: Path) -> None:
    with metadata_of(served, "emulated") as metadata:
        report = check(metadata)
        assert report.clean
        assert report.thins == 2
        with connect(HomeSpec(served)) as session:
            assert session.call(Status()).devices == 1
        with cowfs.open_home(served) as home:
            home.create("later")
        # The copy does not follow.
        assert check(metadata).thins == 2


def test_metadata_is_read_where_no_pool_opens(home: Path) -> None:
    with open(home / "devicemapper" / "metadata", "r+b") as file:
        file.seek(100)
        file.write(b"\xff")
    with pytest.raises(errors.MetadataCorrupt):
        cowfs.open_home(home)
    with metadata_of(home, "emulated") as metadata:
        assert not check(metadata).clean


def test_a_device_is_opened_here_only(home: Path) -> None:
    with cowfs.open_home(home, durable=False) as here, here.device("web") as disk:
        disk.pwrite(4096, b"mine")
        assert disk.pread(4096, 4) == b"mine"
    with serving(home), cowfs.open_home(home) as there:
        with (
            pytest.raises(
                errors.HomeBusy, match="open_file and export_image work meanwhile; or unmount it first"
            ) as caught,
            there.device("web"),
        ):
            pass
        assert caught.value.holder_pid == there.holder_pid


def test_a_device_that_is_open_is_not_removed(home: Path) -> None:
    with cowfs.open_home(home, durable=False) as here, here.device("web"):
        with pytest.raises(errors.DeviceBusy):
            here.remove("web")
        assert here.inspect("web").active


@pytest.mark.parametrize(
    "error",
    [
        errors.UsageError("bad"),
        errors.HomeBusy("held", holder_pid=7),
        errors.MetadataCorrupt("bad magic", block=3, path="superblock -> node 3"),
        errors.OutOfDataSpace("full", may_queue=True),
        errors.MissingRequirement("no fuse", remedy="modprobe fuse"),
        errors.MountError("mount", "cowfs:/h:a", "/mnt", flags=1, data="ro", errno=16),
        errors.PoolModeError("read-only", errno=5),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_survives_the_wire(error: errors.CowfsError) -> None:
    back = restore_error(record_error(error))
    assert type(back) is type(error)
    assert isinstance(back, errors.CowfsError)
    assert (str(back), back.errno, back.exit_code, vars(back)) == (
        str(error),
        error.errno,
        error.exit_code,
        vars(error),
    )


def test_a_class_unknown_here_keeps_its_exit_code() -> None:
    record = msgspec.structs.replace(
        record_error(errors.UsageError("from the future")), kind="FutureError", exit_code=42
    )
    back = restore_error(record)
    assert type(back) is errors.CowfsError
    assert back.exit_code == 42
    assert errors.CowfsError.exit_code == 1


def test_what_an_older_server_says_of_an_archive_gets_the_name_of_its_file() -> None:
    told = record_error(errors.ArchiveError("a header is damaged", entry="a/b"))
    record = msgspec.structs.replace(told, fields={"entry": "a/b"})
    back = restore_error(record)
    assert isinstance(back, errors.ArchiveError)
    assert str(back.of("x.tar")) == "x.tar: layer archive, entry 'a/b': a header is damaged"


@pytest.mark.parametrize("kind", ["OSError", "os", "__name__", "annotations"])
def test_a_record_cannot_name_what_is_no_error_of_ours(kind: str) -> None:
    record = msgspec.structs.replace(record_error(errors.UsageError("x")), kind=kind)
    assert type(restore_error(record)) is errors.CowfsError


def test_local_sessions_are_local(home: Path) -> None:
    session = connect(HomeSpec(home))
    try:
        assert isinstance(session, Executor)
        with pytest.raises(errors.HomeBusy):
            connect(HomeSpec(home), wait_seconds=0)
    finally:
        session.close()
    with serving(home):
        session = connect(HomeSpec(home))
        assert isinstance(session, Client)
        session.close()
