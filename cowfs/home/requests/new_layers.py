"""Layers that come from elsewhere, made whole: of an archive, or of the blocks in which they differ from their parent.

A device holds what it held when its *seal* was taken, as long as its seal is the same: a seal is the digest of the
device's mapping, taken when a snapshot of the device was made. From then on every write to the device maps another
data block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from struct import Struct
from typing import Final

import msgspec

from cowfs.errors import UsageError
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.requests.blocks import all_changes, changes_since, write_change
from cowfs.home.requests.request import Request, StreamIn, StreamOut, Upload
from cowfs.steps import Steps

_EXTENT: Final = Struct("<QQQ")


class MakeLayer(Upload[int], frozen=True, tag="layer_make"):
    """Make a layer of an uncompressed tar archive of what it changed: all of it or nothing.

    Args:
        parent: a layer; None for a layer of nothing else.

    Returns:
        The sum of the sizes in the archive.

    Raises:
        As `CreateLayer`; ArchiveError, BreakoutError: the archive is damaged, or reaches out of the layer.
    """

    id: str
    parent: str | None = None
    end_required: bool = True

    reads = ("parent",)

    def run(self, home: OpenHome) -> Steps[int]:
        return home.driver.make(self.id, self.parent, self.file, end_required=self.end_required)


class LayerBlocks(msgspec.Struct, frozen=True):
    """Of which device blocks are: its size, and the size of a data block of its pool."""

    size_bytes: int
    block_bytes: int


class ReadLayerBlocks(StreamOut[LayerBlocks], frozen=True, tag="layer_blocks"):
    """The blocks in which a device differs from its parent, or all that it maps.

    Each piece is a change (`cowfs.home.requests.blocks`). They are the same for the same content of both.

    Raises:
        UnknownDevice, DeviceBusy.
    """

    id: str
    parent: str | None = None

    reads = ("parent", "id")

    def run(self, home: OpenHome) -> Generator[bytes | None, None, LayerBlocks]:
        snapshots = home.devices.snapshots
        with snapshots.held_still(self.id) as thin:
            if self.parent is None:
                yield from all_changes(thin)
            else:
                with snapshots.held_still(self.parent) as parent:
                    yield from changes_since(home.devices.pool, parent, thin)
            return LayerBlocks(thin.size_bytes, thin.block_bytes)


class MakeLayerOfBlocks(StreamIn[None], frozen=True, tag="layer_make_of_blocks"):
    """Make a layer of the blocks in which it differs from its parent: all of it or nothing.

    Args:
        parent: whose content has to be, byte for byte, that of the parent that the blocks were read beside.
        archive_digest: `sha256:...`, which the archive of the layer's changes must have: what the blocks hold is the
            layer that it says, or nothing is made.

    Raises:
        UsageError: what is sent is not blocks of the device, or the archive of its files has another digest.
        FilesystemError: what the blocks hold is not a layer. Also as `CreateLayer`.
    """

    id: str
    parent: str | None
    size_bytes: int
    archive_digest: str

    reads = ("parent",)

    def run(self, home: OpenHome) -> Generator[bool, bytes, None]:
        imports = home.devices.imports
        with imports.importing(self.id, self.size_bytes, origin=self.parent, grows=False) as thin:
            while piece := (yield True):
                write_change(thin, piece, f"the blocks of layer '{self.id}' are damaged")
            thin.flush()
            digest = hashlib.sha256()
            for packed in home.driver.packed_anew(thin, self.id, self.parent):
                if packed is not None:
                    digest.update(packed)
                yield False
            if self.archive_digest != f"sha256:{digest.hexdigest()}":
                raise UsageError(
                    f"the blocks of layer '{self.id}' are of other files than its archive: the archive made of them "
                    f"has the digest sha256:{digest.hexdigest()}, not {self.archive_digest}; nothing was made"
                )
            imports.note_layer(self.id)


class LayerSeal(Request[str], frozen=True, tag="layer_seal"):
    """The seal of a device, of this moment. Raises UnknownDevice, DeviceBusy."""

    only_reads = True

    id: str

    reads = ("id",)

    def run(self, home: OpenHome) -> str:
        digest = hashlib.sha256()
        with home.devices.snapshots.held_still(self.id) as thin:
            digest.update(str(thin.size_bytes).encode())
            for extent in thin.extents():
                digest.update(_EXTENT.pack(extent.vblock, extent.dblock, extent.length))
        return digest.hexdigest()
