"""The control socket's server: answers the commands of other processes while this one holds the home.

It runs as a task beside the FUSE session. An operation is synchronous and runs between two checkpoints, so it sees and
leaves the home whole; everything that depends on the client (reading its request, sending it an answer) is awaited,
bounded in size and time, and harms no one else when it fails.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import select
import stat
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import socket as stdlib_socket
from typing import IO, Final

import msgspec
import trio

from cowfs.error_record import record_error
from cowfs.errors import CowfsError, HomeError, UsageError
from cowfs.forking import close_in_children, close_socket, origin
from cowfs.home.control import socket as control
from cowfs.home.control.clients import Reports, accepted
from cowfs.home.control.passed_file import may_be_read
from cowfs.home.control.protocol import (
    MAX_REPLY_BYTES,
    MAX_REQUEST_BYTES,
    PIECE_HEADER,
    PROTOCOL_VERSION,
    SOCKET_NAME,
    Greeting,
    Reply,
)
from cowfs.home.executor import Executor
from cowfs.home.requests.decoding import decode_request
from cowfs.home.requests.request import (
    MAX_PIECE_BYTES,
    AnyRequest,
    Attachment,
    Listing,
    OpenFile,
    Request,
    StreamIn,
    StreamOut,
    Upload,
)
from cowfs.version import VERSION

_log = logging.getLogger(__name__)
_READ_BYTES: Final = 16 << 10
_BATCH_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server grants its clients."""

    clients_per_uid: int = 64
    idle_seconds: float = 60.0  # to complete the next request
    send_seconds: float = 30.0  # to take one piece of an answer
    grace_seconds: float = 1.0  # of both, when its place is needed for another client


