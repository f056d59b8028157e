"""Running requests on a home that this process holds: the one way, for every client.

    Executor(home)               for this process alone: `call`, `iterate`, `send`, `receive`
    Executor(home, views)        while views of the home are served, beside the tasks of the views: `answer`, `pieces`,
                                 `answer_to`, `give`

The requests of other processes, Docker's and this program's own are run by the same executor, so all of them get the
same care: what a request declares about devices is turned here, and only here, into what its views must do.

    before    what applications wrote to the devices it reads is fetched; a device that it needs idle is closed, one
              that it replaces is given up, unless something is open in it; one that it renames, or wants opened
              anew, is put aside; one whose mount by the kernel ends is written
    after     that one is taken again; a device that it gave up is closed; what the kernel cached of a rewritten one is
              dropped; one that it replaced is shown as it is now

A request is synchronous between two of its steps and so seen whole by every other task. Bringing an open volume to a
consistent state is not the views' work: the device set does it around the snapshot (`ActiveDevices.add_quiescer`).
"""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from cowfs.devices.pools.health import examine
from cowfs.devices.pools.pool_files import backing_space
from cowfs.ending import Closing
from cowfs.errors import HomeError, PoolIoError, command_line
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.requests.request import AnyRequest, Listing, Piece, Request, StreamIn, StreamOut
from cowfs.pool import Pool
from cowfs.steps import exchange, pieces_of

R = TypeVar("R")
S = TypeVar("S")
Y = TypeVar("Y")


class Views:
    """What a process shows of the home that it holds; one that shows nothing of it has these, which do nothing.

    Nothing here is called in a handler of a view.
    """

    async def write_back(self, device: str) -> None:
        """Fetch what applications wrote to a device's files and the kernel has not sent yet.

        Ends without a checkpoint: a snapshot that follows at once holds all of it.
        """

    async def close_if_idle(self, device: str) -> bool:  # noqa: ARG002
        """Close a device that is not in use; whether it is closed. Ends without a checkpoint."""
        return True

    async def begin_unmount(self, device: str) -> None:
        """A mount of a device by the kernel may be about to end: have written what that would wait for."""

    async def begin_rename(self, device: str) -> None:
        """Close a device that is about to get another name, where that is possible; `end_rename` follows.

        Ends without a checkpoint.
        """

    async def end_rename(self, device: str, new_name: str) -> None:
        """Show a device that was set aside, and has the new name, or still its former one."""

    async def invalidate(self, device: str) -> None:
        """Have the kernel drop what it has cached of a device's files."""

    async def drop_caches(self) -> None:
        """Have the kernel drop what it has cached of the content of files, of every device."""

    async def give_up(self, device: str, *, force: bool) -> None:
        """Close a device that is about to become another thin; `take_up` follows. Ends without a checkpoint.

        What is open in it is detached by force; without it, raises DeviceBusy, and the device stays as it is.
        """

    async def take_up(self, device: str) -> None:
        """Show a device as it is now that was given up."""

    async def put_aside(self, device: str) -> None:
        """Close a device for a moment; `take_again` follows. Ends without a checkpoint.

        Raises DeviceBusy for one that has a file without a name open, which would be lost; it stays as it is.
        """

    async def take_again(self, device: str) -> None:
        """Go on with a device that was put aside. Begins and ends without a checkpoint."""


