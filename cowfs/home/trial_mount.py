"""`python -m cowfs.home.trial_mount DIR`: mount an empty disk and unmount it as soon as it answers."""

from __future__ import annotations

import os
import signal
import sys

from cowfs.blockdev import MemoryDevice
from cowfs.errors import CowfsError
from cowfs.fuse.raw_view import RawView
from cowfs.fuse.server import MountOptions, run_server
from cowfs.mounts.mountinfo import encode_source


def main(target: str) -> None:
    view = RawView(MemoryDevice(4096), "trial", read_only=True)
    options = MountOptions(source=encode_source("/", "trial"), read_only=True)
    try:
        run_server(view, target, options, on_ready=lambda: os.kill(os.getpid(), signal.SIGTERM))
    except CowfsError as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main(sys.argv[1])
