"""Layers that the kernel mounts: `get` is mount(2) of the thin device's node at HOME/mnt/ID.

    get      the node of the device is opened and mounted at HOME/mnt/ID; `rootfs` and `id` are made there
    put      detached (umount -l), the mount point removed, and with its last user the kernel removes the device
    diff, changes, size     of a separate snapshot: ext4 by the engine, xfs mounted without a path; both
             by the engine in a home that is only read
    apply    into a snapshot that becomes the layer; in place where the layer is mounted

Taking away the mount point also ends copies of the mount that other mount namespaces have (since Linux 3.18), so a
container elsewhere keeps no layer. A mount that a killed process left is taken over by the next `get`, and ended by
`put`; where only a copy of it is left, as a container has, the next `get` mounts the same device again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Final

from cowfs.devices.base.base_xfs import limit_nospace_retries
from cowfs.devices.deviceset import DeviceSet
from cowfs.devices.on_disk.files import HomeFiles
from cowfs.devices.pools import free_space
from cowfs.errors import DeviceBusy, MountError
from cowfs.filetree import FileTree
from cowfs.layers.driver import Prepare
from cowfs.layers.options import Settings
from cowfs.layers.roots import ROOTFS
from cowfs.layers.trees import HeldTree, changing_in_place
from cowfs.mounts import nodes
from cowfs.mounts.kernel_mount import mount_node
from cowfs.mounts.mounted_tree import MountedTree
from cowfs.mounts.mountinfo import Mount, mount_at
from cowfs.mounts.mountpoint import unmount_now
from cowfs.pool import NodeThin, ThinDevice
from cowfs.volumes import Volumes

if TYPE_CHECKING:
    from cowfs.layers.driver import Mounter
    from cowfs.layers.trees import Trees

_MOUNT_POINT_MODE: Final = 0o755
_XFS: Final = "xfs"


class KernelLayers:
    """`Mounter` and `Trees` of a home on a backend with device nodes, for root.

    Args:
        volumes: the open ext4 volumes of `devices`.
        group: of a container's root, which has to reach its files.
    """

    def __init__(self, devices: DeviceSet, volumes: Volumes, settings: Settings, *, group: int | None = None) -> None:
        self._devices = devices
        self._group = group
        self._volumes = volumes
        self._settings = settings
        self._files = HomeFiles(os.path.realpath(devices.home))
        self._directory = self._files.mounts

    @property
    def _is_xfs(self) -> bool:
        return self._devices.base.filesystem_name == _XFS

    # ------------------------------------------------------------------ at a path

    def mount(self, layer_id: str, mount_label: str, *, prepare: Prepare, write_id: Prepare) -> str:
        target = self._mount_point(layer_id)
        if self._mount_of(layer_id) is None:
            self._make_mount_point(target)
            try:
                self._mount(layer_id, target, mount_label)
            except BaseException:
                self._remove_mount_point(target)
                raise
        try:
            if not self._devices.read_only:
                with closing(_tree_at(target)) as tree:
                    prepare(tree)
                    write_id(tree)
        except BaseException:
            self.unmount(layer_id)
            raise
        return os.path.join(target, os.fsdecode(ROOTFS))

    def show(self, layer_id: str, *, make_root: Prepare | None) -> str:
        nothing: Prepare = lambda _tree: None  # noqa: E731
        return self.mount(layer_id, "", prepare=make_root or nothing, write_id=nothing)

    def _mount(self, layer_id: str, target: str, mount_label: str) -> None:
        fd = self._node_of_other_mounts(layer_id)
        if fd is None:
            fd = self._devices.active.open_node(layer_id)
        try:
            options = self._settings.mount_data(self._devices.base.filesystem_name, mount_label)
            with self._with_room():
                node = mount_node(fd, layer_id, target, f"{options},ro" if self._devices.read_only else options)
            retries = self._settings.xfs_nospace_max_retries
            if self._is_xfs and retries is not None:
                try:
                    limit_nospace_retries(node, retries)
                except BaseException:
                    unmount_now(target, lazy=True)
                    raise
        finally:
            os.close(fd)

    @contextmanager
    def _with_room(self) -> Iterator[None]:
        """Around mount(2), which writes. Raises OutOfDataSpace, OutOfMetadataSpace, PoolModeError."""
        if not self._devices.read_only:
            free_space.require_room_to_mount(self._devices.pool)
        with free_space.naming_what_a_mount_lacks(self._devices.pool):
            yield

    def _hidden_tree(self, thin: ThinDevice, layer_id: str, options: str) -> MountedTree:
        with self._with_room():
            return _hidden_tree(thin, layer_id, options)

    def _node_of_other_mounts(self, layer_id: str) -> int | None:
        """The node of a device that is mounted elsewhere, as a container has it after the end of an earlier process."""
        numbers = self._devices.active.open_nodes().get(layer_id, ())
        for _, mount in nodes.kernel_mounts({layer_id: numbers}):
            with suppress(OSError):
                fd = os.open(mount.source, os.O_RDONLY | os.O_CLOEXEC)
                if os.fstat(fd).st_rdev in numbers:
                    return fd
                os.close(fd)
        return None

    def unmount(self, layer_id: str) -> None:
        """Raises DeviceBusy without deferred removal, when another process still uses the device."""
        target = self._mount_point(layer_id)
        mount = self._mount_of(layer_id)
        if mount is None:
            return
        number = nodes.device_of(mount)
        name = nodes.target_name(number)
        unmount_now(target, lazy=True)
        self._remove_mount_point(target)
        nodes.wait_until(lambda: nodes.target_name(number) != name or layer_id in self._devices.active.open_nodes())
        if nodes.target_name(number) != name:
            self._devices.deletions.finish(layer_id)
        elif not self._settings.deferred_removal:
            raise DeviceBusy(f"layer '{layer_id}' was unmounted, but its device is busy: something else uses it")

    def unmount_all(self) -> None:
        """End every mount of a layer that a process of this home made; what cannot be ended stays."""
        prefix = self._directory + os.sep
        for layer_id, mount in nodes.kernel_mounts(self._devices.active.open_nodes()):
            if mount.target == prefix + layer_id:
                with suppress(OSError):
                    self.unmount(layer_id)

    def _mount_point(self, layer_id: str) -> str:
        return os.path.join(self._directory, layer_id)

    def _mount_of(self, layer_id: str) -> Mount | None:
        """The mount of a layer's device at its mount point. Raises MountError when something else is mounted there."""
        target = self._mount_point(layer_id)
        mount = mount_at(target)
        if mount is None or nodes.device_of(mount) in self._devices.active.open_nodes().get(layer_id, ()):
            return mount
        reason = f"something else is mounted there ({mount.fstype} {mount.source}); unmount it first"
        raise MountError("mount", layer_id, target, reason=reason)

    def _make_mount_point(self, target: str) -> None:
        self._files.make_mounts(self._group)
        with suppress(FileExistsError):
            os.mkdir(target, _MOUNT_POINT_MODE)

    def _remove_mount_point(self, target: str) -> None:
        with suppress(OSError):
            os.rmdir(target)

    # ------------------------------------------------------------------ in process

    @contextmanager
    def reading(self, layer_id: str) -> Iterator[HeldTree]:
        if self._devices.read_only:
            with self._volumes.opened(layer_id) as volume:
                yield HeldTree(volume, self._devices.record(layer_id).device_id)
        elif self._is_xfs:
            with (
                self._devices.snapshots.temporary(layer_id, read_only=False) as thin,
                closing(self._hidden_tree(thin, layer_id, "ro")) as tree,
            ):
                yield HeldTree(tree, thin.thin_id)
        else:
            with self._volumes.temporary_snapshot(layer_id) as (volume, thin_id):
                yield HeldTree(volume, thin_id)

    @contextmanager
    def writing(self, layer_id: str) -> Iterator[FileTree]:
        if self._mount_of(layer_id) is not None:
            with closing(_tree_at(self._mount_point(layer_id))) as tree:
                yield tree
        elif self._is_xfs:
            with self._devices.replacing(layer_id) as thin, closing(self._hidden_tree(thin, layer_id, "")) as tree:
                yield tree
        else:
            with self._volumes.replacing(layer_id) as volume:
                yield volume

    @contextmanager
    def changing(self, layer_id: str) -> Iterator[FileTree]:
        if self._mount_of(layer_id) is not None:
            with closing(_tree_at(self._mount_point(layer_id))) as tree:
                yield tree
        elif self._is_xfs:
            with (
                self._devices.active.activated(layer_id, "writer") as thin,
                closing(self._hidden_tree(thin, layer_id, "")) as tree,
            ):
                yield tree
        else:
            with changing_in_place(self._volumes, layer_id) as tree:
                yield tree


def _tree_at(target: str) -> MountedTree:
    return MountedTree(os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def _hidden_tree(thin: ThinDevice, layer_id: str, options: str) -> MountedTree:
    """The file system of a device, mounted without a path; unmounted with the process, or the tree's `close`."""
    assert isinstance(thin, NodeThin)
    with tempfile.TemporaryDirectory(prefix="cowfs-") as target:
        fd = os.open(thin.node, os.O_RDONLY | os.O_CLOEXEC)
        try:
            mount_node(fd, layer_id, target, options)
        finally:
            os.close(fd)
        try:
            root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            unmount_now(target, lazy=True)
    return MountedTree(root, read_only=options.startswith("ro"))


if TYPE_CHECKING:
    _mounters: tuple[type[Mounter], ...] = (KernelLayers,)
    _trees: tuple[type[Trees], ...] = (KernelLayers,)
