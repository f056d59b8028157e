"""The home view: every device of a home as a directory, MNT/NAME, in one mount.

    1                       the root: the devices, one directory each; it cannot be changed
    thin id << 32 | inode   inode of the volume in the device with that thin id

So the numbers are unique and last as long as the device. Each device is a `TreeView` of its own, and a request goes to
the one its inode number names. Nothing moves between devices: rename and link give EXDEV, as between file systems.

Open volumes. A device's volume is opened when a request needs it, not when the device is listed. At most `open_max` are
open at a time: for another one, the longest unused is settled, closed and detached from its view, which goes on when a
request comes. What the kernel has cached of it stays valid. A volume stays open while it is held (`hold`), while a
request waits in it, and while something without a name is open in it.

Live. The kernel keeps no names of the root: each walk through MNT/NAME asks, so new devices are there at once and
removed ones are gone. Walks that begin inside a device ask nothing. Only in a burst of walks a name is kept for a
moment, or programs that use absolute paths would wait for us at every one.

In use. The kernel remembers what it has looked up for as long as it likes, so that alone does not mean that a device is
in use. `let_go` has it forget what it can; what it still knows then is in use: an open file, a working directory, a
bind mount. What others have mounted in a device stays there (`cowfs.fuse.kernel_cache`): the name of a device that the
kernel knows leads to the same directory until it is let go, also when the device is marked for deletion or cannot be
opened.

Free space. The kernel says statfs(2) of which inode it asks, and pyfuse3 does not pass it on. The answer is about the
device that the asking thread touched last, and a walk by path to MNT/NAME touches it (but for bursts); else the one
its working directory is in; else the figures are the pool's. Wrong for a thread that touches one device and then asks
about a descriptor it has had open in another.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, Final, Protocol

import pyfuse3
import trio
from pyfuse3 import ROOT_INODE, EntryAttributes, FUSEError, InodeT, ReaddirToken, RequestContext, StatvfsData

from cowfs.errors import UnknownDevice, UsageError, ending_with
from cowfs.filetree import ROOT_INODE as VOLUME_ROOT
from cowfs.filetree import ServedTree, TreeStatistics
from cowfs.fuse.kernel_cache import drop_unused_names, may_be_mounted_below
from cowfs.fuse.translate import SpaceQueue, View, answered, drop_caches
from cowfs.fuse.tree_view import Numbers, TreeView, as_statvfs

OPEN_MAX: Final = 64

_INODE_BITS: Final = 32
_INODE_MASK: Final = (1 << _INODE_BITS) - 1
_ROOT_SECONDS: Final = 1.0
_FORGET_SECONDS: Final = 1.0  # how long the kernel may take to tell what it has forgotten
_PAUSE_SECONDS: Final = 0.005
_BURST: Final = 32
_BURST_SECONDS: Final = 0.1
_DELETED_SECONDS: Final = 5.0
_DELETED_MAX_SECONDS: Final = 80.0
_ASKED_MAX: Final = 4096
_FIRST_DEVICE_COOKIE: Final = 3


class Devices(Protocol):
    """The devices of a home, as this view needs them. `number` is a device's thin id; none is used twice at a time."""

    def shown(self) -> list[tuple[int, str]]:
        """(number, name) of the devices that have a directory, in order of number."""
        ...

    def number(self, name: str) -> int | None:
        """None for a device that is not shown."""
        ...

    def open(self, name: str) -> ServedTree:
        """The device's volume; each call needs a `close`."""
        ...

    def close(self, name: str) -> None: ...

    def rebalance(self) -> None:
        """Called every few seconds: who needs memory changes."""
        ...

    def figures(self) -> TreeStatistics:
        """Of the pool."""
        ...