class Executor(Closing):
    """Runs requests on an open home; a `Session` where no views are served.

    Args:
        home: stays its opener's, unless `close` is called.
    """

    holder_pid: int | None = None

    def __init__(self, home: OpenHome, views: Views | None = None) -> None:
        self.home = home
        self._views = views or Views()

    @property
    def path(self) -> Path:
        return self.home.path

    # ------------------------------------------------------------------ alone

    def call(self, request: Request[R]) -> R:
        """The answer to a request. Raises what its operation raises."""
        with naming_a_full_disk(self.home, partial(self._full_disk, request)):
            answer = request.run(self.home)
            return exchange(answer, lambda _step: None) if isinstance(answer, Generator) else answer

    def iterate(self, request: Listing[R]) -> Iterator[R]:
        """The answer to a listing; the home may change between two pieces."""
        return pieces_of(request.run(self.home))

    def send(self, request: StreamIn[R], pieces: Iterable[Piece]) -> R:
        """The answer to a request that takes bytes. Raises what its operation raises, and what `pieces` does."""
        supply = iter(pieces)
        with naming_a_full_disk(self.home, partial(self._full_disk, request)):
            return exchange(request.run(self.home), lambda wants: next(supply, b"") if wants else b"")

    def receive(self, request: StreamOut[R], take: Callable[[Any], object]) -> R:
        """The answer to a request that gives bytes, which `take` is called with, piece by piece."""

        def turn(piece: Piece | None) -> None:
            if piece is not None:
                take(piece)

        return exchange(request.run(self.home), turn)

    # ------------------------------------------------------------------ beside the tasks of views

    async def answer(self, request: Request[R], *, between_steps: Callable[[], Awaitable[None]] | None = None) -> R:
        """As `call`, letting other tasks have their turn after each step.

        Args:
            between_steps: what is waited for then.
        """

        async def turn(_step: None) -> None:
            if between_steps is not None:
                await between_steps()

        async with self._prepared(request):
            answer = request.run(self.home)
            return await _exchange(answer, turn) if isinstance(answer, Generator) else answer

    async def pieces(self, request: Listing[R]) -> AsyncGenerator[R, None]:
        """As `iterate`; to be closed by `aclosing`, which ends the operation."""
        import trio

        async with self._prepared(request):
            with closing(request.run(self.home)) as steps:
                for piece in steps:
                    if piece is not None:
                        yield piece
                    await trio.lowlevel.checkpoint()

    async def answer_to(self, request: StreamIn[R], read: Callable[[], Awaitable[bytes]]) -> R:
        """As `send`, with the pieces that `read` gives. Raises what it raises."""

        async def turn(wants: bool) -> bytes:
            return await read() if wants else b""

        async with self._prepared(request):
            return await _exchange(request.run(self.home), turn)

    async def give(self, request: StreamOut[R], write: Callable[[bytes], Awaitable[object]]) -> R:
        """As `receive`. Raises what `write` raises."""

        async def turn(piece: Piece | None) -> None:
            if piece is not None:
                await write(bytes(piece))

        async with self._prepared(request):
            return await _exchange(request.run(self.home), turn)

    @asynccontextmanager
    async def _prepared(self, request: AnyRequest) -> AsyncIterator[None]:
        """Do what a request declares. Its operation, within, begins without a checkpoint."""
        request.check(self.home)
        devices = request.devices_read()
        if request.reads_all_devices:
            devices = tuple(record.name for record in self.home.devices.records())
        for device in devices:
            await self._views.write_back(device)
        if (needed := request.device_in(request.needs_idle)) is not None:
            await self._views.close_if_idle(needed)
        if (renamed := request.device_renamed()) is not None:
            await self._views.begin_rename(renamed.device)
        if (replaced := request.device_replaced()) is not None:
            await self._views.give_up(replaced.device, force=replaced.force)
        if (unmounted := request.device_in(request.unmounts)) is not None:
            await self._views.begin_unmount(unmounted)
        if (reopened := request.device_in(request.reopens)) is not None:
            await self._views.put_aside(reopened)
        try:
            with naming_a_full_disk(self.home, partial(self._full_disk, request)):
                yield
        finally:
            if reopened is not None:
                await self._views.take_again(reopened)
            if (given_up := request.device_given_up()) is not None:
                await self._views.close_if_idle(given_up)
            rewritten = request.device_in(request.rewrites)
            if rewritten is not None and not await self._views.close_if_idle(rewritten):
                await self._views.invalidate(rewritten)
            if renamed is not None:
                await self._views.end_rename(renamed.device, renamed.new_name)
            if replaced is not None:
                await self._views.take_up(replaced.device)
            if request.changes_reads:
                await self._views.drop_caches()

    def _full_disk(self, request: AnyRequest) -> str:
        begin = f"{request.summary()} failed: the disk below {self.path} is full; "
        if examine(self.home.devices.pool).can_change:
            outcome = "nothing was changed" if request.is_whole else "it was not completed"
            remedy = "free space on that disk (cowfs pool check --repair gives back what lost changes occupy)"
            return f"{begin}{outcome}; {remedy}, then run this again"
        unmount = "".join(f"{command_line('cowfs', 'umount', view.mount_point)}, and " for view in self.home.views)
        return (
            f"{begin}changes since the last commit are lost, and the pool is read-only; free space on that disk, then "
            f"run {unmount}cowfs pool check --repair, which gives back what the lost changes occupy"
        )

    def close(self) -> None:
        self.home.close()


@contextmanager
def naming_a_full_disk(home: OpenHome, explain: Callable[[], str]) -> Iterator[None]:
    """An error of the disk below the home says which write failed; `explain` says what was asked, and what helps."""
    try:
        yield
    except (HomeError, PoolIoError) as error:
        number = next((one.errno for one in (error, error.__cause__) if _is_about_a_full_disk(one)), None)
        if number is None and isinstance(error, PoolIoError) and _is_disk_full(home.devices.pool):
            number = errno.ENOSPC  # to which the kernel says EIO
        if number is None:
            raise
        raise HomeError(explain(), errno=number) from error


def _is_disk_full(pool: Pool) -> bool:
    """Whether the file of a pool's data is on a disk without room for another block."""
    occupied_bytes, free_bytes = backing_space(pool.table().data_device)
    return occupied_bytes > 0 and free_bytes < pool.block_bytes


def _is_about_a_full_disk(error: BaseException | None) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


async def _exchange(operation: Generator[Y, S, R], turn: Callable[[Y], Awaitable[S]]) -> R:
    """As `exchange`, letting other tasks have their turn after each step."""
    import trio

    reply: Any = None
    with closing(operation):
        while True:
            try:
                step = operation.send(reply)
            except StopIteration as end:
                answer: R = end.value
                return answer
            reply = await turn(step)
            await trio.lowlevel.checkpoint()
