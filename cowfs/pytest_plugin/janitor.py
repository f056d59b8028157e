"""Removes the directory of a session whose process has ended without doing so, by kill -9 for instance.

It is a process of its own that waits for the end of a pipe, whose other end the session's process has, and no other.
Then it waits until the servers have unmounted and let go of their homes, which they do by themselves (`home/serving/
lease`), and removes what is left. Until then it is an interpreter that has loaded next to nothing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

_PACKAGE: Final = Path(__file__).resolve().parent.parent
_SERVERS_SECONDS: Final = 120
_LOCKS: Final = "*/cowfs.lock"
_TREES: Final = "tree-*"


class Janitor:
    """From now on, `directory` does not outlive this process.

    Args:
        directory: absolute.
    """

    def __init__(self, directory: Path) -> None:
        from cowfs.forking import close_in_children

        reader, self._writer = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, directory],
                stdin=reader,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        finally:
            os.close(reader)
        close_in_children(self, lambda janitor: os.close(janitor._writer))

    def close(self) -> None:
        """Have it do its work now, and end."""
        os.close(self._writer)
        self._process.wait()


def main(arguments: Sequence[str]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the session, and not before
    directory = Path(arguments[0])
    while os.read(0, 1 << 10):
        pass
    if directory.exists():
        _wait_for_servers(directory)
        _detach_dead_mounts(directory)
        shutil.rmtree(directory, ignore_errors=True)


def _wait_for_servers(directory: Path) -> None:
    """Until no process has a home's lock; not for ever, for one that hangs."""
    signal.signal(signal.SIGALRM, lambda *_: _give_up())
    signal.alarm(_SERVERS_SECONDS)
    with suppress(TimeoutError):
        for path in directory.glob(_LOCKS):
            with suppress(FileNotFoundError), path.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
        signal.alarm(0)


def _give_up() -> None:
    raise TimeoutError


def _detach_dead_mounts(directory: Path) -> None:
    """Those of servers that were killed, too."""
    sys.path.append(os.fspath(_PACKAGE.parent))
    from cowfs.mounts.mountpoint import detach_dead

    for path in directory.glob(_TREES):
        with suppress(OSError):
            detach_dead(os.fspath(path))


if __name__ == "__main__":
    main(sys.argv[1:])
