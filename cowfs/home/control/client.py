"""The client of a home's control socket: one request at a time, synchronous."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from cowfs.ending import Closing
from cowfs.error_record import restore_error
from cowfs.errors import HolderEnded, HomeBusy, HomeError, HomeVersionError, command_line
from cowfs.forking import not_inherited
from cowfs.home.control import socket as control
from cowfs.home.control.protocol import MAX_REPLY_BYTES, PIECE_HEADER, PROTOCOL_VERSION, Greeting, Reply
from cowfs.home.requests.request import (
    MAX_PIECE_BYTES,
    AnyRequest,
    Listing,
    OpenFile,
    Piece,
    Request,
    StreamIn,
    StreamOut,
    Upload,
    answer_type,
)

_GREETING_SECONDS: Final = 5.0
_READ_BYTES: Final = 64 << 10

E = TypeVar("E", bound=HomeError)
R = TypeVar("R")


class Client(Closing):
    """A connection to the process that holds a home; made again when that process has ended it for being idle, or when
    an answer was not read to its end.

    Args:
        home: the home's directory.
        directory: where the socket is; in the home when None.
        greeting_seconds: how long the holder may take to greet; answers may take as long as they take.

    Raises:
        OSError: nothing listens, or it did not greet in time (TimeoutError).
        HomeVersionError: the holder speaks another version of the protocol.
    """

    def __init__(
        self, home: Path, directory: Path | None = None, *, greeting_seconds: float = _GREETING_SECONDS
    ) -> None:
        self.path = home
        self._directory = directory or home
        self._greeting_seconds = greeting_seconds
        self._buffer = bytearray()
        self._files: list[int] = []
        self._listing = False
        self._is_closed = False
        self._socket: socket.socket | None = None
        self.holder_pid = self._connect()
        not_inherited(self, f"the connection to the holder of {home}", drop=Client.close)

    def call(self, request: Request[R]) -> R:
        """Send a request and wait for its answer. Raises what the operation raised, as the same class."""
        file = None
        if isinstance(request, Upload):
            file, request = request.file, msgspec.structs.replace(request, archive=None)
        self._send(request, file.fileno() if file else None)
        reply = self._reply()
        if not bytes(reply.result):
            raise self._broken("answered a single question with a sequence")
        kind = answer_type(type(request))
        if kind is OpenFile:
            return OpenFile(self._take_file())  # type: ignore[return-value]
        return self._decode(reply.result, kind)  # type: ignore[no-any-return]

    def iterate(self, request: Listing[R]) -> Iterator[R]:
        """Send a request whose answer is a sequence; its pieces come as they are read from the socket.

        Leaving the iteration early closes the connection, since the rest of the answer is still on its way.
        """
        self._send(request, None)
        kind = answer_type(type(request))
        self._listing = True
        try:
            while bytes(piece := self._reply().piece):
                yield self._decode(piece, kind)
            self._listing = False
        finally:
            if self._listing:
                self._hang_up()

    def send(self, request: StreamIn[R], pieces: Iterable[Piece]) -> R:
        """Send a request, and the bytes that it takes. Raises what the operation raised, and what `pieces` raises."""
        with self._stream(request) as stream:
            try:
                for piece in map(bytes, pieces):
                    stream.sendall(PIECE_HEADER.pack(len(piece)))
                    stream.sendall(piece)
                stream.sendall(PIECE_HEADER.pack(0))
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has ended already, and its answer says why
            return self._answer(request)

    def receive(self, request: StreamOut[R], take: Callable[[Any], object]) -> R:
        """Send a request, and have `take` called with each piece that it gives."""
        with self._stream(request) as stream, stream.makefile("rb") as pieces:
            while header := pieces.read(PIECE_HEADER.size):
                (length,) = PIECE_HEADER.unpack(header)
                if not 0 < length <= MAX_PIECE_BYTES:
                    break
                take(pieces.read(length))
            return self._answer(request)

    @contextmanager
    def _stream(self, request: StreamIn[Any] | StreamOut[Any]) -> Iterator[socket.socket]:
        """Send a request with a socket for its bytes. Left early, the connection ends, and with it the operation."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self._send(request, theirs.fileno())
            self._listing = True
            try:
                yield ours
            finally:
                if self._listing:
                    self._hang_up()

    def _answer(self, request: StreamIn[R] | StreamOut[R]) -> R:
        reply = self._reply()
        self._listing = False
        return self._decode(reply.result, answer_type(type(request)))  # type: ignore[no-any-return]

    def close(self) -> None:
        self._is_closed = True
        self._hang_up()

    def _hang_up(self) -> None:
        self._listing = False
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        while self._files:
            os.close(self._files.pop())

    def _connect(self) -> int:
        """Dial, and read the greeting; the holder's process id."""
        self._buffer.clear()
        self._socket = control.dial(self._directory, self._greeting_seconds)
        try:
            pid = self._greeting().pid
            self._socket.settimeout(None)
        except BaseException:
            self._hang_up()
            raise
        return pid

    def _greeting(self) -> Greeting:
        """Raises ConnectionResetError where the holder ended before it said anything."""
        try:
            line = self._line()
        except HomeError as error:
            if self._buffer:
                raise
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from error
        try:
            greeting = msgspec.json.decode(line, type=Greeting)
        except msgspec.MsgspecError:
            refusal = msgspec.json.decode(line, type=Reply)
            if refusal.error is not None:
                raise restore_error(refusal.error) from None
            raise
        if greeting.cowfs != PROTOCOL_VERSION:
            raise HomeVersionError(
                f"{self.path} is held by process {greeting.pid}, which speaks version {greeting.cowfs} of the control "
                f"protocol and this is version {PROTOCOL_VERSION}; use the cowfs of that process, version "
                f"{greeting.version}, or unmount first"
            )
        return greeting

    def _send(self, request: AnyRequest, fd: int | None) -> None:
        if self._is_closed:
            raise HomeError(f"the connection to the holder of {self.path} is closed; open the home again")
        if self._listing:
            raise HomeError("an earlier listing of this connection is not read to its end")
        try:
            if self._socket is not None and not self._buffer and control.is_hung_up(self._socket):
                self._hang_up()
            if self._socket is None:
                self.holder_pid = self._connect()
            assert self._socket is not None
            line = msgspec.json.encode(request) + b"\n"
            sent = self._socket.sendmsg([line], control.file_message(fd)) if fd is not None else 0
            self._socket.sendall(line[sent:])
        except (ConnectionError, FileNotFoundError) as error:
            self._hang_up()
            raise HolderEnded(
                f"process {self.holder_pid}, which held {self.path}, ended before this was asked; nothing was changed; "
                "open the home again"
            ) from error
        except TimeoutError as error:
            raise HomeBusy(
                f"process {self.holder_pid}, which holds {self.path}, does not answer", holder_pid=self.holder_pid
            ) from error

    def _reply(self) -> Reply:
        try:
            reply = msgspec.json.decode(self._line(), type=Reply)
        except msgspec.MsgspecError as error:
            raise self._broken(f"answered something that is not a reply ({error})") from error
        if reply.error is not None:
            self._listing = False
            raise restore_error(reply.error)
        return reply

    def _decode(self, answer: msgspec.Raw, kind: Any) -> Any:
        try:
            return msgspec.json.decode(answer, type=kind)
        except msgspec.MsgspecError as error:
            raise self._broken(f"answered something else than was asked ({error})") from error

    def _line(self) -> bytes:
        assert self._socket is not None
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > MAX_REPLY_BYTES:
                raise self._broken(f"sent a line of more than {MAX_REPLY_BYTES} bytes")
            try:
                data, files = control.receive(self._socket, _READ_BYTES)
            except ConnectionError as error:
                raise self._ended() from error
            self._files += files
            if not data:
                raise self._ended()
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _take_file(self) -> int:
        if not self._files:
            raise self._broken("sent no open file with its answer")
        return self._files.pop(0)

    def _ended(self) -> HolderEnded:
        return self._broken("ended", HolderEnded)

    def _broken(self, what: str, kind: type[E] = HomeError) -> E:  # type: ignore[assignment]
        """The connection is of no use any more."""
        self._hang_up()
        return kind(
            f"the process that holds {self.path} {what} before the answer was complete; "
            f"see: {command_line('cowfs', '--home', os.fspath(self.path), 'status')}"
        )
