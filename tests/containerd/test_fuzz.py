"""Malformed HTTP/2 and protobuf from a seeded program: the server neither ends, nor waits, nor grows.

COWFS_TEST_LONG=1 pytest tests/containerd/test_fuzz.py      100 000 inputs, in some minutes
"""

from __future__ import annotations

import gc
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import h2.config
import h2.connection
import pytest
import trio
import trio.testing

from cowfs.containerd.filters import lookup_in, parse_filters
from cowfs.containerd.grpc import Asked, Handler, framed, serve_connection
from cowfs.containerd.messages import DIFF, SNAPSHOTS, message_class
from cowfs.containerd.refusals import as_call_errors, decoded

INPUTS = 100_000 if os.environ.get("COWFS_TEST_LONG") else 1_000
WARM_UP = 300
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
GROWTH_MAX_BYTES = 8 << 20
METHODS = {
    **{
        f"/{SNAPSHOTS}/{name}": f"{name}SnapshotRequest"
        for name in ("Prepare", "View", "Remove", "Commit", "Stat", "Update")
    },
    f"/{SNAPSHOTS}/Mounts": "MountsRequest",
    f"/{SNAPSHOTS}/List": "ListSnapshotsRequest",
    f"/{DIFF}/Apply": "ApplyRequest",
    f"/{DIFF}/Diff": "DiffRequest",
}
VALUES = {"key": "default/1/a b", "parent": "p", "name": "n", "snapshotter": "cowfs"}
TEXTS = ["", "a", "kind==active", 'labels."a"==b,parent!=""', "name~=^(a+)+$", "\0", "ä" * 70, 'x=="', "a.b.c", ","]


def handler_of(name: str) -> Handler:
    """Decodes as the service does, and answers with what it has understood."""

    async def handler(asked: Asked) -> AsyncIterator[bytes]:
        request = decoded(name, asked.message)
        if name == "ListSnapshotsRequest":
            with as_call_errors():
                parse_filters(request.filters)(lookup_in(VALUES, {"a": "b"}))
        yield request.SerializeToString()

    return handler


HANDLERS = {path: handler_of(name) for path, name in METHODS.items()}


def message_bytes(rng: random.Random, name: str) -> bytes:
    kind = message_class(name)
    known = {field.name for field in kind.DESCRIPTOR.fields}
    message = kind(**{field: rng.choice(TEXTS) for field in VALUES if field in known and rng.random() < 0.7})
    if "labels" in known:
        message.labels.update({rng.choice(TEXTS): rng.choice(TEXTS) for _ in range(rng.randrange(3))})
    if "filters" in known:
        message.filters.extend(rng.choice(TEXTS) for _ in range(rng.randrange(3)))
    return (
        damaged(rng, bytes(message.SerializeToString())) if rng.random() < 0.5 else bytes(message.SerializeToString())
    )


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Some of: bytes changed, cut out, doubled, put in, and the end cut off."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        place = rng.randrange(len(changed) + 1)
        end = min(place + rng.randrange(1, 40), len(changed))
        match rng.randrange(5):
            case 0 if place < len(changed):
                changed[place] = rng.randrange(256)
            case 1:
                del changed[place:end]
            case 2:
                changed[place:place] = changed[place:end]
            case 3:
                changed[place:place] = rng.randbytes(rng.randrange(1, 20))
            case 4 if rng.random() < 0.2:
                del changed[place:]
    return bytes(changed)


def frame(rng: random.Random) -> bytes:
    """A frame of HTTP/2 with any type, flags, stream and length; often one that lies about its length."""
    body = rng.randbytes(rng.choice([0, 4, 5, 6, 8, 9, 40]))
    length = len(body) if rng.random() < 0.8 else rng.randrange(1 << 24)
    head = length.to_bytes(3, "big") + bytes([rng.randrange(12), rng.randrange(256)])
    return head + rng.choice([0, 1, 2, 3, 5, 1 << 31, rng.randrange(1 << 32)]).to_bytes(4, "big") + body


def conversation(rng: random.Random) -> bytes:
    """What a client sends on one connection: calls, some of which it gives up, damaged here and there."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    data = bytearray(client.data_to_send())
    for _ in range(rng.randrange(1, 4)):
        path = rng.choice([*METHODS, "/none", "x"])
        body = framed(message_bytes(rng, METHODS.get(path, "MountsRequest")))
        number = client.get_next_available_stream_id()
        headers = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")]
        headers += [("content-type", rng.choice(["application/grpc", "application/grpc+proto", "text/plain"]))]
        if rng.random() < 0.3:
            headers.append(("grpc-timeout", rng.choice(["1n", "5S", "99999999H", "-1S", "x", "123456789S"])))
        client.send_headers(number, headers)
        client.send_data(number, damaged(rng, body) if rng.random() < 0.3 else body)
        if rng.random() < 0.3:
            client.reset_stream(number)
        elif rng.random() < 0.9:
            client.end_stream(number)
        piece = client.data_to_send()
        data += damaged(rng, piece) if rng.random() < 0.5 else piece
        if rng.random() < 0.3:
            data += frame(rng)
    if rng.random() < 0.1:
        return damaged(rng, bytes(data))
    return bytes(data)


async def give(data: bytes, rng: random.Random) -> None:
    """One connection from its begin to its end, in pieces; what is answered is read and dropped."""
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, theirs, HANDLERS)
        nursery.start_soon(read_all, ours)
        cut = rng.randrange(len(data) + 1)
        try:
            for piece in (data[:cut], data[cut:]):
                await ours.send_all(piece)
                await trio.lowlevel.checkpoint()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the server has had enough
        for _ in range(rng.randrange(6)):
            await trio.lowlevel.checkpoint()
        await ours.aclose()


async def read_all(stream: trio.abc.Stream) -> None:
    try:
        while await stream.receive_some(1 << 16):
            pass
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


@pytest.mark.timeout(3600)
async def test_malformed_input_does_no_harm(rng: random.Random, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")
    before = 0
    for number in range(INPUTS):
        if number == WARM_UP:
            before = resident_bytes()
        with trio.fail_after(60):
            await give(conversation(rng), rng)
    assert resident_bytes() - before < GROWTH_MAX_BYTES
    assert not [record for record in caplog.records if "failed unexpectedly" in record.getMessage()], caplog.text[
        -2000:
    ]
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, theirs, HANDLERS)
        await ours.send_all(h2_settings())
        assert await ours.receive_some(1 << 16)
        await ours.aclose()


def h2_settings() -> bytes:
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    return client.data_to_send()
