"""The files of a home: where they are, and how they change so that a crash leaves the old or the new one whole.

    <home>/devicemapper/data        the pool's two devices, sparse, unless the pool is elsewhere
    <home>/devicemapper/metadata
    <home>/metadata/                one record per device, `deviceset-metadata`, `transaction-metadata`
    <home>/mnt/                     mount points
    <home>/setup-config.json        what LVM was asked to make, for a home whose pool it made
    <home>/cowfs.json               version and settings          (the `cowfs.` files are this program's own)
    <home>/cowfs.init               there while a home is being made, and no longer
    <home>/cowfs.parents            what each device was a snapshot of, and whether it is a layer
    <home>/cowfs.importing          a note about devices that were brought in together, there until all are complete
    <home>/cowfs.making             a note about devices that are made together, there while they are
    <home>/cowfs.renaming           a note about a new name of a device, there while it gets it
    <home>/cowfs.replacing/         notes about new content of devices, there while it is made
    <home>/cowfs.images/            what is known of the images that layers came from
    <home>/cowfs.downloads/         blobs on their way into the home
    <home>/cowfs.damaged/           files that could not be understood, set aside
    <home>/cowfs.tmp/               temporary files of the process that serves the home, there while it does
    <home>/cowfs.lock

A file is replaced by writing a temporary one beside it, fsync, rename, fsync of the directory; when a call returns,
what it did survives a power cut. One process at a time changes a home (`cowfs.devices.on_disk.lock`).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from typing import Final, Protocol

from cowfs.devices.on_disk.names import SET_FILE, TRANSACTION_FILE
from cowfs.errors import HomeError, command_line

DIRECTORY_MODE: Final = 0o700
_GROUP_DIRECTORY_MODE: Final = 0o710
FILE_MODE: Final = 0o600
TEMPORARY_NAME: Final = ".tmp-cowfs"  # one is enough: one process, one write at a time
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_MAX_RECORD_BYTES: Final = 1 << 16
_MAX_OWN_FILE_BYTES: Final = 1 << 28
_READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_SMALL_BYTES: Final = 1 << 12
_BATCH_FILES: Final = 128
_SYNCING_THREADS: Final = 16


class System(Protocol):
    """The part of `os` through which a home changes; tests put a failing one in its place."""

    def open(self, path: str, flags: int, mode: int = ...) -> int: ...
    def write(self, fd: int, data: bytes, /) -> int: ...
    def fsync(self, fd: int) -> None: ...
    def ftruncate(self, fd: int, length: int, /) -> None: ...
    def rename(self, src: str, dst: str) -> None: ...
    def unlink(self, path: str) -> None: ...
    def mkdir(self, path: str, mode: int = ...) -> None: ...


class HomeFiles:
    """Paths of a home and the operations on them; OSErrors leave as HomeError with the file's name.

    `data` and `metadata` are where the pool is: the home's own files unless `use_devices` said otherwise.

    Args:
        durable: False leaves out every fsync.
    """

    def __init__(self, home: str, *, durable: bool = True, system: System = os) -> None:
        self.home = home
        self.durable = durable
        self._system = system
        self.pool_directory = os.path.join(home, "devicemapper")
        self.own_data = self.data = os.path.join(self.pool_directory, "data")
        self.own_metadata = self.metadata = os.path.join(self.pool_directory, "metadata")
        self.old_records = os.path.join(self.pool_directory, "json")
        self.records = os.path.join(home, "metadata")
        self.set_file = os.path.join(self.records, SET_FILE)
        self.transaction = os.path.join(self.records, TRANSACTION_FILE)
        self.mounts = os.path.join(home, "mnt")
        self.lvm_setup = os.path.join(home, "setup-config.json")
        self.home_file = os.path.join(home, "cowfs.json")
        self.init_marker = os.path.join(home, "cowfs.init")
        self.parents = os.path.join(home, "cowfs.parents")
        self.importing = os.path.join(home, "cowfs.importing")
        self.making = os.path.join(home, "cowfs.making")
        self.renaming = os.path.join(home, "cowfs.renaming")
        self.replacements = os.path.join(home, "cowfs.replacing")
        self.images = os.path.join(home, "cowfs.images")
        self.downloads = os.path.join(home, "cowfs.downloads")
        self.damaged = os.path.join(home, "cowfs.damaged")
        self.temporary = os.path.join(home, "cowfs.tmp")

    def of(self, home: str, *, durable: bool) -> HomeFiles:
        """Those of another home, changed through the same system."""
        return HomeFiles(home, durable=durable, system=self._system)

    def use_devices(self, data: str, metadata: str) -> None:
        """Have the pool elsewhere; an empty path is the home's own file."""
        self.data = data or self.own_data
        self.metadata = metadata or self.own_metadata

    def record(self, name: str) -> str:
        return os.path.join(self.records, name)

    def replacement(self, name: str) -> str:
        return os.path.join(self.replacements, name)

    def list_names(self, directory: str) -> list[str]:
        """Names in a directory of the home, sorted, without what an interrupted write left; none without it."""
        with _explained("read", directory):
            try:
                return sorted(name for name in os.listdir(directory) if not name.startswith(TEMPORARY_NAME))
            except FileNotFoundError:
                return []

    def read(self, path: str) -> bytes | None:
        """All of a file, None when there is none. Never follows a symbolic link."""
        limit = _MAX_RECORD_BYTES if os.path.dirname(path) == self.records else _MAX_OWN_FILE_BYTES
        with _explained("read", path):
            try:
                fd = os.open(path, _READ_FLAGS)
            except FileNotFoundError:
                return None
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
                    raise OSError(errno.EINVAL, "not a regular file, or too large for what it is")
                return _read_all(fd, status.st_size)
            finally:
                os.close(fd)

    def read_records(self) -> Iterator[tuple[str, bytes | None]]:
        """The files in the directory of records, by name; None for what only `read` can explain.

        Without what an interrupted write left: a copy of that would take the place of a file that is being written.

        Three system calls for each, since a home may have thousands.
        """
        with _explained("read", self.records):
            try:
                directory = os.open(self.records, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                return
            try:
                with os.scandir(directory) as entries:
                    found = [
                        (entry.name, entry.is_file(follow_symlinks=False))
                        for entry in entries
                        if not entry.name.startswith(TEMPORARY_NAME)
                    ]
                for name, is_file in found:
                    yield name, _read_small(name, directory) if is_file else None
            finally:
                os.close(directory)

    def write(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Replace a file; afterwards it is durable. On failure the old one stays.

        Args:
            durable: False where a crash may bring the old file back, whole.
        """
        temporary = os.path.join(os.path.dirname(path), TEMPORARY_NAME)
        with _explained("write", path):
            try:
                self._write_new_files({temporary: data})
                self._system.rename(temporary, path)
            except OSError:
                with suppress(OSError):
                    self._system.unlink(temporary)
                raise
            if durable:
                self._sync_directory(os.path.dirname(path))

    def write_many(self, contents: Mapping[str, bytes]) -> None:
        """As `write`, for files in one directory, of which a crash may leave some old and some new."""
        names = iter(contents)
        while batch := list(islice(names, _BATCH_FILES)):
            directory = os.path.dirname(batch[0])
            temporary = {path: os.path.join(directory, f"{TEMPORARY_NAME}-{i}") for i, path in enumerate(batch)}
            with _explained("write", directory):
                try:
                    self._write_new_files({temporary[path]: contents[path] for path in batch})
                    for path in batch:
                        self._system.rename(temporary[path], path)
                except OSError:
                    for path in temporary.values():
                        with suppress(OSError):
                            self._system.unlink(path)
                    raise
                self._sync_directory(directory)

    def append(self, path: str, data: bytes) -> None:
        """Add to the end of a file that may not exist yet."""
        with _explained("write", path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = self._system.open(path, flags, FILE_MODE)
            try:
                give_to_owner(fd, self.home)
                is_new = os.fstat(fd).st_size == 0
                self._write_data(fd, data)
                self._sync(fd)
            finally:
                os.close(fd)
            if is_new:
                self._sync_directory(os.path.dirname(path))

    def remove(self, path: str, *, durable: bool = True) -> None:
        """Remove a file. No file is fine.

        Args:
            durable: whether its absence is so afterwards; else when something else in its directory becomes it.
        """
        with _explained("remove", path):
            with suppress(FileNotFoundError):
                self._system.unlink(path)
            if durable:
                self._sync_directory(os.path.dirname(path))

    def sync_records(self) -> None:
        """Have every name in the directory of records, and every absence, be durable."""
        with _explained("write", self.records):
            self._sync_directory(self.records)

    def sync_everything(self) -> None:
        """Have all that is in the home be durable."""
        if not self.durable:
            return
        everything = (
            path
            for directory, _, names in os.walk(self.home)
            for path in (directory, *(os.path.join(directory, name) for name in names))
        )
        with _explained("write", self.home):
            while batch := list(islice(everything, _BATCH_FILES)):
                with ExitStack() as last:
                    fds = []
                    for path in batch:
                        fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
                        last.callback(os.close, fds[-1])
                    self._sync_all(fds)

    def rename(self, source: str, target: str) -> None:
        """Give a file another name in the same directory."""
        with _explained("rename", source):
            self._system.rename(source, target)
            self._sync_directory(os.path.dirname(target))

    def set_aside(self, path: str) -> str:
        """Move a file that cannot be understood to `cowfs.damaged/`; returns its new path."""
        self.make_directory(self.damaged)
        stem = os.path.join(self.damaged, os.path.basename(path)[:200])
        target, number = stem, 0
        while os.path.lexists(target):
            number += 1
            target = f"{stem}.{number}"
        with _explained("set aside", path):
            self._system.rename(path, target)
            self._sync_directory(self.damaged)
            self._sync_directory(os.path.dirname(path))
        return target

    def make_directory(self, path: str, mode: int = DIRECTORY_MODE) -> None:
        """Make a directory where there is none."""
        with _explained("make the directory", path):
            try:
                self._system.mkdir(path, mode)
            except FileExistsError:
                if not os.path.isdir(path):
                    raise
                return
            if path != self.home:
                self._give_directory(path)
            self._sync_directory(os.path.dirname(os.path.abspath(path)))

    def make_mounts(self, group: int | None = None) -> None:
        """Make `mnt`, or mend its mode: layers have set-id files, so none but its owner may go below it.

        Args:
            group: of a container's root, which has to reach its files too.
        """
        self.make_directory(self.mounts)
        with _explained("restrict access to the directory", self.mounts):
            fd = os.open(self.mounts, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if group is not None:
                    os.fchown(fd, -1, group)
                os.fchmod(fd, DIRECTORY_MODE if group is None else _GROUP_DIRECTORY_MODE)
            except PermissionError:
                # A server of another process may have mounted the home there meanwhile, and has seen to it.
                if os.fstat(fd).st_dev == os.stat(self.home).st_dev:
                    raise
            finally:
                os.close(fd)

    def _give_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            give_to_owner(fd, self.home)
        finally:
            os.close(fd)

    def make_sparse(self, path: str, size_bytes: int) -> None:
        """Make a new file of zeros that occupies nothing yet."""
        with _explained(f"make a file of {size_bytes} bytes at", path):
            fd = self._system.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
            try:
                give_to_owner(fd, self.home)
                self._system.ftruncate(fd, size_bytes)
                self._sync(fd)
            finally:
                os.close(fd)
            self._sync_directory(os.path.dirname(path))

    def resize_file(self, path: str, size_bytes: int) -> None:
        """Give a file another size; a new part is zeros and occupies nothing."""
        with _explained(f"give {size_bytes} bytes to", path):
            fd = self._system.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                self._system.ftruncate(fd, size_bytes)
                self._sync(fd)
            finally:
                os.close(fd)

    def _write_new_files(self, contents: Mapping[str, bytes]) -> None:
        with ExitStack() as last:
            fds = []
            for path, data in contents.items():
                fd = self._open_new(path)
                last.callback(os.close, fd)
                fds.append(fd)
                give_to_owner(fd, self.home)
                self._write_data(fd, data)
            self._sync_all(fds)

    def _open_new(self, path: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return self._system.open(path, flags, FILE_MODE)
        except FileExistsError:  # left by a crash
            self._system.unlink(path)
            return self._system.open(path, flags, FILE_MODE)

    def _write_data(self, fd: int, data: bytes) -> None:
        while data:
            data = data[self._system.write(fd, data) :]

    def _sync(self, fd: int) -> None:
        if self.durable:
            self._system.fsync(fd)

    def _sync_all(self, fds: Sequence[int]) -> None:
        """fsync, of several at the same time where it is the system's: it commits once for those that wait together.

        200 small files take 1 s one after the other, and 0.05 s so (ext4 on a virtual disk).
        """
        if self._system is not os or len(fds) == 1:
            for fd in fds:
                self._sync(fd)
            return
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(_SYNCING_THREADS) as threads:
            list(threads.map(self._sync, fds))

    def _sync_directory(self, path: str) -> None:
        if not self.durable:
            return
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._system.fsync(fd)
        finally:
            os.close(fd)


def close_new_home(home: str) -> None:
    """Take the right to write into it from others, for a directory of this user's own that is becoming a home."""
    fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if found.st_mode & _OTHERS_WRITE and found.st_uid == os.geteuid() and not found.st_mode & stat.S_ISVTX:
            os.fchmod(fd, stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE)
    finally:
        os.close(fd)


def require_private(home: str) -> None:
    """Raises HomeError (EPERM) when others may put files of theirs in the place of the home's."""
    with _explained("inspect the home", home):
        mode = stat.S_IMODE(os.stat(home).st_mode)
    if mode & _OTHERS_WRITE:
        raise HomeError(
            f"others may write into the home {home} (mode {mode:04o}), so they can replace its files; if they have "
            f"not, run: {command_line('chmod', 'go-w', home)}",
            errno=errno.EPERM,
        )


def require_owned(home: str) -> None:
    """Raises HomeError (EPERM) when the home is of another user than this one and root, who could change its files."""
    with _explained("inspect the home", home):
        owner = os.stat(home).st_uid
    if owner not in (0, os.geteuid()):
        raise HomeError(
            f"the home {home} belongs to the user {owner}, who could make any file in a layer one of root's with its "
            f"set-user-id bit; name another home, or run: "
            f"{command_line('chown', '-R', str(os.geteuid()), home)}",
            errno=errno.EPERM,
        )


def give_to_owner(fd: int, home: str) -> None:
    """Give what root has just made in another user's home to that user, who could not use the home otherwise.

    Only what can have been made just now is given away: a directory, or a file without content and with no other name.
    """
    if os.geteuid() != 0:
        return
    with suppress(OSError):  # a root that may not do that, as in a user namespace
        owner, made = os.stat(home), os.fstat(fd)
        is_new = stat.S_ISDIR(made.st_mode) or (made.st_nlink, made.st_size) == (1, 0)
        if is_new and owner.st_uid != made.st_uid:
            os.fchown(fd, owner.st_uid, owner.st_gid)


def _read_small(name: str, directory: int) -> bytes | None:
    """All of a file in a directory; None when it is larger than it should be, or cannot be read."""
    try:
        fd = os.open(name, _READ_FLAGS, dir_fd=directory)
        try:
            data = os.read(fd, _SMALL_BYTES)
        finally:
            os.close(fd)
    except OSError:
        return None
    return data if len(data) < _SMALL_BYTES else None


def _read_all(fd: int, size_bytes: int) -> bytes:
    data = os.read(fd, size_bytes + 1)
    while len(data) < size_bytes:
        more = os.read(fd, size_bytes - len(data))
        if not more:
            break
        data += more
    return data


@contextmanager
def _explained(what: str, path: str) -> Iterator[None]:
    """Turn an OSError into one line that names the file."""
    try:
        yield
    except OSError as error:
        if isinstance(error, HomeError):
            raise
        raise HomeError(f"cannot {what} {path}: {error.strerror or error}", errno=error.errno) from error
