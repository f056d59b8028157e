"""The process that serves a mount: opens the home, shows one device or all, answers the home's control socket.

It holds the home until it is unmounted. One home has one server, and one server has one mount.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack

from cowfs.devices import DeviceSet
from cowfs.devices.volumes import Volumes
from cowfs.error_record import plain_text
from cowfs.errors import HomeBusy
from cowfs.ext4 import libext2fs
from cowfs.fuse.home import HomeView
from cowfs.fuse.mount import Readiness
from cowfs.fuse.raw import RawView
from cowfs.fuse.server import MountOptions, run_server
from cowfs.fuse.translate import SpaceQueue, View
from cowfs.fuse.tree import TreeView
from cowfs.host.deletions import deletion_service
from cowfs.host.mounting import MountRequest
from cowfs.host.operations import Status
from cowfs.host.request import Host, MountedView
from cowfs.host.server import ControlServer
from cowfs.host.session import LocalSession, connect
from cowfs.host.shown_devices import ShownDevices


def serve_mount(
    request: MountRequest, *, report_fd: int | None = None, on_ready: Callable[[], None] | None = None
) -> None:
    """Mount here and serve until it is unmounted; the home is free when this returns.

    Args:
        report_fd: where the process that started this one waits to hear how it went.
        on_ready: called once the mount can be used.

    Raises:
        CowfsError: as `mount`.
    """
    with Readiness(report_fd) as readiness, ExitStack() as stack:
        devices = _open_devices(request)
        stack.callback(devices.close)
        view = _make_view(devices, request, stack)

        def ready() -> None:
            readiness.ready()
            if on_ready is not None:
                on_ready()

        _serve(devices, view, request, ready)


def _open_devices(request: MountRequest) -> DeviceSet:
    """The home, opened here. Raises HomeBusy that says where it is mounted, when it is."""
    session = connect(request.home, request.backend)
    if isinstance(session, LocalSession):
        return session.host.devices
    try:
        report = session.call(Status())
    finally:
        session.close()
    what, remedy = "in use", ""
    if report.views:
        view = report.views[0]
        what = f"process {report.holder_pid} has " + (f"'{view.device}' of it" if view.device else "all of it")
        what += f" mounted at {view.mount_point}"
        remedy = f"; one mount of a home at a time: first run: cowfs umount {view.mount_point}"
        if view.device is None and request.device is not None and not request.raw:
            remedy = f"; use {view.mount_point}/{request.device}, or first run: cowfs umount {view.mount_point}"
    raise HomeBusy(f"cannot mount from the home {request.home}: {what}{remedy}", holder_pid=report.holder_pid or 0)


def _serve(devices: DeviceSet, view: View, request: MountRequest, ready: Callable[[], None]) -> None:
    host = Host(devices, request.backend, is_serving=True)
    kind = "raw" if request.raw else "tree" if request.device else "home"
    host.views.append(MountedView(request.device, plain_text(_target(request)), kind, request.read_only))

    async def quiesce(name: str) -> None:
        if isinstance(view, HomeView):
            await view.quiesce_device(name)
        elif name == request.device:
            await view.quiesce()

    async def let_go(name: str) -> None:
        if isinstance(view, HomeView):
            await view.let_go(name)

    async def forget(name: str) -> None:
        if isinstance(view, HomeView):
            await view.invalidate(name)

    services = [ControlServer(host, quiesce=quiesce, let_go=let_go, forget=forget).serve, deletion_service(devices)]
    if isinstance(view, HomeView):
        services.append(view.serve_deletions)
    run_server(
        view,
        _target(request),
        MountOptions(source=request.source, read_only=request.read_only),
        services=services,
        tick=devices.pool.tick,
        on_ready=ready,
    )


def _make_view(devices: DeviceSet, request: MountRequest, stack: ExitStack) -> View:
    """The view of the device or of all of them, which `stack` deactivates."""
    pool = devices.pool
    space = SpaceQueue(pool.tick, pool.extra_space_wait_seconds)
    read_only = request.read_only
    if request.raw and request.device is not None:
        thin = devices.activate(request.device, read_only=read_only)
        stack.callback(devices.deactivate, request.device)
        return RawView(thin, request.device, read_only=read_only, space=space)
    volumes = Volumes(devices, read_only=read_only)
    stack.callback(volumes.close_all)
    if request.device is not None:
        volume = volumes.open(request.device, repair=request.repair)
        return TreeView(volume, read_only=read_only, space=space)
    libext2fs.load()  # raises what would otherwise only be known when the first device is looked at
    return HomeView(ShownDevices(devices, volumes), _target(request), read_only=read_only, space=space)


def _target(request: MountRequest) -> str:
    return os.path.realpath(request.target)
