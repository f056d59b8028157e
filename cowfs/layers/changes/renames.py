"""What was renamed, among what a walk finds to be added and deleted: it has the same inode on both sides.

A renamed directory is compared with what it was, so that its content costs no more than its changes. Therefore an added
directory is entered only when it is known to be a new one. A deleted directory is entered, to see what was moved out of
it, only while something was added that the other side has under some name.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from cowfs.filetree import FileTree
from cowfs.layers.changes.walk import Child, Walk, list_names
from cowfs.layers.interface import ChangeKind, PathChange
from cowfs.steps import Steps

_LETTERS: Final[dict[ChangeKind, Literal["A", "M", "D"]]] = {
    ChangeKind.ADD: "A",
    ChangeKind.MODIFY: "M",
    ChangeKind.DELETE: "D",
}
_PATHS_PER_STEP: Final = 64


class _Identity(NamedTuple):
    """An inode number is given again, but not with the same generation and time of birth."""

    inode: int
    generation: int
    crtime_ns: int
    kind: int


class _Renamed(NamedTuple):
    old_path: bytes  # as the walk has it: below the new name of a directory that was renamed
    is_modified: bool


class Renames:
    """Runs a walk that has not begun."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        walk.enters_added = False
        self._candidates: dict[bytes, tuple[Child, _Identity]] = {}  # added paths of inodes that the other side has
        self._new: list[tuple[bytes, int, int]] = []  # directories that it has not
        self._deleted: dict[_Identity, list[bytes]] = {}
        self._closed: dict[bytes, int] = {}  # deleted and replaced directories that were not entered
        self._renamed: dict[bytes, _Renamed] = {}

    def run(self) -> Steps[list[PathChange]]:
        pending = [(b"", *self._walk.roots)]
        while pending:
            yield from self._walk.compare(pending)
            yield from self._sort_out()
            pending = yield from self._match()
            while not (pending or self._new) and self._closed and self._candidates:
                yield from self._enter_deleted()
                pending = yield from self._match()
            if not pending:
                pending, self._new = self._new, []
            if not pending:
                pending = [
                    (path, child.inode, 0) for path, (child, _) in self._candidates.items() if child.is_directory
                ]
                self._candidates.clear()
        return sorted(self._changes())

    def _sort_out(self) -> Steps[None]:
        """Take what the walk has found since the last time."""
        added, deleted = self._walk.added, self._walk.deleted
        for count, (path, child) in enumerate(added.items(), 1):
            identity = _identify(self._walk.layer, child)
            if identity is not None and identity == _identify(self._walk.parent, child):
                self._candidates[path] = child, identity
            elif child.is_directory:
                self._new.append((path, child.inode, 0))
            if count % _PATHS_PER_STEP == 0:
                yield
        for count, (path, child) in enumerate(deleted.items(), 1):
            self._note_deleted(path, child)
            if count % _PATHS_PER_STEP == 0:
                yield
        self._closed |= {path: child.inode for path, child in self._walk.replaced.items()}
        added.clear()
        deleted.clear()
        self._walk.replaced.clear()

    def _note_deleted(self, path: bytes, child: Child) -> None:
        identity = _identify(self._walk.parent, child)
        if identity is not None:
            self._deleted.setdefault(identity, []).append(path)
        if child.is_directory:
            self._closed[path] = child.inode

    def _enter_deleted(self) -> Steps[None]:
        closed, self._closed = self._closed, {}
        for path, inode in closed.items():
            for name, child in list_names(self._walk.parent, inode).items():
                self._note_deleted(path + b"/" + name, child)
            yield

    def _match(self) -> Steps[list[tuple[bytes, int, int]]]:
        """Find where the candidates were; the directories among them are to be compared."""
        pending = []
        for path, (child, identity) in sorted(self._candidates.items()):
            old_paths = self._deleted.get(identity)
            if not old_paths:
                continue
            old_path = old_paths.pop(0)
            del self._candidates[path]
            self._closed.pop(old_path, None)
            is_modified = yield from self._walk.differs(child, child)
            self._renamed[path] = _Renamed(old_path, is_modified)
            if child.is_directory:
                pending.append((path, child.inode, child.inode))
            yield
        return pending

    # What was found.

    def _changes(self) -> Iterator[PathChange]:
        gone = {renamed.old_path for renamed in self._renamed.values()}
        for path, kind in self._walk.kinds.items():
            renamed = self._renamed.get(path)
            if renamed is not None:
                yield PathChange(path, "R", self._old_path(renamed.old_path), renamed.is_modified)
            elif kind is ChangeKind.ADD:
                yield PathChange(path, "A")
            elif path not in gone:
                old_path = self._old_path(path)
                yield PathChange(path, _LETTERS[kind], old_path if old_path != path else None)

    def _old_path(self, path: bytes) -> bytes:
        """Where something that is, or was, below a directory that was renamed is in the other tree."""
        above = path
        while above := above[: above.rindex(b"/")]:
            renamed = self._renamed.get(above)
            if renamed is not None:
                return self._old_path(renamed.old_path) + path[len(above) :]
        return path


def _identify(tree: FileTree, child: Child) -> _Identity | None:
    """None for an inode that is not in use, or cannot be read."""
    try:
        attributes = tree.attributes(child.inode)
    except OSError:
        return None
    return _Identity(attributes.inode, attributes.generation, attributes.crtime_ns, stat.S_IFMT(attributes.mode))
