"""gRPC's client half, for the services of containerd that the diff service needs: one call at a time.

Source: gRPC over HTTP/2 (`PROTOCOL-HTTP2.md`); RFC 9113 by way of h2.
"""

from __future__ import annotations

import urllib.parse
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import trio

from cowfs.containerd.grpc import CONTENT_TYPE, PREFIX_BYTES, CallError, Code, framed
from cowfs.containerd.messages import message_class

_MAX_MESSAGE_BYTES: Final = 16 << 20
_WINDOW_BYTES: Final = 8 << 20
_RECEIVE_BYTES: Final = 256 << 10
_DIAL_SECONDS: Final = 10.0


class Client:
    """containerd's socket, made by `connected`.

    Every call raises CallError: as the service ends it, or UNAVAILABLE where the connection fails.
    """

    def __init__(self, stream: trio.abc.Stream, headers: Mapping[str, str], name: str) -> None:
        self._stream = stream
        self._headers = headers
        self._name = name
        settings: dict[h2.settings.SettingCodes | int, int] = {
            h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW_BYTES
        }
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._h2.initiate_connection()
        self._h2.update_settings(settings)
        self._h2.increment_flow_control_window(_WINDOW_BYTES)

    @classmethod
    @asynccontextmanager
    async def connected(cls, path: Path, headers: Mapping[str, str]) -> AsyncIterator[Client]:
        """A connection. `headers` are sent with each call."""
        try:
            with trio.fail_after(_DIAL_SECONDS):
                stream = await trio.open_unix_socket(str(path))
        except (OSError, trio.TooSlowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it does not answer"
            text = f"containerd cannot be reached at {path}: {reason}; its socket is named by --containerd"
            raise CallError(Code.UNAVAILABLE, text) from None
        async with stream:
            yield cls(stream, headers, str(path))

    async def call(self, method: str, request: Any, answered_as: str = "") -> Any:
        """The answer of a method of one message; None where nothing is expected of it."""
        call = await self.begin(method)
        await call.send(request, last=True)
        answer = None
        async for message in call.messages():
            answer = message
        return message_class(answered_as).FromString(answer or b"") if answered_as else None

    async def begin(self, method: str) -> ClientCall:
        """Begin a call by its path, `/SERVICE/METHOD`; the one before must have ended."""
        number = self._h2.get_next_available_stream_id()
        first = [(":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "containerd")]
        self._h2.send_headers(
            number, [*first, ("content-type", CONTENT_TYPE), ("te", "trailers"), *self._headers.items()]
        )
        return ClientCall(self, number)

    async def send_data(self, number: int, data: bytes, *, last: bool, call: ClientCall) -> None:
        view = memoryview(data)
        while view and not call.has_ended:
            room = min(self._h2.local_flow_control_window(number), self._h2.max_outbound_frame_size, len(view))
            if room <= 0:
                await self.flush()
                await self.take(call)
                continue
            self._h2.send_data(number, bytes(view[:room]))
            view = view[room:]
        if last and not call.has_ended:
            self._h2.end_stream(number)
        await self.flush()

    async def flush(self) -> None:
        if data := self._h2.data_to_send():
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise self._lost() from None

    async def take(self, call: ClientCall) -> None:
        """Wait for what comes next, and give it to the call that is under way."""
        try:
            data = await self._stream.receive_some(_RECEIVE_BYTES)
            if not data:
                raise self._lost()
            events = self._h2.receive_data(bytes(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self._lost() from None
        except (h2.exceptions.ProtocolError, UnicodeDecodeError) as error:
            raise CallError(Code.UNAVAILABLE, f"containerd at {self._name} broke HTTP/2: {error}") from None
        for event in events:
            if isinstance(event, h2.events.ConnectionTerminated):
                raise self._lost()
            if isinstance(event, h2.events.DataReceived):
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if getattr(event, "stream_id", None) == call.number:
                call.note(event)
        await self.flush()

    def _lost(self) -> CallError:
        return CallError(Code.UNAVAILABLE, f"containerd at {self._name} has ended the connection")


class ClientCall:
    """A call that is under way."""

    def __init__(self, client: Client, number: int) -> None:
        self._client = client
        self.number = number
        self.has_ended = False
        self._body = bytearray()
        self._messages: deque[bytes] = deque()
        self._end: CallError | None = None

    async def send(self, message: Any, *, last: bool = False) -> None:
        """Send a message; one to a call that the service has ended is dropped, and `messages` says how it ended."""
        await self._client.send_data(self.number, framed(message.SerializeToString()), last=last, call=self)

    async def receive(self) -> bytes | None:
        """The next message; None after the last one. Raises CallError as the service ends the call."""
        while not self._messages:
            if self.has_ended:
                if self._end is not None:
                    raise self._end
                return None
            await self._client.take(self)
        return self._messages.popleft()

    async def messages(self) -> AsyncIterator[bytes]:
        while (message := await self.receive()) is not None:
            yield message

    def note(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.DataReceived(data=data):
                self._body += data
                self._split()
            case h2.events.ResponseReceived(headers=headers) | h2.events.TrailersReceived(headers=headers):
                self._note_status({str(name): str(value) for name, value in headers})
            case h2.events.StreamEnded():
                self.has_ended = True
            case h2.events.StreamReset(error_code=code):
                self.has_ended = True
                self._end = self._end or CallError(Code.UNAVAILABLE, f"containerd gave the call up ({code})")

    def _note_status(self, headers: Mapping[str, str]) -> None:
        status = headers.get("grpc-status", "0" if headers.get(":status", "200") == "200" else "2")
        if status != "0":
            text = urllib.parse.unquote(headers.get("grpc-message", "")) or "containerd gave no reason"
            self._end = CallError(_code(status), text)

    def _split(self) -> None:
        while len(self._body) >= PREFIX_BYTES:
            length = int.from_bytes(self._body[1:PREFIX_BYTES], "big")
            if length > _MAX_MESSAGE_BYTES or self._body[0]:
                raise CallError(Code.UNAVAILABLE, f"containerd sent a message of {length} bytes, or a compressed one")
            if len(self._body) < PREFIX_BYTES + length:
                return
            self._messages.append(bytes(self._body[PREFIX_BYTES : PREFIX_BYTES + length]))
            del self._body[: PREFIX_BYTES + length]


def _code(status: str) -> Code:
    try:
        return Code(int(status))
    except ValueError:
        return Code.UNKNOWN
