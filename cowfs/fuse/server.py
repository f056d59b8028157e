"""The process that serves one mount: FUSE session, services beside it, signals, the clock's tick, a clean end.

    run_server(view, target, options)
      mount            pyfuse3.init, which answers nothing yet
      services         started, each until it says so
      ready            once the mount answers
      main loop        until unmounted from outside, SIGTERM or SIGINT, or a service or the loop fails
      end              services cancelled, unmounted if still mounted, view closed

A signal unmounts as umount(8) does; if files are in use, what they wrote is brought here first and the mount detached.
One session per process (libfuse and pyfuse3 keep it in globals).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyfuse3
import trio

from cowfs.errors import MountError, ungrouped
from cowfs.fuse import request_wait
from cowfs.fuse.mountinfo import SUBTYPE
from cowfs.fuse.mountpoint import (
    check_mount_point,
    check_requirements,
    may_allow_other,
    server_title,
    set_title,
    unmount_now,
)
from cowfs.fuse.translate import MAX_TASKS, View

log = logging.getLogger(__name__)

Service = Callable[..., Awaitable[None]]
"""`async def service(*, task_status)`: calls `task_status.started()` when it is up, then runs until cancelled."""

_TICK_SECONDS: Final = 1.0
_SETTLE_SECONDS: Final = 5.0  # as ext4's own commit interval
_FIRST_ANSWER_SECONDS: Final = 30.0
_READ_AHEAD_KIB: Final = 1024  # one request of the largest size; the kernel's default is 128


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How a view is mounted.

    Args:
        source: what mount tables show, from `mountinfo.encode_source`.
        read_only: the kernel refuses writes before they reach us.
        allow_other: let other users in, as far as the permission bits do; None means where that is possible at no
            risk: for root only. An ordinary user needs `user_allow_other` in /etc/fuse.conf.
        suid: honour set-id bits in the mount; only root can have that.
        dev: honour device nodes in the mount; only root can have that.
    """

    source: str
    read_only: bool = False
    allow_other: bool | None = None
    suid: bool = False
    dev: bool = False

    def for_fuse(self) -> set[str]:
        """Mount options for libfuse. Raises MountError for what this user may not have."""
        is_root = os.geteuid() == 0
        options = {"default_permissions", "noatime", f"fsname={self.source}", f"subtype={SUBTYPE}"}
        if self.read_only:
            options.add("ro")
        if self.allow_other or (self.allow_other is None and is_root):
            if not may_allow_other():
                raise self._not_allowed("allow_other", "put 'user_allow_other' into /etc/fuse.conf, or mount as root")
            options.add("allow_other")
        honoured = {name for name in ("suid", "dev") if getattr(self, name)}
        if honoured and not is_root:
            raise self._not_allowed(",".join(sorted(honoured)), "only root may mount with that; mount as root")
        return options | honoured

    def _not_allowed(self, data: str, reason: str) -> MountError:
        return MountError("mount", self.source, "", data=data, errno=errno.EPERM, reason=reason)


