"""The layer driver of a home: layers are devices, and their files are read and written in process.

Nothing but `get` needs a mount: `changes`, `diff`, `apply` and `diff_size` work on the ext4 itself. How files are made
reachable at a path is the `Mounter`'s business.

`apply` gives a layer that is not in use its new content all at once or not at all, whatever happens meanwhile; a layer
whose files are in use is written in place.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import IO, TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from cowfs.devices.deviceset import DeviceSet
from cowfs.devices.on_disk.names import BASE, ID_FILE, pool_prefix
from cowfs.devices.uses import require_idle
from cowfs.ending import ending_with
from cowfs.errors import FilesystemError, HomeError, UsageError
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE, FileTree
from cowfs.layers.archive import apply_archive, archive_size, write_archive
from cowfs.layers.changes import ThinPair, find_changes, own_bytes
from cowfs.layers.info import DriverInfo, driver_info, loop_device_of, metadata_items, status_items
from cowfs.layers.interface import Change, ChangeKind, Driver, IdMaps, LayerRoot, LayerUsage
from cowfs.layers.options import DriverOptions, Facts, Settings, check_layer_size, parse_layer_options, resolve_options
from cowfs.layers.roots import ROOTFS, ensure_root, find_root, looks_like_layer, write_layer_id
from cowfs.layers.trees import EngineTrees, Trees, changing_in_place
from cowfs.pool import NodePool, ThinDevice
from cowfs.steps import Pieces, Steps
from cowfs.version import VERSION
from cowfs.volumes import Volumes

_log = logging.getLogger(__name__)
_SUBSTITUTES: Final = "Docker and tar read them with '.cowfs-name' before each, and 'layer apply' as they are"
_WHY: Final = "ext4 has no place for them, or they are access lists of names without numbers"

_EXT4: Final = "ext4"
_OWN_NAMES: Final = {ROOTFS, ID_FILE}  # what a layer has beside its files

Prepare: TypeAlias = Callable[[FileTree], object]


class Mounter(Protocol):
    """Makes the files of layers reachable at paths."""

    def mount(self, layer_id: str, mount_label: str, *, prepare: Prepare, write_id: Prepare) -> str:
        """The path of the root directory of a layer; nothing is mounted when this raises.

        Args:
            prepare: sees to that directory.
            write_id: called when the layer is changed, at the latest before its files are closed, and perhaps always.
        """
        ...

    def show(self, layer_id: str, *, make_root: Prepare | None) -> str:
        """The path of the root directory of a layer, which is not kept in use: in a view, it is opened when needed.

        Args:
            make_root: makes that directory, where it may not be there yet.
        """
        ...

    def unmount(self, layer_id: str) -> None:
        """End a mount, also one that an earlier process left; nothing happens where there is none."""
        ...

    def unmount_all(self) -> None:
        """End every mount that can be ended, also those that earlier processes left."""
        ...


@dataclass(frozen=True, slots=True)
class _LayerMount:
    """`ends`: of the uses in the device set's ledger, one for each `get`."""

    path: str
    ends: list[Callable[[], None]]


class _Source(NamedTuple):
    """The files of a layer, or of another device, for reading, and the thin they are on."""

    name: str
    root: LayerRoot
    thin_id: int
    is_layer: bool


class Pair(NamedTuple):
    """What `find_path_changes` compares."""

    root: LayerRoot
    other: LayerRoot
    thins: ThinPair


