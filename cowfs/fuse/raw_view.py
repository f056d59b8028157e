"""The raw view: a directory with one file, NAME, whose content is the device.

The file behaves like a disk: its size is the device's, O_TRUNC does nothing, a write at the end fails with ENOSPC,
any other truncation with EINVAL, and its times change only by utimes(2). It is mode 0600 (0400 read-only), owned by
whatever server shows it. Constant times also keep the kernel from dropping its cache of a file it wrote itself.

Loop devices over it work for root. The loop driver reads as the kernel, so a mount made by an ordinary user needs
`allow_other` for that.

Data is written through, not back. With `enable_writeback_cache` the kernel takes the size of the file into its own
hands, and a disk does not survive that: writes past the end succeed there (dd to the end of the disk never ends), and
O_TRUNC empties the file in the kernel and drops what others wrote and did not sync yet. Nor is it a gain for both:
random 4 KiB writes with an fsync at their end are 1.7 times as fast, sequential ones of 1 MiB 0.7 times, since the
kernel lets a FUSE mount have 1 % of the dirty pages and only root can ask for more.

Every request costs one coroutine and one device call; extended attributes are answered ENOSYS, so that the kernel
stops asking for `security.capability` before each write (measured: 1.9 times the 4 KiB writes).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import Final

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

from cowfs.blockdev import BlockDevice, FlushAhead
from cowfs.fuse.translate import SpaceQueue, View, answered, changing

FILE_INODE: Final = 2

_NAME_SECONDS: Final = 86400.0  # the only names are ours and never change
_SIZE_SECONDS: Final = 1.0  # a device that grew shows it this soon
_PREFERRED_IO_BYTES: Final = 1 << 17
_BLOCK_BYTES: Final = 4096


class RawView(View):
    """One BlockDevice as a regular file. The device stays its owner's: `close` flushes but does not close it.

    The file's inode number grows with each other device that is shown; a request for an earlier one is stale.
    """

    def __init__(
        self, device: BlockDevice, name: str, *, read_only: bool = False, space: SpaceQueue | None = None
    ) -> None:
        super().__init__(read_only=read_only, space=space)
        self._name = os.fsencode(name)
        self._file = FILE_INODE
        self._opened = 0
        self.forgotten = trio.Event()
        self._atime_ns = self._mtime_ns = self._ctime_ns = time.time_ns()
        self.attach(device)

    def attach(self, device: BlockDevice) -> None:
        """Go on with an opening of the device."""
        self._device = device
        self.is_attached = True
        # Bound once: the data path does nothing but call them.
        self._pread = device.pread
        self._pwrite = device.pwrite
        self._wrote = FlushAhead(device).wrote

    def take_methods_of(self, disk: BlockDevice) -> None:
        if self.is_attached and self._device is disk:
            self.attach(disk)

    @property
    def has_orphans(self) -> bool:
        """A disk has no files."""
        return False

    def detach(self) -> None:
        """Do without the device, which its opener closes, until it is attached again."""
        self.is_attached = False
        self.changed = False

    def name_device(self, name: str) -> list[bytes]:
        """The file has the name of the device; returns the former name and the new one."""
        former, self._name = self._name, os.fsencode(name)
        return [former, self._name]

    def replace(self, device: BlockDevice) -> None:
        """Show another device; what is open of the former one is stale."""
        self._file += 1
        self._opened = 0
        self._mtime_ns = self._ctime_ns = time.time_ns()
        self.attach(device)

    @property
    def is_used(self) -> bool:
        """Whether the file is open."""
        return bool(self._opened)

    def known(self) -> list[InodeT]:
        """The file's inode."""
        return [InodeT(self._file)]

    def names_at_root(self) -> list[bytes]:
        return [self._name]

    def sync_clean(self) -> None:
        if self.is_attached:
            self._device.flush()

    def close(self) -> None:
        if not self.read_only:
            self.sync_clean()

    # The data path.

    @answered
    def read(self, fh: int, off: int, size: int) -> bytes:
        if fh >> 1 != self._file:
            raise FUSEError(errno.ESTALE)
        left = self._device.size_bytes - off
        if size > left:
            size = max(left, 0)
        return self._pread(off, size) if size else b""

    @changing
    def write(self, fh: int, off: int, buf: bytes) -> int:
        if fh >> 1 != self._file:
            raise FUSEError(errno.ESTALE)
        left = self._device.size_bytes - off
        if len(buf) > left:
            if left <= 0:
                raise FUSEError(errno.ENOSPC)
            buf = buf[:left]
        self._pwrite(off, buf)
        self._wrote(len(buf))
        return len(buf)

    async def fsync(self, fh: int, datasync: bool) -> None:
        if fh >> 1 != self._file:
            raise FUSEError(errno.ESTALE)
        await self.fsyncdir(fh, datasync)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        if not self.read_only:
            await self._flush()

    @changing
    def _flush(self) -> None:
        self._device.flush()

    # Everything else.

    @answered
    def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if name == b".":  # of a file too: so open_by_handle_at(2) asks
            if parent_inode not in {pyfuse3.ROOT_INODE, self._file}:
                raise FUSEError(errno.ESTALE)
            return self._attributes(parent_inode)
        if parent_inode != pyfuse3.ROOT_INODE:
            raise FUSEError(errno.ENOTDIR)
        if name == self._name:
            return self._attributes(self._file)
        if name == b"..":
            return self._attributes(pyfuse3.ROOT_INODE)
        missing = EntryAttributes()
        missing.entry_timeout = _NAME_SECONDS
        return missing

    @answered
    def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        if inode not in {pyfuse3.ROOT_INODE, self._file}:
            raise FUSEError(errno.ESTALE)
        return self._attributes(inode)

    @changing
    def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        if inode != self._file or fields.update_mode or fields.update_uid or fields.update_gid:
            raise FUSEError(errno.EPERM)
        if fields.update_size and attr.st_size != self._device.size_bytes:
            raise FUSEError(errno.EINVAL)
        if fields.update_atime:
            self._atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            self._mtime_ns = attr.st_mtime_ns
        self._ctime_ns = time.time_ns()
        return self._attributes(inode)

    @answered
    def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if inode != self._file:
            raise FUSEError(errno.ESTALE)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self.check_writable()
        self._opened += 1
        return self.open_file(inode, flags)

    async def release(self, fh: int) -> None:
        await super().release(fh)
        if fh >> 1 == self._file:
            self._opened -= 1

    @answered
    def opendir(self, inode: int, ctx: RequestContext) -> int:
        return inode

    @answered
    def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        entries = [
            (b".", pyfuse3.ROOT_INODE),
            (b"..", pyfuse3.ROOT_INODE),
            (self._name, self._file),
        ]
        for next_id, (name, inode) in enumerate(entries[start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, name, self._attributes(inode), next_id):
                return

    @answered
    def releasedir(self, fh: int) -> None:
        """A handle of a directory is its inode number: nothing to give back."""

    @answered
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        data = StatvfsData()
        data.f_bsize = data.f_frsize = _BLOCK_BYTES
        data.f_blocks = self._device.size_bytes // _BLOCK_BYTES
        data.f_files = 1
        data.f_namemax = 255
        return data

    def _attributes(self, inode: int) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(inode)
        entry.entry_timeout = _NAME_SECONDS
        entry.attr_timeout = _SIZE_SECONDS
        entry.st_uid = os.geteuid()
        entry.st_gid = os.getegid()
        entry.st_atime_ns = self._atime_ns
        entry.st_mtime_ns = self._mtime_ns
        entry.st_ctime_ns = self._ctime_ns
        if inode == self._file:
            entry.st_mode = pyfuse3.ModeT(stat.S_IFREG | (0o400 if self.read_only else 0o600))
            entry.st_size = self._device.size_bytes
            entry.st_blocks = self._device.size_bytes // 512
            entry.st_blksize = _PREFERRED_IO_BYTES
        else:
            entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o755)
            entry.st_nlink = 2
        return entry
