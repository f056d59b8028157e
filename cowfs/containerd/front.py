"""The thread that speaks to clients, so that a call ends in time whatever the engine's thread waits for.

    front (this thread)                              engine (the thread of the home)
    connections, gRPC, deadlines
    what the store has in memory: answers itself
    everything else: ask           ------------>     runs the method, in a task
    waits, or gives up             <------------     decides, fails, or undoes (`calls`)

Nothing here waits for a disk or for the kernel: no file is opened, and what is to be logged is logged by the engine.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from socket import socket as stdlib_socket
from typing import Any, Final

import trio

from cowfs.containerd.calls import Method, Read, Reply
from cowfs.containerd.grpc import BROKEN, Asked, CallError, Code, Handler, serve_connection
from cowfs.forking import close_in_children, close_socket
from cowfs.home.control.clients import Reports, accepted

_log = logging.getLogger(__name__)
ANSWER_SECONDS: Final = 0.8  # containerd waits without a deadline; so all ends within a second, on a busy machine too
_SWITCH_SECONDS: Final = 0.0005  # each call takes the interpreter from an engine that computes three or four times


class Front:
    """Made and served in the engine's loop.

    Args:
        listener: a socket that listens.
        reads: what is answered without the engine where it is known, by path.
        methods: what the engine answers, by path.
        home: for messages.
        answer_seconds: after which a call is given up that does not take long by its nature.
        run: runs the loop of the front's thread, as `trio.run`.
        interrupt: called in the front's thread when the engine is asked something, to end a wait outside of its loop.
    """

    def __init__(
        self,
        listener: stdlib_socket,
        reads: Mapping[str, Read],
        methods: Mapping[str, Method],
        *,
        home: str,
        answer_seconds: float = ANSWER_SECONDS,
        run: Callable[..., Any] = trio.run,
        interrupt: Callable[[], object] = lambda: None,
    ) -> None:
        self._listener = listener
        self._reads = reads
        self._methods = methods
        self._home = home
        self._answer_seconds = answer_seconds
        self._run = run
        self._interrupt = interrupt
        self._engine: trio.lowlevel.TrioToken | None = None
        self._calls: trio.Nursery | None = None  # in the engine
        self._scope = trio.CancelScope()  # of the front
        self._token: trio.lowlevel.TrioToken | None = None
        self._has_ended = False

    # ------------------------------------------------------------------ in the engine's loop

    async def serve(self) -> None:
        """Answer clients until this is cancelled."""
        self._engine = trio.lowlevel.current_trio_token()
        with _switching_soon():
            await self._serve()

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery:
            self._calls = nursery
            nursery.start_soon(partial(trio.to_thread.run_sync, self._run, self._main, limiter=trio.CapacityLimiter(1)))
            try:
                await trio.sleep_forever()
            finally:
                self._has_ended = True
                if self._token is not None:
                    _tell(self._token, self._scope.cancel)

    def _begin(self, path: str, asked: Asked, call: _Call) -> None:
        assert self._calls is not None
        if not self._has_ended:
            self._calls.start_soon(self._answer, path, asked, call)

    async def _answer(self, path: str, asked: Asked, call: _Call) -> None:
        method = self._methods[path]
        try:
            if call.reply.is_given_up and not method.goes_on:  # while the engine was held up by others
                return
            with call.scope:
                call.reply.decide(await method.run(asked, call.reply.decide))
        except CallError as error:
            call.reply.fail(error)
        except Exception as error:
            _log.exception("%s failed unexpectedly", path)
            call.reply.fail(CallError(Code.INTERNAL, f"a defect of cowfs: {type(error).__name__}: {error}"))
        finally:
            _tell(call.front, call.has_ended.set)

    # ------------------------------------------------------------------ in the front's loop

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            if self._has_ended:
                return
            reports = Reports(BROKEN, self._report)
            failures = Reports("no client of the snapshotter can be taken in", self._report)
            handlers = {path: self._handler(path) for path in {*self._reads, *self._methods}}
            listener = trio.socket.from_stdlib_socket(self._listener)
            async with trio.open_nursery() as clients:
                while True:
                    socket = await accepted(listener, lambda error: failures.note(error.strerror))
                    close_in_children(socket, close_socket)
                    clients.start_soon(serve_connection, trio.SocketStream(socket), handlers, reports)

    def _report(self, text: str) -> None:
        assert self._engine is not None
        _tell(self._engine, _log.info, "%s", text)

    def _handler(self, path: str) -> Handler:
        read = self._reads.get(path)

        async def handler(asked: Asked) -> AsyncIterator[bytes]:
            found = None if read is None else read(asked)
            if found is None:
                found = (await self._ask(path, asked),)
            for message in found:
                yield message

        return handler

    async def _ask(self, path: str, asked: Asked) -> bytes:
        """The engine's answer. Raises CallError, UNAVAILABLE where there is none in time."""
        assert self._engine is not None
        method = self._methods[path]
        call = _Call()
        _tell(self._engine, self._begin, path, asked, call)
        self._interrupt()
        try:
            with trio.move_on_after(math.inf if method.takes_long(asked) else self._answer_seconds):
                await call.has_ended.wait()
        finally:
            if call.reply.give_up() and not method.goes_on:
                _tell(self._engine, call.scope.cancel)
        if call.reply.is_given_up:
            name = path.rpartition("/")[2]
            text = (
                f"{name} was not done within {self._answer_seconds:g} s: the disk below {self._home}, or the kernel, "
            )
            raise CallError(Code.UNAVAILABLE, f"{text}does not answer, or much is asked at once; {method.outcome}")
        return call.reply.result()


class _Call:
    """A call of the front to the engine.

    Attributes:
        scope: of what the engine does for it.
        has_ended: set in the front when the engine is done.
    """

    def __init__(self) -> None:
        self.reply = Reply()
        self.front = trio.lowlevel.current_trio_token()
        self.has_ended = trio.Event()
        self.scope = trio.CancelScope()


@contextmanager
def _switching_soon() -> Iterator[None]:
    """Have a thread that computes let others run as soon as a call can bear it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _tell(loop: trio.lowlevel.TrioToken, function: Callable[..., object], *arguments: Any) -> None:
    """Have the loop of the other thread call a function soon; one that has ended has no more to do."""
    with suppress(trio.RunFinishedError):
        loop.run_sync_soon(function, *arguments)
