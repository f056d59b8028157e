"""What is broken in a home reaches a client as a call's end, with a code and the name of what is broken."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cowfs.containerd.grpc import CallError, Code
from cowfs.containerd.messages import message_class
from cowfs.containerd.snapshots import Snapshotter
from cowfs.containerd.store import LAYER_REFERENCE, SnapshotStore
from cowfs.devices.on_disk.names import BASE
from cowfs.errors import HomeError
from tests.containerd.killed_snapshotter import answer, opened, removing

REFERENCE = {LAYER_REFERENCE: "sha256:aa"}


async def refused(snapshotter: Snapshotter, method: str, **fields: Any) -> CallError:
    request = message_class(f"{method}SnapshotRequest")(**fields)
    with pytest.raises(CallError) as caught:
        await getattr(snapshotter, method.lower())(request)
    assert "\n" not in caught.value.message
    return caught.value


async def test_a_parent_whose_device_is_lost_is_named(tmp_path: Path) -> None:
    with opened(tmp_path / "home") as (home, store, snapshotter):
        async with removing(snapshotter):
            await answer(snapshotter, store, ("Prepare", "one", ""))
            await answer(snapshotter, store, ("Commit", "one", "image"))
        image = store.find("image")
        assert image is not None
        home.devices.remove(image.device)
        error = await refused(snapshotter, "Prepare", key="box", parent="image")
        assert error.code is Code.FAILED_PRECONDITION
        assert error.message.startswith(f"snapshot image has lost its device {image.device}; remove the snapshot")
        async with removing(snapshotter):
            await answer(snapshotter, store, ("Remove", "image", ""))  # as the message says
        assert store.all() == []


async def test_a_home_without_its_base_device_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "home") as (home, _, snapshotter):
        record = home.devices.record

        def lost(name: str) -> Any:
            if name == BASE:
                raise HomeError("the record of device 'base' cannot be read")
            return record(name)

        monkeypatch.setattr(home.devices, "record", lost)
        error = await refused(snapshotter, "Prepare", key="box")
        assert (error.code, error.message) == (Code.INTERNAL, "the record of device 'base' cannot be read")


class Unreadable:
    """A database on a disk that fails."""

    def execute(self, *_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")


@contextmanager
def unreadable(store: SnapshotStore) -> Iterator[str]:
    """A store on a disk that fails; what is said about it."""
    database = store._database
    setattr(store, "_database", Unreadable())  # noqa: B010
    try:
        yield f"{store._path} cannot be read: disk I/O error"
    finally:
        setattr(store, "_database", database)  # noqa: B010


async def test_a_database_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Where a layer, or the snapshot of a mount, is looked for, and where a snapshotter begins."""
    with opened(tmp_path / "home") as (_, store, snapshotter), unreadable(store) as said:
        error = await refused(snapshotter, "Prepare", key="box", labels=REFERENCE)
        assert (error.code, error.message) == (Code.INTERNAL, said)
        with pytest.raises(CallError) as caught:
            await snapshotter.mounted([message_class("Mount")(type="bind", source="/shown/snapshot-0/rootfs")])
        assert (caught.value.code, caught.value.message) == (Code.INTERNAL, said)
        with pytest.raises(HomeError, match="cannot be read") as ended:
            await snapshotter.begin()
        assert ended.value.message == said
