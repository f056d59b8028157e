"""A FileTree in memory: small, plain, and what the handlers are tested against without a volume below them."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from cowfs.errors import MetadataCorrupt, OutOfDataSpace
from cowfs.filetree import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    ROOT_INODE,
    Attributes,
    DirectoryEntry,
    TreeStatistics,
)


def fail(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@dataclass
class Node:
    inode: int
    mode: int
    uid: int
    gid: int
    rdev: int = 0
    nlink: int = 1
    pins: int = 0
    size: int = 0
    pages: dict[int, bytearray] = field(default_factory=dict)
    entries: dict[bytes, tuple[int, int]] = field(default_factory=dict)  # name: (inode, cookie)
    parent: int = 0
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0


PAGE = 1 << 16


class MemoryTree:
    """`full` makes writes that need a new page fail with OutOfDataSpace, which may queue when `may_queue` is set."""

    read_only = False

    def __init__(self) -> None:
        self._inodes = itertools.count(12)
        self._cookies = itertools.count(3)
        self.full = False
        self.may_queue = False
        self.syncs = 0
        self.closed = False
        now = time.time_ns()
        root = Node(ROOT_INODE, stat.S_IFDIR | 0o755, os.geteuid(), os.getegid(), nlink=2, parent=ROOT_INODE)
        root.atime_ns = root.mtime_ns = root.ctime_ns = now
        self.nodes = {ROOT_INODE: root}

    # --- helpers

    def node(self, inode: int) -> Node:
        try:
            return self.nodes[inode]
        except KeyError:
            raise fail(errno.ESTALE) from None

    def directory(self, inode: int) -> Node:
        node = self.node(inode)
        if not stat.S_ISDIR(node.mode):
            raise fail(errno.ENOTDIR)
        return node

    def child(self, parent: int, name: bytes) -> Node:
        entry = self.directory(parent).entries.get(name)
        if entry is None:
            raise fail(errno.ENOENT)
        return self.nodes[entry[0]]

    def enter(self, parent: Node, name: bytes, inode: int) -> None:
        if len(name) > 255:
            raise fail(errno.ENAMETOOLONG)
        if parent.nlink == 0:
            raise fail(errno.ENOENT)
        parent.entries[name] = (inode, next(self._cookies))
        self.touch(parent)

    def touch(self, node: Node, *, content: bool = True) -> None:
        node.ctime_ns = time.time_ns()
        if content:
            node.mtime_ns = node.ctime_ns

    def drop(self, node: Node) -> None:
        if node.nlink == 0 and node.pins == 0:
            self.nodes.pop(node.inode, None)

    def new(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Node:
        directory = self.directory(parent)
        if name in directory.entries:
            raise fail(errno.EEXIST)
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0
        node = Node(next(self._inodes), mode, uid, gid)
        self.enter(directory, name, node.inode)
        node.atime_ns = node.mtime_ns = node.ctime_ns = time.time_ns()
        self.nodes[node.inode] = node
        return node

    # --- FileTree

    def attributes(self, inode: int) -> Attributes:
        node = self.node(inode)
        blocks = len(node.pages) * PAGE // 512
        size = len(node.target) if stat.S_ISLNK(node.mode) else node.size
        return Attributes(
            inode, 1, node.mode, node.nlink, node.uid, node.gid, node.rdev, size, blocks,
            node.atime_ns, node.mtime_ns, node.ctime_ns, 0,
        )  # fmt: skip

    def lookup(self, parent: int, name: bytes) -> Attributes:
        if len(name) > 255:
            raise fail(errno.ENAMETOOLONG)
        return self.attributes(self.child(parent, name).inode)

    def find_name(self, parent: int, name: bytes) -> Attributes | None:
        try:
            return self.lookup(parent, name)
        except FileNotFoundError:
            return None

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
        node = self.node(inode)
        if mode is not None:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        node.uid = node.uid if uid is None else uid
        node.gid = node.gid if gid is None else gid
        if size_bytes is not None:
            self._resize(node, size_bytes)
        node.atime_ns = node.atime_ns if atime_ns is None else atime_ns
        node.mtime_ns = node.mtime_ns if mtime_ns is None else mtime_ns
        node.ctime_ns = time.time_ns() if ctime_ns is None else ctime_ns
        return self.attributes(inode)

    def _resize(self, node: Node, size: int) -> None:
        if size < node.size:
            for index in [index for index in node.pages if index * PAGE >= size]:
                del node.pages[index]
            if size % PAGE and size // PAGE in node.pages:
                node.pages[size // PAGE][size % PAGE :] = bytes(PAGE - size % PAGE)
        node.size = size

    def make_node(self, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> Attributes:
        node = self.new(parent, name, mode, uid, gid)
        node.rdev = rdev
        return self.attributes(node.inode)

    def make_directory(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Attributes:
        node = self.new(parent, name, stat.S_IFDIR | mode, uid, gid)
        node.nlink = 2
        node.parent = parent
        self.nodes[parent].nlink += 1
        return self.attributes(node.inode)

    def make_symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Attributes:
        node = self.new(parent, name, stat.S_IFLNK | 0o777, uid, gid)
        node.target = target
        return self.attributes(node.inode)

    def read_symlink(self, inode: int) -> bytes:
        return self.node(inode).target

    def link(self, inode: int, parent: int, name: bytes) -> Attributes:
        node = self.node(inode)
        directory = self.directory(parent)
        if stat.S_ISDIR(node.mode):
            raise fail(errno.EPERM)
        if name in directory.entries:
            raise fail(errno.EEXIST)
        self.enter(directory, name, inode)
        node.nlink += 1
        self.touch(node, content=False)
        return self.attributes(inode)

    def unlink(self, parent: int, name: bytes) -> None:
        node = self.child(parent, name)
        if stat.S_ISDIR(node.mode):
            raise fail(errno.EISDIR)
        del self.nodes[parent].entries[name]
        self.touch(self.nodes[parent])
        node.nlink -= 1
        self.touch(node, content=False)
        self.drop(node)

    def remove_directory(self, parent: int, name: bytes) -> None:
        node = self.child(parent, name)
        if not stat.S_ISDIR(node.mode):
            raise fail(errno.ENOTDIR)
        if node.entries:
            raise fail(errno.ENOTEMPTY)
        del self.nodes[parent].entries[name]
        self.nodes[parent].nlink -= 1
        self.touch(self.nodes[parent])
        node.nlink = 0
        self.drop(node)

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0, uid: int = 0, gid: int = 0
    ) -> None:
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise fail(errno.EINVAL)
        node = self.child(parent, name)
        old, new = self.directory(parent), self.directory(new_parent)
        replaced = self.nodes[new.entries[new_name][0]] if new_name in new.entries else None
        if flags & RENAME_EXCHANGE:
            if replaced is None:
                raise fail(errno.ENOENT)
            self.move(replaced, new, old)
            self.enter(old, name, replaced.inode)
        else:
            if replaced is node:
                return
            if replaced is not None:
                if flags & RENAME_NOREPLACE:
                    raise fail(errno.EEXIST)
                remove = self.remove_directory if stat.S_ISDIR(node.mode) else self.unlink
                remove(new_parent, new_name)
            del old.entries[name]
            self.touch(old)
        self.move(node, old, new)
        self.enter(new, new_name, node.inode)
        self.touch(node, content=False)

    def move(self, node: Node, old: Node, new: Node) -> None:
        if stat.S_ISDIR(node.mode):
            old.nlink -= 1
            new.nlink += 1
            node.parent = new.inode

    def list_directory(self, inode: int, cookie: int = 0) -> Iterator[DirectoryEntry]:
        node = self.directory(inode)
        special = [(b".", inode, 1), (b"..", node.parent, 2)] if node.nlink else []
        named = sorted(((name, *entry) for name, entry in node.entries.items()), key=lambda entry: entry[2])
        for name, child, own in special + named:
            if own > cookie:
                yield DirectoryEntry(name, child, stat.S_IFMT(self.nodes[child].mode), own)

    def open_inode(self, inode: int) -> None:
        self.node(inode).pins += 1

    def release_inode(self, inode: int) -> None:
        node = self.node(inode)
        node.pins -= 1
        assert node.pins >= 0
        self.drop(node)

    def read(self, inode: int, offset: int, length: int) -> bytes:
        node = self.node(inode)
        end = min(offset + length, node.size)
        parts = []
        while offset < end:
            begin, count = offset % PAGE, min(PAGE - offset % PAGE, end - offset)
            page = node.pages.get(offset // PAGE)
            parts.append(bytes(page[begin : begin + count]) if page else bytes(count))
            offset += count
        return b"".join(parts)

    def write(self, inode: int, offset: int, data: bytes) -> int:
        node = self.node(inode)
        if self.full and not {*range(offset // PAGE, (offset + len(data) - 1) // PAGE + 1)} <= set(node.pages):
            raise OutOfDataSpace("the pool is full", may_queue=self.may_queue)
        done = 0
        while done < len(data):
            begin = (offset + done) % PAGE
            count = min(PAGE - begin, len(data) - done)
            page = node.pages.setdefault((offset + done) // PAGE, bytearray(PAGE))
            page[begin : begin + count] = data[done : done + count]
            done += count
        node.size = max(node.size, offset + done)
        self.touch(node)
        return done

    def get_xattr(self, inode: int, name: bytes) -> bytes:
        try:
            return self.node(inode).xattrs[name]
        except KeyError:
            raise fail(errno.ENODATA) from None

    def set_xattr(self, inode: int, name: bytes, value: bytes, flags: int = 0) -> None:
        node = self.node(inode)
        node.xattrs[name] = value
        self.touch(node, content=False)

    def list_xattrs(self, inode: int) -> list[bytes]:
        return list(self.node(inode).xattrs)

    def remove_xattr(self, inode: int, name: bytes) -> None:
        self.get_xattr(inode, name)
        del self.nodes[inode].xattrs[name]
        self.touch(self.nodes[inode], content=False)

    def statistics(self) -> TreeStatistics:
        return TreeStatistics(4096, 1 << 20, 1 << 19, 1 << 18, 1 << 16, (1 << 16) - len(self.nodes), 255)

    def sync(self) -> None:
        self.syncs += 1

    def sync_inode(self, inode: int, *, data_only: bool) -> None:
        self.sync()

    def quiesce(self) -> None:
        self.sync()

    def has_orphans(self) -> bool:
        return any(node.nlink == 0 for node in self.nodes.values())

    def distrust(self) -> None:
        """Nothing is marked here."""

    def close(self) -> None:
        self.closed = True


class ScriptedTree(MemoryTree):
    """Fails on demand: looking up `bug`, `bad-errno`, `corrupt`; `user.full` set to 1 (fail) or 2 (queue)."""

    close_fails = False

    def lookup(self, parent: int, name: bytes) -> Attributes:
        if name == b"bug":
            raise ZeroDivisionError("a bug in the engine")
        if name == b"bad-errno":
            raise OSError(9999, "no such errno")
        if name == b"corrupt":
            raise MetadataCorrupt("bad checksum", block=7)
        return super().lookup(parent, name)

    def set_xattr(self, inode: int, name: bytes, value: bytes, flags: int = 0) -> None:
        if name == b"user.full":
            self.full, self.may_queue = value != b"0", value == b"2"
        super().set_xattr(inode, name, value, flags)

    def close(self) -> None:
        super().close()
        if self.close_fails:
            raise OutOfDataSpace("no space for the last commit")
