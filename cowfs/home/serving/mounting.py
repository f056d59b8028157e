"""Mounting a device of a home in the background.

    mount(request, ...)           in the command: starts the server and returns its pid once the mount can be used
    mount_server.serve_mount      in the server: opens the home, serves the view and the home's control socket
    cowfs.mounts.mountpoint         unmount

The command loads neither the pool nor FUSE: all that is decided by the server, which reports what went wrong.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cowfs.devices.on_disk.files import HomeFiles
from cowfs.devices.on_disk.making import is_home
from cowfs.errors import HomeError
from cowfs.fuse.background import mount_in_background, start_in_background
from cowfs.mounts.mountinfo import encode_source
from cowfs.mounts.mountpoint import detach_dead

LOG_NAME: Final = "cowfs.log"


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What to mount where.

    A whole home has neither a raw view nor a repair: those are of one device.

    Args:
        device: None for the whole home, a directory for each device.
        raw: show the device as one file, a disk image, instead of the tree inside it.
        repair: let e2fsck repair a damaged file system before, even where that loses something.
        until_put: end when nobody has got a layer any more.
        suid, dev: honour set-id bits, and device nodes, in the mount; for root only.
        by_kernel: show nothing: the kernel mounts each layer that is got below `target`.
        storage_options: of the layer driver.
        write_base: `device` is the base device and may be written to.
    """

    home: Path
    backend: str
    device: str | None
    target: str
    raw: bool = False
    read_only: bool = False
    repair: bool = False
    until_put: bool = False
    by_kernel: bool = False
    storage_options: tuple[str, ...] = ()
    suid: bool = False
    dev: bool = False
    write_base: bool = False

    @property
    def source(self) -> str:
        return encode_source(self.home, self.device or "")


def mount(
    request: MountRequest, argv_for: Callable[[int], Sequence[str]], *, on_ready: Callable[[], None] | None = None
) -> int:
    """Mount in the background; the pid of the server once the mount can be used.

    Args:
        argv_for: a command line that calls `mount_server.serve_mount`, given the descriptor to report on.
        on_ready: called once the mount can be used; the server is ended when this raises, or anything before.

    Raises:
        UnknownDevice, DeviceBusy, FilesystemError: the device cannot be mounted.
        HomeBusy: the home has a mount already, or is held by something else.
        MountError, MissingRequirement: the mount point or this machine does not allow it.
    """
    log_path = _log_path(request.home)
    if request.by_kernel:
        return start_in_background(
            argv_for, source=request.source, target=request.target, log_path=log_path, on_ready=on_ready
        )
    return mount_in_background(
        argv_for, source=request.source, target=request.target, log_path=log_path, on_ready=on_ready
    )


def empty_mount_directory(home: Path) -> Path:
    """The home's own directory for mounts, without the empty ones in it that moby makes for each layer.

    A mount that a killed server left on it is detached: nothing can use it any more.

    Raises:
        HomeError, MountError, MissingRequirement: the directory cannot be made, or that mount not be detached.
    """
    files = HomeFiles(os.path.abspath(home))
    detach_dead(os.path.realpath(files.mounts))
    files.make_mounts()
    for name in files.list_names(files.mounts):
        with suppress(OSError):  # whatever is in the way is named when something is mounted there
            os.rmdir(os.path.join(files.mounts, name))
    return Path(files.mounts)


def _log_path(home: Path) -> Path | None:
    """The server's log, in a home that can be written; nothing is put into a directory that is no home."""
    try:
        if not is_home(HomeFiles(os.path.abspath(home))) or not os.access(home, os.W_OK):
            return None
    except HomeError:
        return None
    path = home / LOG_NAME
    if not path.exists():
        HomeFiles(os.path.abspath(home)).append(os.fspath(path), b"")
    return path


def python_module(name: str) -> list[str]:
    """The beginning of a command line that runs a module of cowfs with this Python.

    Nothing is imported from the current directory, unless cowfs itself is found that way.
    """
    is_in_current_directory = Path(__file__).resolve().parents[3] == Path.cwd()
    isolation = [] if is_in_current_directory else ["-P"]
    return [sys.executable, *isolation, "-m", name]
