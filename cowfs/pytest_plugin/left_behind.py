"""What the janitor of a session does (`cowfs.janitor`), and which homes it keeps.

It waits until the servers have unmounted and let go of their homes, which each of them does, as it has a lease on
the session's process, and removes what is left.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

_SERVERS_SECONDS: Final = 120
_PAUSE_SECONDS: Final = 0.05
_LOCKS: Final = "*/cowfs.lock"
_TREES: Final = "tree-*"
_MARK: Final = ".kept"


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


def remove_left(directory: Path) -> None:
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(_SERVERS_SECONDS)
    with suppress(TimeoutError):
        _wait_for_unmounts(directory)
        _wait_for_homes(directory)
        signal.alarm(0)
    remove_but_kept(directory)


def _wait_for_unmounts(directory: Path) -> None:
    """Servers unmount when they find that the session has ended. For those that were killed, too, it is done here."""
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
