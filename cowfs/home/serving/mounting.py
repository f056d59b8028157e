"""Mounting a device of a home in the background.

    mount(request, ...)           in the command: starts the server and returns it once the mount can be used
    mount_server.serve_mount      in the server: opens the home, serves the view and the home's control socket
    cowfs.mounts.mountpoint         unmount

The command loads neither the pool nor FUSE: all that is decided by the server, which reports what failed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final

import msgspec

from cowfs.devices.on_disk.files import HomeFiles
from cowfs.devices.on_disk.making import is_home
from cowfs.errors import HomeError, UsageError
from cowfs.fuse.background import mount_in_background, start_in_background
from cowfs.home.opened.runtime import MOUNTS_NAME
from cowfs.mounts.mountinfo import encode_source
from cowfs.mounts.mountpoint import detach_dead

_LOG_NAME: Final = "cowfs.log"


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What to mount where.

    A whole home has neither a raw view nor a repair: those are of one device.

    Args:
        device: None for the whole home, a directory for each device.
        raw: show the device as one file, a disk image, instead of the tree inside it.
        repair: let e2fsck repair a damaged file system before, even where that loses something.
        until_put: end when no layer is mounted any more.
        suid, dev: honour set-id bits, and device nodes, in the mount; for root only.
        by_kernel: show nothing: the kernel mounts each layer below `target` at its `get`.
        storage_options: of the layer driver.
        write_base: `device` is the base device and may be written to.
        writeback: the kernel keeps what is written to files for a while before it sends it.
        lease_fd: a process (pidfd_open(2)) with which the mount ends, however that ends.
        is_private: the mount point was made for this mount, in a separate directory; both are removed at the end.
        durable: False gives up flushes.
        faults: a plan of faults, a file of TOML, whose rules are in force from the beginning.
        virtual_clock: time passes only by requests.
        runtime_directory: of a home that cannot be written; the server has its socket and its log there.
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
    writeback: bool = False
    lease_fd: int | None = None
    is_private: bool = False
    durable: bool = True
    faults: str = ""
    virtual_clock: bool = False
    runtime_directory: Path | None = None

    @property
    def source(self) -> str:
        return encode_source(self.home, self.device or "")

    def to_json(self) -> str:
        """A word of the server's command line, in ASCII whatever the bytes of its paths are."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {field.name: values[field.name] for field in fields(self) if values[field.name] != field.default}
        return json.dumps(changed, default=os.fspath)

    @classmethod
    def from_json(cls, text: str) -> MountRequest:
        """Raises UsageError when the text is not a request."""
        try:
            return msgspec.convert(json.loads(text), cls, dec_hook=lambda _kind, value: Path(value))
        except (ValueError, TypeError) as error:
            raise UsageError(f"'{text}' is not the request of a mount: {error}") from None


def mount(
    request: MountRequest, *, log_words: Sequence[str] = (), on_ready: Callable[[], None] | None = None
) -> subprocess.Popen[bytes]:
    """Mount in the background; the server once the mount can be used.

    Args:
        log_words: options of the command line that say how the server logs.
        on_ready: called once the mount can be used; the server is ended when this raises, or anything before.

    Raises:
        UnknownDevice, DeviceBusy, FilesystemError: the device cannot be mounted.
        HomeBusy: the home has a mount already, or is held by something else.
        MountError, MissingRequirement: the mount point or this machine does not allow it.
    """
    start = start_in_background if request.by_kernel else mount_in_background
    return start(
        _server_command(request, log_words),
        source=request.source,
        target=request.target,
        log_path=_log_path(request),
        on_ready=on_ready,
        keep_fds=() if request.lease_fd is None else (request.lease_fd,),
    )


def _server_command(request: MountRequest, log_words: Sequence[str]) -> Callable[[int], Sequence[str]]:
    """The command line of the server, given the descriptor to report on."""
    faults = os.path.realpath(request.faults) if request.faults else ""
    text = replace(request, target=os.path.realpath(request.target), faults=faults).to_json()
    program = [*python_module("cowfs"), "--home", str(request.home), *log_words]
    return lambda report_fd: [*program, "mount", "--as-server", str(report_fd), text]


def remove_private(target: str) -> None:
    """Remove a mount point and the directory that was made for it, unless it holds something else by now."""
    with suppress(OSError):
        os.rmdir(target)
        os.rmdir(os.path.dirname(target))


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
        with suppress(OSError):  # what prevents it is reported when a view is mounted there
            os.rmdir(os.path.join(files.mounts, name))
    return Path(files.mounts)


def runtime_mount_directory(directory: Path) -> Path:
    """As `empty_mount_directory`, in the runtime directory of a home that cannot be written."""
    path = directory / MOUNTS_NAME
    detach_dead(os.fspath(path))
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _log_path(request: MountRequest) -> Path | None:
    """The server's log, in a home that can be written; nothing is put into a directory that is not a home."""
    if request.runtime_directory is not None:
        return request.runtime_directory / _LOG_NAME
    home = request.home
    try:
        if not is_home(HomeFiles(os.path.abspath(home))) or not os.access(home, os.W_OK):
            return None
    except HomeError:
        return None
    path = home / _LOG_NAME
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
