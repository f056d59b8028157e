"""Mounting in the background: start a server process, wait until its mount is usable, leave it behind.

The two processes speak over a pipe. The server writes one JSON line when it knows the outcome:

    {"pid": 4711, "warnings": ["device 'web': ..."]}
    {"error": {"class": "MountError", "message": "mount cowfs:/h:a:/mnt: ...", "errno": 16, ...}}

and the parent logs those warnings, and raises that error, as if they had happened here. The server is a fresh process
(never a fork of this one, which may have threads) in a separate session, its standard streams on a log file.

    parent                                              server
    server = mount_in_background(argv_for, ...)         with Readiness(fd) as readiness:
                                                            open everything
                                                            run_server(..., on_ready=readiness.ready)

Nothing here needs pyfuse3.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from cowfs.error_record import ErrorRecord, record_error, restore_error
from cowfs.errors import CowfsError, MountError
from cowfs.mounts.mountinfo import mount_at
from cowfs.mounts.mountpoint import check_mount_point, check_requirements, is_dead, unmount_now

log = logging.getLogger(__name__)

START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 5.0
_MAX_LINE_BYTES: Final = 1 << 16
_LOG_TAIL_BYTES: Final = 4096
_WARNINGS_MAX: Final = 20
_WARNING_CHARACTERS_MAX: Final = 400
_PACKAGE: Final = "cowfs"  # whose loggers are listened to

_servers: list[subprocess.Popen[bytes]] = []
"""Servers this process started; ended ones are reaped when the next one starts."""


def mount_in_background(
    argv_for: Callable[[int], Sequence[str]],
    *,
    source: str,
    target: str,
    log_path: str | os.PathLike[str] | None = None,
    timeout_seconds: float = START_SECONDS,
    on_ready: Callable[[], None] | None = None,
    keep_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a server of a mount and return it once that is usable; as `start_in_background`.

    Raises:
        MountError, MissingRequirement: it cannot be mounted here.
    """
    check_requirements()
    target = check_mount_point(source, target)
    return start_in_background(
        argv_for,
        source=source,
        target=target,
        log_path=log_path,
        timeout_seconds=timeout_seconds,
        on_ready=on_ready,
        keep_fds=keep_fds,
    )


