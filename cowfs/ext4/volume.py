"""A mounted ext4 volume: the `FileTree` over a block device, in process, without root.

What holds what:

    Volume            names, links, attributes: the rules a kernel file system follows
    ├── Directories   blocks of entries and their hash index
    ├── FileData      contents, straight to the device
    ├── ExtendedAttributes, Orphans
    ├── InodeTable, FileMaps    inodes and block maps in memory
    ├── Allocator     free blocks and inode numbers
    └── Filesystem    libext2fs: superblock, groups, bitmaps, inode table, over a MetadataCache

Durability. All metadata stays in memory until `sync` (or until the cache is full), file data goes to the device at
once, and the device is a disk with a volatile cache. There is no journal of our own: while a volume has unsynced
changes on the device it is marked as not cleanly unmounted, and after a crash it needs a check before it mounts.

Failure. An operation that cannot be done leaves everything as it was. When an error strikes in the middle of a
change (the device cannot be read any more), the volume turns read-only, and nothing more is written to it: the
device holds what the last sync put there.

Access times are not kept up (as with noatime). Blocks reserved for root are given to everyone; `statistics` tells.
"""

from __future__ import annotations

import errno
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cowfs.blockdev import BlockDevice, Buffer
from cowfs.errors import FilesystemError
from cowfs.ext4 import layout
from cowfs.ext4.allocator import Allocator
from cowfs.ext4.block_map import Segment
from cowfs.ext4.data import FileData
from cowfs.ext4.directory import Directories
from cowfs.ext4.directory_block import Entry
from cowfs.ext4.file_map import FileMaps
from cowfs.ext4.filesystem import Filesystem, os_error
from cowfs.ext4.inodes import Inode, InodeTable
from cowfs.ext4.interface import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    ROOT_INODE,
    Attributes,
    DirectoryEntry,
    FileTree,
    TreeStatistics,
)
from cowfs.ext4.orphans import Orphans
from cowfs.ext4.xattrs import ExtendedAttributes


