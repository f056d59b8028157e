"""One process at a time holds a home: an exclusive flock on `<home>/cowfs.lock`, which ends with its process.

The file is never removed, because a process that waits for a removed file would lock something that no other process
sees. Its content, the holder's pid, is for people and error messages; the lock itself is what counts.

A home that cannot be written, on a read-only medium or without permission, is locked through the files that it has (or
its directory), and shared: any number of processes read it at a time, and none that may write it has it meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from typing import ClassVar, Final

from cowfs.devices.on_disk.files import FILE_MODE, give_to_owner, require_private
from cowfs.errors import HomeBusy, HomeError
from cowfs.forking import not_inherited

LOCK_NAME: Final = "cowfs.lock"
UNWRITABLE: Final = (errno.EROFS, errno.EACCES, errno.EPERM)  # a home that may still be read
ONLY_READ_HINT: Final = "; it can only be opened for reading"
_MAX_COMMAND_CHARACTERS: Final = 120


class HomeLock:
    """A held lock. Neither programs that this process starts inherit it nor forked processes.

    `is_shared`: the home cannot be written here, and others may read it at the same time.
    `notes_holder` is False in a guest: a process outside holds the home for it, and has noted itself.
    """

    notes_holder: ClassVar[bool] = True

    def __init__(self, fd: int, *, writable: bool, is_shared: bool = False) -> None:
        self._fd = fd
        self._writable = writable
        self.is_shared = is_shared
        not_inherited(self, "the lock of a home", drop=HomeLock._close, ends=("release",))

    @classmethod
    def acquire(cls, home: str, *, read_only: bool = False, untouched: bool = False) -> HomeLock:
        """Lock a home at once or not at all.

        Args:
            read_only: a home on a read-only medium will do; it is locked through the files that it has.
            untouched: lock it as if it were on one; with `read_only`.

        Raises:
            HomeBusy: another process has it.
            HomeError: the lock file cannot be made; others may write into the home (EPERM).
        """
        if not read_only:
            require_private(home)
        fd, writable = _open_present(home) if untouched else _open_lock(home, read_only=read_only)
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if writable else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            pid = _read_pid(fd)
            os.close(fd)
            if error.errno == errno.EWOULDBLOCK:
                raise _busy(home, pid) from None
            raise HomeError(f"cannot lock the home {home}: {error.strerror}", errno=error.errno) from error
        if not _is_agreed(home, fd, writable=writable):
            os.close(fd)
            raise _busy(home, 0)
        lock = cls(fd, writable=writable and cls.notes_holder, is_shared=not writable)
        lock._note_holder()
        return lock

    def _note_holder(self) -> None:
        """Write this process's pid into the lock file."""
        if self._writable:
            # Advice only: with a full disk the lock still holds, nameless.
            with suppress(OSError):
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        if self._fd >= 0:
            if self._writable:
                with suppress(OSError):
                    os.ftruncate(self._fd, 0)
            self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)


def _open_lock(home: str, *, read_only: bool) -> tuple[int, bool]:
    """(descriptor, whether it can be written)."""
    path = os.path.join(home, LOCK_NAME)
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags | os.O_RDWR | os.O_CREAT, FILE_MODE)
    except OSError as error:
        if not read_only or error.errno not in UNWRITABLE:
            hint = ONLY_READ_HINT if error.errno in UNWRITABLE else ""
            message = f"cannot lock the home {home}: {path}: {error.strerror}{hint}"
            raise HomeError(message, errno=error.errno) from error
    else:
        give_to_owner(fd, home)
        return fd, True
    return _open_present(home)


def _open_present(home: str) -> tuple[int, bool]:
    """As `_open_lock`, through the files that are there."""
    path = os.path.join(home, LOCK_NAME)
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), False
    except FileNotFoundError:
        return os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), False
    except OSError as error:
        raise HomeError(f"cannot lock the home {home}: {path}: {error.strerror}", errno=error.errno) from error


def _is_agreed(home: str, fd: int, *, writable: bool) -> bool:
    """Whether a lock counts although others may lock the directory, where there was no lock file at first.

    Who writes makes the file and then looks at the directory; who reads locks the directory and then looks for the
    file: one of the two sees the other.
    """
    if not writable:
        return not stat.S_ISDIR(os.fstat(fd).st_mode) or not os.path.lexists(os.path.join(home, LOCK_NAME))
    directory = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system that locks files alone
        return True
    finally:
        os.close(directory)
    return True


def _read_pid(fd: int) -> int:
    """The pid written in a lock file, 0 unless such a process exists."""
    with suppress(OSError, ValueError):
        pid = int(os.pread(fd, 32, 0))
        if pid > 0 and os.path.exists(f"/proc/{pid}"):
            return pid
    return 0


def _busy(home: str, pid: int) -> HomeBusy:
    who = f"process {pid}{_command(pid)}" if pid else "another process"
    return HomeBusy(f"the home {home} is held by {who}; try again when it is done, or stop it", holder_pid=pid)


def _command(pid: int) -> str:
    """The command line of a process in brackets, empty when it is not known."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            raw = file.read(4096)
    except OSError:
        return ""
    words = raw.rstrip(b"\0").decode(errors="replace").split("\0")
    text = "".join(c if c.isprintable() else "?" for c in " ".join(words))
    if len(text) > _MAX_COMMAND_CHARACTERS:
        text = text[:_MAX_COMMAND_CHARACTERS] + "..."
    return f" ({text})" if text else ""
