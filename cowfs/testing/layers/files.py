"""The files of a layer, as cases change and look at them: three ways, one interface.

    DirectoryFiles   a directory, by the calls of the system
    FileProcess      the same in a separate process, which is ended when a call does not return: for directories
                     that a file server shows, which may be what is being tested
    TreeFiles        a tree of the ext4 engine, without any mount

Paths are relative, with `/` between names; the empty one is the layer's root. Errors are OSErrors, with errno.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from cowfs.filetree import Attributes, FileTree
from cowfs.layers.interface import LayerRoot

_HIDDEN = frozenset({"lost+found"})
_CHUNK_BYTES = 1 << 20


class Entry(NamedTuple):
    """What a case may find out about a file, in a form that compares.

    `content` is a digest of a regular file, the target of a symbolic link, the number of a device; else empty. `link`
    is the first path, in order, of the same file.
    """

    mode: int
    uid: int
    gid: int
    size_bytes: int
    mtime_ns: int
    content: str
    link: str
    xattrs: dict[str, bytes]


class Files(Protocol):
    """The files below one root."""

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """A regular file with exactly this content and mode; an existing one is written anew."""
        ...

    def write_many(self, contents: dict[str, bytes]) -> None:
        """`write`, for many files at once."""
        ...

    def write_at(self, path: str, offset: int, data: bytes) -> None: ...

    def read(self, path: str) -> bytes: ...

    def make_directory(self, path: str, mode: int = 0o755) -> None: ...

    def make_symlink(self, path: str, target: str) -> None: ...

    def make_link(self, path: str, existing: str) -> None: ...

    def make_node(self, path: str, mode: int, rdev: int = 0) -> None: ...

    def remove(self, path: str) -> None:
        """A file, or a directory with everything in it."""
        ...

    def rename(self, path: str, new_path: str) -> None: ...

    def set_mode(self, path: str, mode: int) -> None: ...

    def set_owner(self, path: str, uid: int, gid: int) -> None: ...

    def set_mtime(self, path: str, mtime_ns: int) -> None: ...

    def set_xattr(self, path: str, name: str, value: bytes) -> None: ...

    def list(self, path: str = "") -> list[str]:
        """Names in order, without `lost+found`."""
        ...

    def entry(self, path: str = "") -> Entry: ...

    def tree(self) -> dict[str, Entry]:
        """Everything below the root, which is not part of it, by path. Times of directories are left out: 0."""
        ...


class _Facts(NamedTuple):
    inode: int
    mode: int
    uid: int
    gid: int
    rdev: int
    size_bytes: int
    mtime_ns: int


class _Shared(ABC):
    """What the two that do it themselves have in common."""

    @abstractmethod
    def _facts(self, path: str) -> _Facts: ...

    @abstractmethod
    def _target(self, path: str) -> str: ...

    @abstractmethod
    def _xattrs(self, path: str) -> dict[str, bytes]: ...

    @abstractmethod
    def _names(self, path: str) -> set[str]: ...

    @abstractmethod
    def read(self, path: str) -> bytes: ...

    @abstractmethod
    def write(self, path: str, data: bytes, mode: int = 0o644) -> None: ...

    def write_many(self, contents: dict[str, bytes]) -> None:
        for path, data in contents.items():
            self.write(path, data)

    def list(self, path: str = "") -> list[str]:
        return sorted(self._names(path) - _HIDDEN)

    def entry(self, path: str = "") -> Entry:
        return self._entry(path, self._facts(path), path)

    def _entry(self, path: str, facts: _Facts, link: str) -> Entry:
        kind = stat.S_IFMT(facts.mode)
        content = ""
        if kind == stat.S_IFREG:
            content = hashlib.sha256(self.read(path)).hexdigest()
        elif kind == stat.S_IFLNK:
            content = self._target(path)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            content = str(facts.rdev)
        return Entry(
            mode=facts.mode,
            uid=facts.uid,
            gid=facts.gid,
            size_bytes=facts.size_bytes if kind == stat.S_IFREG else 0,
            mtime_ns=0 if kind == stat.S_IFDIR else facts.mtime_ns,
            content=content,
            link=link,
            xattrs=self._xattrs(path),
        )

    def tree(self) -> dict[str, Entry]:
        links: dict[int, str] = {}
        return {path: self._entry(path, facts, links.setdefault(facts.inode, path)) for path, facts in self._walk("")}

    def _walk(self, path: str) -> Iterator[tuple[str, _Facts]]:
        for name in self.list(path):
            child = f"{path}/{name}" if path else name
            facts = self._facts(child)
            yield child, facts
            if stat.S_ISDIR(facts.mode):
                yield from self._walk(child)


class DirectoryFiles(_Shared):
    """`Files` in a directory."""

    def __init__(self, root: str) -> None:
        self._root = root

    def _path(self, path: str) -> str:
        return os.path.join(self._root, path) if path else self._root

    def _facts(self, path: str) -> _Facts:
        found = os.lstat(self._path(path))
        return _Facts(
            found.st_ino, found.st_mode, found.st_uid, found.st_gid, found.st_rdev, found.st_size, found.st_mtime_ns
        )

    def _target(self, path: str) -> str:
        return os.readlink(self._path(path))

    def _xattrs(self, path: str) -> dict[str, bytes]:
        full = self._path(path)
        names = sorted(os.listxattr(full, follow_symlinks=False))
        return {name: os.getxattr(full, name, follow_symlinks=False) for name in names}

    def _names(self, path: str) -> set[str]:
        return set(os.listdir(self._path(path)))

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        fd = os.open(self._path(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
            os.fchmod(fd, mode)

    def write_at(self, path: str, offset: int, data: bytes) -> None:
        with open(self._path(path), "rb+", buffering=0) as file:
            for begin in range(0, len(data), _CHUNK_BYTES):
                file.seek(offset + begin)
                file.write(data[begin : begin + _CHUNK_BYTES])
            # Some file systems say only now that there is no space.
            os.fsync(file.fileno())

    def read(self, path: str) -> bytes:
        with open(self._path(path), "rb") as file:
            return file.read()

    def make_directory(self, path: str, mode: int = 0o755) -> None:
        os.mkdir(self._path(path))
        self.set_mode(path, mode)

    def make_symlink(self, path: str, target: str) -> None:
        os.symlink(target, self._path(path))

    def make_link(self, path: str, existing: str) -> None:
        os.link(self._path(existing), self._path(path), follow_symlinks=False)

    def make_node(self, path: str, mode: int, rdev: int = 0) -> None:
        os.mknod(self._path(path), mode, rdev)
        self.set_mode(path, stat.S_IMODE(mode))

    def remove(self, path: str) -> None:
        full = self._path(path)
        if os.path.isdir(full) and not os.path.islink(full):
            shutil.rmtree(full)
        else:
            os.unlink(full)

    def rename(self, path: str, new_path: str) -> None:
        os.rename(self._path(path), self._path(new_path))

    def set_mode(self, path: str, mode: int) -> None:
        os.chmod(self._path(path), mode)

    def set_owner(self, path: str, uid: int, gid: int) -> None:
        os.chown(self._path(path), uid, gid, follow_symlinks=False)

    def set_mtime(self, path: str, mtime_ns: int) -> None:
        os.utime(self._path(path), ns=(mtime_ns, mtime_ns), follow_symlinks=False)

    def set_xattr(self, path: str, name: str, value: bytes) -> None:
        os.setxattr(self._path(path), name, value, follow_symlinks=False)


class TreeFiles(_Shared):
    """`Files` in the ext4 engine. New files belong to the user of this process."""

    def __init__(self, root: LayerRoot) -> None:
        self._tree: FileTree = root.tree
        self._root = root.inode
        self._owner = (os.geteuid(), os.getegid())

    def _find(self, path: str) -> Attributes:
        inode = self._root
        for name in path.split("/") if path else ():
            inode = self._tree.lookup(inode, name.encode()).inode
        return self._tree.attributes(inode)

    def _place(self, path: str) -> tuple[int, bytes]:
        """The directory, and the name in it."""
        directory, _, name = path.rpartition("/")
        return self._find(directory).inode, name.encode()

    def _facts(self, path: str) -> _Facts:
        found = self._find(path)
        return _Facts(found.inode, found.mode, found.uid, found.gid, found.rdev, found.size_bytes, found.mtime_ns)

    def _target(self, path: str) -> str:
        return self._tree.read_symlink(self._find(path).inode).decode()

    def _xattrs(self, path: str) -> dict[str, bytes]:
        inode = self._find(path).inode
        return {name.decode(): self._tree.get_xattr(inode, name) for name in sorted(self._tree.list_xattrs(inode))}

    def _names(self, path: str) -> set[str]:
        return {entry.name.decode() for entry in self._tree.list_directory(self._find(path).inode)} - {".", ".."}

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        parent, name = self._place(path)
        try:
            inode = self._tree.lookup(parent, name).inode
        except FileNotFoundError:
            inode = self._tree.make_node(parent, name, stat.S_IFREG | mode, *self._owner).inode
        self._tree.set_attributes(inode, mode=mode, size_bytes=0)
        self._write(inode, 0, data)

    def write_at(self, path: str, offset: int, data: bytes) -> None:
        self._write(self._find(path).inode, offset, data)

    def _write(self, inode: int, offset: int, data: bytes) -> None:
        for begin in range(0, len(data), _CHUNK_BYTES):
            self._tree.write(inode, offset + begin, data[begin : begin + _CHUNK_BYTES])

    def read(self, path: str) -> bytes:
        found = self._find(path)
        return self._tree.read(found.inode, 0, found.size_bytes)

    def make_directory(self, path: str, mode: int = 0o755) -> None:
        self._tree.make_directory(*self._place(path), mode, *self._owner)

    def make_symlink(self, path: str, target: str) -> None:
        self._tree.make_symlink(*self._place(path), target.encode(), *self._owner)

    def make_link(self, path: str, existing: str) -> None:
        self._tree.link(self._find(existing).inode, *self._place(path))

    def make_node(self, path: str, mode: int, rdev: int = 0) -> None:
        self._tree.make_node(*self._place(path), mode, *self._owner, rdev)

    def remove(self, path: str) -> None:
        parent, name = self._place(path)
        if stat.S_ISDIR(self._find(path).mode):
            for child in self.list(path):
                self.remove(f"{path}/{child}")
            self._tree.remove_directory(parent, name)
        else:
            self._tree.unlink(parent, name)

    def rename(self, path: str, new_path: str) -> None:
        self._tree.rename(*self._place(path), *self._place(new_path))

    def set_mode(self, path: str, mode: int) -> None:
        self._tree.set_attributes(self._find(path).inode, mode=mode)

    def set_owner(self, path: str, uid: int, gid: int) -> None:
        self._tree.set_attributes(self._find(path).inode, uid=uid, gid=gid)

    def set_mtime(self, path: str, mtime_ns: int) -> None:
        self._tree.set_attributes(self._find(path).inode, mtime_ns=mtime_ns)

    def set_xattr(self, path: str, name: str, value: bytes) -> None:
        self._tree.set_xattr(self._find(path).inode, name.encode(), value)
