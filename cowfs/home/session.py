"""Reaching a home: opened in this process, or asked through the process that holds it.

    connect(spec)                  a Session: the home opened here, or the process that holds it asked over its socket
    metadata_of(home, "emulated")  the pool's metadata for reading, also when the pool itself cannot be opened
    locked(home)                   no other process has the home open, for what rewrites its metadata

A home that is in use by a command for a moment is waited for; one that is mounted answers at once.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar

from cowfs.blockdev import BlockDevice, FileDevice
from cowfs.devices.on_disk.files import HomeFiles
from cowfs.devices.on_disk.lock import HomeLock
from cowfs.devices.on_disk.making import read_settings, require_home
from cowfs.devices.pools.pool_files import open_device
from cowfs.devices.pools.pool_source import is_in_use
from cowfs.devices.reports import HomeReport
from cowfs.errors import HolderEnded, HomeBusy, HomeError, command_line
from cowfs.home.executor import Executor
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.opened.opening import open_here
from cowfs.home.opened.spec import HomeSpec
from cowfs.home.requests.devices import CopyMetadata, Status
from cowfs.home.requests.request import Listing, Piece, Request, StreamIn, StreamOut

if TYPE_CHECKING:
    from cowfs.home.control.client import Client

WAIT_SECONDS: Final = 3.0
_POLL_SECONDS: Final = 0.02

R = TypeVar("R")
T = TypeVar("T")


class Session(Protocol):
    """A home that can be asked. `holder_pid` is None when this process opened it itself."""

    @property
    def path(self) -> Path: ...

    @property
    def holder_pid(self) -> int | None: ...

    def call(self, request: Request[R]) -> R: ...

    def iterate(self, request: Listing[R]) -> Iterator[R]: ...

    def send(self, request: StreamIn[R], pieces: Iterable[Piece]) -> R: ...

    def receive(self, request: StreamOut[R], take: Callable[[Any], object]) -> R: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


def connect(spec: HomeSpec, *, wait_seconds: float = WAIT_SECONDS) -> Session:
    """Open a home, or reach the process that holds it, which keeps its own options.

    Raises:
        HomeBusy: something holds it that does not answer, after `wait_seconds`.
        CowfsError: as `open_here`.
    """
    reached = _open_or_reach(spec.path, partial(_open_unserved, spec), partial(_reach_server, spec), wait_seconds)
    return Executor(reached) if isinstance(reached, OpenHome) else reached


def _open_unserved(spec: HomeSpec) -> OpenHome:
    """Open a home; raises HomeBusy too when it cannot be written and a process of this user's serves its layers."""
    if spec.read_only and spec.runtime_directory is not None:
        HomeLock.acquire(os.fspath(spec.runtime_directory)).release()
    return open_here(spec)


def _reach_server(spec: HomeSpec, home: Path) -> Client:
    try:
        return _reach_holder(home)
    except (ConnectionError, FileNotFoundError, PermissionError):
        if spec.runtime_directory is None:
            raise
        return _reach_holder(home, spec.runtime_directory)


@contextmanager
def metadata_of(home: Path, backend: str, *, wait_seconds: float = WAIT_SECONDS) -> Iterator[BlockDevice]:
    """The committed metadata of a home's pool; a copy when the home or its pool is held.

    The pool is not opened, so this also works on metadata that no pool accepts; except for one that the kernel uses.

    Raises:
        NotAHome, HomeBusy; HomeError when the file cannot be read.
    """
    files = HomeFiles(os.path.abspath(home))
    require_home(files)

    def open_metadata() -> HomeLock | Executor:
        lock = HomeLock.acquire(files.home, read_only=True)
        with ExitStack() as undo:
            undo.callback(lock.release)
            if not read_settings(files).thin_pool and not is_in_use(files):
                undo.pop_all()
                return lock
        return Executor(open_here(HomeSpec(home, backend)))

    def copy_of_holder(home: Path) -> BlockDevice:
        with _reach_holder(home) as client:
            return _copy_of_metadata(client)

    reached = _open_or_reach(home, open_metadata, copy_of_holder, wait_seconds)
    with ExitStack() as stack:
        if isinstance(reached, HomeLock):
            stack.callback(reached.release)
            yield stack.enter_context(closing(open_device(files.metadata)))
        elif isinstance(reached, Executor):
            yield stack.enter_context(metadata_of_session(stack.enter_context(reached)))
        else:
            yield stack.enter_context(closing(reached))


