"""What calls answer while a disk, the kernel or another client holds the engine up, and what is there afterwards."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cowfs.containerd.messages import ACTIVE, DIFF, SNAPSHOTS, message_class
from cowfs.containerd.store import Snapshot
from cowfs.faults.plan import Delay, Rule
from tests.containerd.grpc_client import GrpcClient
from tests.containerd.held_up import HeldUp, snapshotter
from tests.containerd.server import names


@pytest.fixture
def held_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldUp]:
    with snapshotter(tmp_path, monkeypatch) as made:
        yield made


def prepared(client: GrpcClient) -> None:
    """What the calls below are about."""
    client.call("Prepare", key="base")
    client.call("Commit", key="base", name="image")
    client.call("Prepare", key="box", parent="image", labels={"a": "b"})
    client.call("Prepare", key="old", parent="image")


CALLS: dict[str, dict[str, Any]] = {
    "Prepare": {"key": "new", "parent": "image"},
    "View": {"key": "view", "parent": "image"},
    "Update": {"info": {"name": "box", "labels": {"c": "d"}}, "update_mask": {"paths": ["labels"]}},
    "Commit": {"key": "box", "name": "committed"},
    "Remove": {"key": "old"},
}
CHANGES = {method: fields for method, fields in CALLS.items() if method != "Remove"}
# What each of them waits for before its answer; the last three change the database alone.
WAITS = [(method, gate) for method in ("Prepare", "Commit") for gate in ("disk", "injected", "database")]
WAITS += [(method, "database") for method in ("View", "Update", "Remove")]


@pytest.mark.parametrize(("method", "gate"), WAITS)
def test_a_call_that_is_held_up_is_given_up_and_undone(held_up: HeldUp, method: str, gate: str) -> None:
    """Whatever holds it up. A removal is done all the same: no client wants that snapshot."""
    with held_up.connected() as client:
        prepared(client)
        before = held_up.state()
        if gate == "injected":
            slow = [Rule(on=on, operations=("write", "flush"), effect=Delay(1.0)) for on in ("data", "metadata")]
            held_up.in_engine(lambda: held_up.home.faults.add(slow))
        at = getattr(held_up, gate)
        at.close()
        message = held_up.given_up(client, method, at, **CALLS[method])
        assert "does not answer" in message
        assert ("undone" in message) == (method != "Remove")
        at.open()
        if method == "Remove":
            assert held_up.state().keys() == before.keys() - {"old"}
            return
        assert held_up.state() == before
        client.call(method, **CALLS[method])
        assert held_up.state() != before


def test_a_removal_does_not_wait_for_the_disk_of_its_device(held_up: HeldUp) -> None:
    """Once the snapshot is gone, durably, that is the answer."""
    with held_up.connected() as client:
        prepared(client)
        held_up.disk.close()
        client.send("Remove", key="old")
        assert held_up.disk.is_reached.wait(60)
        held_up.let_time_pass()
        client.received("Remove")
        assert "old" not in names(client)
        held_up.disk.open()
        held_up.state()


def test_what_is_known_is_answered_while_a_disk_does_not(held_up: HeldUp) -> None:
    """And nothing that is not durable yet is told."""
    with held_up.connected() as first, held_up.connected() as client:
        prepared(client)
        held_up.settle()  # the usage of `image` is found
        mounts = client.call("Mounts", key="box")
        before = names(client)
        held_up.database.close()
        first.send("Prepare", key="new", parent="image")
        assert held_up.database.is_reached.wait(60)
        assert names(client) == before
        assert names(client, "kind==committed") == ["image"]
        assert dict(client.call("Stat", key="box").info.labels) == {"a": "b"}
        assert client.call("Mounts", key="box") == mounts
        assert client.call("Usage", key="image").inodes == 0
        held_up.database.open()
        assert len(first.received("Prepare")) == 1
        assert names(client) == sorted([*before, "new"])


def test_every_other_call_ends_while_one_holds_the_engine_up(held_up: HeldUp) -> None:
    """Those that were given up before the engine comes to them are not begun, but removals are done."""
    with held_up.connected() as first, held_up.connected() as client:
        prepared(client)
        before = held_up.state()
        held_up.disk.close()
        first.send("Prepare", key="first", parent="image")
        assert held_up.disk.is_reached.wait(60)
        for method, fields in [*CALLS.items(), ("Cleanup", {})]:
            held_up.given_up(client, method, **fields)
        held_up.disk.open()
        del before["old"]
        assert held_up.state() == before
        for method, fields in [*CHANGES.items(), ("Cleanup", {})]:
            client.call(method, **fields)


def test_a_client_that_does_not_read_holds_nobody_up(held_up: HeldUp) -> None:
    with held_up.connected() as client:
        prepared(client)
        for number in range(40):
            labels = {"text": "x" * 100_000}
            row = Snapshot(f"row {number:02}", "image", ACTIVE, f"none-{number}", False, labels, 0, 0)
            held_up.in_engine(partial(held_up.store.put, row))
        with held_up.connected() as silent:
            silent.send("List")  # 4 MB, of which nothing is taken
            client.call("Prepare", key="new", parent="image")
            assert "new" in names(client, "kind==active")
            client.call("Remove", key="new")


def test_a_client_whose_layer_does_not_come_holds_nobody_up(held_up: HeldUp) -> None:
    """containerd takes the connection and sends nothing; the call ends with its client."""
    with closing(socket.socket(socket.AF_UNIX)) as mute, held_up.connected() as client:
        mute.bind(str(held_up.containerd))
        mute.listen(1)
        prepared(client)
        (mount,) = client.call("Mounts", key="box").mounts
        with held_up.connected() as other:
            layer = {"media_type": "application/vnd.oci.image.layer.v1.tar", "digest": "sha256:aa", "size": 10}
            request = message_class("ApplyRequest")(diff=layer, mounts=[mount])
            other.send_raw(f"/{DIFF}/Apply", request.SerializeToString())
            held_up.settle()
            held_up.let_time_pass()
            for method, fields in CALLS.items():
                client.call(method, **fields)
        assert held_up.state().keys() == {"committed", "image", "new", "view"}


def test_a_client_that_has_gone_is_not_waited_for(held_up: HeldUp) -> None:
    with held_up.connected() as client:
        prepared(client)
        before = held_up.state()
        held_up.database.close()
        with held_up.connected() as other:
            other.send("Prepare", key="new", parent="image")
            assert held_up.database.is_reached.wait(60)
        client.call("Stat", key="box")
        held_up.let_time_pass()  # the front has seen the end of the connection
        held_up.database.open()
        assert held_up.state() == before


def test_the_usage_of_an_active_snapshot_is_waited_for(held_up: HeldUp) -> None:
    with held_up.connected() as client:
        prepared(client)
        held_up.disk.close()
        client.send("Usage", key="box")
        held_up.let_time_pass()
        held_up.let_time_pass()
        held_up.disk.open()
        assert len(client.received("Usage")) == 1


def test_methods_are_the_services(held_up: HeldUp) -> None:
    """Each method of the protocol is answered by the front or the engine."""
    with held_up.connected() as client:
        prepared(client)
        for method in ("Stat", "Mounts", "Usage"):
            client.call(method, key="box")
        assert client.answers("List")
        with pytest.raises(Exception, match="no method"):
            client.raw(f"/{SNAPSHOTS}/None", b"")
