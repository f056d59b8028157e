"""A `FileTree` over a file system that the kernel has mounted, for what the ext4 engine does not read: xfs.

Inodes go by the kernel's own handles (name_to_handle_at(2)), which stay good whatever is renamed or linked meanwhile,
and reach through no symbolic link. For that the caller is root. What was looked up is remembered until `close`: some
200 bytes for each inode.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from cowfs.blockdev import Buffer
from cowfs.filetree import ROOT_INODE, Attributes, DirectoryEntry, TreeStatistics

_HANDLE_BYTES: Final = 128  # MAX_HANDLE_SZ
_GENERATION_BYTES: Final = 4  # the end of the handle, on ext4 and on xfs
_KEPT_XATTR: Final = "security.selinux"  # the policy's own, given to each new file
_FREE_ATTEMPTS: Final = (errno.ENODATA, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP)


class _Handle(ctypes.Structure):
    """struct file_handle of open_by_handle_at(2)."""

    _fields_ = (
        ("size", ctypes.c_uint),
        ("kind", ctypes.c_int),
        ("data", ctypes.c_ubyte * _HANDLE_BYTES),
    )


class MountedTree:
    """The file system that an open directory is in, whose root it is; the descriptor is closed by `close`.

    Args:
        read_only: as it was mounted.
    """

    def __init__(self, root_fd: int, *, read_only: bool = False) -> None:
        self._root = root_fd
        self.read_only = read_only
        self._libc = ctypes.CDLL(None, use_errno=True)
        try:
            self._handles = {ROOT_INODE: self._handle(root_fd, b".")}
        except BaseException:
            os.close(root_fd)
            raise

    # ------------------------------------------------------------------ finding

    def _handle(self, directory: int, name: bytes) -> bytes:
        handle, mount_id = _Handle(size=_HANDLE_BYTES), ctypes.c_int()
        if self._libc.name_to_handle_at(directory, name, ctypes.byref(handle), ctypes.byref(mount_id), 0):
            raise _last_error(name)
        return bytes(handle)[: 8 + handle.size]

    @contextmanager
    def _opened(self, inode: int, flags: int = os.O_PATH) -> Iterator[int]:
        handle = self._handles.get(inode)
        if handle is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        fd = self._libc.open_by_handle_at(self._root, handle, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        if fd < 0:
            raise _last_error(b"")
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _path(self, inode: int) -> Iterator[str]:
        """A path of an inode itself, also where that is a symbolic link."""
        with self._opened(inode) as fd:
            yield f"/proc/self/fd/{fd}"

    def _known(self, directory: int, name: bytes) -> Attributes:
        """What is under a name of an open directory; can be opened from now on."""
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        handle = self._handles[found.st_ino] = self._handle(directory, name)
        return _attributes(found, handle)

    def lookup(self, parent: int, name: bytes) -> Attributes:
        with self._opened(parent) as directory:
            return self._known(directory, name)

    def attributes(self, inode: int) -> Attributes:
        with self._opened(inode) as fd:
            return _attributes(os.fstat(fd), self._handles[inode])

    def list_directory(self, inode: int, cookie: int = 0) -> Iterator[DirectoryEntry]:
        """All of it at once, so that it is safe while entries come and go."""
        with self._opened(inode, os.O_RDONLY | os.O_DIRECTORY) as directory:
            names = sorted(os.fsencode(name) for name in os.listdir(directory))
            found = []
            for number, name in enumerate(names[cookie:], cookie + 1):
                with suppress(FileNotFoundError):
                    attributes = self._known(directory, name)
                    found.append(DirectoryEntry(name, attributes.inode, stat.S_IFMT(attributes.mode), number))
        return iter(found)

    def read_symlink(self, inode: int) -> bytes:
        with self._opened(inode) as fd:
            return os.readlink(b"", dir_fd=fd)

    # ------------------------------------------------------------------ making and removing

    def restore(
        self,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        *,
        rdev: int = 0,
        target: bytes = b"",
        content: Buffer = b"",
        mtime_ns: int | None = None,
        atime_ns: int | None = None,
    ) -> int:
        inode = self._make(parent, name, mode, rdev, target).inode
        if not stat.S_ISLNK(mode):
            for inherited in self.list_xattrs(inode):
                if os.fsdecode(inherited) != _KEPT_XATTR:
                    with _tolerated(*_FREE_ATTEMPTS):
                        self.remove_xattr(inode, inherited)
        if content:
            self.write(inode, 0, bytes(content))
        atime_ns = mtime_ns if atime_ns is None else atime_ns
        self.set_attributes(inode, mode=mode, uid=uid, gid=gid, atime_ns=atime_ns, mtime_ns=mtime_ns)
        return inode

    def _make(self, parent: int, name: bytes, mode: int, rdev: int = 0, target: bytes = b"") -> Attributes:
        kind = stat.S_IFMT(mode)
        with self._opened(parent) as directory:
            if kind == stat.S_IFDIR:
                os.mkdir(name, stat.S_IMODE(mode), dir_fd=directory)
            elif kind == stat.S_IFLNK:
                os.symlink(target, name, dir_fd=directory)
            else:
                os.mknod(name, mode, rdev, dir_fd=directory)
            return self._known(directory, name)

    def make_node(self, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> Attributes:
        inode = self._make(parent, name, mode, rdev).inode
        return self.set_attributes(inode, mode=mode, uid=uid, gid=gid)

    def make_directory(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Attributes:
        return self.make_node(parent, name, stat.S_IFDIR | mode, uid, gid)

    def make_symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Attributes:
        inode = self._make(parent, name, stat.S_IFLNK, target=target).inode
        return self.set_attributes(inode, uid=uid, gid=gid)

    def link(self, inode: int, parent: int, name: bytes) -> Attributes:
        with self._path(inode) as path, self._opened(parent) as directory:
            os.link(path, name, dst_dir_fd=directory, follow_symlinks=True)
            return self._known(directory, name)

    def unlink(self, parent: int, name: bytes) -> None:
        with self._opened(parent) as directory:
            os.unlink(name, dir_fd=directory)

    def remove_directory(self, parent: int, name: bytes) -> None:
        with self._opened(parent) as directory:
            os.rmdir(name, dir_fd=directory)

    def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int = 0,
        uid: int = 0,  # noqa: ARG002
        gid: int = 0,  # noqa: ARG002
    ) -> None:
        if flags:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        with self._opened(parent) as directory, self._opened(new_parent) as new_directory:
            os.rename(name, new_name, src_dir_fd=directory, dst_dir_fd=new_directory)

    # ------------------------------------------------------------------ attributes

    def set_attributes(
        self,
        inode: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size_bytes: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
    ) -> Attributes:
        if ctime_ns is not None:
            raise OSError(errno.EOPNOTSUPP, "the kernel alone sets the time of change")
        with self._opened(inode) as fd:
            path = f"/proc/self/fd/{fd}"
            before = os.fstat(fd)
            if size_bytes is not None:
                os.truncate(path, size_bytes)
            if uid is not None or gid is not None:
                os.chown(path, -1 if uid is None else uid, -1 if gid is None else gid)
            if mode is not None and not stat.S_ISLNK(before.st_mode):  # after the owner, which takes set-id bits away
                os.chmod(path, stat.S_IMODE(mode))
            if atime_ns is not None or mtime_ns is not None:
                times = [before.st_atime_ns if atime_ns is None else atime_ns]
                times += [before.st_mtime_ns if mtime_ns is None else mtime_ns]
                os.utime(path, ns=(times[0], times[1]))
            return _attributes(os.fstat(fd), self._handles[inode])

    def get_xattr(self, inode: int, name: bytes) -> bytes:
        with self._path(inode) as path:
            return os.getxattr(path, name)

    def set_xattr(self, inode: int, name: bytes, value: bytes, flags: int = 0) -> None:
        with self._path(inode) as path:
            os.setxattr(path, name, value, flags)

    def list_xattrs(self, inode: int) -> list[bytes]:
        with self._path(inode) as path:
            return sorted(os.fsencode(name) for name in os.listxattr(path))

    def remove_xattr(self, inode: int, name: bytes) -> None:
        with self._path(inode) as path:
            os.removexattr(path, name)

    # ------------------------------------------------------------------ contents

    def read(self, inode: int, offset: int, length: int) -> bytes:
        with self._opened(inode, os.O_RDONLY | os.O_NOATIME) as fd:
            return os.pread(fd, length, offset)

    def write(self, inode: int, offset: int, data: bytes) -> int:
        with self._opened(inode, os.O_WRONLY) as fd:
            done = 0
            while done < len(data):
                done += os.pwrite(fd, memoryview(data)[done:], offset + done)
            return done

    def find_data(self, inode: int, offset: int) -> tuple[int, int] | None:
        with self._opened(inode, os.O_RDONLY | os.O_NOATIME) as fd:
            try:
                begin = os.lseek(fd, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return None
            return begin, os.lseek(fd, begin, os.SEEK_HOLE)

    def statistics(self) -> TreeStatistics:
        found = os.fstatvfs(self._root)
        return TreeStatistics(
            found.f_frsize,
            found.f_blocks,
            found.f_bfree,
            found.f_bavail,
            found.f_files,
            found.f_ffree,
            found.f_namemax,
        )

    def sync(self) -> None:
        if not self.read_only and self._libc.syncfs(self._root):
            raise _last_error(b"")

    def close(self) -> None:
        """Sync, and let go of the mount."""
        if self._root >= 0:
            try:
                self.sync()
            finally:
                os.close(self._root)
                self._root = -1


def _attributes(found: os.stat_result, handle: bytes) -> Attributes:
    return Attributes(
        inode=found.st_ino,
        generation=int.from_bytes(handle[-_GENERATION_BYTES:], "little"),
        mode=found.st_mode,
        nlink=found.st_nlink,
        uid=found.st_uid,
        gid=found.st_gid,
        rdev=found.st_rdev,
        size_bytes=found.st_size,
        blocks=found.st_blocks,
        atime_ns=found.st_atime_ns,
        mtime_ns=found.st_mtime_ns,
        ctime_ns=found.st_ctime_ns,
        crtime_ns=0,
    )


@contextmanager
def _tolerated(*numbers: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


def _last_error(name: bytes) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), os.fsdecode(name) or None)
