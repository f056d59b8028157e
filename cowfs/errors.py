"""The exception tree. Each error carries the kernel's errno and the exit code of the command line.

    CowfsError                      exit
    ├── UsageError          EINVAL     2   the request itself is wrong (bad size, bad name)
    │   └── ArchiveError    EINVAL     2   a layer archive is damaged, or holds what cannot be
    │       └── BreakoutError  EPERM   2   something in it leads out of the layer
    ├── PoolError                      4   a pool refused or could not do it
    │   ├── InvalidRequest  EINVAL
    │   ├── ThinExists      EEXIST
    │   ├── NoSuchThin      ENODATA
    │   ├── ThinBusy        EBUSY
    │   ├── PoolModeError   EOPNOTSUPP (messages) or EIO (writes): the pool is read-only or failed
    │   ├── OutOfDataSpace  ENOSPC
    │   ├── OutOfMetadataSpace ENOSPC
    │   ├── MetadataCorrupt EILSEQ
    │   └── PoolIoError     EIO
    ├── HomeError                      5   a home or one of its devices
    │   ├── NotAHome        ENOENT
    │   ├── HomeVersionError EPROTONOSUPPORT
    │   ├── HomeBusy        EBUSY      held by another process
    │   ├── HolderEnded     ECONNRESET that process ended before its answer was complete
    │   ├── UnknownDevice   ENOENT
    │   ├── DeviceExists    EEXIST
    │   └── DeviceBusy      EBUSY      mounted or open
    ├── MountError          errno      6   mount(2)-like operations, with op, source, target, flags, data
    ├── FilesystemError     errno      7   the ext4 inside a device, or the tools for it
    │   ├── UnreadableRoot  EUCLEAN    7   its root directory is damaged
    │   └── CopyError       errno      7   a file that cannot be copied, or a copy that ended before its end
    ├── UmlError            EIO        8   the User-Mode Linux guest: it broke off, or time ran out (ETIMEDOUT)
    ├── ForkedError         EBADF      9   something is open in the parent process, not in this one
    └── MissingRequirement  ENOSYS     3   something this machine lacks, and the command that provides it

Every class is also an OSError, so `except OSError as error: error.errno` works everywhere. The message says what was
asked, on which named object, what was found, and what to do next.
"""

from __future__ import annotations

import errno as _errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


def command_line(*words: str) -> str:
    """A command for a message, as a shell takes it: names with blanks are quoted."""
    import shlex  # noqa: PLC0415  # few processes meet an error

    return shlex.join(words)


class CowfsError(OSError):
    """Base of all errors that cowfs raises on purpose."""

    default_errno: ClassVar[int] = _errno.EIO
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, errno: int | None = None) -> None:
        super().__init__(self.default_errno if errno is None else errno, message)

    @property
    def message(self) -> str:
        return str(self.strerror)

    def __str__(self) -> str:
        return self.message


class UsageError(CowfsError):
    """The request itself is malformed: nothing was looked at and nothing changed."""

    default_errno = _errno.EINVAL
    exit_code = 2


class ArchiveError(UsageError):
    """A layer archive that cannot be unpacked. What came before in it was unpacked: the layer is to be thrown away.

    `entry` is the name of the entry at which it ended, "" for the archive itself; `reason` is what was found there, ""
    when the error came from an older server of the home.
    """

    entry: str = ""
    reason: str = ""

    def __init__(
        self, message: str, *, entry: str = "", archive: str = "layer archive", errno: int | None = None
    ) -> None:
        where = f"{archive}, entry '{entry}'" if entry else archive
        super().__init__(f"{where}: {message}", errno=errno)
        self.entry = entry
        self.reason = message

    def of(self, archive: str) -> ArchiveError:
        """The same of an archive that has a name."""
        if not self.reason:
            return type(self)(self.message, archive=archive, errno=self.errno)
        return type(self)(self.reason, entry=self.entry, archive=archive, errno=self.errno)


class BreakoutError(ArchiveError):
    """An entry that would lead out of the layer; nothing outside was touched."""

    default_errno = _errno.EPERM


class MissingRequirement(CowfsError):
    """This machine lacks something; `remedy` is the command that provides it."""

    default_errno = _errno.ENOSYS
    exit_code = 3

    def __init__(self, message: str, *, remedy: str = "", errno: int | None = None) -> None:
        super().__init__(f"{message}; try: {remedy}" if remedy else message, errno=errno)
        self.remedy = remedy


class ForkedError(CowfsError):
    """An object that the parent process has open was used in a process forked from it; nothing was done."""

    default_errno = _errno.EBADF
    exit_code = 9

    def __init__(self, what: str, parent_pid: int) -> None:
        super().__init__(
            f"{what} is open in process {parent_pid}, from which process {os.getpid()} was forked, and not here; open "
            "the home again in this process"
        )


