"""A home view for `serve.py home DIRECTORY`, and a service beside it that does what a test asks for.

A request is a file DIRECTORY/request with words in it; its answer is DIRECTORY/answer:

    write NAME FILE TEXT    change the file in process, as the layer driver would, and have the kernel told
    hold NAME, end-hold NAME, close-if-idle NAME
"""

from __future__ import annotations

import os
from pathlib import Path

import trio

from cowfs.devices import opening
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.errors import CowfsError
from cowfs.filetree import ROOT_INODE
from cowfs.fuse.home_view import HomeView
from cowfs.home.serving.shown_devices import ShownDevices
from cowfs.volumes import Volumes
from cowfs_emulated.backend import EmulatedBackend

OPTIONS = HomeOptions(data_size_bytes=256 << 20, metadata_size_bytes=4 << 20, base_size_bytes=16 << 20, durable=False)


class HomeService:
    """A new home with the devices a and b."""

    def __init__(self, directory: str, target: str) -> None:
        self._directory = Path(os.path.abspath(directory))
        self._devices = opening.make_home(self._directory / "home", EmulatedBackend(), OPTIONS)
        self._devices.create("a")
        self._devices.create("b")
        self._volumes = Volumes(self._devices)
        self.view = HomeView(ShownDevices(self._devices, self._volumes, target), os.path.realpath(target))
        self.tick = self._devices.pool.tick

    def close(self) -> None:
        left = self._volumes.names()
        self._devices.close()
        print(f"left open: {left}")

    async def serve(self) -> None:
        request, answer = self._directory / "request", self._directory / "answer"
        while True:
            await trio.sleep(0.02)
            if request.exists():
                words = request.read_text().split()
                request.unlink()
                try:
                    result = await self._do(*words)
                except CowfsError as error:
                    result = type(error).__name__
                part = answer.with_suffix(".part")
                part.write_text(result)
                part.rename(answer)

    async def _do(self, what: str, name: str, *more: str) -> str:
        view = self.view
        if what == "write":
            file, text = (word.encode() for word in more)
            with self._volumes.opened(name) as volume:
                try:
                    inode = volume.lookup(ROOT_INODE, file).inode
                except FileNotFoundError:
                    inode = volume.make_node(ROOT_INODE, file, 0o100666, 0, 0).inode
                volume.set_attributes(inode, size_bytes=0)
                volume.write(inode, 0, text)
                volume.sync()
            await view.kernel_cache.invalidate(name)
        elif what == "hold":
            return view.hold(name)
        elif what == "end-hold":
            view.end_hold(name)
        elif what == "close-if-idle":
            free = await view.kernel_cache.close_if_idle(name)
            return f"{free} {name in self._devices.active.thins()}"
        return "done"
