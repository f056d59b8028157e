"""gRPC's server half on one connection: requests of one message each, answers of one or several.

Calls of a connection are answered at the same time. A client that breaks the protocol loses its connection, one that
sends a message without end the call.

Source: gRPC over HTTP/2 (`PROTOCOL-HTTP2.md`); RFC 9113 by way of h2.
"""

from __future__ import annotations

import enum
import logging
import math
import re
import urllib.parse
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import trio

from cowfs.home.control.clients import Reports

_log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES: Final = 4 << 20
MAX_CALLS: Final = 64  # of one connection at a time
PREFIX_BYTES: Final = 5
_RECEIVE_BYTES: Final = 64 << 10
_TIMEOUT: Final = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNIT_SECONDS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
CONTENT_TYPE: Final = "application/grpc"
BROKEN: Final = "a client broke HTTP/2"


class Code(enum.IntEnum):
    """Of a call's end."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class CallError(Exception):
    """How a call ends that does not end well; the text reaches its user."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Asked(NamedTuple):
    """What a call brings: its message, and its headers."""

    message: bytes
    headers: Mapping[str, str]


Handler: TypeAlias = Callable[[Asked], AsyncIterator[bytes]]


@dataclass(slots=True)
class _Call:
    path: str
    timeout_seconds: float
    headers: Mapping[str, str]
    body: bytearray = field(default_factory=bytearray)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    window: trio.Event = field(default_factory=trio.Event)
    failure: CallError | None = None
    has_begun: bool = False  # the headers of its answer are sent


async def serve_connection(
    stream: trio.abc.Stream, methods: Mapping[str, Handler], reports: Reports | None = None
) -> None:
    """Answer calls until the client ends the connection.

    Args:
        methods: by path, `/SERVICE/METHOD`. Handlers raise CallError; any other exception is a defect and is logged.
        reports: of clients that break the protocol, of all connections; of this one alone when None.
    """
    await _Connection(stream, methods, reports or Reports(BROKEN, _log.info)).serve()