class PoolError(CowfsError):
    """A pool refused a request or could not carry it out."""

    exit_code = 4


class InvalidRequest(PoolError):
    """A message, table or size that the thin-pool target answers with EINVAL (or the errno given)."""

    default_errno = _errno.EINVAL


class ThinExists(PoolError):
    """The device id of a create message is taken."""

    default_errno = _errno.EEXIST


class NoSuchThin(PoolError):
    """No thin device with this id is in the pool."""

    default_errno = _errno.ENODATA


class ThinBusy(PoolError):
    """The thin device is active, so it cannot be deleted."""

    default_errno = _errno.EBUSY


class PoolModeError(PoolError):
    """The pool's mode forbids it: EOPNOTSUPP for messages, EIO for writes that must provision."""

    default_errno = _errno.EOPNOTSUPP


class OutOfDataSpace(PoolError):
    """No free data block. `may_queue`: the pool's policy lets the caller wait for space and try again."""

    default_errno = _errno.ENOSPC

    def __init__(self, message: str, *, may_queue: bool = False) -> None:
        super().__init__(message)
        self.may_queue = may_queue


class OutOfMetadataSpace(PoolError):
    """No free metadata block."""

    default_errno = _errno.ENOSPC


class MetadataCorrupt(PoolError):
    """A metadata block does not hold what it must.

    Args:
        block: number of the offending metadata block; -1 when it is unknown.
        path: what led to it from the superblock, for example `mapping root 17 -> thin 3 -> node 40`.
    """

    default_errno = _errno.EILSEQ

    def __init__(self, message: str, *, block: int, path: str = "", errno: int | None = None) -> None:
        where = ("metadata" if block < 0 else f"metadata block {block}") + (f" ({path})" if path else "")
        super().__init__(f"{where}: {message}", errno=errno)
        self.block = block
        self.path = path
        self.detail = message


class PoolIoError(PoolError):
    """An I/O error on one of the pool's devices, or a device whose uncommitted changes were lost."""


class HomeError(CowfsError):
    """A home directory or one of its devices."""

    exit_code = 5


class NotAHome(HomeError):
    default_errno = _errno.ENOENT


class HomeVersionError(HomeError):
    """A home written by another format or version."""

    default_errno = _errno.EPROTONOSUPPORT


class HomeBusy(HomeError):
    """Another process holds the home. `holder_pid` is 0 when it is unknown."""

    default_errno = _errno.EBUSY

    def __init__(self, message: str, *, holder_pid: int = 0) -> None:
        super().__init__(message)
        self.holder_pid = holder_pid


class HolderEnded(HomeError):
    """The process that held the home ended before its answer was complete."""

    default_errno = _errno.ECONNRESET


class UnknownDevice(HomeError):
    default_errno = _errno.ENOENT


class DeviceExists(HomeError):
    default_errno = _errno.EEXIST


class DeviceBusy(HomeError):
    """The device is mounted or open, so it cannot be removed, mounted again or checked."""

    default_errno = _errno.EBUSY


class FilesystemError(CowfsError):
    """The file system inside a device, or a tool that works on it."""

    exit_code = 7


class UnreadableRoot(FilesystemError):
    """The root directory of a file system is damaged, so that no file in it can be reached."""

    default_errno = _errno.EUCLEAN


class CopyError(FilesystemError):
    """A path in a device that leads to nothing, or a copy that ended early: what came before is copied."""


class UmlError(CowfsError):
    """A User-Mode Linux guest did not boot, broke off, could not start its command, or ran out of time."""

    exit_code = 8

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message, errno=_errno.ETIMEDOUT if timed_out else _errno.EIO)
        self.timed_out = timed_out


class MountError(CowfsError):
    """A mount operation failed.

    The text is `<op> <source>:<target>, flags: 0x<hex>, data: <data>: <reason>`, each part only where it is set.
    """

    exit_code = 6

    def __init__(
        self,
        op: str,
        source: str,
        target: str,
        *,
        flags: int = 0,
        data: str = "",
        errno: int = _errno.EIO,
        reason: str = "",
    ) -> None:
        text = f"{op} {source}:{target}" if source else f"{op} {target}"
        if flags:
            text += f", flags: 0x{flags:x}"
        if data:
            text += f", data: {data}"
        super().__init__(f"{text}: {reason or os.strerror(errno).lower()}", errno=errno)
        self.op = op
        self.source = source
        self.target = target
        self.flags = flags
        self.data = data


@contextmanager
def ungrouped() -> Iterator[None]:
    """trio groups errors; the first one of ours in a group is raised as itself, so that it prints as one line."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException | None = group.subgroup(CowfsError)
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if error is None:
            raise
        raise error from group
