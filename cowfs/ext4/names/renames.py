"""renameat2(2) with its flags: a plain move, over something, exchanging two things, or leaving a whiteout behind."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cowfs.ext4.files.guard import WriteGuard
from cowfs.ext4.files.inodes import Inode, InodeTable
from cowfs.ext4.library.filesystem import Filesystem, os_error
from cowfs.ext4.names.names import Names, check_name, check_removable
from cowfs.filetree import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, ROOT_INODE

_FLAGS: Final = (0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT, RENAME_NOREPLACE | RENAME_WHITEOUT)


class Renames:
    """Renaming in one volume."""

    def __init__(self, fs: Filesystem, guard: WriteGuard, inodes: InodeTable, names: Names) -> None:
        self._fs = fs
        self._guard = guard
        self._inodes = inodes
        self._names = names
        self._directories = names.directories

    def rename(
        self, source: Inode, name: bytes, target: Inode, new_name: bytes, flags: int, uid: int, gid: int
    ) -> None:
        """As renameat2(2); the two directories may be changed. A whiteout is owned by `uid` and `gid`."""
        if flags not in _FLAGS:
            raise os_error(errno.EINVAL)
        for one in (name, new_name):
            if one in (b".", b".."):
                raise os_error(errno.EBUSY)
            check_name(one)
        moved = self._names.entry(source, name)
        there = self._directories.find(target, new_name)
        replaced = self._names.inode_of(there) if there else None
        self._directories.check_whole(source, name)
        self._directories.check_whole(target, new_name)
        if flags & RENAME_NOREPLACE and replaced is not None:
            raise os_error(errno.EEXIST)
        if flags == RENAME_EXCHANGE and replaced is None:
            raise os_error(errno.ENOENT)
        check_removable(source, moved)
        if moved.is_directory and source is not target:
            self._check_not_below(moved, target)
        if replaced is moved:
            return
        if source is not target:
            for inode in (moved, replaced) if flags == RENAME_EXCHANGE else (moved,):
                if inode is not None and inode.is_directory:
                    self._directories.prepare_to_set_parent(inode)
        if replaced is not None:
            check_removable(target, replaced)
        if flags == RENAME_EXCHANGE:
            assert replaced is not None
            self._exchange(source, name, moved, target, new_name, replaced)
            return
        with self._left_behind(source, flags, uid, gid) as whiteout:
            if replaced is not None:
                self._move_over(source, name, moved, target, new_name, replaced, whiteout)
            else:
                self._move(source, name, moved, target, new_name, whiteout)

    @contextmanager
    def _left_behind(self, source: Inode, flags: int, uid: int, gid: int) -> Iterator[Inode | None]:
        """The whiteout that takes the old name, where one is wanted. It is freed when the rename fails."""
        if not flags & RENAME_WHITEOUT:
            yield None
            return
        whiteout = self._names.make_nameless(source, stat.S_IFCHR, uid, gid)
        try:
            yield whiteout
        except BaseException:
            self._names.destroy(whiteout)
            raise

    def _free_name(self, source: Inode, name: bytes, whiteout: Inode | None) -> None:
        if whiteout is None:
            self._directories.remove(source, name)
        else:
            self._directories.replace(source, name, whiteout.number, whiteout.mode)
            whiteout.links = 1

    def _move(
        self, source: Inode, name: bytes, moved: Inode, target: Inode, new_name: bytes, whiteout: Inode | None
    ) -> None:
        if moved.is_directory and source is not target:
            self._names.check_subdirectory_fits(target)
        self._directories.add(target, new_name, moved.number, moved.mode)
        with self._guard.committing():
            self._free_name(source, name, whiteout)
            self._hang_over(moved, source, target)
            self._note_move(source, target, moved)

    def _move_over(
        self,
        source: Inode,
        name: bytes,
        moved: Inode,
        target: Inode,
        new_name: bytes,
        replaced: Inode,
        whiteout: Inode | None,
    ) -> None:
        if moved.is_directory and not replaced.is_directory:
            raise os_error(errno.ENOTDIR)
        if replaced.is_directory:
            if not moved.is_directory:
                raise os_error(errno.EISDIR)
            if not self._directories.is_empty(replaced):
                raise os_error(errno.ENOTEMPTY)
        self._names.prepare_to_drop(replaced)
        with self._guard.committing():
            self._directories.replace(target, new_name, moved.number, moved.mode)
            self._free_name(source, name, whiteout)
            if replaced.is_directory:
                self._names.uncount_subdirectory(target)
            self._hang_over(moved, source, target)
            self._note_move(source, target, moved)
            self._names.drop_link(replaced)

    def _exchange(self, source: Inode, name: bytes, moved: Inode, target: Inode, new_name: bytes, other: Inode) -> None:
        if source is not target:
            if other.is_directory:
                self._check_not_below(other, source)
            if moved.is_directory and not other.is_directory:
                self._names.check_subdirectory_fits(target)
            if other.is_directory and not moved.is_directory:
                self._names.check_subdirectory_fits(source)
        with self._guard.committing():
            self._directories.replace(source, name, other.number, other.mode)
            self._directories.replace(target, new_name, moved.number, moved.mode)
            self._hang_over(moved, source, target)
            self._hang_over(other, target, source)
            self._note_move(source, target, moved)
            other.set_times(ctime_ns=self._fs.now_ns())

    def _hang_over(self, moved: Inode, source: Inode, target: Inode) -> None:
        """Let `..` of a directory that moved lead to its new place, and count it there."""
        if moved.is_directory and source is not target:
            self._directories.set_parent(moved, target.number)
            self._names.uncount_subdirectory(source)
            self._names.count_subdirectory(target)

    def _note_move(self, source: Inode, target: Inode, moved: Inode) -> None:
        moved.set_times(ctime_ns=self._fs.now_ns())
        source.changed()
        target.changed()

    def _check_not_below(self, moved: Inode, target: Inode) -> None:
        """A directory cannot go below itself."""
        number, seen = target.number, set[int]()
        while number != ROOT_INODE:
            if number == moved.number:
                raise os_error(errno.EINVAL)
            if number in seen:
                raise self._fs.damaged(f"directory {number} is its own ancestor")
            seen.add(number)
            number = self._directories.parent(self._names.directory(number))
