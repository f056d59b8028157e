"""How the workers of pyfuse3's main loop wait for the next request.

pyfuse3 lets two of its workers take turns at the FUSE device: for each request one goes through a lock and an epoll
wait, both of them a round through trio's scheduler, while the other one waits. That costs more than most requests
do. Here the worker that has just answered keeps the device, which stops the whole event loop, because the caller is
likely to ask again at once.

    wait_readable
      eager     busy polling, then poll(2), as long as a round through trio was less than ROUND_SECONDS ago and
                another worker waits, to take over should the handler of the coming request have to wait
      patient   stand in line for the one place in trio's epoll, so that everything else in the loop gets its turn

Busy polling (see `BusyPolling`) asks without sleeping. While one request follows another, the gap between them is often
shorter than the time that it takes to fall asleep and be woken.

poll(2) has no timeout, since setting and cancelling a timer for each wait can cost as much as the rest of a request.
One timer is set in each round, for its end, and poll(2) waits for its descriptor too. Another thread that has something
for the event loop ends the wait by `interrupt`.

The device does not block. The kernel takes a request back whose process is killed, also between the poll and the read,
and libfuse reads with the interpreter's lock held: a read that waits would stop every thread of the server. The read
that finds nothing fails with EAGAIN, at which pyfuse3 ends the worker, and `_session_loop` starts it again. libfuse's
buffer of that worker is lost then: as much memory as the largest request took that was read into it, 1 MiB at most.

`install` gives pyfuse3 this in place of trio, by the assignment that pyfuse3's own asyncio mode uses.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, Protocol

import pyfuse3
import trio

from cowfs.fuse.greeting import Greeting, Terms

NO_TERMS: Final = Terms()
ROUND_SECONDS: Final = 0.005  # what a busy mount adds to the latency of timers and of the control socket


def _processors() -> int:
    return len(os.sched_getaffinity(0))


class _WaitedSeconds:
    """How long the thread that asks was ready to run so far, while its processor was with another one.

    It is always the same thread. 0 where the kernel does not count that (proc_pid_schedstat(5)).
    """

    def __init__(self) -> None:
        self._fd = -1

    def __call__(self) -> float:
        try:
            if self._fd < 0:
                self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
                weakref.finalize(self, os.close, self._fd)
            return int(os.pread(self._fd, 100, 0).split()[1]) / 1e9
        except OSError:
            return 0.0


class BusyPolling:
    """Whether to ask for the next request without sleeping, by what the last waits and the scheduler have shown.

    Never with a single processor, on which the client could not run meanwhile. Else a score is kept: a short wait adds
    one, a long one takes MISS_COST away, and polling may be busy while the score is above zero. One that was short but
    longer than was polled takes one away, and what ends busy polling has it earn its start anew. So an idle mount is
    not polled at all, and one whose requests come seldom or at the wrong distance in few waits.

    Where the scheduler puts client and server on one processor, both sleep and wake in a moment, and busy polling
    drives the client to another one, which takes long to wake. So both ways are tried in turn, TRIAL_WAITS each, and
    for the rest of COMPARED_SECONDS it is done in the way that had the shorter waits.

    Polling lasts for twice as long as waits took lately: how soon a client that was answered runs again, and what it
    does before it asks, depends on the machine and on the client. At most MAX_SECONDS are lost in a wait.

    A thread that polls without sleeping loses its processor when another one waits for it. When more than WAIT_SHARE of
    a round passed in that way, polling sleeps for PAUSE_SECONDS.

    Args:
        processors: how many this process may use.
        waited_seconds: see `_WaitedSeconds`.
    """

    MIN_SECONDS: Final = 0.00004
    MAX_SECONDS: Final = 0.00015
    SHORT_SECONDS: Final = MAX_SECONDS + 0.0001  # with what sleeping and waking take
    MISS_COST: Final = 4
    MAX_SCORE: Final = 16
    MIN_SCORE: Final = -16
    COMPARED_SECONDS: Final = 0.25
    TRIAL_WAITS: Final = 24
    PAUSE_SECONDS: Final = 0.1
    WAIT_SHARE: Final = 0.1
    _SETTLING_WAITS: Final = 8  # of a trial, while the scheduler gets used to it
    _FOLLOWED: Final = 1 / 8  # how much the last wait counts

    def __init__(
        self, *, processors: Callable[[], int] = _processors, waited_seconds: Callable[[], float] | None = None
    ) -> None:
        self.is_possible = processors() > 1
        self._waited_seconds = waited_seconds or _WaitedSeconds()
        self._score = self.MIN_SCORE
        self._usual_seconds = self.MAX_SECONDS
        self._compared_until = 0.0
        self._tried = 0  # short waits since then
        self._asleep_seconds = self._awake_seconds = 0.0  # of both trials
        self._paused_until = 0.0
        self._busy_since: float | None = None
        self._waited_before = 0.0

    def seconds(self, now: float) -> float:
        """How long to ask without sleeping in a wait that begins; 0: not at all."""
        if self._score <= 0 or now < self._paused_until or not self.is_possible or not self._is_quicker(now):
            return 0.0
        if self._busy_since is None:
            self._busy_since = now
            self._waited_before = self._waited_seconds()
        return min(max(2 * self._usual_seconds, self.MIN_SECONDS), self.MAX_SECONDS)

    def _is_quicker(self, now: float) -> bool:
        """Whether a busy wait is, or is to be tried."""
        if now >= self._compared_until:
            self._compared_until = now + self.COMPARED_SECONDS
            self._tried = 0
            self._asleep_seconds = self._awake_seconds = 0.0
        if self._tried < 2 * self.TRIAL_WAITS:
            return self._tried >= self.TRIAL_WAITS
        return self._awake_seconds < self._asleep_seconds

    def note(self, waited_seconds: float, missed: bool = False) -> None:
        """How long a wait was, and whether it slept after it was polled busily."""
        is_short = waited_seconds < self.SHORT_SECONDS
        if is_short:
            self._usual_seconds += (waited_seconds - self._usual_seconds) * self._FOLLOWED
            self._compare(waited_seconds)
        if is_short and not missed:
            self._score = min(self._score + 1, self.MAX_SCORE)
            return
        self._score = max(self._score - (1 if is_short else self.MISS_COST), self.MIN_SCORE)
        if missed and self._score <= 0:
            self._score = self.MIN_SCORE

    def _compare(self, waited_seconds: float) -> None:
        trial, number = divmod(self._tried, self.TRIAL_WAITS)
        if self._score <= 0 or trial > 1:
            return
        self._tried += 1
        if number >= self._SETTLING_WAITS:
            if trial:
                self._awake_seconds += waited_seconds
            else:
                self._asleep_seconds += waited_seconds

    def look_around(self, now: float) -> None:
        """Called once a round: whether others wait for the processor."""
        if self._busy_since is not None:
            waited_seconds = self._waited_seconds() - self._waited_before
            if waited_seconds > self.WAIT_SHARE * (now - self._busy_since):
                self._paused_until = now + self.PAUSE_SECONDS
            self._busy_since = None


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _RoundTimer:
    """A descriptor that can be read from the end of a round until the next one starts (timerfd_create(2))."""

    def __init__(self) -> None:
        self._set = ctypes.CDLL(None).timerfd_settime
        self._round = (_TimeSpec * 2)(_TimeSpec(), _TimeSpec(0, int(ROUND_SECONDS * 1e9)))
        self.fd: int = ctypes.CDLL(None, use_errno=True).timerfd_create(time.CLOCK_MONOTONIC, os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        weakref.finalize(self, os.close, self.fd)

    def start(self) -> None:
        self._set(self.fd, 0, self._round, None)


class Interruption:
    """A descriptor that can be read from once any thread wants the event loop to have its turn (eventfd(2))."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        weakref.finalize(self, os.close, self.fd)

    def ask(self) -> None:
        os.eventfd_write(self.fd, 1)

    def clear(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)


