"""The home view: every device of a home as a directory, MNT/NAME, in one mount.

    1                       the root: the devices, one directory each; it cannot be changed
    thin id << 32 | inode   inode of the volume in the device with that thin id

So the numbers are unique and last as long as the device. Each device is a `TreeView` of its own, and a request goes to
the one its inode number names. Nothing moves between devices: rename and link give EXDEV, as between file systems.

Which of the volumes are open is the business of `open_devices`, what the kernel has cached that of `kernel_cache`.

Live. The kernel keeps no names of the root: each walk through MNT/NAME asks, so new devices are there at once and
removed ones are gone. Walks that begin inside a device ask nothing. Only in a burst of walks a name is kept for a
moment, or programs that use absolute paths would wait for us at every one.

In use. The kernel remembers what it has looked up for as long as it likes, so that alone does not mean that a device is
in use. `KernelCache.close_if_idle` has it drop what it can; what it still knows then is in use: an open file, a
working directory, a bind mount. What others have mounted in a device stays: the name of a device that the kernel knows
leads to the same directory until the device is closed, also when it is marked for deletion or cannot be opened.

Free space. The kernel says statfs(2) of which inode it asks, and pyfuse3 does not pass it on. The answer is about the
device that the asking thread touched last, and a walk by path to MNT/NAME touches it (but for bursts); else the one
its working directory is in; else the figures are the pool's. Wrong for a thread that touches one device and then asks
about a descriptor it has had open in another.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, Final

import pyfuse3
from pyfuse3 import ROOT_INODE, EntryAttributes, FUSEError, InodeT, ReaddirToken, RequestContext, StatvfsData

from cowfs.errors import UnknownDevice
from cowfs.filetree import ROOT_INODE as VOLUME_ROOT
from cowfs.fuse.greeting import HANDLE_KILLPRIV_V2
from cowfs.fuse.kernel_cache import KernelCache, until_released
from cowfs.fuse.open_devices import OPEN_MAX, Devices, OpenDevice, OpenDevices
from cowfs.fuse.translate import SpaceQueue, View, answered
from cowfs.fuse.tree_view import InodeMap, TreeView, as_statvfs

_INODE_BITS: Final = 32
_INODE_MASK: Final = (1 << _INODE_BITS) - 1
_ROOT_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.005
_BURST: Final = 32
_BURST_SECONDS: Final = 0.1
_ASKED_MAX: Final = 4096
_FIRST_DEVICE_COOKIE: Final = 3


def _of_device(
    name: str, of_root: Callable[..., Coroutine[Any, Any, Any]] | None = None, *, shift: int = 0
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """A handler that the view of a device answers: the one whose inode the first argument names.

    Args:
        of_root: answers for the root; by default it cannot be changed.
        shift: by how many bits a file handle is shifted against an inode number.
    """

    async def answer(self: HomeView, first: int, *arguments: Any) -> Any:
        inode = first >> shift
        if inode == ROOT_INODE:
            if of_root is not None:
                return await of_root(self, first, *arguments)
            raise FUSEError(errno.EROFS if self.read_only else errno.EPERM)
        device = self._attached_device(name, inode >> _INODE_BITS)
        if arguments and isinstance(arguments[-1], RequestContext):
            self._note_asker(arguments[-1].pid, device)
        device.under_way += 1
        try:
            return await getattr(device.view, name)(first, *arguments)
        finally:
            device.under_way -= 1

    answer.__name__ = name
    return answer


class HomeView(View):
    """Handlers over the devices of a home.

    Args:
        mount_point: where this is going to be mounted, an absolute path without symbolic links.
        open_max: how many volumes may be open only because they were used lately.

    Invariants:
        1. `_known` holds exactly the devices that the kernel knows an inode of, that are attached, or that are held.
        2. `_attached` holds those whose view is attached, which are open in `_devices`, the longest unused first.
    """

    enable_acl = True
    greeting_flags = HANDLE_KILLPRIV_V2

    def __init__(
        self,
        devices: Devices,
        mount_point: str,
        *,
        read_only: bool = False,
        space: SpaceQueue | None = None,
        open_max: int = OPEN_MAX,
        writeback: bool = False,
    ) -> None:
        super().__init__(read_only=read_only, space=space, writeback=writeback)
        self._mount_point = mount_point
        self._open = OpenDevices(devices, self._make_view, open_max=open_max, log_once=self.log_once)
        self.kernel_cache = KernelCache(self._open, mount_point)
        self._asked: dict[int, OpenDevice] = {}
        self._listed: list[tuple[int, str]] = []  # by the last who began to list; numbers are cookies, so any will do
        self._started_ns = time.time_ns()
        self._root_mode, self._root_group = 0o755, os.getegid()

    # For the process that serves it. What is a coroutine here waits for the kernel, which may have requests for that:
    # never call it in a handler.

    def path(self, name: str) -> str:
        """Where a device is reachable."""
        return os.path.join(self._mount_point, name)

    def close_to_others(self, group: int | None = None) -> None:
        """Let none but the owner in, whatever the directories above allow; and a group, where one is named."""
        self._root_mode = 0o700 if group is None else 0o710
        self._root_group = os.getegid() if group is None else group
        with suppress(OSError):  # EINVAL: it is not mounted yet
            pyfuse3.invalidate_inode(ROOT_INODE, attr_only=True)

    def device_name(self, inode: int) -> str | None:
        """Whose inode it is; None for the root and for what is not known."""
        device = self._open.known.get(inode >> _INODE_BITS)
        return None if device is None else device.name

    def tree_of(self, inode: int) -> TreeView:
        """The view of a device that is known, with its volume open. Raises FUSEError."""
        return self._attached_device("open", inode >> _INODE_BITS).view

    def known(self) -> list[InodeT]:
        """What the kernel knows of all devices."""
        return [inode for device in self._open.known.values() for inode in device.view.known()]

    def hold(self, name: str) -> str:
        """Keep a device's volume open and its directory there; each call needs an `end_hold`.

        Returns:
            The directory's path.

        Raises:
            UnknownDevice: no such device is shown.
            CowfsError: its volume cannot be opened.
        """
        device = self._shown(name)
        if device is None:
            raise UnknownDevice(f"{self._mount_point} shows no device '{name}'")
        self._open.hold(device)
        return self.path(name)

    def end_hold(self, name: str) -> None:
        """Take back one `hold`, unless the view is closed. Raises UsageError when the device is not held."""
        self._open.end_hold(name)

    async def put_aside(self, name: str) -> None:
        """Close a device's volume; the next request opens it again. See `OpenDevices.put_aside`. Never in a handler.

        Ends without a checkpoint.
        """
        device = self._open.by_name(name)
        if device is not None:
            await until_released(lambda: device.view.has_orphans)
        self._open.put_aside(name)

    async def write_back_device(self, name: str) -> None:
        """`write_back` for one device. Never call it in a handler."""
        device = self._open.by_name(name)
        if device is not None:
            await device.view.write_back()

    async def write_back(self) -> None:
        for device in list(self._open.known.values()):
            await device.view.write_back()

    def sync_clean(self) -> None:
        self._open.sync_clean()

    def sync_changes(self) -> None:
        self._open.sync_changes()

    def close(self) -> None:
        self._open.close()

    def _make_view(self, number: int) -> TreeView:
        base = number << _INODE_BITS
        inode_map = InodeMap(_INODE_MASK.__and__, lambda inode: InodeT(base | inode))
        return TreeView(
            None,
            read_only=self.read_only,
            space=self.space,
            inode_map=inode_map,
            writeback=self.enable_writeback_cache,
        )

    def _attached_device(self, request: str, number: int) -> OpenDevice:
        """A device with its volume open. Raises FUSEError."""
        device = self._open.known.get(number)
        if device is None:
            raise FUSEError(errno.ESTALE)
        if device.view.is_attached:
            self._open.attached.move_to_end(number)
            return device
        try:
            self._open.attach(device)
        except Exception as error:
            raise self._opening_failed(request, device, error) from error
        return device

    def _opening_failed(self, request: str, device: OpenDevice, error: Exception) -> FUSEError:
        self._open.drop_if_unused(device)
        answer = self.to_fuse(request, error)
        self.log_once(f"{request}: {error}")
        # To ENOSYS the kernel would never send such a request again, for no device.
        return FUSEError(errno.EIO) if answer.errno == errno.ENOSYS else answer

    def _note_asker(self, thread_id: int, device: OpenDevice) -> None:
        if len(self._asked) >= _ASKED_MAX:
            self._asked.clear()
        self._asked[thread_id] = device

    # The root.

    @answered
    def _lookup_device(self, inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        device = self._shown(os.fsdecode(name))
        if device is None:
            raise FUSEError(errno.ENOENT)
        self._note_asker(ctx.pid, device)
        entry = self._root_of(device) or self._opened_root(device)
        entry.entry_timeout = self._name_seconds(device)
        device.view.note_root()
        return entry

    def _opened_root(self, device: OpenDevice) -> EntryAttributes:
        try:
            self._attached_device("lookup", device.number)
        except FUSEError:
            if device.view.is_known:
                return _unseen(device.number)  # on an error the kernel would take away what is mounted below
            raise
        return device.view.root()

    def _name_seconds(self, device: OpenDevice) -> float:
        """How long the kernel may keep the name of a device that it has just looked up."""
        now = time.monotonic()
        device.walks = device.walks + 1 if now - device.walked_at < _PAUSE_SECONDS else 0
        device.walked_at = now
        return _BURST_SECONDS if device.walks >= _BURST else 0

    def _shown(self, name: str) -> OpenDevice | None:
        number = self._open.devices.number(name)
        if number is not None:
            return self._open.device(number, name)
        device = self._open.by_name(name)  # marked for deletion
        if device is None or not (device.holds or device.view.is_known or device is self.kernel_cache.revealed):
            return None
        return device

    def _root_of(self, device: OpenDevice) -> EntryAttributes | None:
        return device.view.root() if device.view.is_attached else device.root

    @answered
    def _getattr_root(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        self._asked.pop(ctx.pid, None)
        return self._root_entry()

    def _root_entry(self) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = ROOT_INODE
        entry.attr_timeout = _ROOT_SECONDS
        entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | self._root_mode)
        entry.st_nlink = 1  # says nothing of how many directories are in it
        entry.st_uid, entry.st_gid = os.geteuid(), self._root_group
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._started_ns
        return entry

    @answered
    def _opendir_root(self, inode: int, ctx: RequestContext) -> int:
        self._asked.pop(ctx.pid, None)
        return inode

    @answered
    def _readdir_root(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        for cookie, dots in ((1, b"."), (2, b"..")):
            if start_id < cookie and not pyfuse3.readdir_reply(token, dots, self._root_entry(), cookie):
                return
        if not start_id:
            self._listed = self._open.devices.shown()
        for number, name in self._listed:
            cookie = number + _FIRST_DEVICE_COOKIE
            if cookie <= start_id or self._open.devices.number(name) != number:
                continue
            device = self._open.device(number, name)
            try:
                entry = self._root_of(device) or _unseen(number)
            except OSError:
                entry = _unseen(number)  # a request for it gets the error
            entry.entry_timeout = 0
            if not pyfuse3.readdir_reply(token, os.fsencode(name), entry, cookie):
                self._open.drop_if_unused(device)
                return
            device.view.note_root()

    async def _nothing(self, fh: int, datasync: bool) -> None:
        """The root has nothing to write down."""

    async def _no_attribute(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        raise FUSEError(errno.ENODATA)

    async def _no_attributes(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return []

    # Requests.

    _lookup = _of_device("lookup", _lookup_device)

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if name in {b".", b".."} and parent_inode != ROOT_INODE:
            self._recall(parent_inode >> _INODE_BITS)
            if name == b".." and parent_inode & _INODE_MASK == VOLUME_ROOT:
                return self._root_entry()
        entry: EntryAttributes = await self._lookup(parent_inode, name, ctx)
        return entry

    def _recall(self, number: int) -> None:
        """Know a device again that a handle is of, for open_by_handle_at(2), unless it is gone."""
        if number not in self._open.known:
            for shown, name in self._open.devices.shown():
                if shown == number:
                    self._open.device(number, name)

    getattr = _of_device("getattr", _getattr_root)
    setattr = _of_device("setattr")
    readlink = _of_device("readlink")
    create = _of_device("create")
    mknod = _of_device("mknod")
    mkdir = _of_device("mkdir")
    symlink = _of_device("symlink")
    unlink = _of_device("unlink")
    rmdir = _of_device("rmdir")
    open = _of_device("open")
    read = _of_device("read", shift=1)
    write = _of_device("write", shift=1)
    fsync = _of_device("fsync", shift=1)
    opendir = _of_device("opendir", _opendir_root)
    readdir = _of_device("readdir", _readdir_root)
    fsyncdir = _of_device("fsyncdir", _nothing)
    getxattr = _of_device("getxattr", _no_attribute)
    setxattr = _of_device("setxattr")
    listxattr = _of_device("listxattr", _no_attributes)
    removexattr = _of_device("removexattr")

    _rename = _of_device("rename")
    _link = _of_device("link")

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        _same_device(parent_inode_old, parent_inode_new)
        await self._rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx)

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        _same_device(inode, new_parent_inode)
        entry: EntryAttributes = await self._link(inode, new_parent_inode, new_name, ctx)
        return entry

    async def release(self, fh: int) -> None:
        device = self._open.known.get(fh >> 1 >> _INODE_BITS)
        if device is not None:
            await device.view.release(fh)

    async def releasedir(self, fh: int) -> None:
        """Nothing to give back, and no volume to open for it."""

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for number, inodes in groupby(inode_list, lambda item: item[0] >> _INODE_BITS):
            device = self._open.known.get(number)
            if device is None:
                continue  # the root
            await device.view.forget(list(inodes))
            if not device.view.is_known:
                self._open.drop_if_unused(device)

    @answered
    def _statfs_pool(self) -> StatvfsData:
        return as_statvfs(self._open.devices.figures())

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        device = self._asked.get(ctx.pid) if ctx.pid else None  # 0: of another PID namespace
        device = device or self._working_in(ctx.pid)
        if device is None or self._open.known.get(device.number) is not device:
            return await self._statfs_pool()
        self._attached_device("statfs", device.number)
        return await device.view.statfs(ctx)

    def _working_in(self, thread_id: int) -> OpenDevice | None:
        """The device that the working directory of a thread is in. The kernel knows it without asking us."""
        try:
            path = os.readlink(f"/proc/{thread_id}/cwd")
        except OSError:
            return None
        below = path.removeprefix(self._mount_point + "/")
        return self._shown(below.split("/", 1)[0]) if below != path else None


def _same_device(inode: int, other: int) -> None:
    if inode >> _INODE_BITS != other >> _INODE_BITS:
        raise FUSEError(errno.EXDEV)


def _unseen(number: int) -> EntryAttributes:
    """The root of a volume that was never opened: the kernel asks before it believes more than the type."""
    entry = EntryAttributes()
    entry.st_ino = InodeT(number << _INODE_BITS | VOLUME_ROOT)
    entry.attr_timeout = 0
    entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o755)
    return entry
