"""What can be asked about the layers of a home: the graph driver's operations as requests.

Names, parents and options are the driver's, see `cowfs.layers.interface`.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import closing
from typing import IO, ClassVar, Final

import msgspec

from cowfs.devices.on_disk.names import BASE
from cowfs.error_record import plain_text
from cowfs.errors import HomeBusy, command_line
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.requests.request import Listing, OpenFile, Request, Upload
from cowfs.home.snapshot_keys import COMMITTED, require_no_snapshot
from cowfs.layers.info import DriverInfo
from cowfs.layers.interface import LayerUsage
from cowfs.steps import Pieces, Steps

_ZEROS: Final = bytes(1 << 20)


class LayerChange(msgspec.Struct, frozen=True):
    """A path that differs: kind C, A or D."""

    kind: str
    path: str


class CreateLayer(Request[None], frozen=True, tag="layer_create"):
    """Make a layer: a snapshot of `parent`, or of the base device.

    Args:
        options: `size` alone is known.

    Raises:
        UsageError, DeviceExists, UnknownDevice, OutOfDataSpace, OutOfMetadataSpace.
    """

    id: str
    parent: str | None = None
    options: dict[str, str] = msgspec.field(default_factory=dict)

    def devices_read(self) -> tuple[str, ...]:
        return (BASE if self.parent is None else self.parent,)

    def run(self, home: OpenHome) -> None:
        home.driver.create(self.id, self.parent, self.options)


class LimitLayer(Request[None], frozen=True, tag="layer_limit"):
    """Let the files of a layer that is not in use take so much at most; None for no limit."""

    is_local: ClassVar[bool] = True

    id: str
    size_bytes: int | None = None

    needs_idle = "id"

    def run(self, home: OpenHome) -> None:
        home.driver.limit(self.id, self.size_bytes)


class RemoveLayer(Request[None], frozen=True, tag="layer_remove"):
    """Remove a layer; an absent one is not an error, and a busy one is removed when its last user ends."""

    id: str

    needs_idle = "id"

    def run(self, home: OpenHome) -> None:
        require_no_snapshot(home.path, self.id, "removed")
        home.driver.remove(self.id)


class LayerExists(Request[bool], frozen=True, tag="layer_exists"):
    """Whether a layer is present."""

    only_reads = True

    id: str

    def run(self, home: OpenHome) -> bool:
        return home.driver.exists(self.id)


class ListLayers(Listing[str], frozen=True, tag="layer_list"):
    """Ids in order."""

    def run(self, home: OpenHome) -> Pieces[str]:
        yield from map(plain_text, home.driver.list_layers())


class LayerMetadata(Request[dict[str, str]], frozen=True, tag="layer_metadata"):
    """`DeviceId`, `DeviceName`, `DeviceSize` in bytes. Raises UnknownDevice."""

    only_reads = True

    id: str

    def run(self, home: OpenHome) -> dict[str, str]:
        return home.driver.metadata(self.id)


class LayerChanges(Listing[LayerChange], frozen=True, tag="layer_changes"):
    """What differs from `parent`, or from nothing, by path."""

    id: str
    parent: str | None = None

    reads = ("parent", "id")

    def run(self, home: OpenHome) -> Pieces[LayerChange]:
        changes = yield from home.driver.changes(self.id, self.parent)
        for change in changes:
            yield LayerChange(change.kind.letter, os.fsdecode(change.path))


class LayerArchive(Listing[bytes], frozen=True, tag="layer_archive"):
    """The changes as a tar archive, in pieces; local, since JSON has no bytes."""

    is_local: ClassVar[bool] = True

    id: str
    parent: str | None = None
    sparse: bool = False

    reads = ("parent", "id")

    def run(self, home: OpenHome) -> Pieces[bytes]:
        return home.driver.diff(self.id, self.parent, sparse=self.sparse)


class LayerDiff(Request[OpenFile], frozen=True, tag="layer_diff"):
    """The changes as a tar archive, in a file without a name; with `sparse`, files with holes as sparse entries."""

    only_reads = True

    id: str
    parent: str | None = None
    sparse: bool | msgspec.UnsetType = msgspec.UNSET  # an earlier server does not know the field

    reads = ("parent", "id")

    def run(self, home: OpenHome) -> Steps[OpenFile]:
        archive = LayerArchive(self.id, self.parent, self.sparse is True)
        directory = None if home.devices.read_only else home.path
        with tempfile.TemporaryFile(dir=directory) as file, closing(archive.run(home)) as pieces:
            for piece in pieces:
                if piece is not None:
                    write_with_holes(file, piece)
                yield
            file.truncate()
            file.seek(0)
            return OpenFile(os.dup(file.fileno()))


class LayerSize(Request[int], frozen=True, tag="layer_size"):
    """Bytes of the files that a layer added or modified, hard-linked ones once."""

    only_reads = True

    id: str
    parent: str | None = None

    reads = ("parent", "id")

    def run(self, home: OpenHome) -> Steps[int]:
        return home.driver.diff_size(self.id, self.parent)


class LayerOwnUsage(Request[LayerUsage], frozen=True, tag="layer_usage"):
    """What a layer adds to its parent."""

    is_local: ClassVar[bool] = True
    only_reads = True

    id: str
    parent: str | None = None

    reads = ("parent", "id")

    def run(self, home: OpenHome) -> Steps[LayerUsage]:
        return home.driver.usage(self.id, self.parent)


class ApplyLayer(Upload[int], frozen=True, tag="layer_apply"):
    """Unpack a tar archive, uncompressed, into a layer: all of it or nothing, unless the layer is in use.

    Args:
        as_docker: take it as Docker does: without an end, too, and names that start with `.wh.` by their substitutes.
            Else an archive without its end is refused, since it may be cut off.
        is_whole_needed: refuse a layer that is in use.
        is_layer: False for a device that is no layer: all of its file system are its files.

    Returns:
        The sum of the sizes in it.

    Raises:
        UsageError: an archive that is damaged, or reaches out of the layer.
        DeviceBusy: with `is_whole_needed`.
    """

    is_whole: ClassVar[bool] = False

    id: str
    as_docker: bool = False
    is_whole_needed: bool = False
    is_layer: bool = True

    needs_idle = "id"
    rewrites = "id"

    def run(self, home: OpenHome) -> Steps[int]:
        require_no_snapshot(home.path, self.id, "written", kind=COMMITTED)
        if self.is_whole_needed:
            home.require_idle(self.id, "unpacked into")
        return home.driver.apply(self.id, None, self.file, as_docker=self.as_docker, is_layer=self.is_layer)


class GetLayer(Request[str], frozen=True, tag="layer_get"):
    """The path of a layer's files, present until as many `put`.

    Needs a process that serves the home; where the kernel mounts layers, this one will do until it closes the home.
    """

    id: str
    mount_label: str = ""

    def run(self, home: OpenHome) -> str:
        if home.views and not home.driver.can_show_files:
            view = home.views[0]
            raise HomeBusy(
                f"the files of layer {self.id!r} cannot be shown: the mount at {view.mount_point} has '{view.device}' "
                f"alone; first run: {command_line('cowfs', 'umount', view.mount_point)}"
            )
        return home.driver.get(self.id, self.mount_label)


class ShowLayer(Request[str], frozen=True, tag="layer_show"):
    """The path of a layer's files without a `get`, in the process that shows the home.

    Args:
        is_new: the layer has no parent, and was never used.
    """

    is_local: ClassVar[bool] = True

    id: str
    is_new: bool = False

    def run(self, home: OpenHome) -> str:
        return home.driver.show(self.id, is_new=self.is_new)


class PutLayer(Request[None], frozen=True, tag="layer_put"):
    """End one `get`. A layer without any is not an error."""

    id: str

    gives_up = "id"
    unmounts = "id"

    def run(self, home: OpenHome) -> None:
        home.driver.put(self.id)


class Info(Request[DriverInfo], frozen=True, tag="info"):
    """The figures that `docker info` shows of a driver; `cowfs.layers.info.status_items` makes its text."""

    only_reads = True

    def run(self, home: OpenHome) -> DriverInfo:
        return home.driver.info()


class PutAllLayers(Request[None], frozen=True, tag="layer_put_all"):
    """End every get: for Docker's daemon, which has no layer mounted any more."""

    is_local: ClassVar[bool] = True

    def run(self, home: OpenHome) -> None:
        home.driver.cleanup()


def write_with_holes(file: IO[bytes], piece: bytes) -> None:
    """Zeros, as an archive has for the holes of files, take no space; the file is truncated where it ends."""
    if piece == _ZEROS[: len(piece)]:
        file.seek(len(piece), os.SEEK_CUR)
    else:
        file.write(piece)
