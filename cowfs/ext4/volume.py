"""A mounted ext4 volume: the `ServedTree` over a block device, in process, without root.

What holds what:

    Volume                  inode numbers and attributes; syncing
    ├── Names, Renames      the rules of a kernel file system, over
    │   ├── Directories     blocks of entries and their hash index
    │   └── Orphans         what is open without a name
    ├── FileData            contents, straight to the device
    ├── InlineData          contents and entries that are in their inode
    ├── ExtendedAttributes  also access control lists
    ├── KeptBlocks          what a limit keeps from everyone
    ├── InodeTable, FileMaps    inodes and block maps in memory
    ├── Allocator           free blocks and inode numbers
    └── Filesystem          libext2fs: superblock, groups, bitmaps, inode table, over a MetadataCache

Durability. All metadata stays in memory until `sync` (or until there is much of it), file data goes to the device at
once, and the device is a disk with a volatile cache. A sync commits the metadata to ext4's journal, as one transaction:
so whatever the moment of a crash, the next to open the volume, be it we, the kernel or e2fsck, finds each operation
done or not done, and everything that was synced. Transactions end between operations. Without a journal a volume is
marked as not cleanly unmounted while it has changes on the device, and after a crash it needs a check before it mounts.

Failure. An operation that cannot be done leaves everything as it was. When an error strikes in the middle of a
change (the device cannot be read any more), the volume turns read-only, and nothing more is written to it: the
device holds what the last sync put there.

Access times are not kept up (as with noatime). Blocks reserved for root are given to everyone, as `statistics` shows.
"""

from __future__ import annotations

import errno
import functools
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from cowfs.blockdev import BlockDevice, Buffer
from cowfs.errors import FilesystemError, UnreadableRoot
from cowfs.ext4.files.data import FileData
from cowfs.ext4.files.file_map import FileMaps
from cowfs.ext4.files.guard import WriteGuard
from cowfs.ext4.files.inline import InlineData
from cowfs.ext4.files.inodes import Inode, InodeTable
from cowfs.ext4.files.kept_blocks import KeptBlocks
from cowfs.ext4.files.tables import InodeTables
from cowfs.ext4.files.xattrs import ExtendedAttributes
from cowfs.ext4.format import layout
from cowfs.ext4.format.directory_block import Entry
from cowfs.ext4.journal.journal import Journal
from cowfs.ext4.journal.journal_file import JournalFile
from cowfs.ext4.journal.journal_format import DamagedJournal
from cowfs.ext4.journal.recovery import RecoveredDevice, readable, recover, recovered
from cowfs.ext4.library.block_runs import Run
from cowfs.ext4.library.filesystem import Filesystem, os_error
from cowfs.ext4.names.names import Names
from cowfs.ext4.names.renames import Renames
from cowfs.ext4.space.allocator import Allocator
from cowfs.ext4.space.block_map import Segment
from cowfs.filetree import (
    ROOT_INODE,
    Attributes,
    DirectoryEntry,
    ServedTree,
    TreeStatistics,
)
from cowfs.forking import not_inherited

_PATH_MAX = 4096
_TOUCHED_INODES_MAX = 128  # of a volume without a journal: all at its end would hold others up
_DAMAGED_INODE = (errno.ESTALE, errno.EUCLEAN, errno.EOPNOTSUPP)


_P = ParamSpec("_P")
_R = TypeVar("_R")


def _changing(
    operation: Callable[Concatenate[Volume, _P], _R],
) -> Callable[Concatenate[Volume, _P], _R]:
    """An operation that changes the volume. When it finds no space, it is tried again with what waits for a sync."""

    @functools.wraps(operation)
    def change(self: Volume, /, *arguments: _P.args, **names: _P.kwargs) -> _R:
        self._guard.begin_change()
        try:
            return operation(self, *arguments, **names)
        except OSError as error:
            if error.errno != errno.ENOSPC or not self._allocator.is_waiting or self.read_only:
                raise
        self.sync()
        return operation(self, *arguments, **names)

    return change


