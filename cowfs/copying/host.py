"""The host's files as the source or the destination of a copy.

Everything is done by open directories and single names, and no symbolic link is followed below what the user named: so
a user who may rename files meanwhile cannot lead the copy elsewhere. Of the directories on the way down only the last
is open, since a tree may be deeper than a process may have files; the way back is `..`, which must be what it was.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec

from cowfs.copying.records import PIECE_BYTES, Data, End, Link, Node, Problem, Record, show
from cowfs.copying.sinks import NOT_REPLACED, Sink

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_UNKNOWN_BYTES: Final = 64 << 10  # to read at a time of a file that says no size
_NOT_PERMITTED: Final = (
    errno.EPERM,
    errno.EACCES,
    errno.EINVAL,
)  # EINVAL: an id that this user namespace does not have
_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EINVAL)
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID
_ACL_ACCESS: Final = "system.posix_acl_access"
_ACL_DEFAULT: Final = "system.posix_acl_default"


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _open_above(fd: int, above: tuple[int, int]) -> int:
    """The directory that `fd` is in. Raises OSError (ESTALE) when it was moved meanwhile."""
    parent = os.open("..", _DIRECTORY, dir_fd=fd)
    if _identity(os.fstat(parent)) != above:
        os.close(parent)
        raise OSError(errno.ESTALE, "a directory was moved while it was copied")
    return parent


# Reading.


class _Directory(NamedTuple):
    path: bytes
    names: Iterator[bytes]
    identity: tuple[int, int]


class HostSource:
    """Reads files of the host. Below a directory, a file that cannot be read is a record that says so."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, int], int] = {}

    def read(self, path: bytes, name: bytes) -> Generator[Record, None, None]:
        """The records of a file, or of a directory and all below it.

        Args:
            path: what is copied; a symbolic link as one, unless a slash follows.
            name: what the first record calls it.

        Raises:
            OSError: nothing of it can be read.
        """
        status = os.stat(path, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode) and path.endswith(b"/"):
            path = os.path.realpath(path)
            status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            try:
                yield from self._read(None, path, path, name, status)
            except OSError as error:
                raise OSError(error.errno, error.strerror, path) from error
            return
        fd, node, opened = self._enter(None, path.rstrip(b"/") or b"/", path.rstrip(b"/"))
        try:
            yield msgspec.structs.replace(node, name=name)
            trail = [opened]
            while trail:
                below = next(trail[-1].names, None)
                if below is None:
                    trail.pop()
                    if trail:
                        above = _open_above(fd, trail[-1].identity)
                        os.close(fd)
                        fd = above
                    yield End()
                    continue
                where = trail[-1].path + b"/" + below
                try:
                    status = os.stat(below, dir_fd=fd, follow_symlinks=False)
                    if not stat.S_ISDIR(status.st_mode):
                        yield from self._read(fd, below, where, below, status)
                        continue
                    inner, node, opened = self._enter(fd, below, where)
                except OSError as error:
                    yield _problem(where, error)
                    continue
                os.close(fd)
                fd = inner
                trail.append(opened)
                yield node
        finally:
            os.close(fd)

    def _enter(self, directory: int | None, name: bytes, path: bytes) -> tuple[int, Node, _Directory]:
        """An open directory, its record, and what is in it."""
        fd = os.open(name, _DIRECTORY, dir_fd=directory)
        try:
            status = os.fstat(fd)
            names = iter(sorted(map(os.fsencode, os.listdir(fd))))
            return fd, _node(name, status, _xattrs(fd)), _Directory(path, names, _identity(status))
        except BaseException:
            os.close(fd)
            raise

    def _read(
        self, directory: int | None, name: bytes, path: bytes, called: bytes, status: os.stat_result
    ) -> Iterator[Record]:
        """The records of what is not a directory. Raises OSError before the first of them: it cannot be read."""
        number = 0
        if status.st_nlink > 1:
            known = self._numbers.get(_identity(status))
            if known is not None:
                yield Link(called, known)
                return
            number = len(self._numbers) + 1
        if stat.S_ISREG(status.st_mode):
            records = self._read_file(directory, name, path, called, number)
        else:
            target = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(status.st_mode) else b""
            xattrs = _xattrs(_path_of(directory, name))
            records = iter([_node(called, status, xattrs, number, target)])
        first = next(records)
        if number:
            self._numbers[_identity(status)] = number
        yield first
        yield from records

    def _read_file(
        self, directory: int | None, name: bytes, path: bytes, called: bytes, number: int
    ) -> Iterator[Record]:
        fd = os.open(name, _READ, dir_fd=directory)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.ESTALE, "it was replaced while it was copied")
            xattrs = _xattrs(fd)
            size = status.st_size
            may_have_holes = status.st_blocks * 512 < size
            if size <= PIECE_BYTES and not (may_have_holes and _first_data(fd, 0, size) != (0, size)):
                content = _read_all(fd, size)
                if len(content) <= PIECE_BYTES:
                    yield _node(called, status, xattrs, number, content, size_bytes=len(content))
                    return
            yield _node(called, status, xattrs, number, size_bytes=size)
            if size:
                yield from self._data(fd, path, size)
        finally:
            os.close(fd)

    def _data(self, fd: int, path: bytes, size: int) -> Iterator[Record]:
        is_whole = True
        offset = 0
        try:
            while offset < size and (found := _first_data(fd, offset, size)) is not None:
                offset, end = found
                while offset < end:
                    piece = os.pread(fd, min(PIECE_BYTES, end - offset), offset)
                    if not piece:
                        raise OSError(errno.ESTALE, "it was cut off while it was copied")
                    yield Data(offset, piece)
                    offset += len(piece)
        except OSError as error:
            yield _problem(path, error)
            is_whole = False
        yield End(is_whole)


