"""Removes the directory of a session whose process has ended without doing so, by kill -9 for instance.

It is a process of its own that waits for the end of a pipe, whose other end the session's process has, and no other.
Then it waits until the servers have unmounted and let go of their homes, which they do by themselves, as each has a
lease on that process, and removes what is left. Until then it is an interpreter that has loaded next to nothing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

_PACKAGE: Final = Path(__file__).resolve().parent.parent
_SERVERS_SECONDS: Final = 120
_PAUSE_SECONDS: Final = 0.05
_LOCKS: Final = "*/cowfs.lock"
_TREES: Final = "tree-*"
_MARK: Final = ".kept"


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


def keep(home: Path) -> None:
    """Have a home outlive the session."""
    _mark_of(home).touch(mode=0o600)


def remove_but_kept(directory: Path) -> None:
    """Remove the directory of a session, but for homes that are kept."""
    for path in directory.iterdir():
        if not _mark_of(path).exists() and path.suffix != _MARK:
            shutil.rmtree(path, ignore_errors=True)
    if not any(directory.iterdir()):
        directory.rmdir()


def _mark_of(home: Path) -> Path:
    return home.with_suffix(_MARK)


def main(arguments: Sequence[str]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the session, and not before
    directory = Path(arguments[0])
    while os.read(0, 1 << 10):
        pass
    if directory.exists():
        signal.signal(signal.SIGALRM, _give_up)
        signal.alarm(_SERVERS_SECONDS)
        with suppress(TimeoutError):
            _wait_for_unmounts(directory)
            _wait_for_homes(directory)
            signal.alarm(0)
        remove_but_kept(directory)


def _wait_for_unmounts(directory: Path) -> None:
    """Servers unmount when they find that the session has ended. For those that were killed, too, it is done here."""
    sys.path.append(os.fspath(_PACKAGE.parent))
    from cowfs.mounts.mountinfo import mount_at
    from cowfs.mounts.mountpoint import detach_dead

    trees = [os.fspath(path) for path in directory.glob(_TREES)]
    while mounted := [tree for tree in trees if mount_at(tree) is not None]:
        for tree in mounted:
            with suppress(OSError):
                detach_dead(tree)
        time.sleep(_PAUSE_SECONDS)


def _wait_for_homes(directory: Path) -> None:
    """Until no process has the lock of one."""
    for path in directory.glob(_LOCKS):
        with suppress(FileNotFoundError), path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)


def _give_up(*_: object) -> None:
    raise TimeoutError


if __name__ == "__main__":
    main(sys.argv[1:])
