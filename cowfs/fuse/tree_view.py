"""The tree view: a ServedTree (an ext4 volume) as directories and files.

Inode numbers. What the kernel calls an inode is a one-to-one function of the volume's number, see `InodeMap`. For a
view that is a whole mount the two are the same, except that FUSE calls the root 1 and ext4 calls it 2: those are
swapped. The kernel checks permissions (`default_permissions`).

Lifetimes. The kernel knows an inode from its first lookup until it forgets it, and an open file or a working directory
counts as known. So one pin (`open_inode`) per known inode is all it takes for files that live on without a name.

A view can do without its volume for a time (`detach`): numbers last, so the volume that is attached later answers for
what the kernel knows and has cached. Only what is open without a name would be lost.

Caching. While a device is mounted here, nothing else changes it, so names (missing ones too), attributes and pages
are cached by the kernel without an end; what a request changes, the kernel itself invalidates. Data is written
through: write(2) then fails with ENOSPC itself, and what applications wrote is here when a snapshot is taken.

With `writeback` the kernel gathers what is written, and sends it when a file is closed or synced, when there is much of
it, when it is half a minute old, and when `write_back` fetches it for a snapshot. Then fsync(2) and close(2) fail with
ENOSPC. The size and the times of a file are the kernel's while it knows the file: it sends the times after the writes
(`greeting.MAX_BACKGROUND`), and until they come the file has the time at which its last write came.

Set-id bits. The kernel leaves it to us to take them away on write, truncate and chown (FUSE_HANDLE_KILLPRIV_V2): only
then does it write without asking for `security.capability` each time. It says that a writer may not keep them by a
`setattr` that sets nothing, before the write.

Times. Writing and truncating set mtime and ctime, everything else ctime, as POSIX says. Reading never sets atime
(`noatime`): it would break the sharing of inode table blocks in every snapshot that is only read.

POSIX ACLs are kept by the volume and enforced by the kernel. One thing differs from ext4 in the kernel: the umask also
counts in directories with a default ACL, since libfuse applies it before we are asked.

Left out, because pyfuse3 has no request for it: fallocate, SEEK_HOLE, O_TMPFILE, ioctl. `access` is never asked, since
the kernel decides.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, cast

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileInfo,
    FUSEError,
    InodeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

from cowfs.filetree import ROOT_INODE, Attributes, DirectoryEntry, ServedTree, TreeStatistics
from cowfs.fuse.callers import may_keep_set_id, may_keep_setgid, without_set_id
from cowfs.fuse.greeting import HANDLE_KILLPRIV_V2
from cowfs.fuse.translate import SpaceQueue, View, answered, changing

CACHE_SECONDS: Final = 86400.0

# Buffers of stdio and Python follow st_blksize: larger ones mean fewer requests, and one pool block at a time.
_PREFERRED_IO_BYTES: Final = 1 << 16

_CAPABILITY: Final = b"security.capability"
_ACCESS_LIST: Final = b"system.posix_acl_access"


class InodeMap(NamedTuple):
    """Between inode numbers of a volume and those that the kernel has for them; each function undoes the other."""

    of_volume: Callable[[int], int]
    of_kernel: Callable[[int], InodeT]


def _swap_root(inode: int) -> InodeT:
    return InodeT(3 - inode if inode in {1, 2} else inode)


SWAPPED_ROOT: Final = InodeMap(_swap_root, _swap_root)
_CONTENT_BITS: Final = 32  # of an inode number in a volume


def later_map(number: int) -> InodeMap:
    """Of a whole mount whose content became another `number` times, from 1. Inodes of former contents are stale."""
    base = number << _CONTENT_BITS

    def of_volume(inode: int) -> int:
        if inode == pyfuse3.ROOT_INODE:
            return ROOT_INODE
        if inode >> _CONTENT_BITS != number:
            raise FUSEError(errno.ESTALE)
        return inode - base

    return InodeMap(of_volume, lambda inode: InodeT(pyfuse3.ROOT_INODE if inode == ROOT_INODE else base | inode))


class _Detached:
    """In the place of a tree that is not there: for requests that waited while it was taken away."""

    def __getattr__(self, name: str) -> Any:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


_DETACHED: Final = _Detached()


class TreeView(View):
    """Handlers over one ServedTree, which `close` closes. Without a tree, one is attached before the first request.

    Invariants:
        1. `_lookups[i]` is the kernel's lookup count of volume inode i, never 0; exactly these inodes are pinned.
        2. `_without_capability` holds only inodes of `_lookups`, none of which has a `security.capability`.
    """

    enable_acl = True
    greeting_flags = HANDLE_KILLPRIV_V2

    def __init__(
        self,
        tree: ServedTree | None,
        *,
        read_only: bool = False,
        space: SpaceQueue | None = None,
        inode_map: InodeMap = SWAPPED_ROOT,
        writeback: bool = False,
    ) -> None:
        is_read_only = read_only or (tree is not None and tree.read_only)
        super().__init__(read_only=is_read_only, space=space, writeback=writeback)
        self._of_volume, self._of_kernel = inode_map
        self._lookups: dict[int, int] = {}
        self._without_capability: set[int] = set()
        self._contents = 0
        self.forgotten = trio.Event()
        self.is_attached = False
        if tree is not None:
            self.attach(tree)

    def attach(self, tree: ServedTree) -> None:
        """Go on with an opening of the volume."""
        for inode in self._lookups:
            tree.open_inode(inode)
        self._tree = tree
        self.is_attached = True

    def detach(self) -> None:
        """Do without the volume, which its opener closes, until it is attached again. Only `forget` may be called."""
        self.is_attached = False
        self.changed, self._is_clean = False, True
        self._tree = cast(ServedTree, _DETACHED)

    def name_device(self, name: str) -> list[bytes]:
        """No name in the tree is that of its device."""
        return []

    def replace(self, tree: ServedTree) -> None:
        """Show another tree: of the former one the kernel keeps the root, and all else that it knows is stale."""
        self._contents += 1
        self._of_volume, self._of_kernel = later_map(self._contents)
        root = self._lookups.get(ROOT_INODE)
        self._lookups = {} if root is None else {ROOT_INODE: root}
        self._without_capability.clear()
        self.attach(tree)

    @property
    def is_known(self) -> bool:
        """Whether the kernel knows anything of the volume."""
        return bool(self._lookups)

    @property
    def is_used(self) -> bool:
        """Whether the kernel knows more of the volume than its root."""
        return bool(self._lookups.keys() - {ROOT_INODE})

    def sync(self) -> None:
        if self.is_attached:
            self._tree.sync()

    def sync_clean(self) -> None:
        if self.is_attached:
            self._tree.quiesce()

    def fail(self, request: str) -> None:
        super().fail(request)
        if self.is_attached:
            self._tree.distrust()  # what is in memory may be half done

    def close(self) -> None:
        if self.is_attached:
            self._tree.close()

    @property
    def has_orphans(self) -> bool:
        """Whether something without a name is open, so that the volume cannot be detached."""
        return self.is_attached and self._tree.has_orphans()

    def known(self) -> list[InodeT]:
        """What the kernel knows, by its own numbers."""
        return [self._of_kernel(inode) for inode in self._lookups]

    @property
    def root_inode(self) -> InodeT:
        """The root directory's, as the kernel has it."""
        return self._of_kernel(ROOT_INODE)

    def names(self) -> Iterator[tuple[InodeT, bytes, InodeT]]:
        """Every name in the tree that can be read: its directory, the name, and the inode that it is of."""
        waiting = [ROOT_INODE]
        while waiting:
            directory = waiting.pop()
            with suppress(OSError):
                for entry in self._tree.list_directory(directory):
                    if entry.name in (b".", b".."):
                        continue
                    yield self._of_kernel(directory), entry.name, self._of_kernel(entry.inode)
                    if stat.S_ISDIR(entry.mode or self._tree.attributes(entry.inode).mode):
                        waiting.append(entry.inode)

    def names_at_root(self) -> list[bytes]:
        """Those that can be read."""
        names: list[bytes] = []
        with suppress(OSError):
            names += [entry.name for entry in self._tree.list_directory(ROOT_INODE)]
        return [name for name in names if name not in (b".", b"..")]

    def reread(self) -> None:
        """Forget what is remembered of the volume: something else has changed it."""
        self._without_capability.clear()

    # Names.

    @answered
    def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if name == b".":
            return self._known(self._by_handle(self._of_volume(parent_inode)))
        attributes = self._tree.find_name(self._of_volume(parent_inode), name)
        if attributes is None:
            missing = EntryAttributes()  # inode 0: the kernel remembers that there is none
            missing.entry_timeout = CACHE_SECONDS
            return missing
        return self._known(attributes)

    def _by_handle(self, inode: int) -> Attributes:
        """What open_by_handle_at(2) asks for, a file too; the kernel compares the generation.

        The handle may be of an inode that is gone, or that never was.
        """
        try:
            return self._tree.attributes(inode)
        except OSError as error:
            if error.errno in (errno.EIO, errno.ESHUTDOWN):
                raise
            raise FUSEError(errno.ESTALE) from error

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for inode, count in inode_list:
            try:
                self._forget(self._of_volume(inode), count)
            except FUSEError:
                continue  # of a former content
            except OSError as error:
                # The kernel waits for no answer; the volume's own recovery finds the inode on its orphan list.
                self.log_once(f"forget of inode {inode}: {error}")
            except Exception:  # pyfuse3 ends the mount on anything that gets out
                self.fail("forget")
        if not self.is_used:
            self.forgotten.set()

    def _known(self, attributes: Attributes) -> EntryAttributes:
        """Count a lookup that the kernel learns of with this answer."""
        self._note_lookup(attributes.inode)
        return self._entry(attributes)

    def _note_lookup(self, inode: int) -> None:
        known = self._lookups.get(inode, 0)
        if not known:
            self._tree.open_inode(inode)
        self._lookups[inode] = known + 1

    def root(self) -> EntryAttributes:
        """The volume's root, in a directory of another view."""
        return self._entry(self._tree.attributes(ROOT_INODE))

    def note_root(self) -> None:
        """Count a lookup of the root that another view has answered."""
        known = self._lookups.get(ROOT_INODE, 0)
        if not known and self.is_attached:
            self._tree.open_inode(ROOT_INODE)
        self._lookups[ROOT_INODE] = known + 1

    def _forget(self, inode: int, count: int) -> None:
        left = self._lookups.get(inode, 0) - count
        if left > 0:
            self._lookups[inode] = left
        elif self._lookups.pop(inode, 0):
            self._without_capability.discard(inode)
            if self.is_attached:
                self._tree.release_inode(inode)

    @changing
    def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        entry = self._make_node(parent_inode, name, stat.S_IFREG | stat.S_IMODE(mode), 0, ctx)
        self._without_capability.add(self._of_volume(entry.st_ino))
        return self.open_file(entry.st_ino, flags), entry

    @changing
    def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._make_node(parent_inode, name, mode, rdev, ctx)

    def _make_node(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._known(self._tree.make_node(self._of_volume(parent_inode), name, mode, ctx.uid, ctx.gid, rdev))

    @changing
    def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._known(self._tree.make_directory(self._of_volume(parent_inode), name, mode, ctx.uid, ctx.gid))

    @changing
    def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._known(self._tree.make_symlink(self._of_volume(parent_inode), name, target, ctx.uid, ctx.gid))

    @changing
    def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._known(self._tree.link(self._of_volume(inode), self._of_volume(new_parent_inode), new_name))

    @changing
    def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._tree.unlink(self._of_volume(parent_inode), name)

    @changing
    def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._tree.remove_directory(self._of_volume(parent_inode), name)

    @changing
    def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        old, new = self._of_volume(parent_inode_old), self._of_volume(parent_inode_new)
        self._tree.rename(old, name_old, new, name_new, flags, ctx.uid, ctx.gid)

    @answered
    def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self._tree.read_symlink(self._of_volume(inode))

    # Attributes.

    @answered
    def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self._tree.attributes(self._of_volume(inode)))

    @changing
    def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        inode = self._of_volume(inode)
        mode = stat.S_IMODE(attr.st_mode) if fields.update_mode else self._mode_after(inode, fields, ctx)
        mtime_ns = attr.st_mtime_ns if fields.update_mtime else None
        if fields.update_size and mtime_ns is None:
            mtime_ns = time.time_ns()
        return self._entry(
            self._tree.set_attributes(
                inode,
                mode=mode,
                uid=attr.st_uid if fields.update_uid else None,
                gid=attr.st_gid if fields.update_gid else None,
                size_bytes=attr.st_size if fields.update_size else None,
                atime_ns=attr.st_atime_ns if fields.update_atime else None,
                mtime_ns=mtime_ns,
                ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
            )
        )

    def _mode_after(self, inode: int, fields: SetattrFields, ctx: RequestContext) -> int | None:
        """The mode without the set-id bits that a request takes away; None where the mode stays.

        A request that sets nothing comes before a write of a caller who may not keep them.
        """
        is_given_away = fields.update_uid or fields.update_gid
        is_write = not (fields.update_size or fields.update_atime or fields.update_mtime or fields.update_ctime)
        if not (is_given_away or is_write or fields.update_size):
            return None
        attributes = self._tree.attributes(inode)
        mode = attributes.mode
        if not mode & (stat.S_ISUID | stat.S_ISGID) or not stat.S_ISREG(mode):
            return None
        if fields.update_size and not is_given_away and may_keep_set_id(ctx):
            return None
        left = without_set_id(mode, attributes.gid, ctx)
        return None if left == mode else stat.S_IMODE(left)

    @answered
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        return as_statvfs(self._tree.statistics())

    # Files.

    @changing
    def _truncate_on_open(self, inode: int, ctx: RequestContext) -> None:
        mode = None
        attributes = self._tree.attributes(inode)
        if attributes.mode & (stat.S_ISUID | stat.S_ISGID) and not may_keep_set_id(ctx):
            mode = stat.S_IMODE(without_set_id(attributes.mode, attributes.gid, ctx))
        self._tree.set_attributes(inode, mode=mode, size_bytes=0, mtime_ns=time.time_ns())
        if mode is not None:
            with suppress(OSError):  # EINVAL: not mounted yet
                pyfuse3.invalidate_inode(self._of_kernel(inode), attr_only=True)  # the answer has no mode

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        of_volume = self._of_volume(inode)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self.check_writable()
        if flags & os.O_TRUNC:
            await self._truncate_on_open(of_volume, ctx)
        return self.open_file(inode, flags)

    @answered
    def read(self, fh: int, off: int, size: int) -> bytes:
        return self._tree.read(self._of_volume(fh >> 1), off, size)

    @changing
    def write(self, fh: int, off: int, buf: bytes) -> int:
        return self._tree.write(self._of_volume(fh >> 1), off, buf)

    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._flush(self._of_volume(fh >> 1), data_only=datasync)

    async def _flush(self, inode: int, *, data_only: bool) -> None:
        if not self.read_only:
            await self._write_down(inode, data_only)

    @changing
    def _write_down(self, inode: int, data_only: bool) -> None:
        self._tree.sync_inode(inode, data_only=data_only)

    # Directories.

    @answered
    def opendir(self, inode: int, ctx: RequestContext) -> int:
        self._of_volume(inode)
        return inode

    @answered
    def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        tree = self._tree
        inode = self._of_volume(fh)
        listed = False
        try:
            for item in tree.list_directory(inode, start_id):
                entry = self._listed(item)
                if item.name == b".." and item.inode == ROOT_INODE and inode == ROOT_INODE:
                    entry.st_ino = pyfuse3.ROOT_INODE  # the root of a volume is in the root of the mount, or is it
                if not pyfuse3.readdir_reply(token, item.name, entry, item.cookie):
                    return
                listed = True
                if item.name not in {b".", b".."}:  # the kernel counts no lookup for these two
                    self._note_lookup(item.inode)
        except OSError:
            if not listed:
                raise
            # The kernel must learn of those before; the next request starts here and fails.

    def _listed(self, item: DirectoryEntry) -> EntryAttributes:
        """The listing's entry of a name, also where its inode cannot be read: a request for that gets the error."""
        with suppress(OSError):
            return self._entry(self._tree.attributes(item.inode))
        entry = EntryAttributes()
        entry.entry_timeout = entry.attr_timeout = 0
        entry.st_ino = self._of_kernel(item.inode)
        entry.st_mode = pyfuse3.ModeT(item.mode or stat.S_IFREG)
        return entry

    @answered
    def releasedir(self, fh: int) -> None:
        """A handle of a directory is its inode number: nothing to give back."""

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._flush(self._of_volume(fh), data_only=datasync)

    # Extended attributes. pyfuse3 does the size probing, XATTR_CREATE and XATTR_REPLACE.

    @answered
    def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        inode = self._of_volume(inode)
        if name == _CAPABILITY:
            return self._capability(inode)
        return self._tree.get_xattr(inode, name)

    def _capability(self, inode: int) -> bytes:
        """Asked before the first write of a file, and nearly always absent: remember that."""
        if inode in self._without_capability:
            raise FUSEError(errno.ENODATA)
        try:
            return self._tree.get_xattr(inode, _CAPABILITY)
        except OSError as error:
            if error.errno == errno.ENODATA and inode in self._lookups:
                self._without_capability.add(inode)
            raise

    @changing
    def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        inode = self._of_volume(inode)
        self._without_capability.discard(inode)
        self._tree.set_xattr(inode, name, value)
        if name == _ACCESS_LIST:
            self._clear_setgid(inode, ctx)

    def _clear_setgid(self, inode: int, ctx: RequestContext) -> None:
        """As the kernel does where it sets a list itself: for a caller outside the file's group and not privileged."""
        attributes = self._tree.attributes(inode)
        if attributes.mode & stat.S_ISGID and not may_keep_setgid(ctx, attributes.gid):
            self._tree.set_attributes(inode, mode=stat.S_IMODE(attributes.mode) & ~stat.S_ISGID)

    @answered
    def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        names = self._tree.list_xattrs(self._of_volume(inode))
        return names if ctx.uid == 0 else [name for name in names if not name.startswith(b"trusted.")]

    @changing
    def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self._tree.remove_xattr(self._of_volume(inode), name)

    def _entry(self, attributes: Attributes) -> EntryAttributes:
        entry = EntryAttributes()
        entry.entry_timeout = CACHE_SECONDS
        entry.attr_timeout = CACHE_SECONDS
        entry.st_ino = self._of_kernel(attributes.inode)
        if attributes.inode != ROOT_INODE:  # a root is never another one, and is known before its volume is opened
            entry.generation = attributes.generation
        entry.st_mode = pyfuse3.ModeT(attributes.mode)
        entry.st_nlink = attributes.nlink
        entry.st_uid = attributes.uid
        entry.st_gid = attributes.gid
        entry.st_rdev = attributes.rdev
        entry.st_size = attributes.size_bytes
        entry.st_blksize = _PREFERRED_IO_BYTES
        entry.st_blocks = attributes.blocks
        entry.st_atime_ns = attributes.atime_ns
        entry.st_mtime_ns = attributes.mtime_ns
        entry.st_ctime_ns = attributes.ctime_ns
        return entry


def as_statvfs(figures: TreeStatistics) -> StatvfsData:
    data = StatvfsData()
    data.f_bsize = data.f_frsize = figures.block_bytes
    data.f_blocks = figures.blocks
    data.f_bfree = figures.blocks_free
    data.f_bavail = figures.blocks_available
    data.f_files = figures.inodes
    data.f_ffree = data.f_favail = figures.inodes_free
    data.f_namemax = figures.name_max
    return data
