"""A change of many files at once: which names lead to which files afterwards, and what is in them.

It says what there is in the end, and not how it came about, so that it can say what no order of operations would give:
a name that was persisted of a file whose first name was lost.
"""

from __future__ import annotations

import stat
from typing import Final

import msgspec

from cowfs.errors import UsageError
from cowfs.filetree import ROOT_INODE, ServedTree
from cowfs.recording.operations import FIRST_NEW

_STAGE_MODE: Final = 0o700


class NewFile(msgspec.Struct, frozen=True, array_like=True):
    """A file that there was not before: its number, and how it was made."""

    file: int
    mode: int
    uid: int
    gid: int
    rdev: int = 0
    target: bytes = b""


class NameChange(msgspec.Struct, frozen=True, array_like=True):
    """A name and what it leads to: a file's number, or 0 when it is gone."""

    parent: int
    name: bytes
    file: int


class ContentChange(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of a file from `offset` on, or, where `size` is not negative, its new size."""

    file: int
    offset: int
    data: bytes
    size: int = -1


class AttributeChange(msgspec.Struct, frozen=True, array_like=True):
    """Attributes of a file that are set; with `xattr`, an extended attribute: its value, None to remove it."""

    file: int
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    xattr: bytes = b""
    value: bytes | None = None


class TreeChange(msgspec.Struct, frozen=True):
    """All of it. Files that were there before have their inode numbers, others are in `files`.

    Every file of `files` has a name in `names`.
    """

    files: list[NewFile]
    names: list[NameChange]
    content: list[ContentChange]
    attributes: list[AttributeChange]


class TreeChanger:
    """Makes changes in a tree, one after the other. Later ones may be about the new files of earlier ones."""

    def __init__(self, tree: ServedTree) -> None:
        self._tree = tree
        self._inodes: dict[int, int] = {}

    def make(self, change: TreeChange) -> None:
        """Make a change.

        What was there and changes its name is put aside in a directory first, so that the order of names does not
        matter; a new file is made where its first name is.

        Raises:
            UsageError: it is about a file that it does not make, or has a new directory within itself.
            OSError: what the tree raises; the change is half done then.
        """
        _Making(self._tree, change, self._inodes).run()


class _Making:
    def __init__(self, tree: ServedTree, change: TreeChange, inodes: dict[int, int]) -> None:
        self._tree = tree
        self._change = change
        self._inodes = inodes
        self._held: set[int] = set()  # directories of the tree, and what else is put aside
        self._stage = 0
        self._stage_name = b""
        self._files = {new.file: new for new in change.files}
        self._first_names: dict[int, NameChange] = {}
        for name in change.names:
            self._first_names.setdefault(name.file, name)
        self._contents: dict[int, bytes] = {}
        self._rest: list[ContentChange] = []

    def run(self) -> None:
        change = self._change
        self._take_first_contents()
        for name in reversed(change.names):  # what is in a directory before the directory
            self._put_aside(name)
        for name in change.names:
            if name.file:
                self._give_name(name)
        for content in self._rest:
            self._write(content)
        for attribute in change.attributes:
            self._set(attribute)
        if self._stage:
            self._clear(self._stage)
            self._tree.remove_directory(ROOT_INODE, self._stage_name)

    def _take_first_contents(self) -> None:
        """What new files are made with: what is at their beginning."""
        begun = set()
        for content in self._change.content:
            is_first = content.file in self._files and content.file not in begun
            begun.add(content.file)
            if is_first and not content.offset and content.size < 0:
                self._contents[content.file] = content.data
            else:
                self._rest.append(content)

    def _inode(self, file: int) -> int:
        """Of a file, which is made now if it is new, with the directories above it that are new."""
        if file < FIRST_NEW:
            return file
        if file not in self._inodes:
            self._make(file)
        return self._inodes[file]

    def _make(self, file: int) -> None:
        wanted = [file]
        while (parent := self._first_name(wanted[-1]).parent) >= FIRST_NEW and parent not in self._inodes:
            if len(wanted) > len(self._files):
                raise UsageError(f"the change of files has the new directory {parent - FIRST_NEW} within itself")
            wanted.append(parent)
        for one in reversed(wanted):
            new, name = self._files[one], self._first_name(one)
            self._inodes[one] = self._tree.restore(
                self._inode(name.parent),
                name.name,
                new.mode,
                new.uid,
                new.gid,
                rdev=new.rdev,
                target=new.target,
                content=self._contents.get(one, b""),
            )

    def _first_name(self, file: int) -> NameChange:
        if file not in self._files or file not in self._first_names:
            raise UsageError(f"the change of files is about the new file {file - FIRST_NEW}, which it does not make")
        return self._first_names[file]

    def _put_aside(self, change: NameChange) -> None:
        """Take away what a name leads to now, and keep it for the name that it has afterwards, if any."""
        if change.parent >= FIRST_NEW:
            return
        try:
            found = self._tree.lookup(change.parent, change.name)
        except FileNotFoundError:
            return
        if found.inode in self._held:
            self._tree.unlink(change.parent, change.name)  # another of its names
            return
        self._tree.rename(change.parent, change.name, self._aside(), b"%d" % found.inode)
        self._held.add(found.inode)

    def _aside(self) -> int:
        if not self._stage:
            taken = {name.name for name in self._change.names if name.parent == ROOT_INODE}
            taken |= {entry.name for entry in self._tree.list_directory(ROOT_INODE)}
            self._stage_name = next(name for i in range(len(taken) + 1) if (name := b".aside-%d" % i) not in taken)
            self._stage = self._tree.make_directory(ROOT_INODE, self._stage_name, _STAGE_MODE, 0, 0).inode
        return self._stage

    def _give_name(self, change: NameChange) -> None:
        tree, inode, parent = self._tree, self._inode(change.file), self._inode(change.parent)
        if change is self._first_names[change.file] and change.file in self._files:
            return  # it was made there
        if not stat.S_ISDIR(tree.attributes(inode).mode):
            tree.link(inode, parent, change.name)
        elif inode in self._held:  # a directory has one name: the first one stays
            tree.rename(self._stage, b"%d" % inode, parent, change.name)
            self._held.discard(inode)

    def _write(self, change: ContentChange) -> None:
        inode = self._inode(change.file)
        if change.size >= 0:
            self._tree.set_attributes(inode, size_bytes=change.size)
        elif change.data:
            self._tree.write(inode, change.offset, change.data)

    def _set(self, change: AttributeChange) -> None:
        inode = self._inode(change.file)
        if not change.xattr:
            self._tree.set_attributes(inode, mode=change.mode, uid=change.uid, gid=change.gid, mtime_ns=change.mtime_ns)
        elif change.value is not None:
            self._tree.set_xattr(inode, change.xattr, change.value)
        else:
            self._tree.remove_xattr(inode, change.xattr)

    def _clear(self, directory: int) -> None:
        for entry in list(self._tree.list_directory(directory)):
            if entry.name in (b".", b".."):
                continue
            if stat.S_ISDIR(entry.mode):
                self._clear(entry.inode)
                self._tree.remove_directory(directory, entry.name)
            else:
                self._tree.unlink(directory, entry.name)
