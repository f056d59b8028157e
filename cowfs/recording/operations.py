"""Operations on files as they are recorded, and the tree that records them.

Files have numbers here that last: a file that was there before the recording has its inode number, one that was made
since has its own number, from `FIRST_NEW` on. So a number is never used again, as inode numbers are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar, cast

import msgspec

from cowfs.filetree import RENAME_EXCHANGE, RENAME_WHITEOUT, Attributes, ServedTree

FIRST_NEW: Final = 1 << 32

R = TypeVar("R")


class Operation(msgspec.Struct, frozen=True, omit_defaults=True):
    """One operation on files that succeeded.

    Attributes:
        kind: create, mkdir, symlink, link, unlink, rmdir, rename, exchange, write, truncate, attributes, set_xattr,
            remove_xattr, fsync or fdatasync.
        file: the number of the file it is about; of a rename, that of the file that gets the new name.
        parent, name: the directory and the name that it is about; of a rename, where the file was.
        new_parent, new_name: of a rename.
        replaced: of a rename: the file that lost its name, 0 for none; of an exchange, the one at the new name.
        offset, length: of a write: its bytes; of a truncation: the size after it is `offset`.
        old_size: of a write and a truncation: the size before.
        mode, uid, gid, rdev, mtime_ns: where they were set; of what was made: as it was made.
        content: of a write: its bytes; of a symbolic link: the target; of an extended attribute: the value, whose name
            is `name`.
        begin, end: which entries of the device's journal were written meanwhile.
    """

    kind: str
    file: int
    parent: int = 0
    name: bytes = b""
    new_parent: int = 0
    new_name: bytes = b""
    replaced: int = 0
    offset: int = 0
    length: int = 0
    old_size: int = 0
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    rdev: int = 0
    mtime_ns: int | None = None
    content: bytes = b""
    begin: int = 0
    end: int = 0


class OperationLog(Protocol):
    """Where a `RecordingTree` writes down what is done. It outlives the tree, which may be closed and opened again."""

    numbers: dict[int, int]  # of the files made since the recording began, by inode number
    keeps_content: bool

    def position(self) -> int:
        """How many entries the device's journal has."""
        ...

    def done(self, operation: Operation) -> None: ...

    def new_number(self, inode: int) -> int:
        """A number for a file that was just made."""
        ...


class _Recording:
    """The operations of a `ServedTree` that change something, each written down when it has succeeded.

    Everything else is the inner tree's, whose method is called.
    """

    def __init__(self, tree: ServedTree, log: OperationLog) -> None:
        self._tree = tree
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tree, name)

    def _number(self, inode: int) -> int:
        return self._log.numbers.get(inode, inode)

    def _number_of(self, parent: int, name: bytes) -> int:
        """Of the file that a name leads to, 0 when it leads to none."""
        try:
            return self._number(self._tree.lookup(parent, name).inode)
        except OSError:
            return 0

    def _made(self, kind: str, parent: int, name: bytes, make: Callable[[], Attributes], content: bytes) -> Attributes:
        begin = self._log.position()
        made = make()
        self._log.done(
            Operation(
                kind,
                self._log.new_number(made.inode),
                self._number(parent),
                name,
                mode=made.mode,
                uid=made.uid,
                gid=made.gid,
                rdev=made.rdev,
                content=content,
                begin=begin,
                end=self._log.position(),
            )
        )
        return made

    def make_node(self, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> Attributes:
        return self._made("create", parent, name, lambda: self._tree.make_node(parent, name, mode, uid, gid, rdev), b"")

    def make_directory(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Attributes:
        return self._made("mkdir", parent, name, lambda: self._tree.make_directory(parent, name, mode, uid, gid), b"")

    def make_symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Attributes:
        return self._made(
            "symlink", parent, name, lambda: self._tree.make_symlink(parent, name, target, uid, gid), target
        )

    def link(self, inode: int, parent: int, name: bytes) -> Attributes:
        operation = Operation("link", self._number(inode), self._number(parent), name)
        return self._recorded(operation, lambda: self._tree.link(inode, parent, name))

    def unlink(self, parent: int, name: bytes) -> None:
        operation = Operation("unlink", self._number_of(parent, name), self._number(parent), name)
        self._recorded(operation, lambda: self._tree.unlink(parent, name))

    def remove_directory(self, parent: int, name: bytes) -> None:
        operation = Operation("rmdir", self._number_of(parent, name), self._number(parent), name)
        self._recorded(operation, lambda: self._tree.remove_directory(parent, name))

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0, uid: int = 0, gid: int = 0
    ) -> None:
        operation = Operation(
            "exchange" if flags & RENAME_EXCHANGE else "rename",
            self._number_of(parent, name),
            self._number(parent),
            name,
            self._number(new_parent),
            new_name,
            self._number_of(new_parent, new_name),
        )
        self._recorded(operation, lambda: self._tree.rename(parent, name, new_parent, new_name, flags, uid, gid))
        if flags & RENAME_WHITEOUT:
            left = self._tree.lookup(parent, name)
            number, directory = self._log.new_number(left.inode), self._number(parent)
            self._log.done(Operation("create", number, directory, name, mode=left.mode, uid=left.uid, gid=left.gid))

    def set_attributes(self, inode: int, *, size_bytes: int | None = None, **changes: int | None) -> Attributes:
        number = self._number(inode)
        if size_bytes is None:
            operation = Operation(
                "attributes",
                number,
                mode=changes.get("mode"),
                uid=changes.get("uid"),
                gid=changes.get("gid"),
                mtime_ns=changes.get("mtime_ns"),
            )
        else:
            old = self._tree.attributes(inode).size_bytes
            operation = Operation("truncate", number, offset=size_bytes, old_size=old, mode=changes.get("mode"))
        return self._recorded(operation, lambda: self._tree.set_attributes(inode, size_bytes=size_bytes, **changes))

    def write(self, inode: int, offset: int, data: bytes) -> int:
        begin, old = self._log.position(), self._tree.attributes(inode).size_bytes
        written = self._tree.write(inode, offset, data)
        self._log.done(
            Operation(
                "write",
                self._number(inode),
                offset=offset,
                length=len(data),
                old_size=old,
                content=bytes(data) if self._log.keeps_content else b"",
                begin=begin,
                end=self._log.position(),
            )
        )
        return written

    def set_xattr(self, inode: int, name: bytes, value: bytes, flags: int = 0) -> None:
        operation = Operation("set_xattr", self._number(inode), name=name, content=bytes(value))
        self._recorded(operation, lambda: self._tree.set_xattr(inode, name, value, flags))

    def remove_xattr(self, inode: int, name: bytes) -> None:
        operation = Operation("remove_xattr", self._number(inode), name=name)
        self._recorded(operation, lambda: self._tree.remove_xattr(inode, name))

    def sync_inode(self, inode: int, *, data_only: bool) -> None:
        operation = Operation("fdatasync" if data_only else "fsync", self._number(inode))
        self._recorded(operation, lambda: self._tree.sync_inode(inode, data_only=data_only))

    def _recorded(self, operation: Operation, do: Callable[[], R]) -> R:
        begin = self._log.position()
        result = do()
        self._log.done(msgspec.structs.replace(operation, begin=begin, end=self._log.position()))
        return result


def recording_tree(tree: ServedTree, log: OperationLog) -> ServedTree:
    """A tree that does as `tree` and writes down in a log what is done."""
    return cast(ServedTree, _Recording(tree, log))