def start_in_background(
    argv_for: Callable[[int], Sequence[str]],
    *,
    source: str,
    target: str,
    log_path: str | os.PathLike[str] | None = None,
    timeout_seconds: float = START_SECONDS,
    on_ready: Callable[[], None] | None = None,
    keep_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a server and return it once it is ready.

    Args:
        argv_for: the server's command line, given the number of the pipe it reports on (see `Readiness`).
        source, target: for messages.
        log_path: the server's standard output and error, appended, mode 0600; None throws them away.
        timeout_seconds: a server that has not come up by then is killed.
        on_ready: called once it is ready; the server is ended when this raises, or anything before.
        keep_fds: descriptors of this process that the server has too, under the same numbers.

    Raises:
        MountError: the server did not come up.
        CowfsError: what the server reported, of the class it had there.
    """
    _servers[:] = [server for server in _servers if server.poll() is None]
    receiver, sender = os.pipe()
    server = None
    try:
        try:
            with _signals_deferred():
                server = _start(argv_for(sender), (sender, *keep_fds), log_path)
        finally:
            os.close(sender)
        line = _read_line(receiver, timeout_seconds)
        _judge(line, server, source, target, log_path, timeout_seconds)
        if on_ready is not None:
            on_ready()
    except BaseException:
        if server is not None:
            _stop(server, target)
        raise
    finally:
        os.close(receiver)
    return server


@contextlib.contextmanager
def _signals_deferred() -> Iterator[None]:
    """Let SIGTERM and SIGINT wait until the end of a block, so that a process that is started is known."""
    if threading.current_thread() is not threading.main_thread():
        yield  # which signals do not interrupt
        return
    noted: list[int] = []
    earlier = {
        number: signal.signal(number, lambda number, _frame: noted.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        if noted:
            signal.raise_signal(noted[0])


def _start(
    argv: Sequence[str], keep_fds: Sequence[int], log_path: str | os.PathLike[str] | None
) -> subprocess.Popen[bytes]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    output = os.open(os.devnull, os.O_WRONLY) if log_path is None else os.open(log_path, flags, 0o600)
    try:
        server = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=keep_fds,
            start_new_session=True,
        )
    finally:
        os.close(output)
    _servers.append(server)
    return server


def _read_line(receiver: int, timeout_seconds: float) -> bytes | None:
    """What the server wrote up to the end of a line or of the pipe; None when the time is over."""
    deadline = time.monotonic() + timeout_seconds
    line = b""
    poll = select.poll()
    poll.register(receiver, select.POLLIN)
    while not line.endswith(b"\n") and len(line) < _MAX_LINE_BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return None
        data = os.read(receiver, _MAX_LINE_BYTES)
        if not data:
            break
        line += data
    return line


def _judge(
    line: bytes | None,
    server: subprocess.Popen[bytes],
    source: str,
    target: str,
    log_path: str | os.PathLike[str] | None,
    timeout_seconds: float,
) -> None:
    """Raises what keeps a server from being ready."""
    if line is None:
        reason = f"the server was not ready after {timeout_seconds:g} s and was stopped{_log_tail(log_path)}"
        raise MountError("mount", source, target, errno=errno.ETIMEDOUT, reason=reason)
    try:
        report = msgspec.json.decode(line, type=Report)
    except msgspec.DecodeError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_SECONDS)
        how = "closed its pipe" if server.returncode is None else f"ended with status {server.returncode}"
        reason = f"the server {how} before it was ready{_log_tail(log_path)}"
        raise MountError("mount", source, target, reason=reason) from None
    for warning in report.warnings:
        log.warning("%s", warning)
    if report.error is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_SECONDS)  # it ends by itself, and logs the reason
        raise restore_error(report.error)


def _log_tail(log_path: str | os.PathLike[str] | None) -> str:
    """The last line of the server's log, to end a message with."""
    if log_path is None:
        return ""
    try:
        lines = Path(log_path).read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f"; its log {os.fspath(log_path)} ends with: {lines[-1]}" if lines else f"; see {os.fspath(log_path)}"


def _stop(server: subprocess.Popen[bytes], target: str) -> None:
    """End a server that did not come up, and take away what it may have mounted."""
    server.terminate()
    try:
        server.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    mount = mount_at(target)
    if mount is not None and mount.is_cowfs and is_dead(mount):
        with contextlib.suppress(OSError):
            unmount_now(target, source=mount.source, lazy=True)


class Report(msgspec.Struct, omit_defaults=True):
    """The line a server writes: its pid once it is ready, or why it never will be; and what it warned of until then."""

    pid: int = 0
    error: ErrorRecord | None = None
    warnings: list[str] = []


class _Warnings(logging.Handler):
    """Keeps what is logged as a warning, up to what a line of the pipe has room for."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.said) < _WARNINGS_MAX:
            self.said.append(record.getMessage()[:_WARNING_CHARACTERS_MAX])


class Readiness:
    """The server's end of the pipe: reports readiness once, or the error that a `with` block ends with.

    What is logged as a warning until then is reported too.

    Without a descriptor (a server in the foreground) it reports nothing. The error is raised further either way.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._warnings = _Warnings()
        if fd is not None:
            logging.getLogger(_PACKAGE).addHandler(self._warnings)
            os.set_inheritable(fd, False)  # tools that the server runs must not hold the pipe open

    def ready(self) -> None:
        """Report, and let go of the directory the server was started in.

        Raises:
            CowfsError: the process that waited for the server is gone, so that its mount is not wanted any more.
        """
        if self._fd is not None:
            self._write(Report(pid=os.getpid(), warnings=self._warnings.said))
            os.chdir("/")

    def failed(self, error: BaseException) -> None:
        if self._fd is not None:
            with contextlib.suppress(CowfsError):
                self._write(Report(error=record_error(error), warnings=self._warnings.said))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.failed(error)

    def _write(self, report: Report) -> None:
        assert self._fd is not None
        logging.getLogger(_PACKAGE).removeHandler(self._warnings)
        try:
            os.write(self._fd, msgspec.json.encode(report) + b"\n")
        except BrokenPipeError:
            raise CowfsError("the process that waited for this server has ended", errno=errno.EPIPE) from None
        finally:
            os.close(self._fd)
            self._fd = None