class ControlServer:
    """Serves one home to other processes of the same user, and to root.

    Args:
        executor: of a home whose lock this process holds.
        directory: where the socket is; in the home when None. This process holds its lock.

    A client that keeps the server waiting loses its place to another one when there are too many of its user.
    """

    def __init__(
        self,
        executor: Executor,
        directory: Path | None = None,
        *,
        limits: Limits = Limits(),
    ) -> None:
        self._executor = executor
        self._directory = directory or executor.path
        self._limits = limits
        self._connections: list[_Connection] = []
        self._is_ending = False
        self._failures = Reports(f"control socket of {self._executor.path}, which tries again", _log.warning)
        self._departures = Reports("a client of the control socket disconnected", _log.info)
        self._refusals = Reports("a client of the control socket disconnected before its answer", _log.info)

    @property
    def clients(self) -> int:
        """How many are connected now."""
        return len(self._connections)

    def refuse_clients(self) -> None:
        """From here on, ask clients to try again: they reach the process that has the home next."""
        self._is_ending = True

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled; the socket is removed at the end.

        Clients are served at the same time, their operations one after the other.
        """
        async with _listening(self._directory) as listener, trio.open_nursery() as clients:
            task_status.started()
            while True:
                socket = await accepted(listener, self._note_failure)
                clients.start_soon(self._serve_client, _Connection(socket, self._limits, self._executor.path))

    def _note_failure(self, error: OSError) -> None:
        """No client can be taken in, mostly for want of descriptors: those that others only keep are given back."""
        self._failures.note(error)
        self._drop_stalled(self._connections)

    async def _serve_client(self, connection: _Connection) -> None:
        """Serve one client to its end. Whatever it does, or fails to do, ends here."""
        with connection.socket, ExitStack() as last:
            last.callback(connection.close_files)
            self._connections.append(connection)
            last.callback(self._connections.remove, connection)
            try:
                self._admit(connection)
                await connection.send(_line(Greeting(PROTOCOL_VERSION, os.getpid(), VERSION)))
                while (line := await connection.read_line()) is not None:
                    await self._answer(line, connection)
                    connection.close_files()
            except (
                CowfsError
            ) as error:  # where the next request begins is not known, or it may not ask: say why, hang up
                await self._send_refusal(connection, error)
            except (OSError, trio.TooSlowError) as error:
                self._departures.note(str(error) or "too slow")

    async def _send_refusal(self, connection: _Connection, error: CowfsError) -> None:
        try:
            await connection.send(_line(Reply(error=record_error(error))))
        except (OSError, trio.TooSlowError):
            self._refusals.note(error)

    def _admit(self, connection: _Connection) -> None:
        """Raises HomeError for a client that may not be served."""
        home = self._executor.path
        if self._is_ending:
            raise HomeError(f"process {os.getpid()}, which holds {home}, is ending; try again", errno=errno.EAGAIN)
        pid, uid = connection.pid, connection.uid
        if uid not in (0, os.geteuid()):
            raise HomeError(
                f"{home} is held by a process of uid {os.geteuid()}; process {pid} of uid {uid} may not use it",
                errno=errno.EPERM,
            )
        of_user = [other for other in self._connections if other.uid == uid and not other.is_dropped]
        if len(of_user) > self._limits.clients_per_uid and not self._drop_stalled(of_user):
            raise HomeError(
                f"too many clients at {self._directory / SOCKET_NAME}; try again when some have left",
                errno=errno.EAGAIN,
            )

    def _drop_stalled(self, connections: Sequence[_Connection]) -> bool:
        """End the connection that has kept the server waiting longest; False when none has for long enough."""
        latest = trio.current_time() - self._limits.grace_seconds
        for connection in sorted(connections, key=lambda connection: connection.waiting_since):
            if connection.waiting_since > latest:
                break
            if connection.is_stalled():
                connection.drop()
                return True
        return False

    async def _answer(self, line: bytes, connection: _Connection) -> None:
        """Run one request and send its answer in bounded pieces. Raises only what the connection raises."""
        batch = bytearray()
        async with aclosing(self._replies(line, connection)) as replies:
            async for reply, file in replies:
                batch += reply
                if file is None and len(batch) < _BATCH_BYTES:
                    continue
                try:
                    await connection.send(bytes(batch), file.fd if file else None)
                finally:
                    if file:
                        os.close(file.fd)
                batch.clear()
        await connection.send(bytes(batch))

    async def _replies(
        self, line: bytes, connection: _Connection
    ) -> AsyncGenerator[tuple[bytes, OpenFile | None], None]:
        """The lines of the answer to one request, the last with a file perhaps. An error, of any kind, is a line."""
        try:
            request = decode_request(line)
            answer = None
            if isinstance(request, Listing):
                async with aclosing(self._executor.pieces(request)) as pieces:
                    async for piece in pieces:
                        yield _line(Reply(piece=_raw(piece))), None
            else:
                answer = await self._run(request, connection)
            yield _line(Reply(result=_raw(answer))), answer if isinstance(answer, OpenFile) else None
        except Exception as error:
            yield _error_line(line, error), None

    async def _run(self, request: AnyRequest, connection: _Connection) -> object:
        if isinstance(request, StreamIn | StreamOut):
            with connection.stream() as stream:
                if isinstance(request, StreamIn):
                    return await self._executor.answer_to(request, stream.read)
                answer = await self._executor.give(request, stream.write)
                await stream.write(b"")
                return answer
        if isinstance(request, Upload):
            archive = Attachment(connection.uploaded_file())
            request = msgspec.structs.replace(request, archive=archive)
        assert isinstance(request, Request)
        return await self._executor.answer(request)


class _Stream:
    """The socket beside a request that takes or gives bytes: bounded and timed pieces. Raises HomeError."""

    def __init__(self, socket: trio.socket.SocketType, limits: Limits) -> None:
        self._socket = socket
        self._limits = limits

    async def read(self) -> bytes:
        """The next piece, empty at the end."""
        with _bounded(self._limits.idle_seconds):
            (length,) = PIECE_HEADER.unpack(await self._exactly(PIECE_HEADER.size))
            if length > MAX_PIECE_BYTES:
                raise UsageError(f"a piece of {length} bytes; send at most {MAX_PIECE_BYTES}")
            return await self._exactly(length)

    async def _exactly(self, length: int) -> bytes:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            count = await self._socket.recv_into(view)
            if not count:
                raise HomeError(
                    "the client that sent bytes with a request has ended before their end", errno=errno.ECONNRESET
                )
            view = view[count:]
        return bytes(data)

    async def write(self, piece: bytes) -> None:
        with _bounded(self._limits.send_seconds):
            for part in (PIECE_HEADER.pack(len(piece)), piece):
                view = memoryview(part)
                while view:
                    view = view[await self._socket.send(view) :]


@contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise HomeError(f"the other end kept the home waiting for {seconds:g} s", errno=errno.ETIMEDOUT) from None


class _Connection:
    """A client's socket: bounded lines in, with the files that came beside them; bounded and timed lines out.

    `waiting_since` is when the wait for the client began, on trio's clock; infinity while it is the client who waits.
    """

    def __init__(self, socket: trio.socket.SocketType, limits: Limits, home: Path) -> None:
        self.socket = socket
        self._home = home
        self.pid, self.uid = control.peer_of(socket)
        close_in_children(socket, close_socket)
        self.waiting_since = math.inf
        self.is_dropped = False
        self._wait = trio.CancelScope()
        self._waits_for = 0
        self._limits = limits
        self._buffer = bytearray()
        self._files: list[int] = []

    def is_stalled(self) -> bool:
        """Whether the server waits for the client: it has sent nothing, or it does not read."""
        poll = select.poll()
        poll.register(self.socket, self._waits_for)
        return not (self.is_dropped or poll.poll(0))

    def drop(self) -> None:
        """Let what the client is waited for with be too slow."""
        self.is_dropped = True
        self._wait.cancel()

    @contextmanager
    def _waiting(self, poll_events: int, seconds: float) -> Iterator[None]:
        """Wait for the client in this block. Raises TooSlowError."""
        with trio.fail_after(seconds) as self._wait:
            self.waiting_since, self._waits_for = trio.current_time(), poll_events
            try:
                yield
            finally:
                self.waiting_since = math.inf

    def uploaded_file(self) -> IO[bytes]:
        """The file that came with the request; open until `close_files`. Raises UsageError."""
        if len(self._files) != 1:
            raise UsageError(f"{len(self._files)} open files came with a request that reads one")
        (fd,) = self._files
        if not may_be_read(fd, self._home):
            raise UsageError(
                "the file that came with the request is not a regular one in memory or on the file system of the home; "
                "send a copy"
            )
        return os.fdopen(fd, "rb", closefd=False)

    @contextmanager
    def stream(self) -> Iterator[_Stream]:
        """The socket that came with the request. Raises UsageError."""
        if len(self._files) != 1 or not stat.S_ISSOCK(os.fstat(self._files[0]).st_mode):
            raise UsageError("no socket came with a request that takes or gives bytes")
        with trio.socket.from_stdlib_socket(stdlib_socket(fileno=self._files.pop())) as socket:
            close_in_children(socket, close_socket)
            yield _Stream(socket, self._limits)

    def close_files(self) -> None:
        while self._files:
            fd = self._files.pop()
            if may_be_read(fd, self._home):
                os.close(fd)
            else:  # closing asks the file system, which this process may have to answer for
                threading.Thread(target=os.close, args=[fd], daemon=True).start()

    async def read_line(self) -> bytes | None:
        """The next line; None when the client left. Raises UsageError when it is too long, TooSlowError."""
        with self._waiting(select.POLLIN, self._limits.idle_seconds):
            while (end := self._buffer.find(b"\n")) < 0:
                if len(self._buffer) > MAX_REQUEST_BYTES:
                    raise UsageError(f"a request of more than {MAX_REQUEST_BYTES} bytes; send one JSON object a line")
                data, ancillary, flags, _address = await self.socket.recvmsg(
                    _READ_BYTES, control.ANCILLARY_BYTES, control.RECEIVE_FLAGS
                )
                self._files += control.files_in(ancillary, flags)
                if len(self._files) > control.MAX_FILES:
                    raise UsageError(f"more than {control.MAX_FILES} open files came with one request; send one")
                if not data:
                    return None
                self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def send(self, data: bytes, fd: int | None = None) -> None:
        """Send all of it, with an open file beside the first byte. Raises OSError, TooSlowError."""
        view = memoryview(data)
        with self._waiting(select.POLLOUT, self._limits.send_seconds):
            if fd is not None:
                sent = await self.socket.sendmsg([view], control.file_message(fd))
                view = view[sent:]
            while view:
                sent = await self.socket.send(view)
                view = view[sent:]


@asynccontextmanager
async def _listening(directory: Path) -> AsyncIterator[trio.socket.SocketType]:
    listener = trio.socket.from_stdlib_socket(control.listen(directory))
    close_in_children(listener, close_socket)
    is_same_process = origin()
    try:
        yield listener
    finally:
        listener.close()
        try:
            if is_same_process():
                control.unlink(directory)
        except OSError as error:
            _log.warning("control socket in %s: %s", directory, error)


def _error_line(request: bytes, error: Exception) -> bytes:
    record = record_error(error)
    if record.trace:
        _log.error("control request %r\n%s", request[:200], record.trace)
    return _line(Reply(error=record))


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _line(value: Greeting | Reply) -> bytes:
    line = msgspec.json.encode(value) + b"\n"
    if len(line) > MAX_REPLY_BYTES:
        raise HomeError(f"the answer is {len(line)} bytes long, more than the {MAX_REPLY_BYTES} a reply may have")
    return line
