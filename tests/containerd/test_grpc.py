"""gRPC over a stream in memory: calls at the same time, their ends, and clients that break the protocol."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.events
import pytest
import trio
import trio.testing

from cowfs.containerd.grpc import BROKEN, MAX_MESSAGE_BYTES, Asked, CallError, Code, serve_connection
from cowfs.home.control.clients import Reports

HEADERS = [(":method", "POST"), (":scheme", "http"), (":authority", "x"), ("content-type", "application/grpc")]


async def echo(asked: Asked) -> AsyncIterator[bytes]:
    yield asked.message


async def count(asked: Asked) -> AsyncIterator[bytes]:
    for number in range(int(asked.message)):
        yield b"%d" % number


async def refuse(asked: Asked) -> AsyncIterator[bytes]:
    raise CallError(Code.NOT_FOUND, f"no ä {asked.message.decode()} 100%")
    yield b""


async def break_down(asked: Asked) -> AsyncIterator[bytes]:
    raise ValueError("a defect")
    yield b""


async def wait(asked: Asked) -> AsyncIterator[bytes]:
    await trio.sleep_forever()
    yield b""


METHODS = {"/s/echo": echo, "/s/count": count, "/s/refuse": refuse, "/s/break": break_down, "/s/wait": wait}


class Client:
    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.bodies: dict[int, bytes] = {}
        self.ends: dict[int, dict[str, str]] = {}

    async def flush(self) -> None:
        if data := self.h2.data_to_send():
            await self.stream.send_all(data)

    async def begin(
        self, path: str, body: bytes, *extra: tuple[str, str], headers: list[tuple[str, str]] = HEADERS
    ) -> int:
        number = self.h2.get_next_available_stream_id()
        self.h2.send_headers(number, [(":path", path), *headers, *extra])
        view = memoryview(body)
        while view:
            room = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size, len(view))
            if room == 0:
                await self.take()
                continue
            self.h2.send_data(number, bytes(view[:room]))
            view = view[room:]
            await self.flush()
        self.h2.end_stream(number)
        await self.flush()
        return number

    async def take(self) -> None:
        data = await self.stream.receive_some(65536)
        assert data, "the server closed the connection"
        for event in self.h2.receive_data(bytes(data)):
            if isinstance(event, h2.events.DataReceived):
                assert event.stream_id is not None
                self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + (event.data or b"")
                self.h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
            if isinstance(event, h2.events.TrailersReceived):
                assert event.stream_id is not None
                self.ends[event.stream_id] = {str(name): str(value) for name, value in event.headers or ()}
        await self.flush()

    async def end(self, number: int) -> tuple[int, str, bytes]:
        while number not in self.ends:
            await self.take()
        end = self.ends[number]
        return int(end["grpc-status"]), end.get("grpc-message", ""), self.bodies.get(number, b"")


@asynccontextmanager
async def serving() -> AsyncIterator[Client]:
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, theirs, METHODS)
        client = Client(ours)
        await client.flush()
        with trio.fail_after(30):
            yield client
            await ours.aclose()


def message(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4, "big") + data


async def test_calls_are_answered() -> None:
    async with serving() as client:
        assert await client.end(await client.begin("/s/echo", message(b"hello"))) == (0, "", message(b"hello"))
        assert await client.end(await client.begin("/s/count", message(b"3"))) == (
            *(0, ""),
            b"".join(message(b"%d" % number) for number in range(3)),
        )
        status, text, _ = await client.end(await client.begin("/s/refuse", message(b"x")))
        assert (status, text) == (5, "no %C3%A4 x 100%25")


async def test_an_answer_is_sent_in_one_piece() -> None:
    """Headers, message and end: each piece more takes both sides another turn."""
    ours, theirs = trio.testing.memory_stream_pair()
    pass_on = theirs.send_stream.send_all_hook
    assert pass_on is not None
    sent = 0

    async def note() -> None:
        nonlocal sent
        sent += 1
        await pass_on()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, theirs, METHODS)
        client = Client(ours)
        await client.flush()
        await trio.testing.wait_all_tasks_blocked()
        theirs.send_stream.send_all_hook = note
        for number in range(1, 4):
            with trio.fail_after(30):
                assert (await client.end(await client.begin("/s/echo", message(b"hello"))))[0] == 0
            assert sent == number
        await ours.aclose()


async def test_a_long_call_does_not_hold_up_others() -> None:
    async with serving() as client:
        waiting = await client.begin("/s/wait", message(b""))
        assert (await client.end(await client.begin("/s/echo", message(b"a"))))[0] == 0
        client.h2.reset_stream(waiting)
        await client.flush()
        assert (await client.end(await client.begin("/s/echo", message(b"b"))))[0] == 0


async def test_a_large_message_goes_through_small_windows() -> None:
    data = random.Random(1).randbytes(300_000)
    async with serving() as client:
        assert await client.end(await client.begin("/s/echo", message(data))) == (0, "", message(data))


async def test_a_deadline_ends_a_call(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as client:
        assert (await client.end(await client.begin("/s/wait", message(b""), ("grpc-timeout", "20S"))))[0] == 4


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/s/none", message(b""), 12),
        ("/s/echo", b"", 3),
        ("/s/echo", b"\0\0\0\0\5abc", 3),
        ("/s/echo", b"\1\0\0\0\1a", 12),
        ("/s/echo", message(bytes(MAX_MESSAGE_BYTES + 1)), 8),
    ],
)
async def test_bad_requests_end_their_call_alone(path: str, body: bytes, code: int) -> None:
    async with serving() as client:
        assert (await client.end(await client.begin(path, body)))[0] == code
        assert (await client.end(await client.begin("/s/echo", message(b"after"))))[0] == 0


async def test_compressed_messages_and_other_content_are_refused() -> None:
    async with serving() as client:
        assert (await client.end(await client.begin("/s/echo", message(b""), ("grpc-encoding", "gzip"))))[0] == 12
        other = [*HEADERS[:3], ("content-type", "text/html")]
        assert (await client.end(await client.begin("/s/echo", message(b""), headers=other)))[0] == 12


async def test_a_defect_is_said_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as client:
        status, text, _ = await client.end(await client.begin("/s/break", message(b"")))
    assert (status, text) == (13, "a defect of cowfs: ValueError: a defect")
    assert "/s/break failed unexpectedly" in caplog.text


async def test_bytes_that_are_no_http2(rng: random.Random) -> None:
    """The connection ends, and never the server: random bytes, and a true conversation with bits that flipped."""
    choose = rng
    true = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    true.initiate_connection()
    for number in range(1, 9, 2):
        true.send_headers(number, [(":path", "/s/echo"), *HEADERS])
        true.send_data(number, message(b"hello"), end_stream=True)
    conversation = true.data_to_send()
    for round_ in range(300):
        data = bytearray(conversation if round_ % 3 else choose.randbytes(choose.randrange(1, 400)))
        for _ in range(choose.randrange(4)):
            data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
        ours, theirs = trio.testing.memory_stream_pair()
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_connection, theirs, METHODS)
                try:
                    await ours.send_all(bytes(data))
                    await ours.send_eof()
                    while await ours.receive_some(65536):
                        pass
                except trio.BrokenResourceError:
                    pass
                await ours.aclose()


async def test_clients_that_break_the_protocol_fill_no_log(autojump_clock: trio.testing.MockClock) -> None:
    """One that connects in a loop makes one line a minute, which says how many there were."""
    said: list[str] = []
    reports = Reports(BROKEN, said.append)

    async def broken() -> None:
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_connection, theirs, METHODS, reports)
            await ours.send_all(b"GET / HTTP/1.1\r\n\r\n")
            await ours.send_eof()

    for _ in range(100):
        await broken()
    assert len(said) == 1
    assert said[0].startswith("a client broke HTTP/2: ")
    autojump_clock.jump(61)
    await broken()
    assert len(said) == 2
    assert said[1].startswith("a client broke HTTP/2 (99 more since the last such line): ")