def total_bytes(path: bytes) -> int:
    """About how many bytes of regular files there are to copy."""
    if not os.path.isdir(path):
        return os.lstat(path).st_size
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                status = os.lstat(os.path.join(directory, name))
                total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def _node(
    name: bytes,
    status: os.stat_result,
    xattrs: dict[bytes, bytes],
    number: int = 0,
    content: bytes = b"",
    size_bytes: int = 0,
) -> Node:
    times = status.st_atime_ns, status.st_mtime_ns
    owner = status.st_uid, status.st_gid
    return Node(name, status.st_mode, *owner, *times, size_bytes, content, status.st_rdev, number, xattrs)


def _problem(path: bytes, error: OSError) -> Problem:
    return Problem(f"cannot read '{show(path)}': {error.strerror or error}")


def _path_of(directory: int | None, name: bytes) -> bytes:
    return name if directory is None else b"/proc/self/fd/%d/%s" % (directory, name)


def _xattrs(file: int | bytes) -> dict[bytes, bytes]:
    found = {}
    follow = isinstance(file, int)
    try:
        for name in os.listxattr(file, follow_symlinks=follow):
            found[os.fsencode(name)] = os.getxattr(file, name, follow_symlinks=follow)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENODATA):
            raise
    return found


def _read_all(fd: int, size: int) -> bytes:
    """A file's content up to its size; of one that has none, as in /proc, all of it, and no more than is too much."""
    pieces = []
    offset, end = 0, size or PIECE_BYTES + 1
    while offset < end and (piece := os.pread(fd, size - offset if size else _UNKNOWN_BYTES, offset)):
        pieces.append(piece)
        offset += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _first_data(fd: int, offset: int, size: int) -> tuple[int, int] | None:
    """The first range at or after `offset` that is not a hole."""
    try:
        begin = os.lseek(fd, offset, os.SEEK_DATA)
        return begin, min(os.lseek(fd, begin, os.SEEK_HOLE), size)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        if error.errno == errno.EINVAL:  # no such thing here
            return offset, size
        raise


# Writing.


class _Made(NamedTuple):
    """A directory or file that is being filled; its own descriptor is the sink's `_fd` while it is the innermost."""

    node: Node
    name: bytes
    identity: tuple[int, int]