@contextmanager
def metadata_of_session(session: Session) -> Iterator[BlockDevice]:
    """The metadata as it is committed when this is entered."""
    if isinstance(session, Executor):
        pool = session.home.devices.pool
        pool.commit()
        with closing(pool.open_metadata()) as device:
            yield device
        return
    with closing(_copy_of_metadata(session)) as copy:
        yield copy


def _copy_of_metadata(session: Session) -> FileDevice:
    fd = session.call(CopyMetadata()).fd
    return FileDevice.of_descriptor(fd, "the copy of the metadata", read_only=True)


@contextmanager
def locked(home: Path, purpose: str, *, wait_seconds: float = WAIT_SECONDS) -> Iterator[HomeFiles]:
    """Hold a home without opening its pool.

    Args:
        purpose: what needs it, for the message when it is mounted: `restoring metadata`.
    """
    files = HomeFiles(os.path.abspath(home))
    require_home(files)

    def lock_here() -> HomeLock:
        lock = HomeLock.acquire(files.home)
        with ExitStack() as undo:
            undo.callback(lock.release)
            if not read_settings(files).thin_pool and is_in_use(files):
                raise HomeBusy(
                    f"{purpose} needs the home {files.home} to itself, and the kernel uses its pool; "
                    "unmount what 'mount --kernel' mounted from it, and deactivate what 'activate' made nodes"
                )
            undo.pop_all()
        return lock

    lock = alone(home, purpose, lock_here, wait_seconds=wait_seconds)
    try:
        yield files
    finally:
        lock.release()


def alone(home: Path, purpose: str, open_here: Callable[[], T], *, wait_seconds: float = WAIT_SECONDS) -> T:
    """Open something of a home that no other process holds; as `locked`."""

    def explain(report: HomeReport) -> str:
        views = report.views
        remedy = f"first run: {command_line('cowfs', 'umount', views[0].mount_point)}" if views else "unmount it first"
        message = f"{purpose} needs the home {home} to itself, and process {report.holder_pid} serves a mount of it"
        return f"{message}; {remedy}"

    return open_unheld(home, open_here, explain, wait_seconds=wait_seconds)


def open_unheld(
    home: Path,
    open_here: Callable[[], T],
    explain: Callable[[HomeReport], str],
    *,
    wait_seconds: float = WAIT_SECONDS,
) -> T:
    """Open something of a home in this process; raises HomeBusy that `explain` words when another one serves it."""

    def refuse(_home: Path) -> T:
        with _reach_holder(home) as client:
            report = client.call(Status())
        raise HomeBusy(explain(report), holder_pid=client.holder_pid)

    return _open_or_reach(home, open_here, refuse, wait_seconds)


def _reach_holder(home: Path, directory: Path | None = None) -> Client:
    from cowfs.home.control.client import Client

    return Client(home, directory)


def _open_or_reach(
    home: Path, open_here: Callable[[], T], ask_holder: Callable[[Path], R], wait_seconds: float
) -> T | R:
    """Try to have the home, else to reach its holder, until one works or the time is over.

    A holder without a control socket is usually a command that ends soon; one with too many clients soon has fewer.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            return open_here()
        except HomeBusy as busy:
            try:
                return ask_holder(home)
            except TimeoutError:
                raise HomeBusy(f"{busy.message}; it does not answer", holder_pid=busy.holder_pid) from None
            except (ConnectionError, FileNotFoundError, HolderEnded):
                if time.monotonic() >= deadline:
                    raise busy from None
            except HomeError as refusal:
                if refusal.errno != errno.EAGAIN or time.monotonic() >= deadline:
                    raise
        time.sleep(_POLL_SECONDS)