class LayerDriver:
    """A `Driver` over an open home, which stays its owner's.

    Args:
        volumes: the open volumes of `devices`, shared with the views that show their files.
        mounter: None where nothing serves the files of layers.
        trees: how files are reached otherwise; by the ext4 engine when None.
        make_devices: whether an archive's device nodes are made; skipped otherwise.
        keep_root_owner: leave the owner of a layer's root directory as it is, where others see to it.
    """

    def __init__(
        self,
        devices: DeviceSet,
        volumes: Volumes,
        mounter: Mounter | None = None,
        *,
        trees: Trees | None = None,
        settings: Settings | None = None,
        maps: IdMaps | None = None,
        make_devices: bool = True,
        keep_root_owner: bool = False,
    ) -> None:
        self._devices = devices
        self._volumes = volumes
        self._has_nodes = isinstance(devices.pool, NodePool)
        self._mounter = mounter
        self._is_read_only = volumes.read_only
        self._trees = trees or EngineTrees(devices, volumes)
        self._settings = settings or resolve_options(DriverOptions(), Facts())
        self._maps = maps or IdMaps()
        # The process that serves the files can then write to them.
        self._owner = self._maps.root if self._maps.uids else (os.geteuid(), os.getegid())
        self._make_devices = make_devices
        self._keep_root_owner = keep_root_owner
        self._mounts: dict[str, _LayerMount] = {}
        self.was_mount_requested = False  # whether `get` was ever called

    # ------------------------------------------------------------------ making and removing

    def create(self, layer_id: str, parent: str | None, storage_options: Mapping[str, str] | None = None) -> None:
        size_bytes = parse_layer_options(storage_options)
        origin = BASE if parent is None else parent
        if size_bytes is not None and origin in self._devices:
            check_layer_size(size_bytes, self._devices.record(origin).size_bytes)
        self._devices.create(layer_id, parent=parent, size_bytes=size_bytes, is_layer=True)

    def limit(self, layer_id: str, size_bytes: int | None) -> None:
        """Let the files of a device that is not in use take so much at most, what it inherits included; None for all.

        Raises:
            UsageError: they take more already, or it holds xfs, which has no limit here.
        """
        if self._devices.base.filesystem_name != _EXT4:
            raise UsageError(f"device {layer_id!r} holds xfs; its size can be limited with a base device of ext4 only")
        with changing_in_place(self._volumes, layer_id) as tree:
            assert isinstance(tree, Volume)
            if size_bytes is None:
                tree.lift_limit()
                return
            found = tree.statistics()
            used_bytes = (found.blocks - found.blocks_free) * found.block_bytes
            if size_bytes < used_bytes:
                raise UsageError(
                    f"device {layer_id!r} cannot be limited to {size_bytes} bytes: it begins with {used_bytes} in use"
                )
            tree.limit_space(size_bytes)

    def remove(self, layer_id: str) -> None:
        if layer_id not in self._devices:
            return
        self._require_layer(layer_id)
        if not self._settings.deferred_deletion:
            require_idle(layer_id, self._devices.uses.of(layer_id, "reader"), "removed")
        self._devices.remove(layer_id, deferred=self._settings.deferred_deletion)

    def exists(self, layer_id: str) -> bool:
        return layer_id != BASE and layer_id in self._devices and self._devices.record(layer_id).is_layer is not False

    def list_layers(self) -> list[str]:
        return [
            record.name
            for record in self._devices.records()
            if record.name != BASE and not record.deleted and record.is_layer is not False
        ]

    # ------------------------------------------------------------------ files at a path

    def get(self, layer_id: str, mount_label: str = "") -> str:
        self.was_mount_requested = True
        self._require_layer(layer_id)
        if self._mounter is None:
            raise self._not_shown(layer_id)
        mount = self._mounts.get(layer_id)
        if mount is None:
            path = self._mounter.mount(
                layer_id,
                mount_label,
                prepare=partial(self._prepare, layer_id),
                write_id=lambda tree: write_layer_id(tree, layer_id, self._owner),
            )
            mount = self._mounts[layer_id] = _LayerMount(path, [])
        mount.ends.append(self._devices.uses.begin(layer_id, "layer", mount.path))
        return mount.path

    def _prepare(self, layer_id: str, tree: FileTree) -> None:
        if not self._is_read_only:
            self._ensure_root(tree)
        elif not find_root(tree).inode:
            raise HomeError(
                f"layer {layer_id!r} has no files: their directory 'rootfs' is made when a layer is first used, and "
                "nothing can be written here",
                errno=errno.EROFS,
            )

    def show(self, layer_id: str, *, is_new: bool) -> str:
        """Where a layer's files are, without a `get`: nothing keeps them there but this process, until a `put`.

        Args:
            is_new: the layer has no parent and was never used, so its root directory is made.
        """
        self._require_layer(layer_id)
        if self._mounter is None:
            raise self._not_shown(layer_id)
        return self._mounter.show(layer_id, make_root=self._ensure_root if is_new else None)

    def _not_shown(self, layer_id: str) -> UsageError:
        return UsageError(f"the files of layer {layer_id!r} cannot be shown: nothing serves this home; mount it first")

    def put(self, layer_id: str) -> None:
        self._require_layer(layer_id)
        mount = self._mounts.get(layer_id)
        if mount is not None:
            mount.ends.pop()()
            if mount.ends:
                return
            del self._mounts[layer_id]
        if self._mounter is not None:
            self._mounter.unmount(layer_id)

    def _ensure_root(self, tree: FileTree) -> LayerRoot:
        return ensure_root(tree, self._owner, keep_owner=self._keep_root_owner)

    def _end_uses(self, layer_id: str) -> None:
        for end in self._mounts.pop(layer_id).ends:
            end()

    @property
    def can_show_files(self) -> bool:
        """Whether there is a mounter, which `get` needs."""
        return self._mounter is not None

    @property
    def has_mounts(self) -> bool:
        """Whether a layer is mounted: there was a `get` without its `put`."""
        return bool(self._mounts)

    def cleanup(self) -> None:
        with ExitStack() as last:
            for layer_id in list(self._mounts):
                self._end_uses(layer_id)
                last.enter_context(ending_with(partial(self.put, layer_id)))

    def unmount_all(self) -> None:
        """As `cleanup`, and take down what an earlier process left, too; what cannot be ended stays."""
        for layer_id in list(self._mounts):
            self._end_uses(layer_id)
        if self._mounter is not None:
            self._mounter.unmount_all()

    # ------------------------------------------------------------------ figures

    def metadata(self, layer_id: str) -> dict[str, str]:
        self._require_layer(layer_id)
        return metadata_items(self._devices.record(layer_id), pool_prefix(str(self._devices.home)))

    def status(self) -> list[tuple[str, str]]:
        return status_items(self.info())

    def info(self) -> DriverInfo:
        """The figures behind `status`."""
        status = self._devices.reports.status()
        loops = [loop_device_of(path) for path in (status.data_file, status.metadata_file) if self._has_nodes]
        data_loop, metadata_loop = loops or ("", "")
        return driver_info(
            status,
            self._settings,
            base_filesystem=self._devices.base.filesystem_name,
            data_loop=data_loop,
            metadata_loop=metadata_loop,
            library_version=VERSION,
        )

    # ------------------------------------------------------------------ files, of devices that are no layers too

    @contextmanager
    def reading(self, name: str) -> Iterator[LayerRoot]:
        """The files of a device, or of a layer, which hold still; inode 0 for a layer that was never used."""
        with self._reading(name) as source:
            yield source.root

    @contextmanager
    def changing(self, name: str) -> Iterator[LayerRoot]:
        """The files of a device or layer to change in place; what was changed is committed when the block ends."""
        with self._devices.uses.using(name, "writer"), self._trees.changing(name) as tree:
            if not self._is_layer(name, tree, None):
                yield LayerRoot(tree, ROOT_INODE)
                return
            root = self._ensure_root(tree)
            write_layer_id(tree, name, self._owner)
            yield root

    # ------------------------------------------------------------------ archives

    def changes(self, layer_id: str, parent: str | None) -> Steps[list[Change]]:
        with self._reading(layer_id) as layer, self._reading_parent(parent, layer) as lower:
            return (yield from self._find(layer, lower))

    @contextmanager
    def comparing(self, name: str, other: str) -> Iterator[Pair]:
        """The files of two devices, or of two layers, which hold still."""
        with self._reading(name) as source, self._reading(other, source) as lower:
            try:
                yield Pair(source.root, lower.root, ThinPair(self._devices.pool, source.thin_id, lower.thin_id))
            except FilesystemError as error:
                raise FilesystemError(f"cannot compare '{name}' with '{other}': {error}", errno=error.errno) from error

    def diff(self, layer_id: str, parent: str | None, *, sparse: bool = False) -> Pieces[bytes]:
        with self._reading(layer_id) as layer:
            changes = None
            if parent is not None:
                with self._reading(parent, layer) as lower:
                    changes = yield from self._find(layer, lower)
            written = yield from write_archive(layer.root, changes, maps=self._maps, sparse=sparse)
        if written.substitutes:
            _log.warning(
                "the archive of layer %r has %d paths in which names start with '.wh.', as marks of deletions do: %s",
                layer_id,
                written.substitutes,
                _SUBSTITUTES,
            )

    def diff_size(self, layer_id: str, parent: str | None) -> Steps[int]:
        with self._reading(layer_id) as layer:
            with self._reading_parent(parent, layer) as lower:
                changes = yield from self._find(layer, lower)
            return (yield from archive_size(layer.root, changes))

    def usage(self, layer_id: str, parent: str | None) -> Steps[LayerUsage]:
        """What a layer adds to its parent, by one search for what it changed."""
        pool = self._devices.pool
        with self._reading(layer_id) as layer:
            if parent is None:
                with self._trees.reading(BASE) as base:
                    inodes = _used_inodes(layer.root.tree) - _used_inodes(base.tree)
                    yield
                    names = layer.root.tree.list_directory(ROOT_INODE) if layer.is_layer else ()
                    own = {entry.name for entry in names} & _OWN_NAMES
                    return LayerUsage(own_bytes(ThinPair(pool, layer.thin_id, base.thin_id)), inodes - len(own))
            with self._reading(parent, layer) as lower:
                changes = yield from self._find(layer, lower)
                inodes = sum(change.kind is not ChangeKind.DELETE for change in changes)
                return LayerUsage(own_bytes(ThinPair(pool, layer.thin_id, lower.thin_id)), inodes)

    def apply(
        self,
        layer_id: str,
        parent: str | None,  # noqa: ARG002
        archive: IO[bytes],
        *,
        as_docker: bool = False,
        is_layer: bool = True,
    ) -> Steps[int]:
        """See `Driver`. Without `is_layer` it is a device that is no layer: all of its file system are its files."""
        if is_layer:
            self._require_layer(layer_id)
        with self._trees.writing(layer_id) as tree:
            return (yield from self._unpack(layer_id, tree, archive, as_docker=as_docker, is_layer=is_layer))

    def make(self, layer_id: str, parent: str | None, archive: IO[bytes], *, end_required: bool = True) -> Steps[int]:
        """A new layer of an archive: it is there with all of it, or not at all; the sum of the sizes in the archive."""
        if parent is not None:
            self._require_layer(parent)
        with self._volumes.making(layer_id, None, origin=BASE if parent is None else parent) as volume:
            size_bytes = yield from self._unpack(layer_id, volume, archive, end_required=end_required)
            self._devices.imports.note_layer(layer_id)
        return size_bytes

    def packed_anew(self, thin: ThinDevice, name: str, parent: str | None) -> Pieces[bytes]:
        """The archive of a layer that is being made: what the files on its thin changed against `parent`."""
        with closing(Volume.open(thin, read_only=True, name=f"device {name!r}")) as volume:
            root = find_root(volume)
            if not root.inode:
                raise FilesystemError(f"device {name!r} holds no layer: there is no directory 'rootfs'")
            changes = None
            if parent is not None:
                with self._reading(parent) as lower:
                    thins = ThinPair(self._devices.pool, thin.thin_id, lower.thin_id)
                    changes = yield from find_changes(root, lower.root, thins)
            yield from write_archive(root, changes, maps=self._maps)

    def _unpack(
        self,
        layer_id: str,
        tree: FileTree,
        archive: IO[bytes],
        *,
        as_docker: bool = False,
        end_required: bool | None = None,
        is_layer: bool = True,
    ) -> Steps[int]:
        root = LayerRoot(tree, ROOT_INODE)
        if is_layer:
            root = self._ensure_root(tree)
            write_layer_id(tree, layer_id, self._owner)
        applied = yield from apply_archive(
            root,
            archive,
            maps=self._maps,
            make_devices=self._make_devices,
            end_required=not as_docker if end_required is None else end_required,
            true_names=not as_docker,
        )
        if applied.skipped_xattrs:
            _log.warning(
                "layer %r is without %d extended attributes of its archive: %s", layer_id, applied.skipped_xattrs, _WHY
            )
        if applied.skipped_devices:
            _log.warning("layer %r is without %d device nodes of its archive", layer_id, applied.skipped_devices)
        return applied.size_bytes

    def _find(self, layer: _Source, parent: _Source | None) -> Steps[list[Change]]:
        if parent is None:
            return find_changes(layer.root, None)
        return find_changes(layer.root, parent.root, ThinPair(self._devices.pool, layer.thin_id, parent.thin_id))

    @contextmanager
    def _reading_parent(self, parent: str | None, layer: _Source) -> Iterator[_Source | None]:
        if parent is None:
            yield None
        else:
            with self._reading(parent, layer) as source:
                yield source

    @contextmanager
    def _reading(self, layer_id: str, beside: _Source | None = None) -> Iterator[_Source]:
        """The files of a device, which hold still.

        Args:
            beside: what they are to be compared with.

        Raises:
            UsageError: one is a layer and the other is not, so that no file of one belongs to one of the other.
        """
        with self._devices.uses.using(layer_id, "reader"), self._trees.reading(layer_id) as held:
            is_layer = self._is_layer(layer_id, held.tree, beside)
            if beside is not None and is_layer != beside.is_layer:
                raise _mixed(*sorted([(layer_id, is_layer), (beside.name, beside.is_layer)], key=itemgetter(1)))
            root = find_root(held.tree) if is_layer else LayerRoot(held.tree, ROOT_INODE)
            yield _Source(layer_id, root, held.thin_id, is_layer)

    def _require_layer(self, layer_id: str) -> None:
        if layer_id == BASE:
            raise UsageError(f"{BASE!r} is reserved: layers are created from it, so it stays empty; create a layer")
        if layer_id in self._devices and self._devices.record(layer_id).is_layer is False:
            raise UsageError(
                f"device {layer_id!r} is not a layer: it was made by 'create', and all of its file system are its "
                "files; mount it, or make a layer by 'layer create'"
            )

    def _is_layer(self, name: str, tree: FileTree, beside: _Source | None) -> bool:
        if name == BASE:  # what both kinds begin as
            return beside is not None and beside.is_layer
        known = self._devices.record(name).is_layer
        return looks_like_layer(tree) if known is None else known


def _used_inodes(tree: FileTree) -> int:
    figures = tree.statistics()
    return figures.inodes - figures.inodes_free


def _mixed(plain: tuple[str, bool], layer: tuple[str, bool]) -> UsageError:
    return UsageError(
        f"device {plain[0]!r} is not a layer and {layer[0]!r} is: one's files are all of its file system, the other's "
        "its directory 'rootfs', so they cannot be compared; name two layers, or two other devices"
    )


if TYPE_CHECKING:
    _: type[Driver] = LayerDriver
