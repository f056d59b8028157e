"""The process that serves one mount: FUSE session, services beside it, signals, the clock's tick, a clean end.

    run_server(view, target, options)
      mount            pyfuse3.init, which answers nothing yet
      services         started, each until it says so
      ready            once the kernel has greeted and requests are answered
      main loop        until unmounted from outside, SIGTERM or SIGINT, or a service or the loop fails
      end              services cancelled, unmounted if still mounted, view closed

A signal unmounts as umount(8) does; if files are in use, what they wrote is brought here first and the mount detached.
So it is when the mount has copies in other mount namespaces, which keep a connection open: what was written to them is
brought here, and then the connection is closed.

No thread of the server touches a path at or below its own mount: it would wait for itself, and a thread that waits so
when the process is killed keeps the connection open for ever.
One session per process (libfuse and pyfuse3 keep it in globals).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyfuse3
import trio

from cowfs.ending import ending_with
from cowfs.errors import MountError, ungrouped
from cowfs.forking import close_in_children, origin
from cowfs.fuse import request_wait
from cowfs.fuse.ending import Ending
from cowfs.fuse.translate import MAX_TASKS, View
from cowfs.mounts.copies import MountWatch, is_kept_by_copies
from cowfs.mounts.mountinfo import SUBTYPE, topmost_at
from cowfs.mounts.mountpoint import (
    SERVED,
    check_mount_point,
    check_requirements,
    may_allow_other,
    server_title,
    set_title,
    unmount_now,
)

log = logging.getLogger(__name__)

Service = Callable[..., Awaitable[None]]
"""`async def service(*, task_status)`: calls `task_status.started()` when it is up, then runs until cancelled."""
Sleep = Callable[[float], Awaitable[None]]

_TICK_SECONDS: Final = 1.0
_SYNC_SECONDS: Final = 5.0  # as ext4's own commit interval
_GREETING_SECONDS: Final = 30.0
_LAST_REQUESTS_SECONDS: Final = 1.0
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
        on_ready: called once the mount answers, in the thread that serves it: it must not touch the mount.

    Raises:
        MountError, MissingRequirement: it could not be mounted.
        OSError: what closing the view raised.
    """
    with Ending() as ending, ungrouped():
        ending.note_signals()
        trio.run(
            partial(serve_view, view, target, options, ending=ending, services=services, tick=tick, on_ready=on_ready)
        )


async def serve_view(
    view: View,
    target: str,
    options: MountOptions,
    *,
    ending: Ending,
    services: Sequence[Service] = (),
    tick: Callable[[], None] | None = None,
    on_ready: Callable[[], None] | None = None,
    sleeper: Callable[[], Sleep] = lambda: trio.sleep,
) -> None:
    """`run_server` beside other tasks.

    Args:
        ending: whose signals end the mount.
        sleeper: makes what a task pauses with that does something again and again.
    """
    with ending_with(view.close):
        check_requirements()
        path = check_mount_point(options.source, target)
        _mount(view, path, options)
        close_in_children(view, _close_fuse_devices)
        session = _Session(view, path, ending)
        with ending_with(session.close):
            await session.serve(services, tick, on_ready, sleeper)


# Mounting.


def _mount(view: View, path: str, options: MountOptions) -> None:
    wanted = options.for_fuse()
    said: list[str] = []
    try:
        with _captured_stderr(said):
            request_wait.install(view.terms)
            pyfuse3.init(view, path, wanted)
    except Exception as error:
        reason = "; ".join(said) or str(error)
        data = ",".join(sorted(wanted))
        raise MountError("mount", options.source, path, data=data, errno=_errno_in(reason), reason=reason) from error