class Volume:
    """An open volume. Not safe for use from several threads. The device stays the caller's.

    `problems`: what is wrong with a volume that is open to rescue what can be read. `from_journal`: (begin, end) of the
    bytes that are read from the journal, in a volume that is read-only; the device may have others there.
    """

    def __init__(self, fs: Filesystem, problems: Sequence[str] = ()) -> None:
        self.problems = problems
        self.from_journal: Sequence[tuple[int, int]] = ()
        self._fs = fs
        self._allocator = Allocator(fs)
        self._maps = FileMaps(fs, self._allocator)
        self._inodes = InodeTable(fs, self._allocator, self._maps.store)
        self._xattrs = ExtendedAttributes(fs, self._inodes)
        self._inline = InlineData(fs, self._allocator, self._maps, self._xattrs)
        self._data = FileData(fs, self._allocator, self._maps, self._inline)
        self._guard = WriteGuard(fs, self._make_room)
        self._names = Names(fs, self._guard, self._allocator, self._maps, self._inodes, self._xattrs, self._inline)
        self._renames = Renames(fs, self._guard, self._inodes, self._names)
        self._journal: Journal | None = None
        self._closed = False
        self._is_trusted = True
        self._overhead_blocks = self._count_overhead()
        self._kept = KeptBlocks(fs, self._allocator, self._maps, self._inodes)
        not_inherited(self, f"the file system of {fs.name}")

    @classmethod
    def open(
        cls,
        device: BlockDevice,
        *,
        read_only: bool = False,
        journaled: bool = True,
        rescue: bool = False,
        name: str = "a volume",
        now_ns: Callable[[], int] = time.time_ns,
    ) -> Volume:
        """Open the ext4 on a device: replay its journal, and work off the orphans of the last mount.

        With `read_only` nothing is written: what is in the journal shows all the same.

        Args:
            journaled: commit changes to the journal, where there is one. Without, all that is written is written once:
                for making a volume that is of no use if it is not finished.
            rescue: with `read_only`: open what is damaged too, to read what can be read; `problems` says what is wrong.
            name: of the volume, in what is logged about damage.

        Raises:
            FilesystemError: no ext4 (EINVAL), features that are not supported (EOPNOTSUPP, or EROFS for writing),
                not cleanly unmounted or damaged (EUCLEAN); see `cowfs.ext4.tools.fsck.prepare_for_mount`.
            MissingRequirement: libext2fs is not usable here.
        """
        assert read_only or not rescue
        problems: list[str] = []
        if rescue:
            device, problems = readable(device)
        elif read_only:
            device = recovered(device)
        else:
            recover(device)
        fs = Filesystem(device, read_only=read_only, now_ns=now_ns, name=name, rescue=rescue)
        try:
            volume = cls(fs, problems)
            if isinstance(device, RecoveredDevice):
                volume.from_journal = tuple(device.from_journal())
            if not read_only:
                volume._protect_journal(use=journaled)
                volume._names.orphans.process(volume._names.prepare_to_drop, volume._finish_orphan)
            volume._check_root()
        except BaseException:
            fs.free()
            raise
        return volume

    def _check_root(self) -> None:
        try:
            is_directory = self._inodes.get(ROOT_INODE).is_directory
        except OSError as error:
            if error.errno not in _DAMAGED_INODE:
                raise
            reason = error.message if isinstance(error, FilesystemError) else "it is marked as not in use"
            raise _damaged_root(f"the root directory, inode {ROOT_INODE}, cannot be read: {reason}") from error
        if not is_directory:
            raise _damaged_root(f"the root, inode {ROOT_INODE}, is not a directory")

    def _protect_journal(self, *, use: bool) -> None:
        """Let nothing be written where the journal is, but for commits, if it is used."""
        fs = self._fs
        if not JournalFile.is_in(fs):
            return
        with suppress(DamagedJournal):  # or of a kind that we do not write: then as without one
            file = JournalFile(fs)
            fs.descriptors.protect(file.runs)
            if use:
                self._journal = Journal(fs, file)
                fs.set_journaled(True)

    @property
    def read_only(self) -> bool:
        return self._guard.read_only

    @property
    def has_changes(self) -> bool:
        """Whether anything in it was changed, or tried to be, since it was opened."""
        return self._guard.has_changes

    @property
    def uuid(self) -> bytes:
        """The volume's 16 bytes."""
        return self._fs.uuid

    # Memory.

    @property
    def uses(self) -> int:
        """A count that grows whenever the volume is used."""
        return self._inodes.uses

    def limit_memory(self, share: float) -> None:
        """Cache only this part of what a volume caches that is open alone: what several may keep is for all of them."""
        self._fs.cache.limit(share)
        self._inodes.limit(share)

    # Looking.

    def lookup(self, parent: int, name: bytes) -> Attributes:
        found = self.find_name(parent, name)
        if found is None:
            raise os_error(errno.ENOENT, name)
        return found

    def find_name(self, parent: int, name: bytes) -> Attributes | None:
        found = self._names.find(self._names.directory(parent), name)
        return None if found is None else found.attributes

    def attributes(self, inode: int) -> Attributes:
        return self._inodes.get(inode).attributes

    def list_directory(self, inode: int, cookie: int = 0) -> Iterator[DirectoryEntry]:
        directory = self._names.directory(inode)
        if directory.links == 0:
            return
        for following, entry in self._names.directories.walk(directory, cookie):
            yield DirectoryEntry(entry.name, entry.inode, self.entry_mode(entry), following)

    def entry_mode(self, entry: Entry) -> int:
        """The file type bits of what an entry leads to; 0 when the entry does not say, and the inode is damaged."""
        known = layout.file_type_mode(entry.file_type)
        if known:
            return known
        try:
            return stat.S_IFMT(self._names.inode_of(entry).mode)
        except FilesystemError:
            return 0

    def read_symlink(self, inode: int) -> bytes:
        link = self._inodes.get(inode)
        if not stat.S_ISLNK(link.mode):
            raise os_error(errno.EINVAL)
        target, _, _ = self._link_content(link).partition(b"\0")  # as the kernel takes it, whatever the size says
        return target

    def _link_content(self, link: Inode) -> bytes:
        if link.is_inline:
            return self._inline.content(link)
        if link.is_fast_symlink:
            return link.pointers[: link.size]
        block = self._maps.load(link).block(0)
        if block < 0 or link.size >= self._fs.block_bytes:
            raise self._fs.damaged(f"symbolic link {link.number} has no target")
        return self._fs.cache.read(block)[: link.size]

    def read(self, inode: int, offset: int, length: int) -> bytes:
        return self._data.read(self._regular(inode), offset, length)

    def statistics(self) -> TreeStatistics:
        fs = self._fs
        if fs.closed:
            raise os_error(errno.ESHUTDOWN)
        reserved: int = fs.c.ext2fs_r_blocks_count(fs.super)
        free = self._allocator.free_blocks
        return TreeStatistics(
            block_bytes=fs.block_bytes,
            blocks=max(fs.blocks - self._overhead_blocks - self._kept.count, free),
            blocks_free=free,
            blocks_available=max(free - reserved, 0),
            inodes=fs.inodes,
            inodes_free=self._allocator.free_inodes,
            name_max=layout.NAME_MAX,
        )

    def limit_space(self, size_bytes: int) -> None:
        """Let files and what the volume needs for them take so much at most; a limit lasts until it is lifted.

        Raises:
            OSError (ENOSPC): they take more already; the limit is as before.
        """
        self.lift_limit()
        self.sync()
        found = self.statistics()
        free = size_bytes // found.block_bytes - (found.blocks - found.blocks_free)
        if free < 0:
            raise os_error(errno.ENOSPC)
        if free < found.blocks_free:
            self._keep_blocks(found.blocks_free - free)

    @_changing
    def _keep_blocks(self, count: int) -> None:
        self._kept.keep(count)

    @_changing
    def lift_limit(self) -> None:
        """Let files take all of the volume."""
        self._kept.release()

    # Looking closer, at how things lie on the device.

    def inode_tables(self) -> InodeTables:
        """The inode tables as they are on the device, as when it was quiesced last."""
        return InodeTables(self._fs)

    def name_blocks(self, directory: int) -> Iterator[bytes]:
        """The blocks that hold the names of a directory; `names_in` reads them."""
        inode = self._names.directory(directory)
        return self._names.directories.leaf_data(inode) if inode.links else iter(())

    def names_in(self, block: bytes) -> Iterator[Entry]:
        """The entries of a block that `name_blocks` gave, perhaps `.` and `..` among them."""
        return self._names.directories.entries_of(block)

    def data_segments(self, inode: int) -> list[Segment]:
        """Which blocks of the device hold which blocks of a regular file that is not inline."""
        return list(self._maps.load(self._regular(inode)))

    def is_inline(self, inode: int) -> bool:
        """Whether the content is in the inode itself."""
        return self._inodes.get(inode).is_inline

    # Names.

    @_changing
    def make_node(self, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> Attributes:
        if stat.S_IFMT(mode) in (stat.S_IFDIR, stat.S_IFLNK):
            raise os_error(errno.EINVAL)
        return self._create(parent, name, mode, uid, gid, rdev=rdev)

    @_changing
    def make_directory(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Attributes:
        return self._create(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), uid, gid)

    @_changing
    def make_symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Attributes:
        return self._create(parent, name, stat.S_IFLNK | 0o777, uid, gid, target=target)

    def _create(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, *, rdev: int = 0, target: bytes = b""
    ) -> Attributes:
        fill = self._filler(parent, mode, rdev, target)
        return self._names.create(self._to_change(parent), name, mode, uid, gid, fill).attributes

    @_changing
    def restore(
        self,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        *,
        rdev: int = 0,
        target: bytes = b"",
        content: Buffer = b"",
        mtime_ns: int | None = None,
        atime_ns: int | None = None,
    ) -> int:
        if len(content) and not stat.S_ISREG(mode):
            raise os_error(errno.EINVAL)
        fill = self._filler(parent, mode, rdev, target)

        def fill_exactly(inode: Inode) -> None:
            fill(inode)
            if len(content):
                self._data.fill(inode, content)
            if mtime_ns is not None:
                inode.set_times(atime_ns=mtime_ns if atime_ns is None else atime_ns, mtime_ns=mtime_ns)

        return self._names.place(self._to_change(parent), name, mode, uid, gid, fill_exactly).number

    def _filler(self, parent: int, mode: int, rdev: int, target: bytes) -> Callable[[Inode], None]:
        """What gives a new inode of a kind what makes it one of that kind. Raises OSError (EINVAL, ENAMETOOLONG)."""
        kind = stat.S_IFMT(mode)
        if kind == stat.S_IFDIR:
            return lambda inode: self._names.directories.initialise(inode, parent)
        if kind == stat.S_IFLNK:
            if not target or b"\0" in target:
                raise os_error(errno.EINVAL)
            if len(target) >= min(self._fs.block_bytes, _PATH_MAX):
                raise os_error(errno.ENAMETOOLONG)
            return lambda inode: self._names.fill_symlink(inode, target)
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            return lambda inode: inode.set_device(rdev)
        if kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK):
            raise os_error(errno.EINVAL)
        return lambda _inode: None

    @_changing
    def link(self, inode: int, parent: int, name: bytes) -> Attributes:
        directory, target = self._to_change(parent), self._inodes.get(inode)
        self._names.link(target, directory, name)
        return target.attributes

    @_changing
    def unlink(self, parent: int, name: bytes) -> None:
        self._names.unlink(self._to_change(parent), name)

    @_changing
    def remove_directory(self, parent: int, name: bytes) -> None:
        self._names.remove_directory(self._to_change(parent), name)

    @_changing
    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0, uid: int = 0, gid: int = 0
    ) -> None:
        source, target = self._to_change(parent), self._to_change(new_parent)
        self._renames.rename(source, name, target, new_name, flags, uid, gid)

    def _to_change(self, directory: int) -> Inode:
        return self._names.directory_to_change(directory)

    def open_inode(self, inode: int) -> None:
        self._inodes.pin(inode)

    def release_inode(self, inode: int) -> None:
        if not self._inodes.unpin(inode) or self.read_only or self._names.orphans.find(inode) is None:
            return
        self._guard.begin_change()
        self._names.release_orphan(inode)

    # Attributes and contents.

    @_changing
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

    @_changing
    def write(self, inode: int, offset: int, data: Buffer) -> int:
        target = self._regular(inode)
        appending = target.flags & layout.INODE_FLAG_APPEND
        if target.flags & layout.INODE_FLAG_IMMUTABLE or (appending and offset < target.size):
            raise os_error(errno.EPERM)
        if offset < 0:
            raise os_error(errno.EINVAL)
        if len(data):
            self._data.write(target, offset, data)
        return len(data)

    def find_data(self, inode: int, offset: int) -> tuple[int, int] | None:
        return self._data.find(self._regular(inode), offset)

    def get_xattr(self, inode: int, name: bytes) -> bytes:
        return self._xattrs.get(self._inodes.get(inode), name)

    def list_xattrs(self, inode: int) -> list[bytes]:
        return self._xattrs.names(self._inodes.get(inode))

    @_changing
    def set_xattr(self, inode: int, name: bytes, value: bytes, flags: int = 0) -> None:
        self._xattrs.set(self._mutable(inode), name, value, flags)

    @_changing
    def remove_xattr(self, inode: int, name: bytes) -> None:
        self._xattrs.remove(self._mutable(inode), name)

    def has_default_acl(self, inode: int) -> bool:
        """Whether new entries of a directory inherit a list, so that the umask does not count."""
        return self._xattrs.default_acl(self._names.directory(inode)) is not None

    # Writing down.

    def sync(self) -> None:
        if self._fs.read_only:
            return
        self._guard.check_usable()
        self._inodes.flush_all()
        freed = self._allocator.release_freed()
        try:
            self._allocator.write_bitmaps()
            self._write_down(freed)
        except BaseException:
            self._allocator.take_back(freed)
            raise
        self._allocator.discard(freed)

    def sync_inode(self, inode: int, *, data_only: bool) -> None:  # noqa: ARG002
        """All of it: what one inode needs in the journal is seldom less than everything."""
        self.sync()

    def _write_down(self, freed: list[Run]) -> None:
        """Make all metadata durable, in the journal or in its place."""
        fs = self._fs
        if self._journal is not None and fs.is_journaled and fs.is_changed:
            self._journal.prepare()
            fs.mark_in_use()
            fs.flush_superblock()
            if self._journal.commit(freed):
                return
            self._journal.finish()
            fs.set_journaled(False)
            fs.mark_in_use()
        fs.flush_superblock()
        fs.cache.write_out()
        fs.flush_device()

    def _make_room(self) -> None:
        """Write what has gathered in memory, between two operations, when that is much, or much for the journal."""
        fs, journal = self._fs, self._journal
        cache = fs.cache
        if journal is None or not fs.is_journaled:
            if len(fs.touched_inodes) >= _TOUCHED_INODES_MAX:
                self._inodes.flush_all()
            if cache.overfull:
                cache.write_out()
            return
        if cache.is_much_committed:
            cache.write_committed()
        blocks = len(cache.dirty) + len(fs.touched_inode_blocks) + 2 * self._allocator.changed_bitmaps
        if blocks > journal.transaction_blocks_max or cache.overfull:
            self.sync()

    def quiesce(self) -> None:
        """Sync, and mark the device as cleanly unmounted until the next change: for a snapshot taken now."""
        if self._fs.read_only:
            return
        self.sync()
        if self._journal is not None:
            self._journal.finish()
        if self._is_trusted:
            self._fs.mark_clean()
            self._fs.set_journaled(self._journal is not None)
        if self._journal is not None:
            self._allocator.discard(self._journal.take_used())

    def distrust(self) -> None:
        """Something failed halfway in a caller: what is written from now on stays marked for a check."""
        self._is_trusted = False
        if not self._fs.read_only and not self._fs.closed:
            self._fs.distrust()

    def has_orphans(self) -> bool:
        return bool(self._names.orphans.all())

    def trim(self, offset: int = 0, length: int | None = None) -> int:
        """Discard the free blocks in a range of the device into it; returns how many bytes that are.

        Nothing is written to a volume that did not change.
        """
        self._guard.begin_change()
        self.sync()
        block_bytes = self._fs.block_bytes
        end = None if length is None else (offset + length) // block_bytes
        runs = self._allocator.free_runs(-(-offset // block_bytes), end)
        self._allocator.discard(runs)
        return sum(run.length for run in runs) * block_bytes

    def close(self) -> None:
        """Free open orphans, sync, and mark the volume as cleanly unmounted. A second close does nothing.

        Raises what stopped the volume earlier, or what stops the sync now; it is closed all the same.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if not self._fs.read_only:
                self._guard.check_usable()
                for orphan in self._names.orphans.all() if self._is_trusted else ():
                    self._names.release_orphan(orphan.number)
                self.quiesce()
        finally:
            self._inodes.forget_all()
            self._fs.free()

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

    def _finish_orphan(self, inode: Inode) -> None:
        if inode.links == 0:
            self._names.destroy(inode)
        elif inode.is_regular:
            self._data.resize(inode, inode.size)

    def _count_overhead(self) -> int:
        """Blocks that can never hold data, as the kernel's statfs leaves them out."""
        fs, sb = self._fs, self._fs.super
        with_super = sum(1 for group in range(fs.groups) if fs.c.ext2fs_bg_has_super(fs.fs, group))
        overhead: int = fs.first_data_block
        overhead += fs.groups * (2 + fs.fs.inode_blocks_per_group)
        overhead += with_super * (1 + fs.fs.desc_blocks + sb.s_reserved_gdt_blocks)
        if sb.s_feature_compat & layout.COMPAT_HAS_JOURNAL and sb.s_journal_inum:
            with suppress(FilesystemError):
                overhead += self._inodes.load(sb.s_journal_inum).size // fs.block_bytes
        return overhead


def _damaged_root(what: str) -> UnreadableRoot:
    return UnreadableRoot(f"ext4 is damaged: {what}; run a check with repair")


if TYPE_CHECKING:
    _: type[ServedTree] = Volume
