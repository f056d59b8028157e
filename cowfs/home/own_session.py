"""The session of a `Home`: for the threads of this process, and through the server of a mount that this process makes.

One call runs at a time, over all threads. While a disk is open here, only the thread that opened it is served,
since the two would change the pool at once.

A request that only reads is asked again where the process that holds the home ends before its answer is complete: of
the next holder, or here, where the home is free. A sequence or a stream of which a part was given away is not; nor is
anything of the server of a mount that this process made, without which there is no mount.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from cowfs.blockdev import BlockDevice
from cowfs.ending import Closing
from cowfs.errors import HolderEnded, HomeBusy
from cowfs.forking import not_inherited, origin
from cowfs.home.executor import Executor
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.opened.spec import HomeSpec, Make
from cowfs.home.requests.devices import CopyMetadata
from cowfs.home.requests.request import AnyRequest, Listing, Piece, Request, StreamIn, StreamOut
from cowfs.home.session import Session, connect, metadata_of_session

R = TypeVar("R")

_ENDED_HOLDERS: Final = 3  # one after another


class OwnSession(Closing):
    """A `Session` over another one, which is a new one after each mount.

    Args:
        spec: how the home was opened, and is opened again.
    """

    def __init__(self, spec: HomeSpec) -> None:
        self._session = connect(spec)
        self._spec = msgspec.structs.replace(spec, make=Make.NEVER, options=None, progress=None)
        self._turn = threading.RLock()
        self._disk_thread: threading.Thread | None = None
        self._disks = 0
        self._is_closed = False
        self._is_handed_over = False
        not_inherited(self, f"the home {spec.path}")

    @property
    def path(self) -> Path:
        return self._session.path

    @property
    def holder_pid(self) -> int | None:
        return self._session.holder_pid

    def call(self, request: Request[R]) -> R:
        return self._ask(request, lambda session: session.call(request))

    def iterate(self, request: Listing[R]) -> Iterator[R]:
        """The pieces one by one; other threads may have their turn between two of them."""

        def begin(session: Session) -> tuple[Iterator[R], list[R]]:
            pieces = session.iterate(request)
            return pieces, list(islice(pieces, 1))

        pieces, piece = self._ask(request, begin)
        while piece:
            yield piece.pop()
            with self.current():
                piece = list(islice(pieces, 1))

    def read_all(self, request: Listing[R]) -> list[R]:
        """All pieces in one turn."""
        return self._ask(request, lambda session: list(session.iterate(request)))

    def send(self, request: StreamIn[R], pieces: Iterable[Piece]) -> R:
        return self._ask(request, lambda session: session.send(request, pieces))

    def receive(self, request: StreamOut[R], take: Callable[[Any], object]) -> R:
        has_begun = False

        def take_piece(piece: Any) -> None:
            nonlocal has_begun
            has_begun = True
            take(piece)

        return self._ask(request, lambda session: session.receive(request, take_piece), lambda: not has_begun)

    @contextmanager
    def metadata(self) -> Iterator[BlockDevice]:
        """The pool's metadata as it is committed when this is entered, for the turn of one thread."""
        with self.current(), ExitStack() as stack:
            yield self._ask(CopyMetadata(), lambda session: stack.enter_context(metadata_of_session(session)))

    def _ask(
        self, request: AnyRequest, ask: Callable[[Session], R], can_repeat: Callable[[], bool] = lambda: True
    ) -> R:
        """What `ask` returns. One that only reads is asked again where the holder ended, a few times."""
        for _ in range(_ENDED_HOLDERS if request.only_reads else 0):
            with self.current() as session:
                try:
                    return ask(session)
                except HolderEnded:
                    if self._is_handed_over or not can_repeat():
                        raise
                session.close()
                self._session = connect(self._spec)
        with self.current() as session:
            return ask(session)

    @contextmanager
    def current(self) -> Iterator[Session]:
        """The session that this leads to now, for the turn of one thread."""
        with self._turn:
            if self._disk_thread not in (None, threading.current_thread()):
                raise HomeBusy(
                    f"the home {self.path} was used in thread '{threading.current_thread().name}', and a disk of it is "
                    f"open in thread '{self._disk_thread.name}'; use the home in that thread, or close the disk first"
                )
            yield self._session

    @contextmanager
    def disk(self, purpose: str) -> Iterator[OpenHome]:
        """The home in this process, for the thread that opens a disk of it.

        Args:
            purpose: what needs it, for the message when another process holds the home.

        Raises:
            HomeBusy.
        """
        with self.current() as session:
            home = self._require_here(session, purpose)
            self._disk_thread = threading.current_thread()
            self._disks += 1
        try:
            yield home
        finally:
            with self._turn:
                self._disks -= 1
                if not self._disks:
                    self._disk_thread = None

    def _require_here(self, session: Session, purpose: str) -> OpenHome:
        if not isinstance(session, Executor):
            raise HomeBusy(
                f"{purpose} needs the home {self.path} in this process, and process {self.holder_pid} holds it; "
                "copy_in, copy_out, open_file and export_image work meanwhile; or unmount it first",
                holder_pid=self.holder_pid or 0,
            )
        return session.home

    @contextmanager
    def handed_over(
        self, check: Callable[[OpenHome], None], serve: Callable[[HomeSpec], Callable[[], None]]
    ) -> Iterator[None]:
        """Let another process have the home for the length of a block, and be asked in this one's place.

        Args:
            check: raises what keeps a home that is open here from being handed over.
            serve: starts that process; returns what ends it.
        """
        is_same_process = origin()
        with self.current() as session:
            if isinstance(session, Executor):
                check(session.home)
            session.close()
            with ExitStack() as undo:
                undo.callback(self._open_again)
                end = serve(self._spec)
                undo.callback(end)
                self._session = connect(self._spec)
                self._is_handed_over = True
                undo.pop_all()
        try:
            yield
        finally:
            if is_same_process():
                self._take_back(end)

    def _take_back(self, end: Callable[[], None]) -> None:
        with self._turn:
            self._session.close()
            self._is_handed_over = False
            try:
                end()
            finally:
                self._open_again()

    def _open_again(self) -> None:
        if not self._is_closed:
            self._session = connect(self._spec)

    def close(self) -> None:
        with self._turn:
            self._is_closed = True
            self._session.close()