def _close_fuse_devices(_view: View) -> None:
    """In a forked process, which must not keep the mount alive; libfuse does not give its descriptor."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                os.close(int(name))


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


# Serving.


class _Session:
    """A mounted view."""

    def __init__(self, view: View, path: str, ending: Ending) -> None:
        self._view = view
        self._path = path
        self._ending = ending
        self._is_same_process = origin()
        self._mount = topmost_at(path)
        SERVED[path] = self._mount.device if self._mount is not None else ""

    async def serve(
        self,
        services: Sequence[Service],
        tick: Callable[[], None] | None,
        on_ready: Callable[[], None] | None,
        sleeper: Callable[[], Sleep],
    ) -> None:
        view = self._view
        async with trio.open_nursery() as nursery:
            ready = trio.Event()
            nursery.start_soon(self._handle_signals)
            for service in services:
                await nursery.start(_run_service, service, ready)
            if tick is not None:
                nursery.start_soon(_repeat, sleeper(), _TICK_SECONDS, view, tick)
            nursery.start_soon(_repeat, sleeper(), _SYNC_SECONDS, view, view.sync_changes)
            nursery.start_soon(self._announce, ready, on_ready)
            nursery.start_soon(self._end_when_unmounted)
            await pyfuse3.main(max_tasks=MAX_TASKS)
            self._ending.has_begun()
            nursery.cancel_scope.cancel()

    async def _announce(self, ready: trio.Event, on_ready: Callable[[], None] | None) -> None:
        """Wait for the kernel's greeting, then report that the mount is ready."""
        with trio.move_on_after(_GREETING_SECONDS):
            await self._view.greeted.wait()
            if self._mount is not None:
                set_title(server_title(self._mount.device))
                _set_read_ahead(self._mount.device)
            ready.set()
            self._ending.is_ready = True
            if on_ready is not None:
                on_ready()
            return
        raise MountError("mount", "", self._path, errno=errno.ETIMEDOUT, reason="the new mount does not answer")

    async def _handle_signals(self) -> None:
        while True:
            number = await self._ending.wait_signal()
            log.info("%s: unmounting %s", number.name, self._path)
            self._ending.has_begun()
            await end_mount(self._view, self._path)

    async def _end_when_unmounted(self) -> None:
        """An unmount ends the main loop; but if copies of the mount keep the connection open, it is ended here."""
        if self._mount is None:
            return
        with closing(MountWatch(self._mount.device)) as watch:
            while watch.is_mounted() or not await trio.to_thread.run_sync(is_kept_by_copies, self._mount):
                await trio.sleep(_TICK_SECONDS)
        log.info("%s was unmounted, and a copy of it is left in another mount namespace; ending it", self._path)
        self._ending.has_begun()
        await save_and_terminate(self._view)

    def close(self) -> None:
        """Unmount what is still there, and close the connection."""
        set_title("cowfs")
        if self._is_same_process():
            pyfuse3.close(unmount=_is_ours(self._path))
        del SERVED[self._path]


def _is_ours(path: str) -> bool:
    """Whether what is mounted there is what this process has mounted, and not something else by now."""
    mount = topmost_at(path)
    return mount is not None and mount.device == SERVED.get(path)


def _set_read_ahead(device: str) -> None:
    """Let the kernel read ahead in large requests (measured: 3 times the sequential reads); only root can ask."""
    with contextlib.suppress(OSError):
        Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(f"{_READ_AHEAD_KIB}\n", encoding="ascii")


async def serve_services(
    services: Sequence[Service],
    ended: trio.Event,
    *,
    ending: Ending,
    tick: Callable[[], None],
    on_ready: Callable[[], None] | None = None,
    sleeper: Callable[[], Sleep] = lambda: trio.sleep,
) -> None:
    """Run services without a mount until `ended`, or a signal."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_on_signal, ending, ended)
        ready = trio.Event()
        for service in services:
            await nursery.start(_run_service, service, ready)
        nursery.start_soon(_tick_alone, sleeper(), tick)
        ready.set()
        ending.is_ready = True
        if on_ready is not None:
            on_ready()
        await ended.wait()
        ending.has_begun()
        nursery.cancel_scope.cancel()


async def _end_on_signal(ending: Ending, ended: trio.Event) -> None:
    number = await ending.wait_signal()
    log.info("%s: ending", number.name)
    ended.set()


async def _tick_alone(sleep: Sleep, tick: Callable[[], None]) -> None:
    while True:
        await sleep(_TICK_SECONDS)
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
        log.exception("a service beside the mount has failed; the mount continues without it")


async def _repeat(sleep: Sleep, seconds: float, view: View, action: Callable[[], None]) -> None:
    while True:
        await sleep(seconds)
        try:
            action()
        except OSError as error:
            view.log_once(str(error))
        except Exception:
            view.fail(action.__name__)


async def end_mount(view: View, path: str) -> None:
    """Unmount, which ends `serve_view`; where something keeps it, save what was written and close the connection."""
    if _is_ours(path):
        try:
            await trio.to_thread.run_sync(unmount_now, path, abandon_on_cancel=True)
        except OSError as error:
            log.warning("%s; detaching it", error)
        else:
            await trio.sleep(_LAST_REQUESTS_SECONDS)  # without copies, the main loop is at its end now
    await save_and_terminate(view)


async def save_and_terminate(view: View) -> None:
    """Bring what applications wrote to files that are in use, and leave the main loop."""
    view.end_waiting()
    with contextlib.suppress(OSError):
        await view.write_back()
    pyfuse3.terminate()