def run_server(
    view: View,
    target: str,
    options: MountOptions,
    *,
    services: Sequence[Service] = (),
    tick: Callable[[], None] | None = None,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Mount a view and serve it until it is unmounted. The view is closed at the end, also after a failure.

    Args:
        target: the mount point, an empty directory.
        services: run beside the mount, started before it is ready, cancelled before the view is closed.
        tick: called about once a second.
        on_ready: called once the mount answers.

    Raises:
        MountError, MissingRequirement: it could not be mounted.
        OSError: what closing the view raised.
    """
    with ungrouped():
        trio.run(partial(serve_view, view, target, options, services=services, tick=tick, on_ready=on_ready))


async def serve_view(
    view: View,
    target: str,
    options: MountOptions,
    *,
    services: Sequence[Service] = (),
    tick: Callable[[], None] | None = None,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """`run_server` beside other tasks; the main task of the process, for signals are its business."""
    try:
        check_requirements()
        path = check_mount_point(options.source, target)
        with _interruptible():
            _mount(view, path, options)
        try:
            await _serve(view, path, services, tick, on_ready)
        finally:
            set_title("cowfs")
            pyfuse3.close(unmount=True)
    finally:
        view.close()


# Mounting.


def _mount(view: View, path: str, options: MountOptions) -> None:
    wanted = options.for_fuse()
    said: list[str] = []
    try:
        with _captured_stderr(said):
            request_wait.install()
            pyfuse3.init(view, path, wanted)
    except Exception as error:
        reason = "; ".join(said) or str(error)
        data = ",".join(sorted(wanted))
        raise MountError("mount", options.source, path, data=data, errno=_errno_in(reason), reason=reason) from error


def _errno_in(text: str) -> int:
    """libfuse and fusermount3 only print; the errno is found back in their text."""
    for number in (errno.EPERM, errno.EACCES, errno.EBUSY, errno.ENOENT, errno.ENODEV, errno.EINVAL, errno.ENOMEM):
        if os.strerror(number).lower() in text.lower():
            return number
    return errno.EIO


@contextlib.contextmanager
def _captured_stderr(said: list[str]) -> Iterator[None]:
    """Collect the lines that C code and child processes write to standard error meanwhile."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            lines = file.read().decode(errors="replace").splitlines()
            said += [line.strip() for line in lines if line.strip()]


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM, like SIGINT, raise KeyboardInterrupt while nothing handles it yet."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


# Serving.


async def _serve(
    view: View,
    path: str,
    services: Sequence[Service],
    tick: Callable[[], None] | None,
    on_ready: Callable[[], None] | None,
) -> None:
    async with trio.open_nursery() as nursery:
        ready = trio.Event()
        await nursery.start(_handle_signals, view, path)
        for service in services:
            await nursery.start(_run_service, service, ready)
        if tick is not None:
            nursery.start_soon(_repeat, _TICK_SECONDS, view, tick)
        nursery.start_soon(_repeat, _SETTLE_SECONDS, view, view.settle_changes)
        nursery.start_soon(_announce, path, ready, on_ready)
        await pyfuse3.main(max_tasks=MAX_TASKS)
        nursery.cancel_scope.cancel()


async def serve_services(
    services: Sequence[Service],
    ended: trio.Event,
    *,
    tick: Callable[[], None],
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Run services without a mount until `ended`, or a signal; the main task of the process."""
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
            nursery.start_soon(_end_on_signal, received, ended)
            ready = trio.Event()
            for service in services:
                await nursery.start(_run_service, service, ready)
            nursery.start_soon(_tick_alone, tick)
            ready.set()
            if on_ready is not None:
                on_ready()
            await ended.wait()
            nursery.cancel_scope.cancel()


async def _end_on_signal(received: AsyncIterator[int], ended: trio.Event) -> None:
    async for number in received:
        log.info("%s: ending", signal.Signals(number).name)
        ended.set()


async def _tick_alone(tick: Callable[[], None]) -> None:
    while True:
        await trio.sleep(_TICK_SECONDS)
        try:
            tick()
        except OSError as error:
            log.warning("%s", error)


async def _run_service(
    service: Service, ready: trio.Event, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
) -> None:
    """A service that fails before the mount is ready ends everything; later, those who use the mount come first."""
    try:
        await service(task_status=task_status)
    except Exception:
        if not ready.is_set():
            raise
        log.exception("a service beside the mount has failed; the mount goes on without it")


async def _announce(path: str, ready: trio.Event, on_ready: Callable[[], None] | None) -> None:
    """Wait for the mount's first answer, then tell that it is ready."""
    with trio.move_on_after(_FIRST_ANSWER_SECONDS):
        status = await trio.to_thread.run_sync(os.stat, path, abandon_on_cancel=True)
        device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
        set_title(server_title(device))
        _set_read_ahead(device)
        ready.set()
        if on_ready is not None:
            on_ready()
        return
    raise MountError("mount", "", path, errno=errno.ETIMEDOUT, reason="the new mount does not answer")


def _set_read_ahead(device: str) -> None:
    """Let the kernel read ahead in large requests (measured: 3 times the sequential reads); only root can ask."""
    with contextlib.suppress(OSError):
        Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(f"{_READ_AHEAD_KIB}\n", encoding="ascii")


async def _repeat(seconds: float, view: View, action: Callable[[], None]) -> None:
    while True:
        await trio.sleep(seconds)
        try:
            action()
        except OSError as error:
            view.log_once(str(error))
        except Exception:
            view.fail(action.__name__)


async def _handle_signals(
    view: View, path: str, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
        task_status.started()
        async for number in received:
            log.info("%s: unmounting %s", signal.Signals(number).name, path)
            await end_mount(view, path)


async def end_mount(view: View, path: str) -> None:
    """Unmount, which ends `serve_view`; when files are in use, save what was written to them and detach."""
    try:
        await trio.to_thread.run_sync(unmount_now, path, abandon_on_cancel=True)
    except OSError as error:
        log.warning("%s; detaching it", error)
        if view.space is not None:
            view.space.end()
        with contextlib.suppress(OSError):
            await view.write_back()
        pyfuse3.terminate()
