"""The runtime directory of a home that cannot be written: what the process that serves its layers needs to write.

    PARENT/cowfs/NAME/mnt           where the layers appear
    PARENT/cowfs/NAME/cowfs.sock    the control socket
    PARENT/cowfs/NAME/cowfs.lock    held by that process
    PARENT/cowfs/NAME/cowfs.log     its log

PARENT is one of a few directories that a user may have; the first that is there, belongs to the user and cannot be
written by others counts, so that no other user can put a file there. NAME is that of the home's directory, with
its device and inode numbers, which no other home has at the same time.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from cowfs.errors import HomeError, MissingRequirement

_OWN: Final = "cowfs"
MOUNTS_NAME: Final = "mnt"
_MODE: Final = 0o700
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._-]")
_NAME_CHARACTERS_MAX: Final = 64


def find_runtime_directory(home: Path, parents: Sequence[str]) -> Path | None:
    """The runtime directory of a home for this user, where one was made.

    Args:
        parents: the directories that it may be in, the best first.
    """
    try:
        name = _name_of(home)
    except OSError:
        return None  # what is wrong with the home is for its user to find
    for parent in map(os.path.realpath, parents):
        own = os.path.join(parent, _OWN)
        path = os.path.join(own, name)
        if _is_closed(parent, _OTHERS_WRITE) and _is_closed(own, _OTHERS) and _is_closed(path, _OTHERS):
            return Path(path)
    return None


def make_runtime_directory(home: Path, parents: Sequence[str]) -> Path:
    """As `find_runtime_directory`, made where there is none.

    Args:
        parents: the last of them is made when it is not there.

    Raises:
        MissingRequirement: none of `parents` can be used.
        HomeError: it cannot be made; one of another user is there (EPERM).
    """
    if (found := find_runtime_directory(home, parents)) is not None:
        return found
    with suppress(OSError):
        os.mkdir(parents[-1], _MODE)
    for parent in map(os.path.realpath, parents):
        if _is_closed(parent, _OTHERS_WRITE):
            own = _made(os.path.join(parent, _OWN))
            return Path(_made(os.path.join(own, _name_of(home))))
    raise MissingRequirement(
        f"the layers of a home that cannot be written are shown in a directory of your own, and none of "
        f"{', '.join(parents)} is a directory of uid {os.geteuid()} that others cannot write",
        remedy="set XDG_RUNTIME_DIR to such a directory",
    )


def _name_of(home: Path) -> str:
    path = os.path.realpath(home)
    status = os.stat(path)
    plain = _NOT_PLAIN.sub("_", os.path.basename(path))[:_NAME_CHARACTERS_MAX]
    return f"{plain}-{status.st_dev:x}-{status.st_ino:x}"


def _is_closed(path: str, to: int) -> bool:
    """Whether a path is a directory of this user's, and closed to others in these ways."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & to


def _made(path: str) -> str:
    try:
        with suppress(FileExistsError):
            os.mkdir(path, _MODE)
    except OSError as error:
        raise HomeError(f"cannot make the directory {path}: {error.strerror}", errno=error.errno) from error
    if not _is_closed(path, _OTHERS):
        raise HomeError(
            f"{path} must be a directory of uid {os.geteuid()} that is closed to all others (mode 0700); move it "
            "away, or correct it",
            errno=errno.EPERM,
        )
    return path
