"""How the server of a mount has ended, told to the process that unmounts.

Unmounting ends the server, and what it writes last may fail. The process that unmounts is not its parent, so it cannot
ask for an exit status: it sends a file before (`TellEnd`), and reads what is in it when the server is gone.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

import msgspec

from cowfs.errors import MountError
from cowfs.home.control.client import Client
from cowfs.home.opened.end_reports import Ended
from cowfs.home.requests.ending import TellEnd
from cowfs.home.requests.request import Attachment
from cowfs.mounts.mountinfo import Mount, decode_source


@contextmanager
def awaiting_end(mount: Mount) -> Iterator[Callable[[], None]]:
    """Ask the server of a mount, which is about to be unmounted, how it will end.

    Yields:
        What to call when the server is gone. It raises MountError when not everything was written; a server that
        could not be asked, as an older one, is taken to have ended well.
    """
    with os.fdopen(os.memfd_create("cowfs-end"), "r+b") as file:
        yield partial(_require_good_end, mount, file) if _ask(mount, file) else _trust


def _ask(mount: Mount, file: IO[bytes]) -> bool:
    source = decode_source(mount.source)
    with suppress(OSError):
        if source is not None:
            with Client(Path(source[0])) as client:
                client.call(TellEnd(archive=Attachment(file)))
                return True
    return False


def _trust() -> None:
    pass


def _require_good_end(mount: Mount, file: IO[bytes]) -> None:
    begin = "it is unmounted, and what was not synced may be lost: "
    line = file.read()
    if not line:
        raise MountError(
            "umount", mount.source, mount.target, errno=errno.EIO, reason=f"{begin}its server was killed meanwhile"
        )
    error = msgspec.json.decode(line, type=Ended).error
    if error is not None:
        number = error.errno or errno.EIO
        raise MountError("umount", mount.source, mount.target, errno=number, reason=f"{begin}{error.message}")