class Device(Protocol):
    """What requests come from."""

    @property
    def look(self) -> Callable[[int], Sequence[object]]:
        """Asked with 0: whether there is a request, without sleeping."""
        ...

    def sleep(self) -> bool:
        """Wait for a request, the end of the round or an interruption; whether there is a request."""
        ...


class _FuseDevice:
    def __init__(self, fd: int, timer_fd: int, interruption: Interruption) -> None:
        self._fd = fd
        self._interruption = interruption
        alone, timed = select.poll(), select.poll()
        alone.register(fd, select.POLLIN)
        timed.register(fd, select.POLLIN)  # the first that is registered is the first in an answer
        timed.register(timer_fd, select.POLLIN)
        timed.register(interruption.fd, select.POLLIN)
        self.look: Callable[[int], Sequence[object]] = alone.poll
        self._sleep = timed.poll

    def sleep(self) -> bool:
        first = self._sleep()[0][0]
        if first == self._interruption.fd:
            self._interruption.clear()
        return first == self._fd


class RequestWait:
    """Used in place of `trio.lowlevel`. Serves the workers of one FUSE session, whose device is `fd` throughout.

    Invariants:
        1. At most one task is in trio's epoll wait, the holder of `_place`.
        2. When `wait_readable` returns, the device had something to read a moment ago.
        3. A read of the device never waits.
    """

    def __init__(
        self,
        *,
        terms: Terms = NO_TERMS,
        clock: Callable[[], float] = time.monotonic,
        busy_polling: BusyPolling | None = None,
    ) -> None:
        self._terms = terms
        self._greeting: Greeting | None = None
        self._clock = clock
        self._busy_polling = busy_polling or BusyPolling()
        self._timer = _RoundTimer()
        self.interruption = Interruption()
        self._last_wait: tuple[float, bool] | None = None  # how long it was, and whether it slept after it was polled
        self._place = trio.Lock()
        self._standing_by = 0
        self._eager_until = clock()
        self._device: _FuseDevice | None = None
        self._closing = False

    async def wait_readable(self, fd: int) -> None:
        """Raises ClosedResourceError after `notify_closing`."""
        if self._greeting:
            self._greeting.answer()
            self._greeting = None
        device = self._device or self._open(fd)
        if self._standing_by and (now := self._clock()) < self._eager_until and self._wait_eagerly(device, now):
            return
        self._standing_by += 1
        try:
            async with self._place:
                await self._wait_in_line(fd, device)
        finally:
            self._standing_by -= 1
        if self._terms != NO_TERMS:
            self._greet(fd)
        now = self._clock()
        self._busy_polling.look_around(now)
        self._eager_until = now + ROUND_SECONDS
        self._timer.start()

    def _greet(self, fd: int) -> None:
        terms, self._terms = self._terms, NO_TERMS
        try:
            self._greeting = Greeting(fd, terms)
        except OSError as error:
            if error.errno != errno.ENODEV:  # unmounted already, which libfuse finds by its own read
                raise

    def _open(self, fd: int) -> _FuseDevice:
        os.set_blocking(fd, False)
        self._device = _FuseDevice(fd, self._timer.fd, self.interruption)
        return self._device

    def _wait_eagerly(self, device: Device, begin: float) -> bool:
        """Whether there is a request. How long a wait was is noted in the next one, when no request waits for that."""
        clock, busy_polling = self._clock, self._busy_polling
        if not busy_polling.is_possible:
            return device.sleep()
        if self._last_wait is not None:
            busy_polling.note(*self._last_wait)
        polled_seconds = busy_polling.seconds(begin)
        if polled_seconds:
            look, end = device.look, begin + polled_seconds
            while not look(0):
                if clock() >= end:
                    break
            else:
                self._last_wait = clock() - begin, False
                return True
        found = device.sleep()
        self._last_wait = clock() - begin, polled_seconds > 0
        return found

    async def _wait_in_line(self, fd: int, device: Device) -> None:
        while not self._closing:
            await trio.lowlevel.wait_readable(fd)
            if device.look(0):  # an eager worker may have been faster
                return
        raise trio.ClosedResourceError

    def has_requests(self) -> bool:
        """Whether the device has something to read now."""
        return self._device is not None and bool(self._device.look(0))

    def notify_closing(self, fd: int) -> None:
        self._closing = True
        trio.lowlevel.notify_closing(fd)

    # What else pyfuse3 uses of `trio.lowlevel`.
    current_task = staticmethod(trio.lowlevel.current_task)
    current_trio_token = staticmethod(trio.lowlevel.current_trio_token)


