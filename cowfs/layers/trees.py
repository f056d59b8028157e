"""Reaching the files of layers in process: the `Trees` of a driver, by the ext4 engine, and for reading xfs."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cowfs.devices.deviceset import DeviceSet
from cowfs.ending import ending_with
from cowfs.errors import HomeError
from cowfs.filetree import FileTree
from cowfs.volumes import Volumes


class HeldTree(NamedTuple):
    """The files of a layer, which hold still, and the thin they are on."""

    tree: FileTree
    thin_id: int


class Trees(Protocol):
    """Opens the files of layers, each for the length of a `with` block."""

    def reading(self, layer_id: str) -> AbstractContextManager[HeldTree]:
        """A layer as it is now, also while it is in use."""
        ...

    def writing(self, layer_id: str) -> AbstractContextManager[FileTree]:
        """A layer to change: all at once when the block ends, or not at all; in place where it is in use."""
        ...

    def changing(self, layer_id: str) -> AbstractContextManager[FileTree]:
        """A layer to change in place; what was changed is committed when the block ends, however it does."""
        ...


class EngineTrees:
    """`Trees` that need no mount: of ext4, and of xfs for reading."""

    def __init__(self, devices: DeviceSet, volumes: Volumes) -> None:
        self._devices = devices
        self._volumes = volumes

    @contextmanager
    def reading(self, layer_id: str) -> Iterator[HeldTree]:
        """The layer itself, or a snapshot of it while its files are in use."""
        is_used = self._volumes.is_open(layer_id) or self._volumes.is_disk(layer_id)
        if is_used and not self._devices.read_only:
            with self._volumes.temporary_snapshot(layer_id) as (volume, thin_id):
                yield HeldTree(volume, thin_id)
        else:
            with self._volumes.opened_for_reading(layer_id) as volume:
                yield HeldTree(volume, self._devices.record(layer_id).device_id)

    @contextmanager
    def writing(self, layer_id: str) -> Iterator[FileTree]:
        if not self._volumes.is_open(layer_id):
            with self._volumes.replacing(layer_id) as volume:
                yield volume
        else:
            with self._volumes.opened(layer_id) as volume:
                yield volume
                volume.sync()

    @contextmanager
    def changing(self, layer_id: str) -> Iterator[FileTree]:
        with changing_in_place(self._volumes, layer_id) as volume:
            yield volume


@contextmanager
def changing_in_place(volumes: Volumes, name: str) -> Iterator[FileTree]:
    """Raises HomeError (EROFS) where it is shown for reading only; FilesystemError (EROFS): xfs; DeviceBusy: a disk."""
    volumes.require_no_disk(name, "written", " (or copy to where it is used)")
    volume = volumes.open(name)
    with ending_with(partial(volumes.close, name)):
        volumes.require_writable(name)
        if volume.read_only:
            raise HomeError(
                f"device '{name}' cannot be written: it is mounted for reading only, or its file system has failed; "
                "see 'cowfs status', then mount it for writing",
                errno=errno.EROFS,
            )
        with ending_with(volume.sync):
            yield volume


if TYPE_CHECKING:
    _: type[Trees] = EngineTrees