class HostSink(Sink):
    """Makes files of the host, as far as this process may: see `Copied` for what that leaves out.

    A copy belongs to the user who makes it where its owner cannot be kept, and then has no set-id bits.

    Args:
        path: an existing directory, below which the copy is put, or what the copy is to be.
        has_own_name: False where the content of a directory is copied, which an existing one is merged with.
    """

    def __init__(self, path: bytes, *, has_own_name: bool) -> None:
        super().__init__()
        self._wanted = path
        self._has_own_name = has_own_name
        self._base = -1  # the directory that the copy is in
        self._base_path = b""
        self._base_name = b""
        self._fd = -1  # of the directory that is open
        self._file = -1  # of the file that is
        self._trail: list[_Made] = []
        self._inherits = False  # whether what is made in the directory that is open gets an access list of it
        self._paths: dict[int, tuple[bytes, ...]] = {}  # of the nodes that have more names

    def close(self) -> None:
        for fd in {self._base, self._fd, self._file} - {-1}:
            os.close(fd)
        self._base = self._fd = self._file = -1
        self._trail.clear()

    def where(self, name: bytes) -> str:
        if self._base < 0:
            return show(self._wanted)
        below = [self._base_name, *self._path[1:], name] if self._path else [self._base_name]
        return show(os.path.join(self._base_path, *(part for part in below if part != b".")))

    # Where the copy is put.

    def _find_base(self, node: Node) -> None:
        """Open the directory that the copy is in, and choose its name there. Raises OSError."""
        path = self._wanted
        if os.path.isdir(path):
            self._base_name = node.name if self._has_own_name else b"."
        else:
            if path.endswith(b"/") and not node.is_directory:
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            path, self._base_name = os.path.split(path.rstrip(b"/"))
        self._base = os.open(path or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._base_path = path
        self._fd = os.dup(self._base)
        self._inherits = _has_default_acl(self._fd)

    def _name(self, name: bytes) -> bytes:
        return name if self._trail else self._base_name

    # Making.

    def make(self, node: Node) -> bool:
        if self._base < 0:
            self._find_base(node)
        name = self._name(node.name)
        if node.is_directory:
            self._enter_directory(node, name)
            return True
        self._make_room(name, stat.S_IFMT(node.mode))
        path = self._path_below(name)
        if stat.S_ISREG(node.mode):
            self._make_file(node, name)
        elif stat.S_ISLNK(node.mode):
            os.symlink(node.content, name, dir_fd=self._fd)
            self._finish_nameless(node, name)
        elif not self._make_special(node, name):
            return False
        if node.number:
            self._paths[node.number] = path
        return True

    def link(self, link: Link) -> None:
        parts = self._paths.get(link.number)
        if parts is None:
            raise OSError(errno.ENOENT, "the file that it is another name of was not copied")
        name = self._name(link.name)
        directory = os.dup(self._base)
        try:
            for part in parts[:-1]:
                inner = os.open(part, _DIRECTORY, dir_fd=directory)
                os.close(directory)
                directory = inner
            self._make_room(name, stat.S_IFREG)
            os.link(parts[-1], name, src_dir_fd=directory, dst_dir_fd=self._fd, follow_symlinks=False)
        finally:
            os.close(directory)

    def _path_below(self, name: bytes) -> tuple[bytes, ...]:
        return (*(made.name for made in self._trail), name)

    def _make_room(self, name: bytes, kind: int) -> None:
        """Remove what has a name, for a file of a kind. A directory stays, and so does a special file of another kind.

        What root copies to /dev/null is not to be found there afterwards.
        """
        try:
            mode = os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if stat.S_ISDIR(mode):
            raise OSError(errno.EEXIST, NOT_REPLACED)
        if stat.S_IFMT(mode) not in (stat.S_IFREG, stat.S_IFLNK, kind):
            raise OSError(errno.EEXIST, "a special file is there, which nothing else replaces")
        os.unlink(name, dir_fd=self._fd)

    def _enter_directory(self, node: Node, name: bytes) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=self._fd)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mode):
                raise OSError(errno.EEXIST, NOT_REPLACED) from None
        fd = os.open(name, _DIRECTORY, dir_fd=self._fd)
        os.close(self._fd)
        self._fd = fd
        self._trail.append(_Made(node, name, _identity(os.fstat(fd))))
        if self._inherits:
            _remove_acls(fd)
        self._inherits = _has_default_acl(fd)

    def _make_file(self, node: Node, name: bytes) -> None:
        fd = os.open(name, _CREATE, 0o600, dir_fd=self._fd)
        if node.is_open:
            self._file = fd
            self._trail.append(_Made(node, name, _identity(os.fstat(fd))))
            return
        try:
            _write(fd, node.content, 0)
            self._finish(fd, node)
        except BaseException:
            os.unlink(name, dir_fd=self._fd)
            raise
        finally:
            os.close(fd)

    def _make_special(self, node: Node, name: bytes) -> bool:
        try:
            os.mknod(name, stat.S_IFMT(node.mode) | 0o600, node.rdev, dir_fd=self._fd)
        except PermissionError:
            self.leave_out(node.name)
            return False
        self._finish_nameless(node, name)
        return True

    def write(self, data: Data) -> None:
        _write(self._file, data.content, data.offset)

    def end(self, *, is_whole: bool) -> None:
        made = self._trail.pop()
        if not made.node.is_directory:
            fd, self._file = self._file, -1
            try:
                if not is_whole:
                    os.unlink(made.name, dir_fd=self._fd)
                    return
                os.ftruncate(fd, made.node.size_bytes)
                self._finish(fd, made.node)
            finally:
                os.close(fd)
            return
        above = _open_above(self._fd, self._trail[-1].identity) if self._trail else os.dup(self._base)
        fd, self._fd = self._fd, above
        try:
            self._inherits = _has_default_acl(above)
            self._finish(fd, made.node)
        finally:
            os.close(fd)

    # Attributes: the owner first, which takes set-id bits and capabilities away; the times last.

    def _finish(self, fd: int, node: Node) -> None:
        status = os.fstat(fd)
        is_owners = self._give_owner(fd, node, status)
        if self._inherits and not node.is_directory:
            _remove_acls(fd)
        os.fchmod(fd, stat.S_IMODE(node.mode) & ~(0 if is_owners else _SET_ID))
        for name, value in node.xattrs.items():
            self._set_xattr(fd, name, value)
        os.utime(fd, ns=(node.atime_ns, node.mtime_ns))

    def _give_owner(self, fd: int, node: Node, status: os.stat_result) -> bool:
        """Whether the owner and the group are those of the source."""
        if (status.st_uid, status.st_gid) == (node.uid, node.gid):
            return True
        try:
            os.fchown(fd, node.uid, node.gid)
        except OSError as error:
            if error.errno not in _NOT_PERMITTED:
                raise
            with suppress(OSError):
                os.fchown(fd, -1, node.gid)
            return False
        return True

    def _finish_nameless(self, node: Node, name: bytes) -> None:
        """As `_finish`, for what is not opened: a symbolic link or a special file."""
        is_link = stat.S_ISLNK(node.mode)
        is_owners = True
        try:
            os.chown(name, node.uid, node.gid, dir_fd=self._fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NOT_PERMITTED:
                raise
            is_owners = False
        path = _path_of(self._fd, name)
        if not is_link:
            handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
            try:
                mode = stat.S_IMODE(node.mode) & ~(0 if is_owners else _SET_ID)
                os.chmod(f"/proc/self/fd/{handle}", mode)
            finally:
                os.close(handle)
        for key, value in node.xattrs.items():
            self._set_xattr(path, key, value)
        os.utime(name, ns=(node.atime_ns, node.mtime_ns), dir_fd=self._fd, follow_symlinks=False)

    def _set_xattr(self, file: int | bytes, name: bytes, value: bytes) -> None:
        try:
            os.setxattr(file, name, value, follow_symlinks=isinstance(file, int))
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            self.attributes_left_out += 1


def _write(fd: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        done = os.pwrite(fd, view, offset)
        view = view[done:]
        offset += done


def _has_default_acl(directory: int) -> bool:
    try:
        return bool(os.getxattr(directory, _ACL_DEFAULT))
    except OSError:
        return False


def _remove_acls(fd: int) -> None:
    for name in (_ACL_ACCESS, _ACL_DEFAULT):
        with suppress(OSError):
            os.removexattr(fd, name)
