"""One executor runs every request: what a request declares about devices is done around it, for every client."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio

from cowfs.devices.active import ActiveDevices
from cowfs.errors import HomeError
from cowfs.ext4.volume import Volume
from cowfs.home.executor import Executor, Views
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.opened.opening import open_here
from cowfs.home.opened.spec import HomeSpec
from cowfs.home.requests import decoding
from cowfs.home.requests.comparing import ChangedFiles, Changes
from cowfs.home.requests.devices import Activate, Create, CreateMany, OpenNode, Remove, Rename, Rollback, Status
from cowfs.home.requests.faults import AddFaults, ClearFaults, ListFaults
from cowfs.home.requests.files import CopyIn, CopyOut, CopyWithin, ListFiles, ReadFile
from cowfs.home.requests.layers import (
    ApplyLayer,
    CreateLayer,
    LayerArchive,
    LayerChanges,
    LayerDiff,
    LayerSize,
    PutLayer,
    RemoveLayer,
)
from cowfs.home.requests.recordings import AddMark, StartRecording
from cowfs.home.requests.request import AnyRequest, Listing, Request, StreamIn, StreamOut
from cowfs.home.requests.space import Resize
from cowfs.home.serving.mounting import MountRequest
from cowfs.home.serving.served_home import ServedHome
from cowfs.steps import Pieces


class NotedViews(Views):
    """Notes what it is asked for, and when the operation itself ran; device `idle` is not in use."""

    def __init__(self) -> None:
        self.events: list[str] = []

    async def write_back(self, device: str) -> None:
        await trio.lowlevel.checkpoint()
        self.events.append(f"write back {device}")

    async def close_if_idle(self, device: str) -> bool:
        await trio.lowlevel.checkpoint()
        self.events.append(f"close {device}")
        return device == "idle"

    async def begin_unmount(self, device: str) -> None:
        await trio.lowlevel.checkpoint()
        self.events.append(f"write out {device}")

    async def begin_rename(self, device: str) -> None:
        await trio.lowlevel.checkpoint()
        self.events.append(f"set aside {device}")

    async def end_rename(self, device: str, new_name: str) -> None:
        self.events.append(f"show {device} or {new_name}")

    async def invalidate(self, device: str) -> None:
        self.events.append(f"invalidate {device}")

    async def drop_caches(self) -> None:
        self.events.append("drop caches")

    async def give_up(self, device: str, *, force: bool) -> None:
        await trio.lowlevel.checkpoint()
        self.events.append(f"{'detach' if force else 'give up'} {device}")

    async def take_up(self, device: str) -> None:
        self.events.append(f"take up {device}")

    async def put_aside(self, device: str) -> None:
        self.events.append(f"put aside {device}")

    async def take_again(self, device: str) -> None:
        self.events.append(f"take again {device}")


def events_of(request: AnyRequest, monkeypatch: pytest.MonkeyPatch, *, failing: bool = False) -> list[str]:
    views = NotedViews()
    executor = Executor(cast(OpenHome, None), views)

    def run(_request: AnyRequest, _home: OpenHome) -> object:
        views.events.append("run")
        if failing:
            raise HomeError("it fails")
        return iter_pieces() if isinstance(request, Listing | StreamIn | StreamOut) else None

    def iter_pieces() -> Pieces[Any]:
        yield None

    async def main() -> None:
        if isinstance(request, Listing):
            async with aclosing(executor.pieces(request)) as pieces:
                assert [piece async for piece in pieces] == []
        elif isinstance(request, StreamIn):
            await executor.answer_to(request, cast(Any, None))
        elif isinstance(request, StreamOut):
            await executor.give(request, cast(Any, None))
        else:
            assert isinstance(request, Request)
            await executor.answer(request)

    monkeypatch.setattr(type(request), "run", run)
    for kind in (Rollback, Rename):
        monkeypatch.setattr(kind, "check", lambda *_arguments: views.events.append("check"))
    if failing:
        with pytest.raises(HomeError, match="it fails"):
            trio.run(main)
    else:
        trio.run(main)
    return views.events


@pytest.mark.parametrize(
    ("request_", "events"),
    [
        (Status(), ["run"]),
        (Create("new"), ["write back base", "run"]),
        (Create("new", "a"), ["write back a", "run"]),
        (Rename("a", "b"), ["check", "set aside a", "run", "show a or b"]),
        (AddFaults([]), ["run", "drop caches"]),
        (ListFaults(), ["run"]),
        (ClearFaults(), ["run", "drop caches"]),
        (CreateMany(["new", "other"], "a"), ["write back a", "run"]),
        (Rollback("a", "b"), ["check", "write back b", "write back a", "give up a", "run", "take up a"]),
        (Rollback("a", "b", force=True), ["check", "write back b", "write back a", "detach a", "run", "take up a"]),
        (Remove("a"), ["close a", "run"]),
        (Remove("a", deferred=True), ["close a", "run", "close a"]),
        (Resize("a", 1), ["close a", "run"]),
        (OpenNode("a"), ["close a", "run"]),
        (Activate("a"), ["close a", "run"]),
        (CreateLayer("new"), ["write back base", "run"]),
        (CreateLayer("new", "a"), ["write back a", "run"]),
        (RemoveLayer("a"), ["close a", "run"]),
        (LayerChanges("a"), ["write back a", "run"]),
        (LayerChanges("a", "b"), ["write back b", "write back a", "run"]),
        (LayerDiff("a", "b"), ["write back b", "write back a", "run"]),
        (LayerArchive("a", "b"), ["write back b", "write back a", "run"]),
        (LayerSize("a", "b"), ["write back b", "write back a", "run"]),
        (ApplyLayer("a"), ["close a", "run", "close a", "invalidate a"]),
        (ApplyLayer("idle"), ["close idle", "run", "close idle"]),
        (PutLayer("a"), ["write out a", "run", "close a"]),
        (ListFiles("a"), ["write back a", "run"]),
        (ReadFile("a", b"x"), ["write back a", "run"]),
        (CopyOut("a", b"x"), ["write back a", "run"]),
        (CopyIn("a", b"x"), ["write back a", "run", "close a", "invalidate a"]),
        (Changes("a", "b"), ["write back b", "write back a", "run"]),
        (ChangedFiles("a", "b"), ["write back b", "write back a", "run"]),
        (StartRecording("a", "b"), ["write back a", "put aside a", "run", "take again a"]),
        (AddMark("a", "k=1"), ["run"]),  # what the kernel keeps stays there
        (CopyIn("idle", b"x"), ["write back idle", "run", "close idle"]),
        (CopyWithin("a", b"x", "b", b"y"), ["write back a", "write back b", "run", "close b", "invalidate b"]),
        (CopyWithin("a", b"x", "a", b"y"), ["write back a", "run", "close a", "invalidate a"]),
    ],
    ids=str,
)
def test_what_is_done_around_a_request(
    request_: AnyRequest, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert events_of(request_, monkeypatch) == events


def test_an_apply_that_fails_may_have_changed_files_too(monkeypatch: pytest.MonkeyPatch) -> None:
    events = events_of(ApplyLayer("a"), monkeypatch, failing=True)
    assert events == ["close a", "run", "close a", "invalidate a"]


def test_a_device_whose_renaming_fails_is_shown_again(monkeypatch: pytest.MonkeyPatch) -> None:
    events = events_of(Rename("a", "b"), monkeypatch, failing=True)
    assert events == ["check", "set aside a", "run", "show a or b"]


def test_an_operation_whose_pieces_are_left_ends(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []

    def run(_request: LayerArchive, _home: OpenHome) -> Pieces[bytes]:
        try:
            yield b"one"
            yield b"two"
        finally:
            ended.append(True)

    monkeypatch.setattr(LayerArchive, "run", run)

    async def main() -> None:
        async with aclosing(Executor(opened).pieces(LayerArchive("web"))) as pieces:
            assert await anext(pieces) == b"one"

    with open_here(HomeSpec(home, durable=False)) as opened:
        trio.run(main)
    assert ended == [True]


def test_a_snapshot_of_a_shown_device_quiesces_it_once(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: object) -> object:
            calls.append(what)
            return function(*arguments)

        return count

    monkeypatch.setattr(Volume, "quiesce", counted("volume", Volume.quiesce))
    monkeypatch.setattr(ActiveDevices, "snapshot", counted("device", ActiveDevices.snapshot))

    async def main() -> None:
        await served.executor.answer(Create("web-1", "layer"))

    with open_here(HomeSpec(home, durable=False)) as opened:
        request = MountRequest(home, "emulated", None, str(tmp_path))
        with ServedHome.opened(opened, request) as served:
            opened.driver.create("layer", None)
            opened.driver.get("layer")
            calls.clear()
            trio.run(main)
            assert calls == ["device", "volume"]
            assert "web-1" in opened.devices
            opened.driver.put("layer")


def test_what_is_declared_of_devices_are_fields() -> None:
    for request in decoding.REQUESTS:
        declared = {*request.reads, request.needs_idle, request.gives_up, request.rewrites, request.reopens} - {""}
        assert declared <= {field.name for field in msgspec.structs.fields(request)}, request
