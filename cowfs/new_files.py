"""Files and directories that a user has named, on the host: they have their names only when they are complete.

A new one has the mode that the umask leaves, and one that takes the place of a file has that file's mode and owner. A
symbolic link stays, and what it leads to is written. What is not a regular file (`/dev/null`, a pipe, a terminal, an
open file by its number such as `/dev/stdout`) is written as it is: nothing can take its place.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Final

from cowfs.errors import UsageError

_NAME_MAX: Final = 100  # of the new name, within that of the partial one
_LINKS_MAX: Final = 40
_KINDS: Final = {stat.S_IFDIR: "a directory", stat.S_IFBLK: "a block device", stat.S_IFSOCK: "a socket"}


@contextmanager
def new_file(
    path: str, *, force: bool = False, hint: str = "", only_regular: bool = False, is_private: bool = False
) -> Iterator[IO[bytes]]:
    """A file that has its name when the block ends well, and is gone otherwise.

    Args:
        force: replace a regular file.
        hint: what else a user may do about a name that is taken.
        only_regular: the block seeks in the file, or reads it.
        is_private: for this user alone (0600), whatever the umask.

    Raises:
        UsageError: the name is taken; OSError: the file cannot be made.
    """
    fd, place = _open_special(path, only_regular=only_regular)
    if fd is not None:
        with open(fd, "wb") as file:
            yield file
        return
    taken = _taken(path, hint)
    replaced = _status(place)
    if replaced is not None and not force:
        raise taken
    partial = _partial(place)
    fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600 if is_private else 0o666)
    try:
        with open(fd, "r+b") as file:
            if replaced is not None and not is_private:
                _own_as(fd, replaced)
            yield file
        if force:
            os.rename(partial, place)
        else:
            try:
                os.link(partial, place)
            except FileExistsError:
                raise taken from None
    finally:
        with suppress(FileNotFoundError):
            os.unlink(partial)


def open_growing(path: str, *, force: bool = False, hint: str = "") -> int:
    """A descriptor of a file that has its name from the start, since what is written of it is of use at any time.

    Args:
        force: empty a regular file.
        hint: what else a user may do about a name that is taken.

    Raises:
        UsageError: the name is taken; OSError: the file cannot be made.
    """
    fd, place = _open_special(path)
    if fd is not None:
        return fd
    how = os.O_TRUNC if force else os.O_EXCL
    try:
        return os.open(place, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, 0o666)
    except FileExistsError:
        raise _taken(path, hint) from None


def is_special(path: str) -> bool:
    """Whether a path leads to what cannot be read again: a device, a pipe, an open file by its number."""
    return _descriptor_in(path) is not None or not os.path.isfile(path)


def require_free(path: str, *, force: bool = False, hint: str = "") -> None:
    """Raises UsageError where `open_growing` would, before there is anything to write."""
    if _descriptor_in(path) is None and (status := _status(path)) is not None:
        if stat.S_ISREG(status.st_mode):
            if not force:
                raise _taken(path, hint)
        else:
            _require_writable(path, status, only_regular=False)


def _taken(path: str, hint: str) -> UsageError:
    return UsageError(f"{path} exists; name another file{hint}", errno=errno.EEXIST)


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _open_special(path: str, *, only_regular: bool = False) -> tuple[int | None, str]:
    """A descriptor of what is not a regular file; else none, and the path that links lead to."""
    number = _descriptor_in(path)
    if number is not None and not only_regular:
        sys.stdout.flush()  # what was printed comes before
        return os.dup(number), path
    status = _status(path)
    if status is None or (stat.S_ISREG(status.st_mode) and number is None):
        return None, os.path.realpath(path)
    _require_writable(path, status, only_regular=only_regular)
    return os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY), path


def _require_writable(path: str, status: os.stat_result, *, only_regular: bool) -> None:
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is not None:
        raise UsageError(f"{path} is {kind}; name a file", errno=errno.EEXIST)
    if only_regular:
        raise UsageError(f"{path} exists and is not a regular file; name another one", errno=errno.EEXIST)


def _descriptor_in(path: str) -> int | None:
    """The number of an open file of this process, where that is what a path leads to."""
    for _ in range(_LINKS_MAX):
        directory, name = os.path.split(os.path.abspath(path))
        if name.isdecimal() and re.fullmatch(rf"/proc/{os.getpid()}/(task/\d+/)?fd", os.path.realpath(directory)):
            return int(name)
        if not os.path.islink(path):
            break
        path = os.path.join(directory, os.readlink(path))
    return None


def _own_as(fd: int, replaced: os.stat_result) -> None:
    """Give a new file the owner and the mode of the one whose place it takes."""
    with suppress(PermissionError):
        os.fchown(fd, replaced.st_uid, replaced.st_gid)
    os.fchmod(fd, replaced.st_mode & 0o777)


@contextmanager
def new_directory(path: str, *, is_private: bool = False) -> Iterator[str]:
    """The path of a directory that is renamed to `path` when the block ends well, and is gone otherwise.

    Args:
        is_private: for this user alone (0700), whatever the umask.

    Raises:
        UsageError: the name is taken; OSError: the directory cannot be made.
    """
    if os.path.lexists(path):
        raise UsageError(f"{path} exists; name a directory that does not", errno=errno.EEXIST)
    partial = _partial(path)
    os.mkdir(partial, 0o700 if is_private else 0o777)
    try:
        yield partial
        os.rename(partial, path)
    except BaseException:
        import shutil

        shutil.rmtree(partial, ignore_errors=True)
        raise


def _partial(path: str) -> str:
    """A name beside `path` that nothing has."""
    directory, last = os.path.split(path)
    return os.path.join(directory, f".{last[:_NAME_MAX]}.{os.urandom(6).hex()}")
