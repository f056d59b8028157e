"""A mount server for tests, with faults: `serve.py READY_FD TARGET SOURCE VIEW [FILE]`.

VIEW is one of memory, raw (of FILE), volume (in FILE), thin, and home (made in the directory FILE).
"""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import select
import shutil
import signal
import sys
import time

import trio
from home_service import HomeService  # type: ignore[import-not-found]  # beside this program
from memory_tree import ScriptedTree  # type: ignore[import-not-found]
from pyfuse3 import RequestContext

from cowfs.blockdev import FileDevice
from cowfs.errors import HomeBusy
from cowfs.ext4.volume import Volume
from cowfs.fuse import request_wait
from cowfs.fuse.background import Readiness
from cowfs.fuse.raw_view import RawView
from cowfs.fuse.server import MountOptions, run_server
from cowfs.fuse.translate import SpaceQueue, View
from cowfs.fuse.tree_view import TreeView
from cowfs.pool import Pool, PoolTable, ThinDevice
from cowfs.units import Sectors
from cowfs_emulated.backend import EmulatedBackend


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ready_fd", type=int)
    parser.add_argument("target")
    parser.add_argument("source")
    parser.add_argument("view", choices=["memory", "raw", "volume", "thin", "home"])
    parser.add_argument("file", nargs="?")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--allow-other", action="store_true", default=None)
    parser.add_argument("--suid-dev", action="store_true")
    parser.add_argument("--fault", choices=["start", "hang", "exit", "service", "late-service", "close"])
    parser.add_argument("--grow", action="store_true", help="give a thin's pool more space once a write waits for it")
    parser.add_argument("--copy-on", metavar="REQUEST", help="when this file appears, quiesce and copy the image")
    parser.add_argument("--kill", metavar="FILE", help="kill the process with this number once its request is there")
    parser.add_argument("--fork", metavar="FILE", help="fork a process that lives on, and write its number to a file")
    parser.add_argument("--queue-seconds", type=float, default=0.0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    with Readiness(arguments.ready_fd if arguments.ready_fd >= 0 else None) as readiness:
        serve(arguments, readiness)


def serve(arguments: argparse.Namespace, readiness: Readiness) -> None:
    if arguments.fault == "start":
        atexit.register(end_slowly)
        raise HomeBusy("home H is held by process 77", holder_pid=77)
    if arguments.fault == "exit":
        print("something is badly wrong", file=sys.stderr)
        os._exit(9)
    if arguments.fault == "hang":
        time.sleep(600)

    if arguments.kill:
        KillingWait.file = arguments.kill
        request_wait.RequestWait = KillingWait  # type: ignore[misc]
    tree = ScriptedTree()
    started = time.monotonic()
    space = SpaceQueue(lambda: None, lambda: started + arguments.queue_seconds - time.monotonic())
    view: View
    home: HomeService | None = None

    def tick() -> None:
        """Nothing is due."""

    if arguments.view == "memory":
        view = TellingView(tree, read_only=arguments.read_only, space=space)
    elif arguments.view == "thin":
        pool, device = open_thin(arguments)
        tick = pool.tick
        space = SpaceQueue(pool.tick, pool.extra_space_wait_seconds)
        view = RawView(device, "disk", space=space)
    elif arguments.view == "home":
        home = HomeService(arguments.file, arguments.target)
        view, tick = home.view, home.tick
    elif arguments.view == "volume":
        volume = Volume.open(FileDevice(arguments.file), read_only=arguments.read_only)
        view = TreeView(volume, read_only=arguments.read_only, space=space)
    else:
        disk = FileDevice(arguments.file, read_only=arguments.read_only)
        view = RawView(disk, "disk", read_only=arguments.read_only, space=space)

    ready = trio.Event()

    def on_ready() -> None:
        readiness.ready()
        ready.set()

    async def service(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        if arguments.fault == "service":
            raise HomeBusy("the service gave up")
        if arguments.fault == "late-service":
            await ready.wait()
            raise HomeBusy("the service gave up")
        if arguments.grow:
            while not space.waiting:
                await trio.sleep(0.1)
            os.truncate(pool.table().data_device, 2 << 20)
            pool.reload(pool.table().replace(length_sectors=4096))
            pool.resume()
            space.wake()
        if arguments.copy_on:
            while not os.path.exists(arguments.copy_on):
                await trio.sleep(0.05)
            await view.quiesce()
            shutil.copyfile(arguments.file, arguments.copy_on + ".copying")
            os.rename(arguments.copy_on + ".copying", arguments.copy_on + ".copy")
        if arguments.fork:
            await ready.wait()
            if os.fork() == 0:  # the child writes its number, once it has closed what it must not keep
                with open(arguments.fork + ".new", "w") as file:
                    file.write(str(os.getpid()))
                os.rename(arguments.fork + ".new", arguments.fork)
                while True:
                    signal.pause()
        while arguments.kill:  # beside the requests, for a test to see that the loop still runs
            await trio.sleep(0.05)
            if os.path.exists(arguments.kill + ".killed"):
                os.rename(arguments.kill + ".killed", arguments.kill + ".answered")
        if home is not None:
            await home.serve()
        await trio.sleep_forever()

    tree.close_fails = arguments.fault == "close"
    options = MountOptions(
        arguments.source,
        read_only=arguments.read_only,
        allow_other=arguments.allow_other,
        suid=arguments.suid_dev,
        dev=arguments.suid_dev,
    )
    run_server(view, arguments.target, options, services=[service], tick=tick, on_ready=on_ready)
    if home is not None:
        home.close()
    print("closed cleanly")


class TellingView(TreeView):
    """Logs which extended attributes it is asked for."""

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        logging.info("asked for %s", name.decode())
        return await super().getxattr(inode, name, ctx)


class KillingWait(request_wait.RequestWait):
    """Has the kernel take a request back between the poll and the read: its process is killed there."""

    file = ""

    async def wait_readable(self, fd: int) -> None:
        await super().wait_readable(fd)
        if os.path.exists(self.file):
            with open(self.file) as file:
                os.kill(int(file.read()), signal.SIGKILL)
            while select.select([fd], [], [], 0)[0]:
                pass
            os.rename(self.file, self.file + ".killed")


def end_slowly() -> None:
    time.sleep(0.3)
    print("ended by itself")


def open_thin(arguments: argparse.Namespace) -> tuple[Pool, ThinDevice]:
    """A pool of 1 MiB in 64 KiB blocks, and a thin device of 4 MiB in it."""
    metadata, data = os.path.abspath("metadata"), os.path.abspath("data")
    for path, size in ((metadata, 2 << 20), (data, 1 << 20)):
        with open(path, "wb") as file:
            file.truncate(size)
    backend = EmulatedBackend(no_space_timeout_seconds=arguments.queue_seconds)
    pool = backend.open_pool("pool", PoolTable(Sectors(2048), metadata, data, Sectors(128)))
    pool.create_thin(1)
    return pool, pool.activate("disk", 1, 8192)


if __name__ == "__main__":
    main()
