"""The process behind `cowfs snapshotter`: a home, its files in one mount, and containerd's protocol on a socket.

    open the home            made as the options say where there is none
    mount all of it at HOME/mnt            unless the kernel mounts each layer
    remove what a crash left of snapshots
    listen and answer        in a separate thread, until SIGTERM or SIGINT; the home is free at the end

containerd dials the socket when it needs it, and again after an end: either may be restarted without the other. Where
a service manager listens and passes its socket, who dials before this process answers waits, and is not refused.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from socket import socket as stdlib_socket
from typing import Final

import trio

from cowfs.containerd.diff import DiffService
from cowfs.containerd.front import ANSWER_SECONDS, Front
from cowfs.containerd.places import BlockDevices, Directories, Places
from cowfs.containerd.snapshots import Snapshotter
from cowfs.containerd.store import SnapshotStore
from cowfs.devices.on_disk.files import require_owned
from cowfs.ending import ending_with
from cowfs.error_record import plain_text
from cowfs.errors import HomeError, MissingRequirement, ungrouped
from cowfs.forking import close_in_children, close_socket
from cowfs.fuse.ending import Ending
from cowfs.fuse.request_wait import interrupt
from cowfs.home.control.unix_socket import listening
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.opened.opening import open_here
from cowfs.home.opened.spec import HomeSpec, Make
from cowfs.home.serving.mounting import MountRequest, empty_mount_directory
from cowfs.home.serving.served_home import ServedHome
from cowfs.home.serving.service_manager import require_same_path, tell_ready
from cowfs.pool import Capability, load_backend

_log = logging.getLogger(__name__)
CONTAINERD_SOCKET: Final = "/run/containerd/containerd.sock"


@dataclass(frozen=True, slots=True)
class SnapshotterRequest:
    """What to serve where; `options` are storage options, `containerd` is the socket of the one that asks.

    Attributes:
        block_devices: each snapshot is a block device of its own, and not a directory.
        socket: path of the socket to listen on; may be None with a listener.
        listener: a socket that listens already, of the service manager.
        answer_seconds: after which a call is given up that does not take long by its nature.
        notify_socket: where to tell the service manager that this process is ready; nowhere when empty.
    """

    home: Path
    backend: str
    socket: Path | None
    containerd: Path
    options: tuple[str, ...] = ()
    block_devices: bool = False
    answer_seconds: float = ANSWER_SECONDS
    listener: stdlib_socket | None = None
    notify_socket: str = ""


def serve_snapshotter(request: SnapshotterRequest) -> None:
    """Serve until a signal.

    Raises:
        CowfsError: the home cannot be opened, mounted, or made as the options say, or the socket is taken.
    """
    if request.block_devices and Capability.KERNEL_NODES not in load_backend(request.backend).capabilities:
        raise MissingRequirement(
            f"snapshots of {request.home} cannot be block devices: the backend '{request.backend}' has none",
            remedy="cowfs --backend dmthin ... snapshotter --block-devices",
            errno=errno.EOPNOTSUPP,
        )
    if request.home.exists():
        require_owned(os.path.abspath(request.home))
    spec = HomeSpec(request.home, request.backend, storage_options=request.options, make=Make.WHERE_ABSENT)
    with Ending() as ending, _listening(request) as listener, ungrouped():
        ending.note_signals()
        home = open_here(spec)
        with ending_with(home.close):
            store = SnapshotStore(home.path)
            with ending_with(store.close):
                trio.run(partial(_serve, home, store, request, ending, listener))


def _places(home: OpenHome, store: SnapshotStore, *, as_devices: bool) -> Places:
    """Raises HomeError: the home has snapshots of the other kind."""
    for snapshot in store.all():
        if snapshot.device in home.devices and home.devices.record(snapshot.device).is_layer is as_devices:
            is_, are = ("a directory", "block devices") if as_devices else ("a block device", "directories")
            raise HomeError(
                f"snapshot {snapshot.key} of {home.path} is {is_}; for {are}, name another home", errno=errno.EEXIST
            )
    return BlockDevices(home.devices.base.filesystem_name) if as_devices else Directories()


def _listening(request: SnapshotterRequest) -> AbstractContextManager[stdlib_socket]:
    if request.listener is None:
        assert request.socket is not None
        return listening(request.socket)
    if request.socket is not None:
        require_same_path(request.listener, request.socket)
    close_in_children(request.listener, close_socket)
    return request.listener


async def _serve(
    home: OpenHome, store: SnapshotStore, request: SnapshotterRequest, ending: Ending, listener: stdlib_socket
) -> None:
    is_root = os.geteuid() == 0
    places = _places(home, store, as_devices=request.block_devices)
    mount = MountRequest(
        request.home,
        request.backend,
        None,
        os.fspath(empty_mount_directory(request.home)),
        by_kernel=home.settings.kernel_mounts,
        suid=is_root,
        dev=is_root,
    )
    ready = trio.Event()
    with ServedHome.opened(home, mount) as served:
        served.use_driver(home.settings, keep_root_owner=True)
        snapshotter = Snapshotter(served.executor, store, places=places)
        diff = DiffService(snapshotter, request.containerd, home.path, time.time)
        methods = {**snapshotter.methods(), **diff.methods()}
        front = Front(
            listener,
            snapshotter.reads(),
            methods,
            home=plain_text(str(request.home)),
            answer_seconds=request.answer_seconds,
            interrupt=interrupt,
        )

        async def answer() -> None:
            await ready.wait()
            await snapshotter.begin()
            ending.is_ready = True
            if request.notify_socket:
                tell_ready(request.notify_socket)
            await front.serve()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(snapshotter.serve_removals)
            await nursery.start(snapshotter.serve_usage)
            nursery.start_soon(answer)
            await served.serve(ending, on_ready=ready.set)
            nursery.cancel_scope.cancel()
        snapshotter.end()
