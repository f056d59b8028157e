"""From FUSE requests to plain method calls and back.

A view's handlers are ordinary synchronous methods that raise OSError; the decorators here make them the coroutines
pyfuse3 wants. pyfuse3 ends its loop, and with it the mount, on any exception but FUSEError, so nothing else may pass:

    OSError                     its errno
    PoolError                   ENOSPC where space ran out, else EIO, as a kernel block device answers
    anything else               EIO, a traceback in the log, and the view turns read-only: a bug in our code must not
                                go on writing

    @answered                   looks only
    @changing                   changes something: EROFS on a read-only or failed view; when the pool is full and lets
                                requests queue, waits and tries again

`changing` only awaits outside the handler: a handler's body is a transaction, and one that fails has done nothing.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import FileInfo, FUSEError, InodeT

from cowfs.blockdev import BlockDevice
from cowfs.errors import OutOfDataSpace, PoolError
from cowfs.fuse import request_wait
from cowfs.fuse.greeting import MAX_BACKGROUND, Terms
from cowfs.fuse.left_alone import LeftAlone

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.2
# Each waiting write occupies one of the main loop's tasks; the rest stay free for other requests.
MAX_TASKS: Final = 256
MAX_WAITING: Final = 192

_MAX_ERRNO: Final = 511  # what the kernel takes in a reply
_LATE_ROUNDS: Final = 10_000  # through the loop, for writes that the kernel has sent and does not wait for


class SpaceQueue:
    """Where writes wait that a full pool refused for now.

    Args:
        tick: lets the pool do what time alone makes due (the end of queueing).
        wait_seconds: how much longer a refused write may wait; 0 when it must fail now.
    """

    def __init__(self, tick: Callable[[], None], wait_seconds: Callable[[], float]) -> None:
        self._tick = tick
        self._wait_seconds = wait_seconds
        self._changed = trio.Event()
        self._ended = False
        self.waiting = 0

    async def wait(self) -> bool:
        """Wait until trying again may help. False: fail now."""
        seconds = self._wait_seconds()
        if self._ended or seconds <= 0 or self.waiting >= MAX_WAITING:
            return False
        self.waiting += 1
        try:
            with trio.move_on_after(min(seconds, POLL_SECONDS)):
                await self._changed.wait()
        finally:
            self.waiting -= 1
        self._tick()
        return True

    def wake(self) -> None:
        """Space may have come: everyone tries again at once."""
        self._changed.set()
        self._changed = trio.Event()

    def end(self) -> None:
        """No write waits any longer: what does not find space now fails."""
        self._ended = True
        self.wake()


class View(pyfuse3.Operations):
    """Base of the views.

    Args:
        read_only: everything that changes something fails with EROFS.
        space: where to wait for space; without one a full pool fails writes at once.
        writeback: the kernel keeps what is written for a while, and sends it in its own time.

    `failure` is empty until an unexpected exception turned the view read-only; then it says which request failed.

    `greeted` is set when the kernel has greeted, from when on its requests are answered; `ending` when the mount is
    about to end, from when on no request waits any longer.

    A file handle is `inode << 1 | the kernel may keep changes of it`; the kernel keeps everything else a handle would
    know.
    """

    supports_dot_lookup = True  # for open_by_handle_at(2): `.` and `..` of an inode that the kernel has forgotten
    greeting_flags = 0
    """What the view agrees to beside what pyfuse3 does, see `cowfs.fuse.greeting`."""

    def __init__(self, *, read_only: bool = False, space: SpaceQueue | None = None, writeback: bool = False) -> None:
        super().__init__()
        self.enable_writeback_cache = writeback
        self.read_only = read_only
        self.space = space
        self.failure = ""
        self.changed = False
        self._is_clean = True  # since it changed, but for what `changed` says
        self.greeted = trio.Event()
        self.ending = trio.Event()
        self._last_logged = ""
        self._kept: Counter[int] = Counter()
        self._writes = LeftAlone("write back")

    @property
    def terms(self) -> Terms:
        return Terms(self.greeting_flags, MAX_BACKGROUND if self.enable_writeback_cache else 0)

    def init(self) -> None:
        self.greeted.set()

    def known(self) -> list[InodeT]:
        """The inodes that the kernel may have cached something of."""
        return []

    def take_methods_of(self, disk: BlockDevice) -> None:
        """Call the methods that a disk has now, where it is shown and others were bound before."""

    async def quiesce(self) -> None:
        """Bring all that applications wrote onto the device.

        Ends without a checkpoint: a snapshot that follows at once, synchronously, holds all of it, nothing half done.
        """
        await self.write_back()
        if not self.read_only and not self.failure:
            self.sync_clean()

    def sync_clean(self) -> None:
        """The synchronous end of `quiesce`: make the device one that can be mounted as it is."""

    def sync(self) -> None:
        """Make durable what has changed."""
        self.sync_clean()

    def sync_changes(self) -> None:
        """Sync if anything changed since the last time: called regularly, it bounds what a crash can lose.

        A device that is left alone becomes a clean one. One that is in use does not each time: a journal that starts
        anew takes its space anew.
        """
        if self.failure:
            return
        if self.changed:
            self.sync()
            self.changed, self._is_clean = False, False
        elif not self._is_clean:
            self.sync_clean()
            self._is_clean = True

    async def write_back(self) -> None:
        """Fetch what applications have changed and the kernel has not sent yet: through mmap, or all with writeback.

        Runs beside the session, whose write requests it causes. Only files open for reading and writing can have such
        pages, with writeback those open for writing; the kernel writes them, waiting for the answers, when it is made
        to drop its cache of the file. (syncfs would not do: on FUSE it returns before the writes are answered.)

        A caller that is cancelled does not wait any longer; the kernel continues to write, and the next caller first
        waits for that.

        Before Linux 6.16 the kernel does not wait for what it had begun to send by itself; that has been sent by then.
        """
        if self._kept:
            await self._writes.run(None, lambda: functools.partial(drop_caches, list(self._kept)))
            for _ in range(_LATE_ROUNDS):
                if not request_wait.has_requests():
                    break
                await trio.lowlevel.checkpoint()

    def open_file(self, inode: int, flags: int) -> FileInfo:
        """A handle for an open or created file; the kernel keeps what it has cached of it."""
        access = flags & os.O_ACCMODE
        is_kept = access == os.O_RDWR or (access == os.O_WRONLY and self.enable_writeback_cache)
        if is_kept:
            self._kept[inode] += 1
        return FileInfo(fh=pyfuse3.FileHandleT(inode << 1 | is_kept), keep_cache=True)

    async def release(self, fh: int) -> None:
        if fh & 1:
            inode = fh >> 1
            self._kept[inode] -= 1
            if not self._kept[inode]:
                del self._kept[inode]

    def end_waiting(self) -> None:
        """Have the requests that wait go on: the mount ends when all are answered."""
        self.ending.set()
        if self.space is not None:
            self.space.end()

    def close(self) -> None:
        """Release what the kernel will not give back any more. Called once, after the last request."""

    def fail(self, request: str) -> None:
        """Turn read-only because of the exception being handled."""
        self.failure = self.failure or request
        log.exception("%s failed unexpectedly; the mount is read-only from now on", request)

    def check_writable(self) -> None:
        if self.read_only or self.failure:
            raise FUSEError(errno.EROFS)

    def to_fuse(self, request: str, error: Exception) -> FUSEError:
        if isinstance(error, FUSEError):
            return error
        if not isinstance(error, OSError) or not error.errno:
            self.fail(request)
            return FUSEError(errno.EIO)
        if isinstance(error, PoolError) and error.errno != errno.ENOSPC:
            self.log_once(f"{request}: {error}")
            return FUSEError(errno.EIO)
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EUCLEAN):
            self.log_once(f"{request}: {error}")
        return FUSEError(error.errno if 0 < error.errno <= _MAX_ERRNO else errno.EIO)

    def log_once(self, message: str) -> None:
        # A failing disk fails thousands of requests in the same way; one line is enough.
        if message != self._last_logged:
            self._last_logged = message
            log.warning("%s", message)


def drop_caches(inodes: Sequence[int]) -> None:
    """Have the kernel write and drop what it has cached of some inodes. Never in a handler, nor in its thread."""
    for inode in inodes:
        try:
            pyfuse3.invalidate_inode(pyfuse3.InodeT(inode))
        except FileNotFoundError:
            continue  # the kernel has dropped it meanwhile, after writing


V = TypeVar("V", bound=View)
P = ParamSpec("P")
R = TypeVar("R")
Handler = Callable[Concatenate[V, P], R]
AsyncHandler = Callable[Concatenate[V, P], Coroutine[Any, Any, R]]


def answered(handler: Handler[V, P, R]) -> AsyncHandler[V, P, R]:
    @functools.wraps(handler)
    async def answer(self: V, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return handler(self, *args, **kwargs)
        except Exception as error:
            raise self.to_fuse(handler.__name__, error) from error

    return answer


def changing(handler: Handler[V, P, R]) -> AsyncHandler[V, P, R]:
    @functools.wraps(handler)
    async def answer(self: V, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.check_writable()
        self.changed = True
        while True:
            try:
                return handler(self, *args, **kwargs)
            except OutOfDataSpace as error:
                problem = error
            except Exception as error:
                raise self.to_fuse(handler.__name__, error) from error
            try:
                again = problem.may_queue and self.space is not None and await self.space.wait()
            except Exception as error:
                raise self.to_fuse(handler.__name__, error) from error
            if not again:
                raise self.to_fuse(handler.__name__, problem)
            self.check_writable()

    return answer