class _Connection:
    def __init__(self, stream: trio.abc.Stream, methods: Mapping[str, Handler], reports: Reports) -> None:
        self._stream = stream
        self._methods = methods
        self._reports = reports
        self._calls: dict[int, _Call] = {}
        self._sending = trio.Lock()
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self._h2 = h2.connection.H2Connection(config)

    async def serve(self) -> None:
        self._h2.initiate_connection()
        self._h2.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: MAX_CALLS})
        try:
            async with self._stream, trio.open_nursery() as nursery:
                await self._flush()
                while data := await self._stream.receive_some(_RECEIVE_BYTES):
                    if not await self._take(bytes(data), nursery):
                        break
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client is gone

    async def _take(self, data: bytes, nursery: trio.Nursery) -> bool:
        """Do what came; False when the connection is over."""
        try:
            events = self._h2.receive_data(data)
        except (h2.exceptions.ProtocolError, UnicodeDecodeError) as error:
            self._reports.note(error)
            await self._flush()
            return False
        for event in events:
            if isinstance(event, h2.events.ConnectionTerminated):
                return False
            self._note(event, nursery)
        await self._flush()
        return True

    def _note(self, event: h2.events.Event, nursery: trio.Nursery) -> None:
        match event:
            case h2.events.RequestReceived(stream_id=number, headers=headers):
                self._calls[number] = _call_of({str(name): str(value) for name, value in headers})
            case h2.events.DataReceived(stream_id=number, data=data, flow_controlled_length=length):
                self._h2.acknowledge_received_data(length, number)
                call = self._calls.get(number)
                if call is not None and call.failure is None:
                    call.body += data
                    if len(call.body) > MAX_MESSAGE_BYTES + PREFIX_BYTES:
                        call.body.clear()
                        text = f"a message of more than {MAX_MESSAGE_BYTES} bytes"
                        call.failure = CallError(Code.RESOURCE_EXHAUSTED, text)
            case h2.events.StreamEnded(stream_id=number):
                if number in self._calls:
                    nursery.start_soon(self._answer, number, self._calls[number])
            case h2.events.StreamReset(stream_id=number):
                if (call := self._calls.pop(number, None)) is not None:
                    call.scope.cancel()
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                for call in self._calls.values():
                    call.window.set()
                    call.window = trio.Event()

    async def _answer(self, number: int, call: _Call) -> None:
        """Run one call, and say how it ended."""
        code, message = Code.OK, ""
        with call.scope:
            try:
                with trio.fail_after(call.timeout_seconds):
                    async for answer in self._handler(call)(Asked(_message_of(call), call.headers)):
                        await self._send(number, call, framed(answer))
            except CallError as error:
                code, message = error.code, error.message
            except trio.TooSlowError:
                code, message = Code.DEADLINE_EXCEEDED, "it took longer than the client wanted to wait"
            except (trio.BrokenResourceError, trio.ClosedResourceError, h2.exceptions.ProtocolError):
                return  # the client is gone, or has given the call up
            except Exception as error:
                _log.exception("%s failed unexpectedly", call.path)
                code, message = Code.INTERNAL, f"a defect of cowfs: {type(error).__name__}: {error}"
            if self._calls.pop(number, None) is None:
                return
            end = [("grpc-status", str(int(code)))]
            if message:
                end.append(("grpc-message", urllib.parse.quote(message, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}")))
            try:
                self._begin(number, call)
                self._h2.send_headers(number, end, end_stream=True)
                await self._flush()
            except (trio.BrokenResourceError, trio.ClosedResourceError, h2.exceptions.ProtocolError):
                return

    def _handler(self, call: _Call) -> Handler:
        if call.failure is not None:
            raise call.failure
        handler = self._methods.get(call.path)
        if handler is None:
            raise CallError(Code.UNIMPLEMENTED, f"there is no method {call.path}")
        return handler

    def _begin(self, number: int, call: _Call) -> None:
        if not call.has_begun:
            call.has_begun = True
            self._h2.send_headers(number, [(":status", "200"), ("content-type", CONTENT_TYPE)])

    async def _send(self, number: int, call: _Call, data: bytes) -> None:
        """Send a message as the client's windows allow; its last frame is sent with the next frames, mostly the end."""
        self._begin(number, call)
        view = memoryview(data)
        while True:
            window = call.window  # of before the flush, in which it may grow
            room = min(self._h2.local_flow_control_window(number), self._h2.max_outbound_frame_size, len(view))
            if room > 0:
                self._h2.send_data(number, bytes(view[:room]))
                view = view[room:]
            if not view:
                return
            await self._flush()
            if room <= 0:
                await window.wait()

    async def _flush(self) -> None:
        async with self._sending:
            if data := self._h2.data_to_send():
                await self._stream.send_all(data)


def framed(message: bytes) -> bytes:
    """A message as it is sent, not compressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def _call_of(headers: Mapping[str, str]) -> _Call:
    call = _Call(headers.get(":path", ""), _seconds(headers.get("grpc-timeout", "")), headers)
    if headers.get(":method") != "POST" or not headers.get("content-type", "").startswith(CONTENT_TYPE):
        call.failure = CallError(Code.UNIMPLEMENTED, "this is gRPC: POST with content of application/grpc")
    elif headers.get("grpc-encoding", "identity") != "identity":
        call.failure = CallError(Code.UNIMPLEMENTED, f"messages compressed by {headers['grpc-encoding']} are not read")
    return call


def _seconds(text: str) -> float:
    """A `grpc-timeout`; infinite where there is none, or one that is not one."""
    found = _TIMEOUT.fullmatch(text)
    return math.inf if found is None else int(found[1]) * _UNIT_SECONDS[found[2]]


def _message_of(call: _Call) -> bytes:
    """The one message of a request. Raises CallError for anything else."""
    if call.failure is not None:
        raise call.failure
    body = bytes(call.body)
    if len(body) < PREFIX_BYTES or int.from_bytes(body[1:PREFIX_BYTES], "big") != len(body) - PREFIX_BYTES:
        raise CallError(Code.INVALID_ARGUMENT, "a request is one message, with its length before it")
    if body[0]:
        raise CallError(Code.UNIMPLEMENTED, "compressed messages are not read")
    return body[PREFIX_BYTES:]