class _Done:
    """To await it takes no coroutine."""

    __await__ = partial(iter, ())


_DONE: Final = _Done()


class _NoLock:
    """In place of the lock before each wait: `RequestWait` keeps the order."""

    def __aenter__(self) -> _Done:
        return _DONE

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> _Done:
        return _DONE


class _Trio:
    """What pyfuse3 uses of trio."""

    Lock = _NoLock
    ClosedResourceError = trio.ClosedResourceError
    open_nursery = staticmethod(trio.open_nursery)

    def __init__(self, terms: Terms) -> None:
        self.lowlevel = RequestWait(terms=terms)


_pyfuse3_session_loop: Final[Callable[..., Any]] = pyfuse3._session_loop  # type: ignore[attr-defined]  # not declared


async def _session_loop(nursery: trio.Nursery, min_tasks: int, max_tasks: int) -> None:
    """A worker, started again when there was nothing to read for it. pyfuse3 still counts it as one worker.

    Nothing else in it raises BlockingIOError: what handlers raise is answered as an error.
    """
    while True:
        try:
            return await _pyfuse3_session_loop(nursery, min_tasks, max_tasks)  # type: ignore[no-any-return]
        except BlockingIOError:
            continue


def has_requests() -> bool:
    """Whether the kernel has sent something to this process's session that was not read yet."""
    wait = pyfuse3.trio.lowlevel  # type: ignore[attr-defined]  # not declared
    return isinstance(wait, RequestWait) and wait.has_requests()


def interrupt() -> None:
    """Have the event loop of this process's session take its turn now; called in any thread."""
    wait = pyfuse3.trio.lowlevel  # type: ignore[attr-defined]  # not declared
    if isinstance(wait, RequestWait):
        wait.interruption.ask()


def install(terms: Terms = NO_TERMS) -> None:
    """Have the next FUSE session of this process wait in this way. Call before `pyfuse3.init`.

    Args:
        terms: for `Greeting`.
    """
    pyfuse3.trio = _Trio(terms)  # type: ignore[attr-defined]  # not declared
    pyfuse3._session_loop = _session_loop  # type: ignore[attr-defined]
