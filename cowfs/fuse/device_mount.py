"""A device that is mounted alone, and whose content or name becomes another while it is mounted.

    give_up      nothing is open in it, or that is detached: the device is closed
                 meanwhile, without a checkpoint, it gets other content, or not
    take_up      it is open again, and what the kernel has cached of the former content is dropped

    put_aside    the device is closed
                 meanwhile, without a checkpoint, it may get another name
    take_again   it is open again, and so is what was open in it

An inode number says which content it is of (`tree_view.later_map`, `raw_view`), so what is open of the former one
answers ESTALE, and nothing written to it reaches the new one. The root directory alone is the same in both.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final, Generic, Protocol, TypeVar

import pyfuse3
import trio
from pyfuse3 import ROOT_INODE, InodeT

from cowfs.errors import CowfsError, DeviceBusy, FilesystemError
from cowfs.fuse.in_use import in_use
from cowfs.fuse.kernel_cache import drop_unused_names, may_be_mounted_below, until_forgotten, until_released
from cowfs.fuse.translate import drop_caches

Content = TypeVar("Content")
Opened = TypeVar("Opened", covariant=True)  # noqa: PLC0105
Shown = TypeVar("Shown", contravariant=True)  # noqa: PLC0105
_NAMES_AT_ONCE: Final = 256


class Device(Protocol[Opened]):
    """A device that is shown."""

    name: str

    def number(self) -> int:
        """Of its content: another one has another number."""
        ...

    def open(self) -> Opened: ...

    def close(self) -> None: ...


class ReplaceableView(Protocol[Shown]):
    """A view of one device. `forgotten` is set when the kernel knows nothing of the content but the root."""

    forgotten: trio.Event
    is_attached: bool

    @property
    def has_orphans(self) -> bool:
        """Whether a file without a name is open."""
        ...

    @property
    def is_used(self) -> bool:
        """Whether the kernel knows anything of the content but the root."""
        ...

    def known(self) -> list[InodeT]: ...

    def names_at_root(self) -> list[bytes]: ...

    def sync_clean(self) -> None: ...

    def detach(self) -> None: ...

    def attach(self, content: Shown, /) -> None: ...

    def name_device(self, name: str, /) -> list[bytes]:
        """The device has another name; returns the names at the root that are others for it."""
        ...

    def replace(self, content: Shown, /) -> None:
        """Go on with other content: what the kernel knows of the former one, but for the root, is stale."""
        ...


class DeviceMount(Generic[Content]):
    """A mounted device. Its coroutines wait for the kernel: never call them in a handler.

    Args:
        mount_point: without symbolic links.
    """

    def __init__(self, device: Device[Content], view: ReplaceableView[Content], mount_point: str) -> None:
        self._device = device
        self._view = view
        self._mount_point = mount_point
        self._number = device.number()  # of what the view shows, or showed last
        self._former: list[InodeT] = []
        self._names: set[bytes] = set()

    @property
    def device_name(self) -> str:
        return self._device.name

    async def give_up(self, *, force: bool) -> None:
        """Close the device. Ends without a checkpoint.

        Raises:
            DeviceBusy: something is open in it, and `force` is not given; it stays as it is.
            OSError: it could not be written down; it is open again.
        """
        view = self._view
        if not force:
            await self._have_forgotten()
            if view.is_used:
                await self._restore_names()
                raise await in_use(self._device.name, self._mount_point)
        self._former = view.known()
        self._names = set(view.names_at_root())
        with suppress(OSError):  # it is about to be given up; what prevents closing is reported by `close`
            view.sync_clean()
        self._close()

    def _close(self) -> None:
        self._view.detach()
        try:
            self._device.close()
        except OSError:
            self._view.attach(self._device.open())
            raise

    async def take_up(self) -> None:
        """Open the device again. What it was given up for, and what was opened in it before, may have changed.

        Raises CowfsError when it cannot be opened; the mount answers with errors then, until it is given up and taken
        up again.
        """
        number = self._device.number()
        try:
            content = self._device.open()
        except CowfsError as error:
            if number == self._number:
                raise
            raise FilesystemError(
                f"device '{self._device.name}' is rolled back, and its mount at {self._mount_point} can show nothing: "
                f"{error}; roll it back to another device, or unmount it",
                errno=error.errno,
            ) from error
        if number == self._number:
            self._view.attach(content)
            return
        self._number = number
        self._view.replace(content)
        names = self._names.union(self._view.names_at_root())
        await trio.to_thread.run_sync(_drop_names, names, abandon_on_cancel=True)
        await trio.to_thread.run_sync(drop_caches, [ROOT_INODE, *self._former], abandon_on_cancel=True)

    async def put_aside(self) -> None:
        """Close the device for a moment, until `take_again`: what programs have open stays open.

        Ends without a checkpoint.

        Raises:
            DeviceBusy: a file without a name is open in it, which would be lost.
            OSError: it cannot be written down; it is open again.
        """
        await until_released(lambda: self._view.has_orphans)
        if self._view.has_orphans:
            raise DeviceBusy(
                f"a file of device '{self.device_name}' that has no name any more is open; close it, or end the "
                "program that has it"
            )
        self._view.sync_clean()
        self._close()

    async def take_again(self, name: str) -> None:
        """Go on with a device that was put aside, by the name that it has now.

        Raises CowfsError when it cannot be opened; the mount answers with errors then.
        """
        is_renamed = name != self.device_name
        self._device.name = name
        if not self._view.is_attached:
            self._view.attach(self._device.open())
        if is_renamed and (names := self._view.name_device(name)):
            await trio.to_thread.run_sync(_drop_names, names, abandon_on_cancel=True)

    async def _have_forgotten(self) -> None:
        """Have the kernel drop what it does not need of the content, and wait until it has said so."""
        view, at = self._view, self._mount_point
        if not view.is_used:
            return
        if not await trio.to_thread.run_sync(drop_unused_names, at, abandon_on_cancel=True):
            if await trio.to_thread.run_sync(may_be_mounted_below, at, "", abandon_on_cancel=True):
                return
            await trio.to_thread.run_sync(_drop_names, view.names_at_root(), abandon_on_cancel=True)
        await until_forgotten(view, lambda: view.is_used)

    async def _restore_names(self) -> None:
        """A working directory below a name that was dropped has its path again when the name is looked up."""
        paths = [os.path.join(os.fsencode(self._mount_point), name) for name in self._view.names_at_root()]
        await trio.to_thread.run_sync(_look_up, paths, abandon_on_cancel=True)


def _drop_names(names: Iterable[bytes]) -> None:
    for name in names:
        with suppress(FileNotFoundError):  # the kernel does not have it
            pyfuse3.invalidate_entry(ROOT_INODE, name)


def _look_up(paths: Sequence[bytes]) -> None:
    """By a separate process: a thread of this one that waits for the mount would outlive even a kill."""
    script = 'for path; do test -e "$path"; done'
    for i in range(0, len(paths), _NAMES_AT_ONCE):
        command = [b"/bin/sh", b"-c", script.encode(), b"sh", *paths[i : i + _NAMES_AT_ONCE]]
        subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
