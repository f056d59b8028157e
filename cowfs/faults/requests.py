"""A hook where the requests of a mount are handled: rules of `files` are met before a view answers.

The hook replaces a view's handlers, by attributes of the object, while there are rules; without rules a
view has its own handlers and nothing else. What the kernel answers from its cache is not a request: while there are
rules, a file that is opened is read anew.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any, Final, cast

import trio
from pyfuse3 import ROOT_INODE, EntryAttributes, FileInfo, RequestContext, SetattrFields

from cowfs.faults.effects import Means, alteration, meet
from cowfs.faults.names import Names
from cowfs.faults.plan import Delay
from cowfs.faults.rules import ActiveRule, FaultSet, Operation
from cowfs.fuse.home_view import HomeView
from cowfs.fuse.raw_view import RawView
from cowfs.fuse.translate import View
from cowfs.fuse.tree_view import TreeView

Paths = Callable[[], Collection[str]]
_HANDLERS: Final = (
    *("lookup", "open", "read", "write", "fsync", "fsyncdir", "readdir", "setattr", "setxattr", "removexattr"),
    *("create", "mknod", "mkdir", "symlink", "link", "unlink", "rmdir", "rename"),
)
_RENAME_EXCHANGE: Final = 2
_LOOK_SECONDS: Final = 0.2


class FaultyRequests:
    """The hook of one view.

    Args:
        device: what the view shows; None for every device of a home.
    """

    def __init__(self, view: View, device: str | None, faults: FaultSet, means: Means) -> None:
        self._view = view
        self._device = device
        self._faults = faults
        self._means = means
        self._names: dict[str, Names] = {}
        self._handlers: dict[str, Callable[..., Awaitable[Any]]] = {name: getattr(view, name) for name in _HANDLERS}
        self._is_in_place = False

    def put_in_place(self) -> None:
        """Stand before the view's handlers. A second call does nothing."""
        if not self._is_in_place:
            self._is_in_place = True
            for name in _HANDLERS:
                setattr(self._view, name, partial(self._handle, name))

    def take_back(self) -> None:
        """Leave the view its own handlers; a request that waits here goes on to them."""
        if self._is_in_place:
            self._is_in_place = False
            for name in _HANDLERS:
                delattr(self._view, name)
            self._names.clear()

    async def _handle(self, name: str, *arguments: Any) -> Any:
        try:
            return await getattr(self, f"_{name}")(*arguments)
        except Exception as error:  # as in `cowfs.fuse.translate`: nothing else may get out
            raise self._view.to_fuse(name, error) from error

    def _pass(self, name: str, *arguments: Any) -> Awaitable[Any]:
        return self._handlers[name](*arguments)

    # ------------------------------------------------------------------ rules

    async def _meet(
        self, inode: int, operation: str, paths: Paths, offset: int = 0, length: int = 0
    ) -> list[ActiveRule]:
        """Count a request, wait, and raise what it fails with; the rules that it meets."""
        device = self._device_of(inode)
        if device is None:
            return []
        hits = self._faults.met(Operation("files", operation, device, offset, length), paths)
        for active in hits:
            if isinstance(active.rule.effect, Delay):
                await self._wait(active, active.rule.effect.seconds)
            else:
                meet(active, operation, self._means, OSError)
        return hits

    async def _wait(self, active: ActiveRule, seconds: float) -> None:
        """Wait, as long as the rule is in force and the mount does not end."""
        with trio.move_on_after(seconds):
            while active in self._faults.rules and not self._view.ending.is_set():
                with trio.move_on_after(_LOOK_SECONDS):
                    await self._view.ending.wait()

    def _device_of(self, inode: int) -> str | None:
        if not isinstance(self._view, HomeView):
            return self._device
        return self._view.device_name(inode)

    def _names_of(self, inode: int) -> Names | None:
        device = self._device_of(inode)
        if device is None or isinstance(self._view, RawView):
            return None
        names = self._names.get(device)
        if names is None or isinstance(self._view, HomeView):
            tree = self._view.tree_of(inode) if isinstance(self._view, HomeView) else self._view
            assert isinstance(tree, TreeView)
            if names is None or names.root != tree.root_inode:  # rolled back
                names = self._names[device] = Names(tree.root_inode, tree.names)
        return names

    def _paths(self, inode: int) -> Collection[str]:
        if isinstance(self._view, RawView):
            return [f"/{self._device}"] if inode != ROOT_INODE else ["/"]
        names = self._names_of(inode)
        return () if names is None else names.paths(inode)

    def _paths_in(self, directory: int, name: bytes) -> Collection[str]:
        names = self._names_of(directory)
        return () if names is None else names.path_in(directory, name)

    def _learn(self, directory: int, name: bytes, entry: EntryAttributes) -> None:
        if entry.st_ino and name not in (b".", b"..") and (names := self._names_of(directory)) is not None:
            names.learn(directory, name, entry.st_ino)

    # ------------------------------------------------------------------ names

    async def _lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        entry: EntryAttributes = await self._pass("lookup", parent_inode, name, ctx)
        self._learn(parent_inode, name, entry)
        return entry

    async def _create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        await self._meet(parent_inode, "create", partial(self._paths_in, parent_inode, name))
        info, entry = await self._pass("create", parent_inode, name, mode, flags, ctx)
        self._learn(parent_inode, name, entry)
        return info, entry

    async def _mknod(self, parent_inode: int, name: bytes, *rest: Any) -> EntryAttributes:
        return await self._make("mknod", "create", parent_inode, name, *rest)

    async def _mkdir(self, parent_inode: int, name: bytes, *rest: Any) -> EntryAttributes:
        return await self._make("mkdir", "mkdir", parent_inode, name, *rest)

    async def _symlink(self, parent_inode: int, name: bytes, *rest: Any) -> EntryAttributes:
        return await self._make("symlink", "symlink", parent_inode, name, *rest)

    async def _make(self, handler: str, operation: str, directory: int, name: bytes, *rest: Any) -> EntryAttributes:
        await self._meet(directory, operation, partial(self._paths_in, directory, name))
        entry: EntryAttributes = await self._pass(handler, directory, name, *rest)
        self._learn(directory, name, entry)
        return entry

    async def _link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        def paths() -> list[str]:
            return [*self._paths(inode), *self._paths_in(new_parent_inode, new_name)]

        await self._meet(inode, "link", paths)
        entry: EntryAttributes = await self._pass("link", inode, new_parent_inode, new_name, ctx)
        self._learn(new_parent_inode, new_name, entry)
        return entry

    async def _unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._remove("unlink", parent_inode, name, ctx)

    async def _rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._remove("rmdir", parent_inode, name, ctx)

    async def _remove(self, operation: str, directory: int, name: bytes, ctx: RequestContext) -> None:
        await self._meet(directory, operation, partial(self._paths_in, directory, name))
        await self._pass(operation, directory, name, ctx)
        if (names := self._names_of(directory)) is not None:
            names.remove(directory, name)

    async def _rename(
        self, old_directory: int, old_name: bytes, new_directory: int, new_name: bytes, flags: int, ctx: RequestContext
    ) -> None:
        def paths() -> list[str]:
            return [*self._paths_in(old_directory, old_name), *self._paths_in(new_directory, new_name)]

        await self._meet(old_directory, "rename", paths)
        await self._pass("rename", old_directory, old_name, new_directory, new_name, flags, ctx)
        if (names := self._names_of(old_directory)) is not None:
            is_exchange = bool(flags & _RENAME_EXCHANGE)
            names.rename((old_directory, old_name), (new_directory, new_name), is_exchange=is_exchange)

    # ------------------------------------------------------------------ files

    async def _open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        await self._meet(inode, "open", partial(self._paths, inode))
        if flags & os.O_TRUNC:
            await self._meet(inode, "truncate", partial(self._paths, inode))
        info: FileInfo = await self._pass("open", inode, flags, ctx)
        info.keep_cache = bool(flags & os.O_TRUNC)  # nothing is cached of an empty file
        return info

    async def _read(self, fh: int, off: int, size: int) -> bytes:
        inode = fh >> 1
        hits = await self._meet(inode, "read", partial(self._paths, inode), off, size)
        data: bytes = await self._pass("read", fh, off, size)
        if hits:
            data = alteration(hits, off, len(data)).applied(memoryview(data), 0, len(data))
        return data

    async def _write(self, fh: int, off: int, buf: bytes) -> int:
        inode = fh >> 1
        hits = await self._meet(inode, "write", partial(self._paths, inode), off, len(buf))
        if not hits:
            return await self._write_all(fh, off, buf)
        found, view = alteration(hits, off, len(buf)), memoryview(buf)
        for begin, end in found.kept:
            await self._write_all(fh, off + begin, found.applied(view, begin, end))
        found.fail_if_wanted("write", OSError)
        if found.short_bytes is not None:
            return found.short_bytes
        if not found.kept or found.kept[-1][1] < len(buf):
            await self._extend(fh, off + len(buf))
        return len(buf)

    async def _write_all(self, fh: int, off: int, data: bytes) -> int:
        written: int = await self._pass("write", fh, off, data)
        return written

    async def _extend(self, fh: int, size_bytes: int) -> None:
        """Make a file as long as its writer, and the kernel, believe that it is."""
        entry: EntryAttributes = await self._view.getattr(fh >> 1, cast(RequestContext, None))
        if entry.st_size < size_bytes:
            await self._write_all(fh, size_bytes - 1, b"\0")

    async def _fsync(self, fh: int, datasync: bool) -> None:
        await self._sync("fsync", fh >> 1, fh, datasync)

    async def _fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._sync("fsyncdir", fh, fh, datasync)

    async def _sync(self, handler: str, inode: int, fh: int, datasync: bool) -> None:
        hits = await self._meet(inode, "fsync", partial(self._paths, inode))
        if alteration(hits, 0, 1).kept:
            await self._pass(handler, fh, datasync)

    async def _readdir(self, fh: int, *rest: Any) -> None:
        await self._meet(fh, "readdir", partial(self._paths, fh))
        await self._pass("readdir", fh, *rest)

    # ------------------------------------------------------------------ attributes

    async def _setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        if fields.update_size:
            await self._meet(inode, "truncate", partial(self._paths, inode))
        elif _sets_anything(fields):  # else the kernel itself asks, before a write
            await self._meet(inode, "setattr", partial(self._paths, inode))
        entry: EntryAttributes = await self._pass("setattr", inode, attr, fields, fh, ctx)
        return entry

    async def _setxattr(self, inode: int, *rest: Any) -> None:
        await self._meet(inode, "setxattr", partial(self._paths, inode))
        await self._pass("setxattr", inode, *rest)

    async def _removexattr(self, inode: int, *rest: Any) -> None:
        await self._meet(inode, "removexattr", partial(self._paths, inode))
        await self._pass("removexattr", inode, *rest)


def _sets_anything(fields: SetattrFields) -> bool:
    names = ("mode", "uid", "gid", "atime", "mtime", "ctime")
    return any(getattr(fields, f"update_{name}") for name in names)
