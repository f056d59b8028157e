"""Which devices of a home are open behind its view, and which are closed to make room.

A device's volume is opened when a request needs it, not when the device is listed. At most `open_max` are open at a
time: for another one, the longest unused is synced, closed and detached from its view, which goes on when a request
comes. What the kernel has cached of it stays valid. A volume stays open while it is held (`hold`), while a request
waits in it, and while something without a name is open in it.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from pyfuse3 import EntryAttributes

from cowfs.ending import ending_with
from cowfs.errors import DeviceBusy, UsageError
from cowfs.filetree import ServedTree, TreeStatistics
from cowfs.fuse.tree_view import TreeView

OPEN_MAX: Final = 64


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
class OpenDevice:
    """A device that the kernel knows of, that is open, or that is held.

    Invariant: `root` is the volume's root as it is while the view is detached; None when that is not known.

    `is_name_dropped`: the kernel was made to drop its name, with which a working directory in it has lost its path.
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


class OpenDevices:
    """The devices behind one view.

    Args:
        make_view: makes the view of a device with this number, without a volume.
        open_max: how many volumes may be open only because they were used lately.
        log_once: where failures to close go; the same text once.

    Invariants:
        1. `known` holds exactly the devices that the kernel knows an inode of, that are attached, or that are held.
        2. `attached` holds those whose view is attached, which are open in `devices`, the longest unused first.
    """

    def __init__(
        self,
        devices: Devices,
        make_view: Callable[[int], TreeView],
        *,
        open_max: int = OPEN_MAX,
        log_once: Callable[[str], None],
    ) -> None:
        self.devices = devices
        self._make_view = make_view
        self._open_max = open_max
        self._log_once = log_once
        self.known: dict[int, OpenDevice] = {}
        self.attached: OrderedDict[int, OpenDevice] = OrderedDict()
        self._is_closed = False

    def by_name(self, name: str) -> OpenDevice | None:
        """A device that is known here. What the kernel still knows of it from before it was replaced does not count."""
        number = self.devices.number(name)
        if number is not None:
            return self.known.get(number)
        return next((device for device in self.known.values() if device.name == name), None)

    def is_shown(self, device: OpenDevice) -> bool:
        return self.devices.number(device.name) == device.number

    def device(self, number: int, name: str) -> OpenDevice:
        device = self.known.get(number)
        if device is None:
            device = self.known[number] = OpenDevice(name, number, self._make_view(number))
        return device

    def attach(self, device: OpenDevice) -> None:
        if device.view.is_attached:
            return
        if not self.is_shown(device):  # removed, or replaced by another thin of its name
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        self._evict()
        device.view.attach(self.devices.open(device.name))
        device.root = None
        self.attached[device.number] = device

    def _evict(self) -> None:
        for device in list(self.attached.values()):
            if len(self.attached) < self._open_max:
                return
            if self.can_be_closed(device):
                self.close_volume(device)

    def can_be_closed(self, device: OpenDevice) -> bool:
        if device.holds or device.under_way or device.view.has_orphans:
            return False
        # One that is marked for deletion could not be opened again.
        return not device.view.is_known or self.is_shown(device)

    def close_volume(self, device: OpenDevice, *, even_if_it_fails: bool = False) -> None:
        """Close a volume until it is needed again; one that cannot be written down stays open."""
        view = device.view
        if view.is_attached:
            try:
                if not view.failure:
                    view.sync_clean()
                device.root = view.root()
            except OSError as error:
                self._log_once(f"device '{device.name}': {error}")
                if not even_if_it_fails:
                    return
            except Exception:
                view.fail("sync_clean")
            view.detach()
            del self.attached[device.number]
            try:
                self.devices.close(device.name)
            except OSError as error:
                self._log_once(f"device '{device.name}': {error}")
        self.drop_if_unused(device)

    def put_aside(self, name: str) -> None:
        """Close the volume of a device, which the next request opens again: what programs have open stays open.

        Raises:
            DeviceBusy: it is held, a request waits in it, a file without a name is open in it, or it cannot be written
                down.
        """
        device = self.by_name(name)
        if device is None or not device.view.is_attached:
            return
        if device.holds or device.under_way:
            raise DeviceBusy(
                f"device '{name}' is in use as a layer, or something waits for space in it; try again later"
            )
        if device.view.has_orphans:
            raise DeviceBusy(
                f"a file of device '{name}' that has no name any more is open; close it, or end the program that has it"
            )
        self.close_volume(device)
        if device.view.is_attached:
            raise DeviceBusy(f"device '{name}' cannot be written to the pool; the log of the mount says why")

    def drop_if_unused(self, device: OpenDevice) -> None:
        is_used = device.view.is_known or device.view.is_attached or device.holds
        if not is_used and self.known.get(device.number) is device:
            del self.known[device.number]

    def hold(self, device: OpenDevice) -> None:
        """Keep a device's volume open and its directory there, even if it is marked for deletion meanwhile.

        Each call needs an `end_hold`. Raises CowfsError when its volume cannot be opened.
        """
        device.holds += 1
        try:
            self.attach(device)
        except BaseException:
            device.holds -= 1
            self.drop_if_unused(device)
            raise

    def end_hold(self, name: str) -> None:
        """Take back one `hold`, unless the view is closed, which ends them all.

        The kernel still knows what it has cached, see `KernelCache.close_if_idle`.

        Raises:
            UsageError: it is not held.
        """
        if self._is_closed:
            return
        device = self.by_name(name)
        if device is None or not device.holds:
            raise UsageError(f"device '{name}' is not held")
        device.holds -= 1

    def sync_clean(self) -> None:
        for device in list(self.attached.values()):
            if not device.view.failure:
                device.view.sync_clean()

    def sync_changes(self) -> None:
        self.devices.rebalance()
        for device in list(self.attached.values()):
            try:
                device.view.sync_changes()
            except OSError as error:
                self._log_once(f"device '{device.name}': {error}")
            except Exception:
                device.view.fail("sync_changes")
            if not device.view.is_known and self.can_be_closed(device):
                self.close_volume(device)

    def close(self) -> None:
        self._is_closed = True
        with ExitStack() as last:
            for device in self.attached.values():
                device.view.detach()
                last.enter_context(ending_with(partial(self.devices.close, device.name)))
            self.attached.clear()
            self.known.clear()
