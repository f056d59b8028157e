"""An open home in the process that serves it, with a view over it or none, and what others ask of the two together.

Without a view it serves the layers that the kernel mounts.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final

import msgspec
import trio

from cowfs.devices.deviceset import DeviceSet
from cowfs.devices.on_disk.files import HomeFiles
from cowfs.devices.reports import MountedView
from cowfs.ending import ending_with
from cowfs.error_record import plain_text
from cowfs.ext4.library import libext2fs
from cowfs.fuse.device_mount import DeviceMount
from cowfs.fuse.ending import Ending
from cowfs.fuse.home_view import HomeView
from cowfs.fuse.kernel_cache import invalidate_tree
from cowfs.fuse.raw_view import RawView
from cowfs.fuse.server import MountOptions, Service, Sleep, end_mount, serve_services, serve_view
from cowfs.fuse.translate import SpaceQueue, View, drop_caches
from cowfs.fuse.tree_view import TreeView
from cowfs.home.control.server import ControlServer
from cowfs.home.executor import Executor, Views
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.serving.deletions import deletion_service
from cowfs.home.serving.events import event_service
from cowfs.home.serving.kernel_writes import KernelWrites
from cowfs.home.serving.memory import keep_freed_memory
from cowfs.home.serving.mounting import MountRequest
from cowfs.home.serving.shown_devices import ShownDevices, ShownDisk, ShownTree
from cowfs.home.serving.surroundings import away_from
from cowfs.home.serving.virtual_sleep import VirtualSleep, pausing
from cowfs.layers import IdMaps
from cowfs.layers.driver import Prepare
from cowfs.layers.options import Settings
from cowfs.layers.roots import ROOTFS
from cowfs.volumes import Volumes

_log = logging.getLogger(__name__)
_LOOK_SECONDS: Final = 0.2
_FIRST_CLIENT_SECONDS: Final = 30.0


class ViewMounter:
    """Layers shown by the view of their home: nothing is mounted for each, its volume is only held open."""

    def __init__(self, view: HomeView, volumes: Volumes) -> None:
        self._view = view
        self._volumes = volumes
        self._held: set[str] = set()

    def mount(self, layer_id: str, mount_label: str, *, prepare: Prepare, write_id: Prepare) -> str:  # noqa: ARG002
        with self._volumes.opened(layer_id) as volume:
            prepare(volume)
            self._volumes.change_last(layer_id, write_id)  # a layer that is not changed is not written to
            path = self._view.hold(layer_id)
        self._held.add(layer_id)
        return os.path.join(path, os.fsdecode(ROOTFS))

    def show(self, layer_id: str, *, make_root: Prepare | None) -> str:
        if make_root is not None:
            with self._volumes.opened(layer_id) as volume:
                make_root(volume)
        return os.path.join(self._view.path(layer_id), os.fsdecode(ROOTFS))

    def unmount(self, layer_id: str) -> None:
        if layer_id in self._held:
            self._held.remove(layer_id)
            self._view.end_hold(layer_id)

    def unmount_all(self) -> None:
        for layer_id in list(self._held):
            self.unmount(layer_id)


class ServedHome(Views):
    """Made by `opened`; `serve` mounts it and answers until it is unmounted."""

    def __init__(
        self, home: OpenHome, view: View | None, request: MountRequest, mount: DeviceMount[Any] | None
    ) -> None:
        self.home = home
        self._view = view
        self._mount = mount  # of one device
        self._request = request
        self._target = _target(request)  # once: looking at the path of one's own mount waits for oneself
        self._is_for_layers = self._target == os.path.realpath(HomeFiles(os.path.abspath(request.home)).mounts)
        self._is_for_layers |= request.runtime_directory is not None
        self._kernel_writes = KernelWrites(home.devices.active)
        self.executor = Executor(home, self)
        self._control = ControlServer(self.executor, request.runtime_directory)
        self._has_ended = trio.Event()

    @classmethod
    @contextmanager
    def opened(cls, home: OpenHome, request: MountRequest) -> Iterator[ServedHome]:
        """The wanted view over an open home; the opener closes the home."""
        with ExitStack() as stack:
            if not request.by_kernel:
                files = HomeFiles(os.path.abspath(request.home))
                stack.enter_context(away_from(_target(request), files, read_only=home.devices.read_only))
            volumes = home.use_volumes(read_only=request.read_only)
            stack.enter_context(ending_with(volumes.close_all))
            home.is_serving = True
            view, mount = (None, None) if request.by_kernel else _make_view(home.devices, volumes, request, stack)
            served = cls(home, view, request, mount)
            if view is not None:
                kind = "raw" if request.raw else "tree" if request.device else "home"
                home.show(view, request.device)
                home.views.append(MountedView(request.device, plain_text(_target(request)), kind, request.read_only))
            served.use_driver(home.settings)
            with ending_with(served._unmount_layers):
                yield served

    def use_driver(self, settings: Settings, maps: IdMaps | None = None, *, keep_root_owner: bool = False) -> None:
        """Have a layer driver with these settings; layers that an earlier one had mounted are put."""
        mounter = None
        if isinstance(self._view, HomeView):
            mounter = ViewMounter(self._view, self.home.volumes)
            if self._is_for_layers:
                self._view.close_to_others(maps.root_group if maps else None)
        self.home.use_driver(settings, maps, mounter, keep_root_owner=keep_root_owner)

    def _unmount_layers(self) -> None:
        self.home.driver.unmount_all()  # of the driver that there is by then

    async def serve(self, ending: Ending, *, on_ready: Callable[[], None] | None = None) -> None:
        """Mount, and serve until it is unmounted; without a view, until a signal."""
        keep_freed_memory()
        devices = self.home.devices
        clock = self.home.clock
        services: list[Service] = [
            pausing(partial(deletion_service, devices), clock),
            event_service(devices.pool),
        ]
        # Others open a home that cannot be written themselves, and it has no place for a socket.
        if not devices.is_shared or self._request.runtime_directory is not None:
            services.append(self._control.serve)
        if isinstance(self._view, HomeView):
            kernel_cache = self._view.kernel_cache
            services.append(pausing(lambda sleep: partial(kernel_cache.serve_deletions, sleep=sleep), clock))
        if self._request.until_put:
            services.append(self._end_when_unused)
        if self._request.lease_fd is not None:
            services.append(self._end_with_process)
        if self._view is None:
            await serve_services(
                services,
                self._has_ended,
                ending=ending,
                tick=devices.pool.tick,
                on_ready=on_ready,
                sleeper=self._sleeper,
            )
            return
        await serve_view(
            self._view,
            self._target,
            self._mount_options(),
            ending=ending,
            services=services,
            tick=self._tick,
            on_ready=on_ready,
            sleeper=self._sleeper,
        )

    def _sleeper(self) -> Sleep:
        return trio.sleep if self.home.clock is None else VirtualSleep(self.home.clock)

    def _tick(self) -> None:
        self.home.devices.pool.tick()
        if self.home.clock is not None and self._view is not None and self._view.space is not None:
            self._view.space.wake()  # who waits there by the real clock looks at the virtual one

    def _mount_options(self) -> MountOptions:
        request = self._request
        return MountOptions(request.source, read_only=request.read_only, suid=request.suid, dev=request.dev)

    # The executor's `Views`: what waits for the kernel, so never called in a handler of the view.

    def _shows_alone(self, device: str) -> bool:
        return self._mount is not None and device == self._mount.device_name

    async def write_back(self, device: str) -> None:
        if isinstance(self._view, HomeView):
            await self._view.write_back_device(device)
        elif self._view is None:
            await self._kernel_writes.write(device)
        elif self._shows_alone(device):
            await self._view.write_back()

    async def close_if_idle(self, device: str) -> bool:
        if isinstance(self._view, HomeView):
            return await self._view.kernel_cache.close_if_idle(device)
        return not self._shows_alone(device)

    async def begin_unmount(self, device: str) -> None:
        if self._view is None:
            await self._kernel_writes.write(device)

    async def begin_rename(self, device: str) -> None:
        if isinstance(self._view, HomeView):
            await self._view.kernel_cache.close_if_idle(device)
        elif self._mount is not None and self._shows_alone(device):
            await self._mount.put_aside()

    async def end_rename(self, device: str, new_name: str) -> None:
        if self._mount is None or not self._shows_alone(device):
            return
        name = device if device in self.home.devices else new_name
        views = self.home.views
        views[:] = [msgspec.structs.replace(view, device=name) if view.device == device else view for view in views]
        await self._mount.take_again(name)

    async def invalidate(self, device: str) -> None:
        if isinstance(self._view, HomeView):
            await self._view.kernel_cache.invalidate(device)
        elif isinstance(self._view, TreeView) and self._shows_alone(device):
            await invalidate_tree(self._view, self._target)

    async def drop_caches(self) -> None:
        if self._view is not None:
            known = self._view.known()
            await trio.to_thread.run_sync(drop_caches, known, abandon_on_cancel=True)

    async def give_up(self, device: str, *, force: bool) -> None:
        if isinstance(self._view, HomeView):
            await self._view.kernel_cache.give_up(device, force=force)
        elif self._mount is not None and self._shows_alone(device):
            await self._mount.give_up(force=force)

    async def take_up(self, device: str) -> None:
        if isinstance(self._view, HomeView):
            await self._view.kernel_cache.take_up(device)
        elif self._mount is not None and self._shows_alone(device):
            await self._mount.take_up()

    async def put_aside(self, device: str) -> None:
        if isinstance(self._view, HomeView):
            await self._view.put_aside(device)
        elif self._mount is not None and self._shows_files_of(device):
            await self._mount.put_aside()

    async def take_again(self, device: str) -> None:
        if self._mount is not None and self._shows_files_of(device):
            await self._mount.take_again(device)

    def _shows_files_of(self, device: str) -> bool:
        return isinstance(self._view, TreeView) and self._shows_alone(device)

    async def _end_when_unused(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End the mount when no layer is mounted any more, and none is being mounted."""
        task_status.started()
        patience_ends = trio.current_time() + _FIRST_CLIENT_SECONDS
        while True:
            await trio.sleep(_LOOK_SECONDS)
            driver = self.home.driver
            if driver.has_mounts or self._control.clients:
                continue
            if driver.was_mount_requested or trio.current_time() > patience_ends:
                self._control.refuse_clients()
                await self._end()
                return

    async def _end_with_process(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End the mount when the process that it was made for has ended."""
        assert self._request.lease_fd is not None
        task_status.started()
        await trio.lowlevel.wait_readable(self._request.lease_fd)
        _log.info("the process that %s was mounted for has ended; unmounting", self._target)
        await self._end()

    async def _end(self) -> None:
        if self._view is None:
            self._has_ended.set()
        else:
            await end_mount(self._view, self._target)


def _make_view(
    devices: DeviceSet, volumes: Volumes, request: MountRequest, stack: ExitStack
) -> tuple[View, DeviceMount[Any] | None]:
    target = _target(request)
    pool = devices.pool
    space = SpaceQueue(pool.tick, pool.extra_space_wait_seconds)
    read_only = request.read_only
    if request.raw and request.device is not None:
        disk = ShownDisk(devices, request.device, target, read_only=read_only)
        raw = RawView(disk.open(), request.device, read_only=read_only, space=space)
        stack.enter_context(ending_with(disk.close))
        return raw, DeviceMount(disk, raw, target)
    if request.device is not None:
        shown = ShownTree(devices, volumes, request.device, target)
        volume = shown.open(repair=request.repair)
        tree = TreeView(volume, read_only=read_only, space=space, writeback=request.writeback)
        stack.enter_context(ending_with(shown.close))
        return tree, DeviceMount(shown, tree, target)
    libext2fs.load()  # raises what would otherwise only be known when the first device is looked at
    shown_devices = ShownDevices(devices, volumes, target)
    return HomeView(shown_devices, target, read_only=read_only, space=space, writeback=request.writeback), None


def _target(request: MountRequest) -> str:
    return os.path.realpath(request.target)
