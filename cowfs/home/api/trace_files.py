"""Recording a trace of a device in a file, here or through the holder."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cowfs.errors import CowfsError
from cowfs.home.requests.traces import EndTrace, StartTrace
from cowfs.home.session import Session
from cowfs.new_files import open_growing, require_free

_READ_BYTES: Final = 1 << 20
_END_SECONDS: Final = 5.0
_HINT: Final = ", or write over it with --force"


class TraceRecording:
    """A trace that a thread writes to a file as it comes.

    Attributes:
        ended: set when no more comes: the trace was ended, the process that has the home has, or the file is full.
    """

    def __init__(self, read_fd: int, file_fd: int) -> None:
        self._read_fd = read_fd
        self._file_fd = file_fd
        self._failure: OSError | None = None
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._copy, name="a trace", daemon=True)
        self._thread.start()

    def _copy(self) -> None:
        try:
            while data := os.read(self._read_fd, _READ_BYTES):
                view = memoryview(data)
                while view:
                    view = view[os.write(self._file_fd, view) :]
        except OSError as error:
            self._failure = error
        finally:
            os.close(self._read_fd)  # the trace ends with its reader
            self.ended.set()

    def finish(self) -> None:
        """Wait for the rest. Raises OSError: the file could not be written."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure


@contextmanager
def recorded_trace(session: Session, device: str, path: str, *, force: bool = False) -> Iterator[TraceRecording]:
    """See `cowfs.Home.trace`."""
    require_free(path, force=force, hint=_HINT)
    read_fd = session.call(StartTrace(device)).fd
    try:
        file_fd = open_growing(path, force=force, hint=_HINT)
    except BaseException:
        os.close(read_fd)
        raise
    try:
        recording = TraceRecording(read_fd, file_fd)
        try:
            yield recording
        finally:
            try:
                session.call(EndTrace(device))
            except CowfsError:
                if not recording.ended.wait(_END_SECONDS):
                    raise
                # It was ended already, perhaps with the process that had the home; the file says how.
            recording.finish()
    finally:
        os.close(file_fd)
