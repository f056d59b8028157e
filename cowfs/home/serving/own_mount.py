"""A mount for the length of a block of Python, served by a child that ends with this process."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from cowfs.errors import MountError
from cowfs.forking import origin
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.opened.spec import HomeSpec
from cowfs.home.own_session import OwnSession
from cowfs.home.serving.lease import open_process
from cowfs.home.serving.mounting import MountRequest, mount, remove_private
from cowfs.mounts.mountpoint import detach_dead

_END_SECONDS: Final = 120.0


@contextmanager
def mounted_by_child(session: OwnSession, draft: MountRequest, target: str | os.PathLike[str] | None) -> Iterator[Path]:
    """As `Home.mount`.

    Args:
        draft: what to mount; the home, how it is opened, and the mount point are put in.
    """

    def require_ready(home: OpenHome) -> None:
        if draft.device is not None:
            home.devices.record(draft.device)
        for use in home.devices.uses.all():
            raise home.devices.uses.busy(use.device, "served by the process of a mount")

    def serve(spec: HomeSpec) -> Callable[[], None]:
        request = replace(
            draft,
            home=spec.path,
            backend=spec.backend,
            target=path,
            read_only=draft.read_only or spec.read_only,
            storage_options=spec.storage_options,
            durable=spec.durable,
            virtual_clock=spec.virtual_clock,
        )
        return _serve(request)

    with _directory(target) as path, session.handed_over(require_ready, serve):
        yield Path(path)


@contextmanager
def _directory(target: str | os.PathLike[str] | None) -> Iterator[str]:
    """The mount point. One made here is in a directory that only this user may enter, whatever the mount allows.

    The server removes both too: it may be the last to end.
    """
    if target is not None:
        yield os.path.realpath(target)
        return
    is_same_process = origin()
    path = os.path.join(os.path.realpath(tempfile.mkdtemp(prefix="cowfs-")), "tree")
    os.mkdir(path, 0o700)
    try:
        yield path
    finally:
        if is_same_process():
            remove_private(path)


def _serve(request: MountRequest) -> Callable[[], None]:
    """Mount; returns what ends the mount."""
    lease = open_process(os.getpid())
    try:
        server = mount(replace(request, lease_fd=lease))
    finally:
        os.close(lease)
    return partial(_end, server, request)


def _end(server: subprocess.Popen[bytes], request: MountRequest) -> None:
    """Have the server unmount and end, as SIGTERM does. Raises MountError when it did not end well."""
    server.terminate()
    try:
        status = server.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        reason = f"after {_END_SECONDS:.0f} s its server, process {server.pid}, has not ended; see its log in the home"
        raise MountError("umount", request.source, request.target, reason=reason) from None
    if status:
        detach_dead(request.target)
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        reason = f"its server, process {server.pid}, {how}; see its log in the home"
        raise MountError("umount", request.source, request.target, reason=reason)
