"""A file tree as the source or the destination of a copy."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from cowfs.copying.paths import find_destination
from cowfs.copying.records import PIECE_BYTES, Data, End, Link, Node, Problem, Record, show
from cowfs.copying.sinks import NOT_REPLACED, Sink
from cowfs.filetree import Attributes, FileTree, ServedTree

_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.EPERM)
_ACL_ACCESS: Final = b"system.posix_acl_access"


class TreeSource:
    """Reads files of a tree.

    Args:
        name: of the tree in messages, such as `web:`; paths follow it.
    """

    def __init__(self, tree: FileTree, name: str) -> None:
        self._tree = tree
        self._name = name
        self._numbers: dict[int, int] = {}

    def read(self, path: bytes, top: Attributes, name: bytes) -> Iterator[Record]:
        """The records of a file, or of a directory and all below it.

        Args:
            path: of the file, for messages.
            name: what the first record calls it.
        """
        yield from self._read(path, name, top)
        if not stat.S_ISDIR(top.mode):
            return
        trail = [(path.rstrip(b"/"), self._entries(path, top.inode))]
        while trail:
            directory, entries = trail[-1]
            entry = next(entries, None)
            if entry is None:
                trail.pop()
                yield End()
                continue
            if isinstance(entry, Problem):
                yield entry
                continue
            name, inode = entry
            path = directory + b"/" + name
            try:
                attributes = self._tree.attributes(inode)
            except OSError as error:
                yield self._problem(path, error)
                continue
            is_open = False
            for record in self._read(path, name, attributes):
                is_open = isinstance(record, Node) and record.is_directory
                yield record
            if is_open:
                trail.append((path, self._entries(path, inode)))

    def _entries(self, path: bytes, directory: int) -> Iterator[tuple[bytes, int] | Problem]:
        """What can be read of a directory, in order of the names."""
        found: list[tuple[bytes, int]] = []
        try:
            found.extend((entry.name, entry.inode) for entry in self._tree.list_directory(directory))
        except OSError as error:
            yield self._problem(path, error)
        yield from sorted(entry for entry in found if entry[0] not in (b".", b".."))

    def _read(self, path: bytes, name: bytes, attributes: Attributes) -> Iterator[Record]:
        """The records of one file; a directory is left open."""
        inode = attributes.inode
        number = 0
        if attributes.nlink > 1 and not stat.S_ISDIR(attributes.mode):
            known = self._numbers.get(inode)
            if known is not None:
                yield Link(name, known)
                return
            number = len(self._numbers) + 1
        try:
            node = Node(
                name,
                attributes.mode,
                attributes.uid,
                attributes.gid,
                attributes.atime_ns,
                attributes.mtime_ns,
                attributes.size_bytes if stat.S_ISREG(attributes.mode) else 0,
                self._content(attributes),
                attributes.rdev,
                number,
                {key: self._tree.get_xattr(inode, key) for key in self._tree.list_xattrs(inode)},
            )
        except OSError as error:
            yield self._problem(path, error)
            return
        if number:
            self._numbers[inode] = number
        yield node
        if node.is_open and not node.is_directory:
            yield from self._data(path, inode, node.size_bytes)

    def _content(self, attributes: Attributes) -> bytes:
        """What the record of a file itself has of its content: all of it, where it is short and without holes."""
        if stat.S_ISLNK(attributes.mode):
            return self._tree.read_symlink(attributes.inode)
        size = attributes.size_bytes
        if not stat.S_ISREG(attributes.mode) or not 0 < size <= PIECE_BYTES:
            return b""
        if self._tree.find_data(attributes.inode, 0) != (0, size):
            return b""
        content = self._tree.read(attributes.inode, 0, size)
        return content if len(content) == size else b""

    def _data(self, path: bytes, inode: int, size: int) -> Iterator[Record]:
        offset = 0
        is_whole = True
        try:
            while offset < size and (found := self._tree.find_data(inode, offset)) is not None:
                offset, end = found[0], min(found[1], size)
                while offset < end:
                    piece = self._tree.read(inode, offset, min(PIECE_BYTES, end - offset))
                    if not piece:
                        raise OSError(errno.ESTALE, "it was cut off while it was copied")
                    yield Data(offset, piece)
                    offset += len(piece)
        except OSError as error:
            yield self._problem(path, error)
            is_whole = False
        yield End(is_whole)

    def _problem(self, path: bytes, error: OSError) -> Problem:
        return Problem(f"cannot read '{self._name}{show(path)}': {error.strerror or error}")


class Destination(NamedTuple):
    """Where the first record is put: under `name` in `directory`, or without a name into the directory itself."""

    directory: int
    name: bytes
    path: bytes


def destination(tree: FileTree, root: int, path: bytes, source_name: bytes, *, is_directory: bool) -> Destination:
    """Where a copy is put, as cp does: below an existing directory, else under the path itself.

    Args:
        source_name: of the file that is copied; empty where the content of a directory is.

    Raises:
        OSError: nothing can be there.
    """
    place = find_destination(tree, root, path)
    if place.found is not None and stat.S_ISDIR(place.found.mode):
        whole = b"/".join((path.rstrip(b"/"), source_name)) if source_name else path
        return Destination(place.found.inode, source_name, whole)
    if path.endswith(b"/") and not is_directory:
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    return Destination(place.parent, place.name, path)


class _Open(NamedTuple):
    """What is being filled: under `name` in `parent`. `is_new`: it was made here."""

    inode: int
    node: Node
    parent: int
    name: bytes
    is_new: bool


class TreeSink(Sink):
    """Makes files in a tree.

    Args:
        device: the name of the tree in messages.

    What it refers to by inode number is pinned, where the tree has users who may remove it meanwhile, until `close`.
    """

    def __init__(self, tree: FileTree, target: Destination, device: str) -> None:
        super().__init__()
        self._tree = tree
        self._pins = tree if isinstance(tree, ServedTree) else None
        self._target = target
        self._device = device
        self._stack: list[_Open] = []
        self._numbers: dict[int, int] = {}  # of nodes, their inodes

    def where(self, name: bytes) -> str:
        below = [*self._path[1:], name] if self._path else []
        return f"{self._device}:{show(b'/'.join((self._target.path.rstrip(b'/'), *below)) or b'/')}"

    def close(self) -> None:
        """Let go of what is pinned. The caller sees to it also when the copy ended early."""
        if self._pins is not None:
            for inode in [*(opened.inode for opened in self._stack), *self._numbers.values()]:
                self._pins.release_inode(inode)
        self._stack.clear()
        self._numbers.clear()

    def make(self, node: Node) -> bool:
        parent, name = (self._stack[-1].inode, node.name) if self._stack else self._target[:2]
        try:
            inode = self._restore(parent, name, node) if name else None
        except FileExistsError:  # seldom, so this is not asked before
            inode = None
        if inode is None:
            found = self._find(parent, name)
            if found is not None and stat.S_ISDIR(found.mode) != node.is_directory:
                raise OSError(errno.EEXIST, NOT_REPLACED)
            if found is not None and node.is_directory:
                self._set_xattrs(found.inode, node)
                self._open(_Open(found.inode, node, parent, name, is_new=False))
                return True
            if found is not None:
                self._tree.unlink(parent, name)
            inode = self._restore(parent, name, node)
        if node.xattrs:
            self._set_xattrs(inode, node)
        if node.number and node.number not in self._numbers:
            self._pin(inode)
            self._numbers[node.number] = inode
        if node.is_open:
            self._open(_Open(inode, node, parent, name, is_new=True))
        return True

    def _restore(self, parent: int, name: bytes, node: Node) -> int:
        return self._tree.restore(
            parent,
            name,
            node.mode,
            node.uid,
            node.gid,
            rdev=node.rdev,
            target=node.content if stat.S_ISLNK(node.mode) else b"",
            content=node.content if stat.S_ISREG(node.mode) else b"",
            mtime_ns=node.mtime_ns,
            atime_ns=node.atime_ns,
        )

    def link(self, link: Link) -> None:
        inode = self._numbers.get(link.number)
        if inode is None:
            raise OSError(errno.ENOENT, "the file that it is another name of was not copied")
        parent, name = (self._stack[-1].inode, link.name) if self._stack else self._target[:2]
        found = self._find(parent, name)
        if found is not None and found.inode == inode:
            return
        if found is not None and stat.S_ISDIR(found.mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if found is not None:
            self._tree.unlink(parent, name)
        self._tree.link(inode, parent, name)

    def write(self, data: Data) -> None:
        self._tree.write(self._stack[-1].inode, data.offset, data.content)

    def end(self, *, is_whole: bool) -> None:
        opened = self._stack.pop()
        node, inode = opened.node, opened.inode
        try:
            if not is_whole:
                self._tree.unlink(opened.parent, opened.name)
            elif not node.is_directory:
                times = {"atime_ns": node.atime_ns, "mtime_ns": node.mtime_ns}
                self._tree.set_attributes(inode, size_bytes=node.size_bytes, **times)
            elif opened.is_new:
                self._tree.set_attributes(inode, atime_ns=node.atime_ns, mtime_ns=node.mtime_ns)
            else:
                self._tree.set_attributes(
                    inode,
                    mode=stat.S_IMODE(node.mode),
                    uid=node.uid,
                    gid=node.gid,
                    atime_ns=node.atime_ns,
                    mtime_ns=node.mtime_ns,
                )
        finally:
            self._unpin(inode)

    def _find(self, parent: int, name: bytes) -> Attributes | None:
        if not name:
            return self._tree.attributes(parent)
        try:
            return self._tree.lookup(parent, name)
        except FileNotFoundError:
            return None

    def _open(self, opened: _Open) -> None:
        self._pin(opened.inode)
        self._stack.append(opened)

    def _pin(self, inode: int) -> None:
        if self._pins is not None:
            self._pins.open_inode(inode)

    def _unpin(self, inode: int) -> None:
        if self._pins is not None:
            self._pins.release_inode(inode)

    def _set_xattrs(self, inode: int, node: Node) -> None:
        for name, value in node.xattrs.items():
            try:
                self._tree.set_xattr(inode, name, value)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                self.attributes_left_out += 1
        if _ACL_ACCESS in node.xattrs:
            self._tree.set_attributes(inode, mode=stat.S_IMODE(node.mode))  # which the list has changed