@dataclass(slots=True, eq=False)
class _Device:
    """A device that the kernel knows of, that is open, or that is held.

    Invariant: `root` is the volume's root as it is while the view is detached; None when that is not known.

    `is_name_dropped`: the kernel was told to forget its name, with which a working directory in it has lost its path.
    """

    name: str
    number: int
    view: TreeView
    holds: int = 0
    under_way: int = 0  # requests that may be waiting for something
    walked_at: float = 0.0
    walks: int = 0  # in a row without a pause
    root: EntryAttributes | None = None
    is_name_dropped: bool = False
    forgotten: trio.Event = field(default_factory=trio.Event)


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

    def __init__(
        self,
        devices: Devices,
        mount_point: str,
        *,
        read_only: bool = False,
        space: SpaceQueue | None = None,
        open_max: int = OPEN_MAX,
    ) -> None:
        super().__init__(read_only=read_only, space=space)
        self._devices = devices
        self._mount_point = mount_point
        self._open_max = open_max
        self._known: dict[int, _Device] = {}
        self._attached: OrderedDict[int, _Device] = OrderedDict()
        self._asked: dict[int, _Device] = {}
        self._listed: list[tuple[int, str]] = []  # by the last who began to list; numbers are cookies, so any will do
        self._revealed: _Device | None = None  # shown for a moment although it is marked for deletion
        self._started_ns = time.time_ns()
        self._root_mode, self._root_group = 0o755, os.getegid()
        self._is_closed = False

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

    def hold(self, name: str) -> str:
        """Keep a device's volume open and its directory there, even if the device is marked for deletion meanwhile.

        Each call needs an `end_hold`.

        Returns:
            The directory's path.

        Raises:
            UnknownDevice: no such device is shown.
            CowfsError: its volume cannot be opened.
        """
        device = self._shown(name)
        if device is None:
            raise UnknownDevice(f"{self._mount_point} shows no device '{name}'")
        device.holds += 1
        try:
            self._attach(device)
        except BaseException:
            device.holds -= 1
            self._drop_if_unused(device)
            raise
        return self.path(name)

    def end_hold(self, name: str) -> None:
        """Take back one `hold`, unless the view is closed, which ends them all.

        The kernel still knows what it has cached, see `let_go`.

        Raises:
            UsageError: it is not held.
        """
        if self._is_closed:
            return
        device = self._by_name(name)
        if device is None or not device.holds:
            raise UsageError(f"device '{name}' is not held")
        device.holds -= 1

    async def invalidate(self, name: str) -> None:
        """Something else in this process has changed a device: have the kernel drop what it has cached of it."""
        device = self._by_name(name)
        if device is None:
            return
        device.view.reread()
        device.root = None
        await self._drop_names(device)
        await trio.to_thread.run_sync(drop_caches, device.view.known(), abandon_on_cancel=True)
        await self._restore_name(device)

    async def let_go(self, name: str) -> bool:
        """Close a device's volume if nobody uses the device; whether that is so.

        Ends without a checkpoint: what follows at once finds the device unused.
        """
        device = self._by_name(name)
        if device is not None and device.view.is_known and not device.holds:
            await self._have_forgotten(device)
            device = self._by_name(name)
        if device is None:
            return True
        if device.view.is_known or not self._can_be_parked(device):
            with suppress(OSError):  # who cannot open it does not use it
                self._attach(device)  # so that the device set knows that the device is in use
            return False
        self._park(device, whatever_fails=True)
        return True

    async def serve_deletions(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """A service: lets go of devices that are marked for deletion, since the kernel does not say when their users
        are gone. The longer they are in use, the less often: it costs all devices what the kernel has cached.
        """
        task_status.started()
        pause_seconds = _DELETED_SECONDS
        while True:
            await trio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, _DELETED_MAX_SECONDS)
            for device in list(self._known.values()):
                if not device.holds and self._devices.number(device.name) is None and await self.let_go(device.name):
                    pause_seconds = _DELETED_SECONDS

    async def write_back_device(self, name: str) -> None:
        """`write_back` for one device."""
        device = self._by_name(name)
        if device is not None:
            await device.view.write_back()

    async def _have_forgotten(self, device: _Device) -> None:
        """Have the kernel forget all of a device that is not in use, and wait until it has said so."""
        if await self._drop_names(device):
            with trio.move_on_after(_FORGET_SECONDS):
                while device.view.is_known:
                    device.forgotten = trio.Event()
                    await device.forgotten.wait()
        await self._restore_name(device)

    async def _drop_names(self, device: _Device) -> bool:
        """Have the kernel forget the names in a device, and what is not in use with them; False when that cannot be."""
        if await trio.to_thread.run_sync(drop_unused_names, self._mount_point, abandon_on_cancel=True):
            return True
        below = "/" + device.name
        if await trio.to_thread.run_sync(may_be_mounted_below, self._mount_point, below, abandon_on_cancel=True):
            return False
        if not self._is_shown(device):
            await self._look_up(device)  # it can only be told by a name that it has
        device.is_name_dropped = True
        await trio.to_thread.run_sync(_drop_name, os.fsencode(device.name), abandon_on_cancel=True)
        return True

    async def _restore_name(self, device: _Device) -> None:
        if device.is_name_dropped and device.view.is_known and self._is_shown(device):
            await self._look_up(device)
        device.is_name_dropped = False

    async def _look_up(self, device: _Device) -> None:
        self._revealed = device
        try:
            await trio.to_thread.run_sync(_look_up, self.path(device.name), abandon_on_cancel=True)
        finally:
            self._revealed = None

    async def write_back(self) -> None:
        for device in list(self._known.values()):
            await device.view.write_back()

    def settle(self) -> None:
        for device in list(self._attached.values()):
            if not device.view.failure:
                device.view.settle()

    def settle_changes(self) -> None:
        self._devices.rebalance()
        for device in list(self._attached.values()):
            try:
                device.view.settle_changes()
            except OSError as error:
                self.log_once(f"device '{device.name}': {error}")
            except Exception:
                device.view.fail("settle_changes")
            if not device.view.is_known and self._can_be_parked(device):
                self._park(device)

    def close(self) -> None:
        self._is_closed = True
        with ExitStack() as last:
            for device in self._attached.values():
                device.view.detach()
                last.enter_context(ending_with(partial(self._devices.close, device.name)))
            self._attached.clear()
            self._known.clear()

    # Devices.

    def _by_name(self, name: str) -> _Device | None:
        """A device that is known here. What the kernel still knows of it from before it was replaced does not count."""
        number = self._devices.number(name)
        if number is not None:
            return self._known.get(number)
        return next((device for device in self._known.values() if device.name == name), None)

    def _is_shown(self, device: _Device) -> bool:
        return self._devices.number(device.name) == device.number

    def _device(self, number: int, name: str) -> _Device:
        device = self._known.get(number)
        if device is None:
            base = number << _INODE_BITS
            numbers = Numbers(_INODE_MASK.__and__, lambda inode: InodeT(base | inode))
            view = TreeView(None, read_only=self.read_only, space=self.space, numbers=numbers)
            device = self._known[number] = _Device(name, number, view)
        return device

    def _attached_device(self, request: str, number: int) -> _Device:
        """A device with its volume open. Raises FUSEError."""
        device = self._known.get(number)
        if device is None:
            raise FUSEError(errno.ESTALE)
        if device.view.is_attached:
            self._attached.move_to_end(number)
            return device
        try:
            self._attach(device)
        except Exception as error:
            raise self._opening_failed(request, device, error) from error
        return device

    def _opening_failed(self, request: str, device: _Device, error: Exception) -> FUSEError:
        self._drop_if_unused(device)
        answer = self.to_fuse(request, error)
        self.log_once(f"{request}: {error}")
        # To ENOSYS the kernel would never send such a request again, for no device.
        return FUSEError(errno.EIO) if answer.errno == errno.ENOSYS else answer

    def _attach(self, device: _Device) -> None:
        if device.view.is_attached:
            return
        if not self._is_shown(device):  # removed, or replaced by another thin of its name
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        self._make_room()
        device.view.attach(self._devices.open(device.name))
        device.root = None
        self._attached[device.number] = device

    def _make_room(self) -> None:
        for device in list(self._attached.values()):
            if len(self._attached) < self._open_max:
                return
            if self._can_be_parked(device):
                self._park(device)

    def _can_be_parked(self, device: _Device) -> bool:
        if device.holds or device.under_way or device.view.has_orphans:
            return False
        # One that is marked for deletion could not be opened again.
        return not device.view.is_known or self._is_shown(device)

    def _park(self, device: _Device, *, whatever_fails: bool = False) -> None:
        """Close a volume until it is needed again; one that cannot be written down stays open."""
        view = device.view
        if view.is_attached:
            try:
                if not view.failure:
                    view.settle()
                device.root = view.root()
            except OSError as error:
                self.log_once(f"device '{device.name}': {error}")
                if not whatever_fails:
                    return
            except Exception:
                view.fail("settle")
            view.detach()
            del self._attached[device.number]
            try:
                self._devices.close(device.name)
            except OSError as error:
                self.log_once(f"device '{device.name}': {error}")
        self._drop_if_unused(device)

    def _drop_if_unused(self, device: _Device) -> None:
        is_used = device.view.is_known or device.view.is_attached or device.holds
        if not is_used and self._known.get(device.number) is device:
            del self._known[device.number]

    def _note_asker(self, thread_id: int, device: _Device) -> None:
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

    def _opened_root(self, device: _Device) -> EntryAttributes:
        try:
            self._attached_device("lookup", device.number)
        except FUSEError:
            if device.view.is_known:
                return _unseen(device.number)  # on an error the kernel would take away what is mounted below
            raise
        return device.view.root()

    def _name_seconds(self, device: _Device) -> float:
        """How long the kernel may keep the name of a device that it has just asked for."""
        now = time.monotonic()
        device.walks = device.walks + 1 if now - device.walked_at < _PAUSE_SECONDS else 0
        device.walked_at = now
        return _BURST_SECONDS if device.walks >= _BURST else 0

    def _shown(self, name: str) -> _Device | None:
        number = self._devices.number(name)
        if number is not None:
            return self._device(number, name)
        device = self._by_name(name)  # marked for deletion
        if device is None or not (device.holds or device.view.is_known or device is self._revealed):
            return None
        return device

    def _root_of(self, device: _Device) -> EntryAttributes | None:
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
            self._listed = self._devices.shown()
        for number, name in self._listed:
            cookie = number + _FIRST_DEVICE_COOKIE
            if cookie <= start_id or self._devices.number(name) != number:
                continue
            device = self._device(number, name)
            try:
                entry = self._root_of(device) or _unseen(number)
            except OSError:
                entry = _unseen(number)  # whoever looks at it gets the error
            entry.entry_timeout = 0
            if not pyfuse3.readdir_reply(token, os.fsencode(name), entry, cookie):
                self._drop_if_unused(device)
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
        if number not in self._known:
            for shown, name in self._devices.shown():
                if shown == number:
                    self._device(number, name)

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
        device = self._known.get(fh >> 1 >> _INODE_BITS)
        if device is not None:
            await device.view.release(fh)

    async def releasedir(self, fh: int) -> None:
        """Nothing to give back, and no volume to open for it."""

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for number, inodes in groupby(inode_list, lambda item: item[0] >> _INODE_BITS):
            device = self._known.get(number)
            if device is None:
                continue  # the root
            await device.view.forget(list(inodes))
            if not device.view.is_known:
                device.forgotten.set()
                self._drop_if_unused(device)

    @answered
    def _statfs_pool(self) -> StatvfsData:
        return as_statvfs(self._devices.figures())

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        device = self._asked.get(ctx.pid) if ctx.pid else None  # 0: of another PID namespace
        device = device or self._working_in(ctx.pid)
        if device is None or self._known.get(device.number) is not device:
            return await self._statfs_pool()
        self._attached_device("statfs", device.number)
        return await device.view.statfs(ctx)

    def _working_in(self, thread_id: int) -> _Device | None:
        """The device that the working directory of a thread is in. The kernel tells without asking us."""
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


def _drop_name(name: bytes) -> None:
    try:
        pyfuse3.invalidate_entry(ROOT_INODE, name)
    except FileNotFoundError:
        return  # the kernel does not have it


def _look_up(path: str) -> None:
    """By a process of its own: a thread of this one that waits for the mount would outlive even a kill."""
    subprocess.run(["/bin/sh", "-c", 'test -e "$1"', "sh", path], stdin=subprocess.DEVNULL, check=False)
