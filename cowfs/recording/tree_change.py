"""A change of many files at once: which names lead to which files afterwards, and what is in them.

It says what there is in the end, and not how it came about, so that it can say what no order of operations would give:
a name that was persisted of a file whose first name was lost.
"""

from __future__ import annotations

import stat
from typing import Final

import msgspec

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

    Every file of `files` has a name in `names`. `names` has a directory before the names in it.
    """

    files: list[NewFile]
    names: list[NameChange]
    content: list[ContentChange]
    attributes: list[AttributeChange]

    def make(self, tree: ServedTree) -> None:
        """Make it in a tree. Raises what the tree does, and leaves it half done then.

        Whatever changes its name is put aside in a directory first, so that the order of names does not matter.
        """
        _Making(tree, self).run()


class _Making:
    def __init__(self, tree: ServedTree, change: TreeChange) -> None:
        self._tree = tree
        self._change = change
        self._inodes: dict[int, int] = {}
        self._held: set[int] = set()

    def run(self) -> None:
        tree, change = self._tree, self._change
        stage = tree.make_directory(ROOT_INODE, self._stage_name(), _STAGE_MODE, 0, 0)
        self._stage = stage.inode
        for new in change.files:
            self._make_aside(new)
        for name in reversed(change.names):  # what is in a directory before the directory
            self._put_aside(name)
        for one in change.content:
            self._write(one)
        for name in change.names:
            if name.file:
                self._give_name(name)
        for attribute in change.attributes:
            self._set(attribute)
        self._clear(self._stage)
        tree.remove_directory(ROOT_INODE, self._name)

    def _stage_name(self) -> bytes:
        taken = {name.name for name in self._change.names if name.parent == ROOT_INODE}
        taken |= {entry.name for entry in self._tree.list_directory(ROOT_INODE)}
        self._name = next(name for i in range(len(taken) + 1) if (name := b".aside-%d" % i) not in taken)
        return self._name

    def _inode(self, file: int) -> int:
        return self._inodes[file] if file >= FIRST_NEW else file

    def _make_aside(self, new: NewFile) -> None:
        name = b"%d" % new.file
        inode = self._tree.restore(self._stage, name, new.mode, new.uid, new.gid, rdev=new.rdev, target=new.target)
        self._inodes[new.file] = inode
        self._held.add(inode)

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
        self._tree.rename(change.parent, change.name, self._stage, b"%d" % found.inode)
        self._held.add(found.inode)

    def _give_name(self, change: NameChange) -> None:
        tree, inode, parent = self._tree, self._inode(change.file), self._inode(change.parent)
        aside = b"%d" % change.file
        if not stat.S_ISDIR(tree.attributes(inode).mode):
            tree.link(inode, parent, change.name)
        elif inode in self._held:  # a directory has one name: the first one stays
            tree.rename(self._stage, aside, parent, change.name)
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