class Volume:
    """An open volume. Not safe for use from several threads. The device stays the caller's."""

    def __init__(self, fs: Filesystem) -> None:
        self._fs = fs
        self._allocator = Allocator(fs, self.sync)
        self._maps = FileMaps(fs, self._allocator)
        self._inodes = InodeTable(fs, self._allocator, self._maps.store)
        self._directories = Directories(fs, self._allocator, self._maps)
        self._data = FileData(fs, self._allocator, self._maps)
        self._xattrs = ExtendedAttributes(fs, self._inodes)
        self._orphans = Orphans(fs, self._inodes)
        self._failure: BaseException | None = None
        self._closed = False
        self._overhead_blocks = self._count_overhead()

    @classmethod
    def open(cls, device: BlockDevice, *, read_only: bool = False, now_ns: Callable[[], int] = time.time_ns) -> Volume:
        """Open the ext4 on a device, and work off the orphans of the last mount.

        Raises:
            FilesystemError: no ext4 (EINVAL), features that are not supported (EOPNOTSUPP, or EROFS for writing),
                not cleanly unmounted or damaged (EUCLEAN); see `cowfs.ext4.fsck.prepare_for_mount`.
            MissingRequirement: libext2fs is not usable here.
        """
        fs = Filesystem(device, read_only=read_only, now_ns=now_ns)
        try:
            volume = cls(fs)
            if not read_only:
                volume._orphans.process(volume._finish_orphan)
            volume.attributes(ROOT_INODE)
        except BaseException:
            fs.free()
            raise
        return volume

    @property
    def read_only(self) -> bool:
        return self._fs.read_only or self._failure is not None

    @property
    def uuid(self) -> bytes:
        """The volume's 16 bytes."""
        return self._fs.uuid

    # Looking.

    def lookup(self, parent: int, name: bytes) -> Attributes:
        directory = self._directory(parent)
        if name == b".":
            return directory.attributes
        if name == b"..":
            return self._inodes.get(self._directories.parent(directory)).attributes
        _check_name(name)
        return self._inodes.get(self._entry(directory, name).inode).attributes

    def attributes(self, inode: int) -> Attributes:
        return self._inodes.get(inode).attributes

    def list_directory(self, inode: int, cookie: int = 0) -> Iterator[DirectoryEntry]:
        directory = self._directory(inode)
        if directory.links == 0:
            return
        for following, entry in self._directories.walk(directory, cookie):
            mode = layout.file_type_mode(entry.file_type) or stat.S_IFMT(self._inodes.get(entry.inode).mode)
            yield DirectoryEntry(entry.name, entry.inode, mode, following)

    def read_symlink(self, inode: int) -> bytes:
        link = self._inodes.get(inode)
        if not stat.S_ISLNK(link.mode):
            raise os_error(errno.EINVAL)
        if link.is_fast_symlink:
            return link.pointers[: link.size]
        block = self._maps.load(link).block(0)
        if block < 0 or link.size >= self._fs.block_bytes:
            raise self._fs.damaged(f"symbolic link {inode} has no target")
        return self._fs.cache.read(block)[: link.size]

    def read(self, inode: int, offset: int, length: int) -> bytes:
        return self._data.read(self._regular(inode), offset, length)

    def statistics(self) -> TreeStatistics:
        fs = self._fs
        reserved: int = fs.c.ext2fs_r_blocks_count(fs.super)
        free = self._allocator.free_blocks
        return TreeStatistics(
            block_bytes=fs.block_bytes,
            blocks=fs.blocks - self._overhead_blocks,
            blocks_free=free,
            blocks_available=max(free - reserved, 0),
            inodes=fs.inodes,
            inodes_free=fs.super.s_free_inodes_count,
            name_max=layout.NAME_MAX,
        )

    # Making.

    def make_node(self, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> Attributes:
        kind = stat.S_IFMT(mode)
        if kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
            raise os_error(errno.EINVAL)

        def fill(inode: Inode) -> None:
            if kind in (stat.S_IFCHR, stat.S_IFBLK):
                inode.raw.i_block[0], inode.raw.i_block[1] = layout.encode_device(rdev)

        return self._create(parent, name, mode, uid, gid, fill)

    def make_directory(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Attributes:
        def fill(inode: Inode) -> None:
            self._directories.initialise(inode, parent)

        return self._create(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), uid, gid, fill)

    def make_symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Attributes:
        if not target or b"\0" in target:
            raise os_error(errno.EINVAL)
        if len(target) >= min(self._fs.block_bytes, 4096):
            raise os_error(errno.ENAMETOOLONG)
        return self._create(
            parent, name, stat.S_IFLNK | 0o777, uid, gid, lambda inode: self._fill_symlink(inode, target)
        )

    def _fill_symlink(self, inode: Inode, target: bytes) -> None:
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

    def _create(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, fill: Callable[[Inode], None]
    ) -> Attributes:
        """A new inode under a new name; nothing is left of it when any step fails."""
        self._begin_change()
        directory = self._directory_to_change(parent)
        _check_name(name)
        self._check_absent(directory, name)
        is_directory = stat.S_ISDIR(mode)
        if is_directory:
            self._check_subdirectory_fits(directory)
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            mode |= stat.S_ISGID if is_directory else 0
        default = None if stat.S_ISLNK(mode) else self._xattrs.default_acl(directory)
        inode = self._inodes.create(directory, mode, uid, gid)
        try:
            fill(inode)
            if default is not None:
                self._xattrs.inherit(inode, default)
            self._directories.add(directory, name, inode.number, mode)
        except BaseException:
            self._destroy(inode)
            raise
        inode.links = 2 if is_directory else 1
        if is_directory:
            self._count_subdirectory(directory)
        directory.changed()
        return inode.attributes

    def link(self, inode: int, parent: int, name: bytes) -> Attributes:
        self._begin_change()
        target = self._inodes.get(inode)
        directory = self._directory_to_change(parent)
        _check_name(name)
        self._check_absent(directory, name)
        if target.is_directory or target.flags & (layout.INODE_FLAG_IMMUTABLE | layout.INODE_FLAG_APPEND):
            raise os_error(errno.EPERM)
        if target.links == 0:
            raise os_error(errno.ENOENT)
        if target.links >= layout.LINK_MAX:
            raise os_error(errno.EMLINK)
        self._directories.add(directory, name, target.number, target.mode)
        target.links += 1
        target.set_times(ctime_ns=self._fs.now_ns())
        directory.changed()
        return target.attributes

    # Removing.

    def unlink(self, parent: int, name: bytes) -> None:
        self._begin_change()
        directory = self._directory_to_change(parent)
        if name in (b".", b".."):
            raise os_error(errno.EISDIR)
        _check_name(name)
        inode = self._inodes.get(self._entry(directory, name).inode)
        if inode.is_directory:
            raise os_error(errno.EISDIR)
        _check_removable(directory, inode)
        with self._committing():
            self._directories.remove(directory, name)
            directory.changed()
            self._drop_link(inode)

    def remove_directory(self, parent: int, name: bytes) -> None:
        self._begin_change()
        directory = self._directory_to_change(parent)
        if name in (b".", b".."):
            raise os_error(errno.EINVAL if name == b"." else errno.ENOTEMPTY)
        _check_name(name)
        inode = self._inodes.get(self._entry(directory, name).inode)
        if not inode.is_directory:
            raise os_error(errno.ENOTDIR)
        _check_removable(directory, inode)
        if not self._directories.is_empty(inode):
            raise os_error(errno.ENOTEMPTY)
        with self._committing():
            self._directories.remove(directory, name)
            self._uncount_subdirectory(directory)
            directory.changed()
            self._drop_link(inode)

    def _drop_link(self, inode: Inode) -> None:
        """One name less; a directory has only one."""
        inode.set_times(ctime_ns=self._fs.now_ns())
        inode.links = 0 if inode.is_directory else max(inode.links - 1, 0)
        if inode.links:
            return
        if self._inodes.is_pinned(inode):
            self._orphans.add(inode)
        else:
            self._destroy(inode)

    def _destroy(self, inode: Inode) -> None:
        """Free an inode with all it has."""
        with self._committing():
            if inode.is_directory:
                self._directories.forget(inode)
            self._xattrs.release(inode)
            self._maps.release(inode)
            self._inodes.discard(inode)

    def _finish_orphan(self, inode: Inode) -> None:
        if inode.links == 0:
            self._destroy(inode)
        elif inode.is_regular:
            self._data.resize(inode, inode.size)

    def open_inode(self, inode: int) -> None:
        self._inodes.pin(self._inodes.get(inode))

    def release_inode(self, inode: int) -> None:
        if not self._inodes.unpin(inode) or self.read_only:
            return
        orphan = self._orphans.find(inode)
        if orphan is not None:
            self._orphans.remove(orphan)
            self._destroy(orphan)

    # Renaming.

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        self._begin_change()
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise os_error(errno.EINVAL)
        source, target = self._directory_to_change(parent), self._directory_to_change(new_parent)
        for one in (name, new_name):
            if one in (b".", b".."):
                raise os_error(errno.EBUSY)
            _check_name(one)
        moved = self._inodes.get(self._entry(source, name).inode)
        there = self._directories.find(target, new_name)
        replaced = self._inodes.get(there.inode) if there else None
        if flags == RENAME_NOREPLACE and replaced is not None:
            raise os_error(errno.EEXIST)
        if flags == RENAME_EXCHANGE and replaced is None:
            raise os_error(errno.ENOENT)
        _check_removable(source, moved)
        if moved.is_directory and source is not target:
            self._check_not_below(moved, target)
        if replaced is moved:
            return
        if replaced is not None:
            _check_removable(target, replaced)
        if flags == RENAME_EXCHANGE:
            assert replaced is not None
            self._exchange(source, name, moved, target, new_name, replaced)
        elif replaced is not None:
            self._move_over(source, name, moved, target, new_name, replaced)
        else:
            self._move(source, name, moved, target, new_name)

    def _move(self, source: Inode, name: bytes, moved: Inode, target: Inode, new_name: bytes) -> None:
        if moved.is_directory and source is not target:
            self._check_subdirectory_fits(target)
        self._directories.add(target, new_name, moved.number, moved.mode)
        with self._committing():
            self._directories.remove(source, name)
            self._hang_over(moved, source, target)
            self._note_move(source, target, moved)

    def _move_over(
        self, source: Inode, name: bytes, moved: Inode, target: Inode, new_name: bytes, replaced: Inode
    ) -> None:
        if moved.is_directory and not replaced.is_directory:
            raise os_error(errno.ENOTDIR)
        if replaced.is_directory:
            if not moved.is_directory:
                raise os_error(errno.EISDIR)
            if not self._directories.is_empty(replaced):
                raise os_error(errno.ENOTEMPTY)
        with self._committing():
            self._directories.replace(target, new_name, moved.number, moved.mode)
            self._directories.remove(source, name)
            if replaced.is_directory:
                self._uncount_subdirectory(target)
            self._hang_over(moved, source, target)
            self._note_move(source, target, moved)
            self._drop_link(replaced)

    def _exchange(self, source: Inode, name: bytes, moved: Inode, target: Inode, new_name: bytes, other: Inode) -> None:
        if source is not target:
            if other.is_directory:
                self._check_not_below(other, source)
            if moved.is_directory and not other.is_directory:
                self._check_subdirectory_fits(target)
            if other.is_directory and not moved.is_directory:
                self._check_subdirectory_fits(source)
        with self._committing():
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
            self._uncount_subdirectory(source)
            self._count_subdirectory(target)

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
            number = self._directories.parent(self._directory(number))

    # Attributes and contents.

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
        self._begin_change()
        target = self._inodes.get(inode)
        if target.flags & layout.INODE_FLAG_IMMUTABLE:
            raise os_error(errno.EPERM)
        if size_bytes is not None:
            self._resize(target, size_bytes)
        if uid is not None:
            target.uid = uid
        if gid is not None:
            target.gid = gid
        if mode is not None:
            target.mode = stat.S_IFMT(target.mode) | stat.S_IMODE(mode)
            self._xattrs.follow_mode(target)
        now = self._fs.now_ns() if ctime_ns is None else ctime_ns
        target.set_times(atime_ns=atime_ns, mtime_ns=mtime_ns, ctime_ns=now)
        return target.attributes

    def _resize(self, inode: Inode, size: int) -> None:
        if inode.is_directory:
            raise os_error(errno.EISDIR)
        if not inode.is_regular or size < 0:
            raise os_error(errno.EINVAL)
        if inode.flags & layout.INODE_FLAG_APPEND:
            raise os_error(errno.EPERM)
        self._data.resize(inode, size)

    def write(self, inode: int, offset: int, data: Buffer) -> int:
        self._begin_change()
        target = self._regular(inode)
        appending = target.flags & layout.INODE_FLAG_APPEND
        if target.flags & layout.INODE_FLAG_IMMUTABLE or (appending and offset < target.size):
            raise os_error(errno.EPERM)
        if offset < 0:
            raise os_error(errno.EINVAL)
        if len(data):
            self._data.write(target, offset, data)
        return len(data)

    def get_xattr(self, inode: int, name: bytes) -> bytes:
        return self._xattrs.get(self._inodes.get(inode), name)

    def list_xattrs(self, inode: int) -> list[bytes]:
        return self._xattrs.names(self._inodes.get(inode))

    def set_xattr(self, inode: int, name: bytes, value: bytes, flags: int = 0) -> None:
        self._begin_change()
        self._xattrs.set(self._mutable(inode), name, value, flags)

    def remove_xattr(self, inode: int, name: bytes) -> None:
        self._begin_change()
        self._xattrs.remove(self._mutable(inode), name)

    def has_default_acl(self, inode: int) -> bool:
        """Whether new entries of a directory inherit a list, so that the umask does not count."""
        return self._xattrs.default_acl(self._directory(inode)) is not None

    # Writing down.

    def sync(self) -> None:
        if self._fs.read_only:
            return
        self._check_usable()
        self._write_metadata()
        freed = self._allocator.release_freed()
        self._allocator.write_bitmaps()
        self._fs.flush_superblock()
        self._fs.cache.write_out()
        self._fs.device.flush()
        self._allocator.discard(freed)

    def _write_metadata(self) -> None:
        self._inodes.flush_all()

    def quiesce(self) -> None:
        """Sync, and mark the device as cleanly unmounted until the next change: for a snapshot taken now."""
        if self._fs.read_only:
            return
        self.sync()
        self._fs.mark_clean()

    def trim(self) -> int:
        """Discard all free blocks into the device; returns how many bytes that are."""
        self._begin_change()
        self.sync()
        runs = self._allocator.free_runs()
        self._allocator.discard(runs)
        return sum(run.length for run in runs) * self._fs.block_bytes

    def close(self) -> None:
        """Free open orphans, sync, and mark the volume as cleanly unmounted. A second close does nothing.

        Raises what stopped the volume earlier, or what stops the sync now; it is closed all the same.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if not self._fs.read_only:
                if self._failure is None:
                    for orphan in self._orphans.all():
                        self._orphans.remove(orphan)
                        self._destroy(orphan)
                self.quiesce()
        finally:
            self._fs.free()

    # Checks.

    def _begin_change(self) -> None:
        if self._fs.read_only:
            raise os_error(errno.EROFS)
        self._check_usable()
        if self._fs.cache.overfull:
            self._fs.cache.write_out()

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise FilesystemError(
                f"the volume is read-only since an error ({self._failure}); unmount and check it", errno=errno.EROFS
            )

    @contextmanager
    def _committing(self) -> Iterator[None]:
        """Around changes of which each only makes sense with the others: an error in between ends all writing."""
        try:
            yield
        except BaseException as error:
            if self._failure is None:
                self._failure = error
            raise

    def _directory(self, number: int) -> Inode:
        inode = self._inodes.get(number)
        if not inode.is_directory:
            raise os_error(errno.ENOTDIR)
        return inode

    def _directory_to_change(self, number: int) -> Inode:
        directory = self._directory(number)
        if directory.links == 0:
            raise os_error(errno.ENOENT)
        if directory.flags & layout.INODE_FLAG_IMMUTABLE:
            raise os_error(errno.EPERM)
        return directory

    def _regular(self, number: int) -> Inode:
        inode = self._inodes.get(number)
        if not inode.is_regular:
            raise os_error(errno.EISDIR if inode.is_directory else errno.EINVAL)
        return inode

    def _mutable(self, number: int) -> Inode:
        inode = self._inodes.get(number)
        if inode.flags & (layout.INODE_FLAG_IMMUTABLE | layout.INODE_FLAG_APPEND):
            raise os_error(errno.EPERM)
        return inode

    def _entry(self, directory: Inode, name: bytes) -> Entry:
        entry = self._directories.find(directory, name) if directory.links else None
        if entry is None:
            raise os_error(errno.ENOENT, name)
        return entry

    def _check_absent(self, directory: Inode, name: bytes) -> None:
        if name in (b".", b"..") or self._directories.find(directory, name):
            raise os_error(errno.EEXIST, name)

    # Directory link counts: with dir_nlink, an indexed directory that has too many counts as 1 and stays so.

    def _counts_loosely(self, directory: Inode) -> bool:
        return self._fs.has_dir_nlink and bool(directory.flags & layout.INODE_FLAG_INDEX)

    def _check_subdirectory_fits(self, directory: Inode) -> None:
        if directory.links >= layout.LINK_MAX and not self._counts_loosely(directory):
            raise os_error(errno.EMLINK)

    def _count_subdirectory(self, directory: Inode) -> None:
        if directory.links == 1 or directory.links >= layout.LINK_MAX:
            directory.links = 1
        else:
            directory.links += 1

    def _uncount_subdirectory(self, directory: Inode) -> None:
        if directory.links > 2:
            directory.links -= 1

    def _count_overhead(self) -> int:
        """Blocks that can never hold data, as the kernel's statfs leaves them out."""
        fs, sb = self._fs, self._fs.super
        with_super = sum(1 for group in range(fs.groups) if fs.c.ext2fs_bg_has_super(fs.fs, group))
        overhead: int = fs.first_data_block
        overhead += fs.groups * (2 + fs.fs.inode_blocks_per_group)
        overhead += with_super * (1 + fs.fs.desc_blocks + sb.s_reserved_gdt_blocks)
        if sb.s_feature_compat & layout.COMPAT_HAS_JOURNAL and sb.s_journal_inum:
            overhead += self._inodes.load(sb.s_journal_inum).size // fs.block_bytes
        return overhead


def _check_name(name: bytes) -> None:
    if len(name) > layout.NAME_MAX:
        raise os_error(errno.ENAMETOOLONG)
    if not name or b"/" in name or b"\0" in name:
        raise os_error(errno.EINVAL)


def _check_removable(directory: Inode, inode: Inode) -> None:
    if directory.flags & layout.INODE_FLAG_APPEND or inode.flags & (
        layout.INODE_FLAG_IMMUTABLE | layout.INODE_FLAG_APPEND
    ):
        raise os_error(errno.EPERM)


if TYPE_CHECKING:
    _: type[FileTree] = Volume
