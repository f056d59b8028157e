"""HTTP/1.1 over stream sockets, as much of it as a plugin needs: h11 does the parsing, this the waiting.

Whatever a client does, or fails to do, ends with its connection.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import parse_qs

import h11
import trio

_log = logging.getLogger(__name__)
_READ_BYTES: Final = 256 << 10
_SEND_SECONDS: Final = 300.0  # for one piece; who reads a diff may have to wait for a disk
MAX_MESSAGE_BYTES: Final = 1 << 20


# What reading a request's body and sending an answer raise when it is the client's doing.
CLIENT_FAILURES: Final = (
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
    h11.RemoteProtocolError,
)


class TooLarge(Exception):
    """A message body that is longer than a message can be."""


class _BodyFailed(Exception):
    """An answer that had begun cannot be ended."""


@dataclass(frozen=True, slots=True)
class Request:
    """A POST. `body` can be iterated once; what is left of it is thrown away before the next request."""

    path: str
    query: dict[str, str]
    body: AsyncIterator[bytes]

    async def read_body(self) -> bytes:
        """All of a message. Raises TooLarge."""
        parts = bytearray()
        async for part in self.body:
            parts += part
            if len(parts) > MAX_MESSAGE_BYTES:
                raise TooLarge
        return bytes(parts)


@dataclass(frozen=True, slots=True)
class Response:
    """A body in pieces is sent chunked; if making one fails, the connection breaks, so no client takes a part of it
    for the whole."""

    status: int
    content_type: str
    body: bytes | AsyncGenerator[bytes, None]


_NOT_ALLOWED: Final = Response(405, "text/plain", b"")

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


async def serve_connection(stream: trio.SocketStream, handler: Handler) -> None:
    """Serve the requests of one client until it leaves."""
    try:
        async with stream:
            connection = _Connection(stream)
            try:
                while await connection.serve_one(handler):
                    pass
            except h11.RemoteProtocolError as error:
                await connection.refuse(error)
                raise
    except CLIENT_FAILURES as error:
        _log.info("a client disconnected, or does not speak HTTP: %s", str(error) or "too slow")
    except _BodyFailed as error:
        _log.error("an answer breaks off: %s", error.__cause__)
    except Exception:
        _log.exception("a connection ends by a defect of cowfs")  # and the others go on


class _Connection:
    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.SERVER)

    async def serve_one(self, handler: Handler) -> bool:
        """One request and its answer; whether another one may follow."""
        event = await self._next_event()
        if not isinstance(event, h11.Request):
            return False
        path, _, arguments = event.target.decode("ascii", "replace").partition("?")
        query = {key: values[-1] for key, values in parse_qs(arguments, keep_blank_values=True).items()}
        body = self._read_body()
        # No other method is used here, and an answer to HEAD or CONNECT would have rules of its own.
        is_served = event.method == b"POST"
        await self._send_response(await handler(Request(path, query, body)) if is_served else _NOT_ALLOWED)
        async for _ in body:
            pass
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    async def refuse(self, error: h11.RemoteProtocolError) -> None:
        """Answer what breaks the rules of HTTP, unless an answer has begun; nothing after it can be understood."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            text = f"not a request of HTTP/1.1: {error}\n".encode()
            headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(text))), ("Connection", "close")]
            head = h11.Response(status_code=error.error_status_hint, headers=headers)
            await self._send(head, h11.Data(data=text), h11.EndOfMessage())

    async def _read_body(self) -> AsyncIterator[bytes]:
        if self._http.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        while self._http.their_state is h11.SEND_BODY:
            event = await self._next_event()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            else:
                return

    async def _send_response(self, response: Response) -> None:
        headers = [("Content-Type", response.content_type)]
        if isinstance(response.body, bytes):
            headers.append(("Content-Length", str(len(response.body))))
            head = h11.Response(status_code=response.status, headers=headers)
            await self._send(head, h11.Data(data=response.body), h11.EndOfMessage())
            return
        headers.append(("Transfer-Encoding", "chunked"))
        await self._send(h11.Response(status_code=response.status, headers=headers))
        async with aclosing(response.body):
            async for piece in _or_break(response.body):
                await self._send(h11.Data(data=piece))
        await self._send(h11.EndOfMessage())

    async def _send(self, *events: h11.Event) -> None:
        data = b"".join(self._http.send(event) or b"" for event in events)
        if data:
            with trio.fail_after(_SEND_SECONDS):
                await self._stream.send_all(data)

    async def _next_event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._stream.receive_some(_READ_BYTES))
        return event


async def _or_break(body: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """The pieces; a failure of their maker ends this connection and must not end the server's others."""
    while True:
        try:
            piece = await anext(body)
        except StopAsyncIteration:
            return
        except Exception as error:
            raise _BodyFailed from error
        yield piece
