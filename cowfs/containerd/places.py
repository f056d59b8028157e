"""How the files of snapshots are reached: as directories below the home's mount, or each as a block device.

directories     a snapshot is a layer; its mount is a bind of `rootfs` in it. A view shows its parent's own.
block devices   a snapshot is a device with a node of the kernel, and its files are all of its file system, as
                runtimes of virtual machines want them. The node outlives this process. A view is a snapshot of its
                parent, since what is mounted read-only may still be written: a journal is replayed.
"""

from __future__ import annotations

import os
from typing import Any, Final, Protocol

from cowfs.containerd.messages import ACTIVE, message_class
from cowfs.home.requests.devices import Create, HideNode, ShowNode
from cowfs.home.requests.layers import ApplyLayer, CreateLayer, PutLayer, ShowLayer
from cowfs.home.requests.request import Attachment, Request
from cowfs.home.snapshot_keys import DEVICE_PREFIX


class Places(Protocol):
    """Requests about the devices of snapshots, and the mounts that show them."""

    views_have_devices: bool

    def creation(self, device: str, origin: str | None, size_bytes: int | None = None) -> Request[Any]:
        """A new device: a snapshot of another one, or an empty one."""
        ...

    def showing(self, device: str, *, is_new: bool) -> Request[str]:
        """The path of a device's files; `is_new`: it has no origin, and was never shown."""
        ...

    def hiding(self, device: str) -> Request[None]:
        """Nothing needs the path any more. Its answer may be DeviceBusy: something does."""
        ...

    def unpacking(self, device: str, archive: Attachment) -> ApplyLayer:
        """An archive into a device that is not in use: all of it or nothing."""
        ...

    def mount(self, path: str, kind: int) -> Any:
        """The message that says how to mount what is at a path, for a snapshot of a kind."""
        ...

    def device_of(self, mount: Any) -> str | None:
        """The device whose files a mount shows, if it is one of these; to be compared with where that is shown."""
        ...


class Directories:
    """Snapshots as directories."""

    views_have_devices = False

    def creation(self, device: str, origin: str | None, size_bytes: int | None = None) -> Request[Any]:
        return CreateLayer(device, origin, {} if size_bytes is None else {"size": str(size_bytes)})

    def showing(self, device: str, *, is_new: bool) -> Request[str]:
        return ShowLayer(device, is_new)

    def hiding(self, device: str) -> Request[None]:
        return PutLayer(device)

    def unpacking(self, device: str, archive: Attachment) -> ApplyLayer:
        return ApplyLayer(device, as_docker=True, is_whole_needed=True, archive=archive)

    def mount(self, path: str, kind: int) -> Any:
        options = ["rbind", "rw" if kind == ACTIVE else "ro"]
        return message_class("Mount")(type="bind", source=path, options=options)

    def device_of(self, mount: Any) -> str | None:
        if mount.type != "bind":
            return None
        path: str = mount.source
        return os.path.basename(os.path.dirname(path))


class BlockDevices:
    """Snapshots as block devices.

    Args:
        filesystem: what is in them, ext4 or xfs.
    """

    views_have_devices = True
    _options: Final = {"xfs": ["nouuid"]}  # that of a snapshot is its origin's

    def __init__(self, filesystem: str) -> None:
        self._filesystem = filesystem

    def creation(self, device: str, origin: str | None, size_bytes: int | None = None) -> Request[Any]:
        return Create(device, origin, size_bytes)

    def showing(self, device: str, *, is_new: bool) -> Request[str]:  # noqa: ARG002
        return ShowNode(device)

    def hiding(self, device: str) -> Request[None]:
        return HideNode(device)

    def unpacking(self, device: str, archive: Attachment) -> ApplyLayer:
        return ApplyLayer(device, as_docker=True, is_whole_needed=True, is_layer=False, archive=archive)

    def mount(self, path: str, kind: int) -> Any:
        options = [*self._options.get(self._filesystem, ()), *(() if kind == ACTIVE else ("ro",))]
        return message_class("Mount")(type=self._filesystem, source=path, options=options)

    def device_of(self, mount: Any) -> str | None:
        if mount.type != self._filesystem or DEVICE_PREFIX not in mount.source:
            return None
        name: str = mount.source.rpartition(DEVICE_PREFIX)[2]
        return DEVICE_PREFIX + name
