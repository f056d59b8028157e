"""Names and links: making, linking and removing what directories hold, by the rules of a kernel file system.

The rules: callers never make or remove `.` and `..`; a directory counts the `..` of its subdirectories as links; an
inode whose last name is removed is freed, or becomes an orphan while it is open. Checks come first, and what cannot be
undone comes last, together.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

from cowfs.ext4.files.file_map import FileMaps
from cowfs.ext4.files.guard import WriteGuard
from cowfs.ext4.files.inline import InlineData
from cowfs.ext4.files.inodes import Inode, InodeTable
from cowfs.ext4.files.xattrs import ExtendedAttributes
from cowfs.ext4.format import layout
from cowfs.ext4.format.directory_block import Entry
from cowfs.ext4.library.block_runs import Run
from cowfs.ext4.library.filesystem import Filesystem, os_error
from cowfs.ext4.names.directory import Directories
from cowfs.ext4.names.orphans import Orphans
from cowfs.ext4.space.allocator import Allocator
from cowfs.ext4.space.block_map import Segment


class Names:
    """The names of one volume. Directories are given as inodes; see `directory_to_change`."""

    def __init__(
        self,
        fs: Filesystem,
        guard: WriteGuard,
        allocator: Allocator,
        maps: FileMaps,
        inodes: InodeTable,
        xattrs: ExtendedAttributes,
        inline: InlineData,
    ) -> None:
        self._fs = fs
        self._guard = guard
        self._allocator = allocator
        self._maps = maps
        self._inodes = inodes
        self._xattrs = xattrs
        self.directories = Directories(fs, allocator, maps, inline)
        self.orphans = Orphans(fs, inodes)

    # Looking.

    def find(self, directory: Inode, name: bytes) -> Inode | None:
        """None for a name that is missing. Raises OSError: ENAMETOOLONG, EINVAL."""
        if name == b".":
            return directory
        if name == b"..":
            return self._inodes.get(self.directories.parent(directory))
        return self._find_entry(directory, name)

    def entry(self, directory: Inode, name: bytes) -> Inode:
        """As `find`, for proper names only. Raises OSError: ENOENT, ENAMETOOLONG, EINVAL."""
        found = self._find_entry(directory, name)
        if found is None:
            raise os_error(errno.ENOENT, name)
        return found

    def _find_entry(self, directory: Inode, name: bytes) -> Inode | None:
        check_name(name)
        entry = self.directories.find(directory, name) if directory.links else None
        return None if entry is None else self.inode_of(entry)

    def inode_of(self, entry: Entry) -> Inode:
        """The inode that an entry leads to. Raises FilesystemError (EUCLEAN): there is none, or it is damaged."""
        try:
            return self._inodes.get(entry.inode)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            raise self._fs.damaged(f"a name leads to inode {entry.inode}, which is not in use") from None

    def directory(self, number: int) -> Inode:
        inode = self._inodes.get(number)
        if not inode.is_directory:
            raise os_error(errno.ENOTDIR)
        return inode

    def directory_to_change(self, number: int) -> Inode:
        """Raises OSError: ENOTDIR, ENOENT for a removed one, EPERM for an immutable one."""
        directory = self.directory(number)
        if directory.links == 0:
            raise os_error(errno.ENOENT)
        if directory.flags & layout.INODE_FLAG_IMMUTABLE:
            raise os_error(errno.EPERM)
        return directory

    # Making.

    def create(
        self, directory: Inode, name: bytes, mode: int, uid: int, gid: int, fill: Callable[[Inode], None]
    ) -> Inode:
        """As `place`, but with the group and the access control lists that the directory hands down."""
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0

        def fill_and_inherit(inode: Inode) -> None:
            fill(inode)
            self._inherit_lists(directory, inode)

        return self.place(directory, name, mode, uid, gid, fill_and_inherit)

    def make_nameless(self, directory: Inode, mode: int, uid: int, gid: int) -> Inode:
        """A new inode for an existing name, with what the directory hands down. Raises OSError (ENOSPC)."""
        gid = directory.gid if directory.mode & stat.S_ISGID else gid
        inode = self._inodes.create(directory, mode, uid, gid)
        try:
            self._inherit_lists(directory, inode)
        except BaseException:
            self.destroy(inode)
            raise
        return inode

    def _inherit_lists(self, directory: Inode, inode: Inode) -> None:
        default = None if stat.S_ISLNK(inode.mode) else self._xattrs.default_acl(directory)
        if default is not None:
            self._xattrs.inherit(inode, default)

    def place(
        self, directory: Inode, name: bytes, mode: int, uid: int, gid: int, fill: Callable[[Inode], None]
    ) -> Inode:
        """A new inode under a new name, given its content by `fill`; nothing is left of it when any step fails."""
        self._check_absent(directory, name)
        is_directory = stat.S_ISDIR(mode)
        if is_directory:
            self.check_subdirectory_fits(directory)
        inode = self._inodes.create(directory, mode, uid, gid)
        try:
            fill(inode)
            self.directories.add(directory, name, inode.number, mode)
        except BaseException:
            self.destroy(inode)
            raise
        inode.links = 2 if is_directory else 1
        if is_directory:
            self.count_subdirectory(directory)
        directory.changed()
        return inode

    def fill_symlink(self, inode: Inode, target: bytes) -> None:
        """Give a new symbolic link its target: in the inode when it is short, else in a block."""
        if len(target) < layout.FAST_SYMLINK_BYTES:
            inode.map = None
            inode.flags &= ~layout.INODE_FLAG_EXTENTS
            inode.pointers = target.ljust(60, b"\0")
        else:
            runs = self._allocator.allocate(1)
            try:
                self._maps.add(inode, [Segment(0, 1, runs[0].physical, True)])
            except BaseException:
                self._allocator.undo(runs)
                raise
            self._fs.cache.write(runs[0].physical, target.ljust(self._fs.block_bytes, b"\0"))
        inode.size = len(target)

    def link(self, target: Inode, directory: Inode, name: bytes) -> None:
        self._check_absent(directory, name)
        if target.is_directory or target.flags & (layout.INODE_FLAG_IMMUTABLE | layout.INODE_FLAG_APPEND):
            raise os_error(errno.EPERM)
        if target.links == 0:
            raise os_error(errno.ENOENT)
        if target.links >= layout.LINK_MAX:
            raise os_error(errno.EMLINK)
        self.directories.add(directory, name, target.number, target.mode)
        target.links += 1
        target.set_times(ctime_ns=self._fs.now_ns())
        directory.changed()

    # Removing.

    def unlink(self, directory: Inode, name: bytes) -> None:
        if name in (b".", b".."):
            raise os_error(errno.EISDIR)
        inode = self.entry(directory, name)
        self.directories.check_whole(directory, name)
        if inode.is_directory:
            raise os_error(errno.EISDIR)
        check_removable(directory, inode)
        self.prepare_to_drop(inode)
        with self._guard.committing():
            self.directories.remove(directory, name)
            directory.changed()
            self.drop_link(inode)

    def remove_directory(self, directory: Inode, name: bytes) -> None:
        if name in (b".", b".."):
            raise os_error(errno.EINVAL if name == b"." else errno.ENOTEMPTY)
        inode = self.entry(directory, name)
        self.directories.check_whole(directory, name)
        if not inode.is_directory:
            raise os_error(errno.ENOTDIR)
        check_removable(directory, inode)
        if not self.directories.is_empty(inode):
            raise os_error(errno.ENOTEMPTY)
        self.prepare_to_drop(inode)
        with self._guard.committing():
            self.directories.remove(directory, name)
            self.uncount_subdirectory(directory)
            directory.changed()
            self.drop_link(inode)

    def prepare_to_drop(self, inode: Inode) -> None:
        """Read what freeing an inode will take, while an error does no harm yet."""
        if inode.links > 1 and not inode.is_directory:
            return
        runs = self._maps.runs(inode) if inode.has_map else []
        if inode.xattr_block:
            runs.append(Run(inode.xattr_block, 1))
        self._allocator.prepare_to_free(runs, inode.number)

    def drop_link(self, inode: Inode) -> None:
        """One name less; a directory has only one."""
        inode.set_times(ctime_ns=self._fs.now_ns())
        inode.links = 0 if inode.is_directory else max(inode.links - 1, 0)
        if inode.links:
            return
        if self._inodes.is_pinned(inode):
            self.orphans.add(inode)
        else:
            self.destroy(inode)

    def destroy(self, inode: Inode) -> None:
        """Free an inode with all it has."""
        with self._guard.committing():
            if inode.is_directory:
                self.directories.forget(inode)
            self._xattrs.release(inode)
            self._maps.release(inode)
            self._inodes.discard(inode)

    def release_orphan(self, number: int) -> None:
        """Free an inode that was released, if it has no name."""
        orphan = self.orphans.find(number)
        if orphan is not None:
            self.orphans.remove(orphan)
            self.destroy(orphan)

    def _check_absent(self, directory: Inode, name: bytes) -> None:
        check_name(name)
        if name in (b".", b"..") or self.directories.find(directory, name):
            raise os_error(errno.EEXIST, name)

    # Directory link counts: with dir_nlink, an indexed directory that has too many counts as 1 and stays so.

    def _counts_loosely(self, directory: Inode) -> bool:
        return self._fs.has_dir_nlink and bool(directory.flags & layout.INODE_FLAG_INDEX)

    def check_subdirectory_fits(self, directory: Inode) -> None:
        if directory.links >= layout.LINK_MAX and not self._counts_loosely(directory):
            raise os_error(errno.EMLINK)

    def count_subdirectory(self, directory: Inode) -> None:
        if directory.links == 1 or directory.links >= layout.LINK_MAX:
            directory.links = 1
        else:
            directory.links += 1

    def uncount_subdirectory(self, directory: Inode) -> None:
        if directory.links > 2:
            directory.links -= 1


def check_name(name: bytes) -> None:
    if len(name) > layout.NAME_MAX:
        raise os_error(errno.ENAMETOOLONG)
    if not name or b"/" in name or b"\0" in name:
        raise os_error(errno.EINVAL)


def check_removable(directory: Inode, inode: Inode) -> None:
    if directory.flags & layout.INODE_FLAG_APPEND or inode.flags & (
        layout.INODE_FLAG_IMMUTABLE | layout.INODE_FLAG_APPEND
    ):
        raise os_error(errno.EPERM)
