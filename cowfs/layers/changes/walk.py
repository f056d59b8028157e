"""What a layer changed, found by walking both trees: the rule itself, and the way that always works.

A path is added or deleted when only one side has it. It is modified when the two sides differ in mode (type
included), owner, group, device number, any extended attribute, or, unless it is a directory, in size, time of last
modification, or content. A directory that became something else, or something else a directory, is one modification. A
directory above a change is modified too, unless it is new. Inode numbers and link counts do not matter.

Differences to moby's driver, each of which let changes get lost there: times are compared to the nanosecond, all
extended attributes count and not `security.capability` alone, and contents are compared. They are read only when size
and time of modification agree, and inode, generation or time of change do not: for something happened to the file
then, such as a replacement whose time was set back. Sockets and block devices are compared like files, not like
directories.

Both trees should hold still. In one that is being written meanwhile, what is added or removed may be seen or not.

Source: moby, pkg/archive/changes_linux.go.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

from cowfs.filetree import Attributes, FileTree
from cowfs.layers.interface import Change, ChangeKind, LayerRoot
from cowfs.steps import Steps

_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_NAMES_PER_STEP: Final = 256
_CONTENT_BYTES_PER_STEP: Final = 1 << 20


class Child(NamedTuple):
    """What a name leads to; `kind` is the type bits of the mode."""

    inode: int
    kind: int

    @property
    def is_directory(self) -> bool:
        return self.kind == stat.S_IFDIR


Listing: TypeAlias = dict[bytes, Child]


def walk_changes(layer: LayerRoot, parent: LayerRoot | None) -> Steps[list[Change]]:
    """What differs between a layer and its parent (None: an empty one), sorted by path as bytes.

    Raises:
        OSError: a tree cannot be read.

    Cost: a look at every name of both trees.
    """
    return (yield from Walk(layer, parent or LayerRoot(layer.tree, 0)).run())


class Walk:
    """One comparison of two trees. A subclass that knows more about them overrides what says where to look.

    Attributes:
        kinds: the changes that were found, by path.
        added, deleted: what has such a path.
        replaced: directories of the parent whose names are of something else now.
        enters_added: whether what is in an added directory is looked at.
    """

    def __init__(self, layer: LayerRoot, parent: LayerRoot) -> None:
        self.layer = layer.tree
        self.parent = parent.tree
        self.roots = layer.inode, parent.inode
        self.kinds: dict[bytes, ChangeKind] = {}
        self.added: dict[bytes, Child] = {}
        self.deleted: dict[bytes, Child] = {}
        self.replaced: dict[bytes, Child] = {}
        self.enters_added = True
        self._holds_still = layer.tree.read_only and parent.tree.read_only

    def run(self) -> Steps[list[Change]]:
        yield from self.compare([(b"", *self.roots)])
        self._add_directories_above()
        return [Change(path, kind) for path, kind in sorted(self.kinds.items())]

    def compare(self, pending: list[tuple[bytes, int, int]]) -> Steps[None]:
        """Compare directories, given as (path, inode, the parent's inode), and all below them."""
        while pending:
            path, new, old = pending.pop()
            found = yield from self._compare_directories(path, new, old)
            pending.extend(found)
            yield

    # What may be overridden.

    def listings(self, new: int, old: int) -> tuple[Listing, Listing]:
        """The names of a directory of the layer and of one of the parent (0: none) that must be looked at.

        A name that both have may be left out when nothing changed there or below.
        """
        return list_names(self.layer, new), list_names(self.parent, old)

    def may_differ(self, new: int, old: int) -> bool:
        """Whether two inodes must be compared."""
        del new, old
        return True

    def data_to_compare(self, new: int, old: int) -> Iterator[tuple[int, int]]:
        """Byte ranges (begin, end) outside of which two files of the same size hold the same, ascending."""
        offset = 0
        while True:
            ranges = [self.layer.find_data(new, offset), self.parent.find_data(old, offset)]
            if not any(ranges):
                return
            begin, offset = min(found for found in ranges if found)
            yield begin, offset

    # Comparing.

    def _compare_directories(self, path: bytes, new: int, old: int) -> Steps[list[tuple[bytes, int, int]]]:
        """Note what differs between two directories; returns the subdirectories to go on with."""
        below = []
        try:
            here, there = self.listings(new, old)
        except OSError as error:
            self._forgive(error)
            return []
        for count, (name, child) in enumerate(here.items(), 1):
            where = path + b"/" + name
            before = there.pop(name, None)
            if before is None:
                self.kinds[where] = ChangeKind.ADD
                self.added[where] = child
            else:
                try:
                    if (yield from self.differs(child, before)):
                        self.kinds[where] = ChangeKind.MODIFY
                except OSError as error:
                    self._forgive(error)
                    continue
                if before.is_directory and not child.is_directory:
                    self.replaced[where] = before
            if child.is_directory and (before is not None or self.enters_added):
                below.append((where, child.inode, before.inode if before and before.is_directory else 0))
            if count % _NAMES_PER_STEP == 0:
                yield
        for name, child in there.items():
            self.kinds[path + b"/" + name] = ChangeKind.DELETE
            self.deleted[path + b"/" + name] = child
        return below

    def _forgive(self, error: OSError) -> None:
        """A name may have been removed since, unless the tree cannot change."""
        if self._holds_still or error.errno not in _GONE:
            raise error

    def differs(self, child: Child, before: Child) -> Steps[bool]:
        if not self.may_differ(child.inode, before.inode):
            return False
        new, old = self.layer.attributes(child.inode), self.parent.attributes(before.inode)
        if (new.mode, new.uid, new.gid, new.rdev) != (old.mode, old.uid, old.gid, old.rdev):
            return True
        if _xattrs(self.layer, new.inode) != _xattrs(self.parent, old.inode):
            return True
        if stat.S_ISDIR(new.mode):
            return False
        if (new.size_bytes, new.mtime_ns) != (old.size_bytes, old.mtime_ns):
            return True
        if (new.inode, new.generation, new.ctime_ns) == (old.inode, old.generation, old.ctime_ns):
            return False
        same = yield from self._has_same_content(new, old)
        return not same

    def _has_same_content(self, new: Attributes, old: Attributes) -> Steps[bool]:
        """Of two inodes of the same type and size."""
        if stat.S_ISLNK(new.mode):
            return self.layer.read_symlink(new.inode) == self.parent.read_symlink(old.inode)
        if not stat.S_ISREG(new.mode):
            return True
        for begin, end in self.data_to_compare(new.inode, old.inode):
            for offset in range(begin, end, _CONTENT_BYTES_PER_STEP):
                length = min(_CONTENT_BYTES_PER_STEP, end - offset)
                if self.layer.read(new.inode, offset, length) != self.parent.read(old.inode, offset, length):
                    return False
                yield
        return True

    def _add_directories_above(self) -> None:
        for path in list(self.kinds):
            above = path[: path.rindex(b"/")]
            while above and above not in self.kinds:
                self.kinds[above] = ChangeKind.MODIFY
                above = above[: above.rindex(b"/")]


def list_names(tree: FileTree, directory: int) -> Listing:
    if not directory:
        return {}
    return {
        entry.name: Child(entry.inode, entry.mode)
        for entry in tree.list_directory(directory)
        if entry.name not in (b".", b"..")
    }


def _xattrs(tree: FileTree, inode: int) -> dict[bytes, bytes]:
    return {name: tree.get_xattr(inode, name) for name in tree.list_xattrs(inode)}
