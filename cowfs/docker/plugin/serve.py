"""The process behind `cowfs docker plugin`: a home, its files in one FUSE mount, and Docker's protocol on a socket.

    listen on the socket
    open the home            at once where there is one; else made when the daemon says how (`GraphDriver.Init`)
    mount all of it at HOME/mnt            unless the kernel mounts each layer on `get`
    answer                   until SIGTERM or SIGINT; the home is free at the end

The daemon starts after the plugin and keeps no connection: either may be restarted without the other.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from cowfs.devices.on_disk.files import require_owned
from cowfs.docker.plugin.protocol import GraphDriverPlugin, Init
from cowfs.ending import ending_with
from cowfs.errors import HomeError, ungrouped
from cowfs.fuse.ending import Ending
from cowfs.home.control.unix_socket import listening
from cowfs.home.executor import Executor
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.opened.opening import open_here
from cowfs.home.opened.spec import HomeSpec, Make
from cowfs.home.opened.storage_options import apply_options, resolve_settings
from cowfs.home.serving.mounting import MountRequest, empty_mount_directory
from cowfs.home.serving.served_home import ServedHome
from cowfs.layers.options import parse_storage_options

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PluginRequest:
    """What to serve where.

    Args:
        options: storage options as the daemon has them; its own come after these.
    """

    home: Path
    backend: str
    socket: Path
    options: tuple[str, ...] = ()


def serve_plugin(request: PluginRequest) -> None:
    """Serve until a signal.

    Raises:
        CowfsError: the home cannot be opened, mounted, or made as the options say, or the socket is taken.
    """
    parse_storage_options(request.options)
    with Ending() as ending, listening(request.socket) as listener, ungrouped():
        ending.note_signals()
        trio.run(partial(_Plugin(request, ending).run, listener))


class _Plugin:
    """What the protocol's server calls: the home once it is open, and its driver as the daemon wants it."""

    def __init__(self, request: PluginRequest, ending: Ending) -> None:
        self._request = request
        self._ending = ending
        self._opened_home: OpenHome | None = None
        self._served: ServedHome | None = None
        self._opened = trio.Event()
        self._ready = trio.Event()

    async def run(self, listener: socket.socket) -> None:
        """Serve the socket, and from the home's opening to the end of its mount, the home."""
        protocol = GraphDriverPlugin(self._executor, self.initialise, self._request.home)
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
        self._ending.is_ready = True  # it answers, whatever becomes of the home
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, protocol.serve_client, listeners)
            if (self._request.home / "devicemapper").is_dir():
                self._open(())
            elif not await self._wait_for_daemon():
                nursery.cancel_scope.cancel()
                return
            assert self._opened_home is not None
            with ending_with(self._opened_home.close):
                await self._serve(self._opened_home)
            nursery.cancel_scope.cancel()

    async def _wait_for_daemon(self) -> bool:
        """Wait until the daemon's first request has made the home; False when a signal came before."""
        _log.info("%s is not a home yet; it is initialised when the daemon sends its options", self._request.home)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_on_signal, nursery.cancel_scope)
            await self._opened.wait()
            nursery.cancel_scope.cancel()
        return self._opened.is_set()

    async def _cancel_on_signal(self, scope: trio.CancelScope) -> None:
        await self._ending.wait_signal()
        scope.cancel()

    def _open(self, options: Sequence[str]) -> None:
        request = self._request
        if request.home.exists():
            require_owned(os.path.abspath(request.home))
        spec = HomeSpec(
            request.home,
            request.backend,
            storage_options=(*request.options, *options),
            make=Make.WHERE_ABSENT,
        )
        self._opened_home = open_here(spec)
        self._opened.set()

    async def _serve(self, home: OpenHome) -> None:
        point = empty_mount_directory(self._request.home)
        is_root = os.geteuid() == 0
        mount = MountRequest(
            self._request.home,
            self._request.backend,
            None,
            os.fspath(point),
            by_kernel=home.settings.kernel_mounts,
            suid=is_root,
            dev=is_root,
        )
        with ServedHome.opened(home, mount) as served:
            self._served = served
            await served.serve(self._ending, on_ready=self._ready.set)

    # --- what the protocol asks for

    async def initialise(self, init: Init) -> None:
        """A daemon has started: it uses no layer that an earlier one mounted."""
        is_first = self._opened_home is None
        if is_first:
            self._open(init.options or ())
        await self._ready.wait()
        options = parse_storage_options([*self._request.options, *(init.options or ())])
        if not is_first:
            apply_options(self._home().home.devices, options)
        self._home().use_driver(resolve_settings(self._request.backend, options), init.maps())

    def _home(self) -> ServedHome:
        if self._served is None or not self._ready.is_set():
            raise HomeError(f"the home {self._request.home} is not open yet; send GraphDriver.Init first")
        return self._served

    def _executor(self) -> Executor:
        return self._home().executor
