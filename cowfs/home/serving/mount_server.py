"""The process that serves a mount: opens the home, shows one device or all, answers the home's control socket.

It holds the home until it is unmounted. One home has one server, and one server has one mount.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import msgspec
import trio

from cowfs.devices.on_disk.lock import ONLY_READ_HINT, UNWRITABLE, HomeLock
from cowfs.devices.pools.health import examine
from cowfs.devices.reports import HomeReport
from cowfs.ending import ending_with
from cowfs.errors import HomeBusy, HomeError, command_line, ungrouped
from cowfs.faults.plan import read_plan
from cowfs.fuse.background import Readiness
from cowfs.fuse.ending import Ending
from cowfs.home.executor import naming_a_full_disk
from cowfs.home.opened.end_reports import EndReports
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.opened.opening import open_here
from cowfs.home.opened.spec import HomeSpec
from cowfs.home.serving.mounting import MountRequest, remove_private
from cowfs.home.serving.served_home import ServedHome
from cowfs.home.session import open_unheld


def serve_mount(
    request: MountRequest, *, report_fd: int | None = None, on_ready: Callable[[], None] | None = None
) -> None:
    """Mount here and serve until it is unmounted; the home is free when this returns.

    Args:
        report_fd: where the process that started this one waits for the outcome.
        on_ready: called once the mount can be used, in the thread that serves it: it must not touch the mount.

    Raises:
        CowfsError: as `mount`.
    """
    if request.lease_fd is not None:
        os.set_inheritable(request.lease_fd, False)
    with Ending() as ending, Readiness(report_fd) as readiness, ExitStack() as stack:
        plan = read_plan(request.faults) if request.faults else None
        if request.is_private:
            stack.callback(remove_private, os.path.realpath(request.target))
        if (directory := request.runtime_directory) is not None:
            lock = open_unheld(
                directory, partial(HomeLock.acquire, os.fspath(directory)), partial(_explain_busy, request)
            )
            stack.callback(lock.release)
        home = open_unheld(request.home, partial(_open, request), partial(_explain_busy, request))
        home.end_reports = EndReports()
        stack.enter_context(home.end_reports.reporting())
        stack.enter_context(ending_with(home.close))
        stack.enter_context(naming_a_full_disk(home, partial(_explain_full_disk, home)))
        if plan is not None:
            home.faults.add(plan.rules, before_mount=not request.by_kernel)
        served = stack.enter_context(ServedHome.opened(home, request))

        def ready() -> None:
            readiness.ready()
            if on_ready is not None:
                on_ready()

        ending.note_signals()
        with ungrouped():
            trio.run(partial(served.serve, ending, on_ready=ready))


def _open(request: MountRequest) -> OpenHome:
    """The home; for reading only where it cannot be written and need not be."""
    spec = HomeSpec(
        request.home,
        request.backend,
        durable=request.durable,
        storage_options=request.storage_options,
        virtual_clock=request.virtual_clock,
    )
    if request.runtime_directory is not None:
        return _open_unwritable(spec)
    try:
        return open_here(spec)
    except HomeError as error:
        if error.errno not in UNWRITABLE or request.repair:
            raise
        if not request.read_only:
            message = error.message.removesuffix(ONLY_READ_HINT)
            raise HomeError(f"{message}; without writing there is 'mount --read-only'", errno=error.errno) from error
        return open_here(msgspec.structs.replace(spec, read_only=True))


def _open_unwritable(spec: HomeSpec) -> OpenHome:
    """A home beside its other readers. One that can be written is served from within, where every process looks."""
    home = open_here(msgspec.structs.replace(spec, read_only=True))
    if not home.devices.is_shared:
        home.close()
        raise HomeBusy(f"the home {spec.path} could not be written a moment ago, and now can; try again")
    return home


def _explain_full_disk(home: OpenHome) -> str:
    repair = (
        ""
        if examine(home.devices.pool).can_change
        else ", then run cowfs pool check --repair, which gives back what the lost changes occupy"
    )
    return f"the disk below {home.path} is full; free space on that disk{repair}"


def _explain_busy(request: MountRequest, report: HomeReport) -> str:
    """Why a home that another process serves cannot be mounted, and what to do."""
    what, remedy = "in use", ""
    if report.views:
        view = report.views[0]
        what = f"process {report.holder_pid} has " + (f"'{view.device}' of it" if view.device else "all of it")
        what += f" mounted at {view.mount_point}"
        unmount = f"first run: {command_line('cowfs', 'umount', view.mount_point)}"
        remedy = f"; one mount of a home at a time: {unmount}"
        if view.device is not None and request.device is not None and not request.raw:
            remedy += "; to see all devices in one mount, "
            remedy += (
                "mount without a name"
                if request.is_private
                else f"then run: {command_line('cowfs', 'mount', request.target)}"
            )
        if view.device is None and request.device is not None and not request.raw:
            remedy = f"; use {view.mount_point}/{request.device}, or {unmount}"
    return f"cannot mount from the home {request.home}: {what}{remedy}"
