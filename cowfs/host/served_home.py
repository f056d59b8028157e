"""An open home with a view over it, in the process that serves both, and what others ask of the two together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import trio

from cowfs.devices import DeviceSet
from cowfs.devices.volumes import Volumes
from cowfs.error_record import plain_text
from cowfs.ext4 import libext2fs
from cowfs.fuse.home import HomeView
from cowfs.fuse.raw import RawView
from cowfs.fuse.server import MountOptions, Service, end_mount, serve_view
from cowfs.fuse.translate import SpaceQueue, View
from cowfs.fuse.tree import TreeView
from cowfs.host.deletions import deletion_service
from cowfs.host.events import event_service
from cowfs.host.mounting import MountRequest
from cowfs.host.request import Host, MountedView
from cowfs.host.server import ControlServer
from cowfs.host.shown_devices import ShownDevices
from cowfs.layers import IdMaps
from cowfs.layers.options import Settings
from cowfs.layers.roots import ROOTFS

_LOOK_SECONDS: Final = 0.2
_FIRST_CLIENT_SECONDS: Final = 30.0


class ViewMounter:
    """Layers shown by the view of their home: nothing is mounted for each, its volume is only held open."""

    def __init__(self, view: HomeView) -> None:
        self._view = view

    def mount(self, layer_id: str, mount_label: str) -> str:  # noqa: ARG002
        return os.path.join(self._view.hold(layer_id), os.fsdecode(ROOTFS))

    def unmount(self, layer_id: str) -> None:
        self._view.end_hold(layer_id)


class ServedHome:
    """Made by `opened`; `serve` mounts it and answers until it is unmounted."""

    def __init__(self, host: Host, view: View, request: MountRequest) -> None:
        self.host = host
        self._view = view
        self._request = request
        self._target = _target(request)  # once: looking at the path of one's own mount waits for oneself
        self._control = ControlServer(host, quiesce=self.quiesce, let_go=self.let_go, forget=self.forget)

    @classmethod
    @contextmanager
    def opened(
        cls, devices: DeviceSet, request: MountRequest, settings: Settings | None = None
    ) -> Iterator[ServedHome]:
        """A view of the device or of all of them, which are given back at the end.

        Args:
            settings: of the layer driver; its defaults when None.
        """
        with ExitStack() as stack:
            volumes = Volumes(devices, read_only=request.read_only)
            stack.callback(volumes.close_all)
            host = Host(devices, request.backend, is_serving=True, volumes=volumes)
            served = cls(host, _make_view(devices, volumes, request, stack), request)
            kind = "raw" if request.raw else "tree" if request.device else "home"
            host.views.append(MountedView(request.device, plain_text(_target(request)), kind, request.read_only))
            served.drive(settings, None)
            yield served

    def drive(self, settings: Settings | None, maps: IdMaps | None) -> None:
        """Let the layers be driven by these settings; what an earlier driver's users had got is put."""
        mounter = ViewMounter(self._view) if isinstance(self._view, HomeView) else None
        self.host.drive(settings, maps, mounter)

    async def serve(self, *, suid_dev: bool = False, on_ready: Callable[[], None] | None = None) -> None:
        """Mount, and serve until it is unmounted. In the main task."""
        devices = self.host.devices
        services: list[Service] = [self._control.serve, deletion_service(devices), event_service(devices.pool)]
        if isinstance(self._view, HomeView):
            services.append(self._view.serve_deletions)
        if self._request.until_put:
            services.append(self._end_when_unused)
        await serve_view(
            self._view,
            self._target,
            MountOptions(source=self._request.source, read_only=self._request.read_only, suid_dev=suid_dev),
            services=services,
            tick=devices.pool.tick,
            on_ready=on_ready,
        )

    # What waits for the kernel: never called in a handler of the view.

    async def quiesce(self, name: str) -> None:
        """Bring what applications wrote to a device's files into it; ends without a checkpoint."""
        if isinstance(self._view, HomeView):
            await self._view.quiesce_device(name)
        elif name == self._request.device:
            await self._view.quiesce()

    async def let_go(self, name: str) -> None:
        """Close a device's volume if nobody uses it; ends without a checkpoint."""
        if isinstance(self._view, HomeView):
            await self._view.let_go(name)

    async def forget(self, name: str) -> None:
        """Have the kernel drop what it has cached of a device that may have changed underneath."""
        if isinstance(self._view, HomeView) and not await self._view.let_go(name):
            await self._view.invalidate(name)

    async def _end_when_unused(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End the mount when nobody has got a layer any more, nor is about to."""
        task_status.started()
        patience_ends = trio.current_time() + _FIRST_CLIENT_SECONDS
        was_used = False
        while True:
            await trio.sleep(_LOOK_SECONDS)
            is_used = self.host.driver.has_gets or self._control.clients > 0
            was_used = was_used or is_used
            if not is_used and (was_used or trio.current_time() > patience_ends):
                await end_mount(self._view, self._target)
                return


def _make_view(devices: DeviceSet, volumes: Volumes, request: MountRequest, stack: ExitStack) -> View:
    pool = devices.pool
    space = SpaceQueue(pool.tick, pool.extra_space_wait_seconds)
    read_only = request.read_only
    if request.raw and request.device is not None:
        thin = devices.activate(request.device, read_only=read_only)
        stack.callback(devices.deactivate, request.device)
        return RawView(thin, request.device, read_only=read_only, space=space)
    if request.device is not None:
        volume = volumes.open(request.device, repair=request.repair)
        return TreeView(volume, read_only=read_only, space=space)
    libext2fs.load()  # raises what would otherwise only be known when the first device is looked at
    return HomeView(ShownDevices(devices, volumes), _target(request), read_only=read_only, space=space)


def _target(request: MountRequest) -> str:
    return os.path.realpath(request.target)
