"""A trace while it is recorded: what notes the requests of a device, and hands them to a reader that may be slow.

    read_end, tracer = Tracer.begun(TraceHeader("web"), on_end=...)
    put_in_place(thin, tracer.device)         from now on its requests are noted
    os.read(read_end, ...)                    the bytes of a file of traces, as they come
    tracer.end()                              the rest; the reader finds the end of the file

The reader is in another process as a rule, and names and keeps the file itself. Nothing here waits for it: what the
pipe does not take is kept, up to a bound, and then requests are counted that are lost. When the reader is gone, the
trace ends.
"""

from __future__ import annotations

import fcntl
import os
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Final

from cowfs.blockdev import BlockDevice, Buffer, WrappedDevice
from cowfs.forking import close_in_children
from cowfs.traces.file import BLOCK_REQUESTS, encode_block, encode_end, encode_header
from cowfs.traces.requests import DISCARD, FLUSH, READ, WRITE, ZERO, TraceHeader

MOST_WAITING_BYTES: Final = 8 << 20
_PIPE_BYTES: Final = 1 << 20  # what an ordinary user may have
_LATE_NS: Final = 200_000_000  # how old a request becomes here while others follow


class Tracer:
    """A trace that is being recorded, of one device.

    Args:
        write_fd: of a pipe, closed in the end.
        clock: in nanoseconds.
        on_end: called once, when the reader is gone.
    """

    def __init__(
        self, write_fd: int, header: TraceHeader, *, clock: Callable[[], int], on_end: Callable[[], object]
    ) -> None:
        self._fd = write_fd
        os.set_blocking(write_fd, False)
        self._clock = clock
        self._on_end = on_end
        self._began_ns = self._written_ns = clock()
        self._requests: list[tuple[int, int, int, int, bool]] = []
        self._waiting: deque[memoryview] = deque()
        self._waiting_bytes = 0
        self.lost = 0
        self.is_ended = False
        close_in_children(self, Tracer._let_go)
        self._pass_on(encode_header(header))

    @classmethod
    def begun(
        cls, header: TraceHeader, *, clock: Callable[[], int], on_end: Callable[[], object]
    ) -> tuple[int, Tracer]:
        """A new trace, and the descriptor that it is read from, which the caller closes."""
        read_fd, write_fd = os.pipe()
        with suppress(OSError):  # a user may have too many large ones
            fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        return read_fd, cls(write_fd, header, clock=clock, on_end=on_end)

    def device(self, inner: BlockDevice) -> TracingDevice:
        """The device, with its requests noted."""
        return TracingDevice(inner, self)

    def note(self, kind: int, offset: int = 0, length: int = 0) -> None:
        """A request is about to be done."""
        now = self._clock()
        self._requests.append((now - self._began_ns, kind, offset, length, False))
        if len(self._requests) >= BLOCK_REQUESTS or now - self._written_ns >= _LATE_NS:
            self._written_ns = now
            self._close_block()

    def _close_block(self) -> None:
        """Hand over what was noted; what there is no room for is lost."""
        requests, self._requests = self._requests, []
        if not requests or self.is_ended:
            return
        if self._waiting_bytes >= MOST_WAITING_BYTES:
            self.lost += len(requests)
            self._drain()
            return
        self._pass_on(encode_block(requests))

    def _pass_on(self, data: bytes) -> None:
        self._waiting.append(memoryview(data))
        self._waiting_bytes += len(data)
        self._drain()

    def _drain(self) -> None:
        """Write what the pipe takes now."""
        while self._waiting and not self.is_ended:
            piece = self._waiting[0]
            try:
                written = os.write(self._fd, piece)
            except BlockingIOError:
                return
            except BrokenPipeError:
                self._close()
                self._on_end()
                return
            self._waiting_bytes -= written
            if written == len(piece):
                self._waiting.popleft()
            else:
                self._waiting[0] = piece[written:]

    def end(self) -> Generator[None, None, None]:
        """Write down the rest; yields while the reader has to read first."""
        self._close_block()
        self._pass_on(encode_end(self.lost))
        while self._waiting and not self.is_ended:
            yield
            self._drain()
        self._close()

    def close(self) -> None:
        """As `end`, for a process that ends: what the reader has no room for now is lost, and the trace not whole."""
        next(self.end(), None)
        self._close()

    def _close(self) -> None:
        self.is_ended = True
        self._waiting.clear()
        self._let_go()

    def _let_go(self) -> None:
        fd, self._fd = self._fd, -1  # in this order, for a thread that forks
        if fd >= 0:
            os.close(fd)


class TracingDevice(WrappedDevice):
    """Notes the requests of a device, before they are done. A copy is a read and a write."""

    def __init__(self, inner: BlockDevice, tracer: Tracer) -> None:
        super().__init__(inner)
        self._note = tracer.note
        self._is_inside = False  # an operation that the device may do by others of its methods

    def pread(self, offset: int, length: int) -> bytes:
        if not self._is_inside:
            self._note(READ, offset, length)
        return self.inner.pread(offset, length)

    def pwrite(self, offset: int, data: Buffer) -> None:
        if not self._is_inside:
            self._note(WRITE, offset, len(data))
        self.inner.pwrite(offset, data)

    def zero(self, offset: int, length: int) -> None:
        self._one(lambda: self.inner.zero(offset, length), (ZERO, offset, length))

    def discard(self, offset: int, length: int) -> None:
        self._one(lambda: self.inner.discard(offset, length), (DISCARD, offset, length))

    def copy(self, source_offset: int, target_offset: int, length: int) -> None:
        self._one(
            lambda: self.inner.copy(source_offset, target_offset, length),
            (READ, source_offset, length),
            (WRITE, target_offset, length),
        )

    def flush(self) -> None:
        if not self._is_inside:
            self._note(FLUSH)
        self.inner.flush()

    def _one(self, action: Callable[[], None], *noted: tuple[int, int, int]) -> None:
        """Note an operation, and not what it does by other methods of the device."""
        if self._is_inside:
            action()
            return
        for request in noted:
            self._note(*request)
        self._is_inside = True
        try:
            action()
        finally:
            self._is_inside = False
