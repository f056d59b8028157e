"""New files and directories of the host that have their names only when they are complete."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Final

from cowfs.errors import UsageError

_NAME_MAX: Final = 100  # of the new name, within that of the partial one


@contextmanager
def new_file(path: str, *, force: bool = False, hint: str = "", mode: int = 0o600) -> Iterator[IO[bytes]]:
    """A file that has its name when the block ends well, and is gone otherwise.

    Args:
        force: replace a regular file.
        hint: what else a user may do about a name that is taken.
        mode: permissions of the file, from which the umask takes. As they are, the owner alone reads it.

    Raises:
        UsageError: the name is taken; OSError: the file cannot be made.
    """
    taken = UsageError(f"{path} exists; name another file{hint}", errno=errno.EEXIST)
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise UsageError(f"{path} exists and is not a regular file; name another one", errno=errno.EEXIST)
        if not force:
            raise taken
    partial = _partial(path)
    fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(fd, "r+b") as file:
            yield file
        if force:
            os.rename(partial, path)
        else:
            try:
                os.link(partial, path)
            except FileExistsError:
                raise taken from None
    finally:
        with suppress(FileNotFoundError):
            os.unlink(partial)


@contextmanager
def new_directory(path: str) -> Iterator[str]:
    """The path of a directory that is renamed to `path` when the block ends well, and is gone otherwise.

    Raises:
        UsageError: the name is taken; OSError: the directory cannot be made.
    """
    if os.path.lexists(path):
        raise UsageError(f"{path} exists; name a directory that does not", errno=errno.EEXIST)
    partial = _partial(path)
    os.mkdir(partial, 0o700)
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
