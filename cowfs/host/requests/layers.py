"""What can be asked about the layers of a home: the graph driver's operations as requests.

Names, parents and options are the driver's, see `cowfs.layers.interface`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import closing
from typing import IO, TYPE_CHECKING, Final

import msgspec

from cowfs.devices.names import BASE
from cowfs.error_record import plain_text
from cowfs.errors import HomeBusy
from cowfs.host.open_home import OpenHome
from cowfs.host.requests.request import Listing, OpenFile, Request, Upload, Work
from cowfs.layers.info import DriverInfo

if TYPE_CHECKING:
    from cowfs.layers import Steps


class LayerChange(msgspec.Struct, frozen=True):
    """A path that differs: kind C, A or D."""

    kind: str
    path: str


class CreateLayer(Request[None], frozen=True, tag="layer_create"):
    """A layer: a snapshot of `parent`, or of the base device when it is null."""

    id: str
    parent: str | None = None
    options: dict[str, str] = msgspec.field(default_factory=dict)

    def device_to_quiesce(self) -> str:
        return BASE if self.parent is None else self.parent

    def run(self, home: OpenHome) -> None:
        home.driver.create(self.id, self.parent, self.options)


class RemoveLayer(Request[None], frozen=True, tag="layer_remove"):
    """Remove a layer; one that is not there is no error, a busy one is marked and goes when it is free."""

    id: str

    def device_to_let_go(self) -> str:
        return self.id

    def run(self, home: OpenHome) -> None:
        home.driver.remove(self.id)


class LayerExists(Request[bool], frozen=True, tag="layer_exists"):
    id: str

    def run(self, home: OpenHome) -> bool:
        return home.driver.exists(self.id)


class ListLayers(Listing[str], frozen=True, tag="layer_list"):
    """Ids in order."""

    def run(self, home: OpenHome) -> Iterator[str]:
        yield from map(plain_text, home.driver.list_layers())


class LayerMetadata(Request[dict[str, str]], frozen=True, tag="layer_metadata"):
    id: str

    def run(self, home: OpenHome) -> dict[str, str]:
        return home.driver.metadata(self.id)


class LayerChanges(Listing[LayerChange], frozen=True, tag="layer_changes"):
    """What a layer changed against its parent, or against nothing."""

    id: str
    parent: str | None = None

    def device_to_quiesce(self) -> str:
        return self.id

    def run(self, home: OpenHome) -> Iterator[LayerChange | None]:
        changes = yield from home.driver.changes(self.id, self.parent)
        for change in changes:
            yield LayerChange(change.kind.letter, os.fsdecode(change.path))


class LayerDiff(Work[OpenFile], frozen=True, tag="layer_diff"):
    """The changes as a tar archive, in a file without a name."""

    id: str
    parent: str | None = None

    def device_to_quiesce(self) -> str:
        return self.id

    def run(self, home: OpenHome) -> Steps[OpenFile]:
        directory = None if home.devices.read_only else home.path
        with tempfile.TemporaryFile(dir=directory) as file, closing(home.driver.diff(self.id, self.parent)) as pieces:
            for piece in pieces:
                file.write(piece)
                yield
            file.seek(0)
            return OpenFile(os.dup(file.fileno()))


class LayerSize(Work[int], frozen=True, tag="layer_size"):
    """Bytes of the files that a layer added or modified."""

    id: str
    parent: str | None = None

    def device_to_quiesce(self) -> str:
        return self.id

    def run(self, home: OpenHome) -> Steps[int]:
        return home.driver.diff_size(self.id, self.parent)


class ApplyLayer(Upload[int], frozen=True, tag="layer_apply"):
    """Unpack a tar archive into a layer; the sum of the sizes in it."""

    id: str

    def device_to_let_go(self) -> str:
        return self.id

    def device_to_forget(self) -> str:
        return self.id

    def run(self, home: OpenHome, file: IO[bytes]) -> Steps[int]:
        return home.driver.apply(self.id, None, file)


class GetLayer(Request[str], frozen=True, tag="layer_get"):
    """Make a layer's files reachable; the path of its root directory."""

    id: str
    mount_label: str = ""

    def run(self, home: OpenHome) -> str:
        if home.views and not home.driver.can_show_files:
            view = home.views[0]
            raise HomeBusy(
                f"the files of layer {self.id!r} cannot be shown: the mount at {view.mount_point} has '{view.device}' "
                f"alone; first run: cowfs umount {view.mount_point}"
            )
        return home.driver.get(self.id, self.mount_label)


class PutLayer(Request[None], frozen=True, tag="layer_put"):
    """End one get."""

    id: str

    def device_to_forget(self) -> str:
        return self.id

    def run(self, home: OpenHome) -> None:
        home.driver.put(self.id)


class Info(Request[DriverInfo], frozen=True, tag="info"):
    """The figures behind what `docker info` shows of a driver."""

    def run(self, home: OpenHome) -> DriverInfo:
        return home.driver.info()


LAYER_REQUESTS: Final = (
    CreateLayer,
    RemoveLayer,
    LayerExists,
    ListLayers,
    LayerMetadata,
    LayerChanges,
    LayerDiff,
    LayerSize,
    ApplyLayer,
    GetLayer,
    PutLayer,
    Info,
)
