"""Layers of a home become an image: the named layer, and those below it.

A layer that came from an image gets its original archive again, and where all layers of that image are there, the image
has its own configuration and so its id. What was made here since is packed, and goes into the configuration as new
layers. The same layers make the same image each time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Final

import msgspec

from cowfs.devices.on_disk.names import BASE
from cowfs.errors import UnknownDevice
from cowfs.home.api.home import Home
from cowfs.oci.blobs import ImageLayout
from cowfs.oci.compression import PIECE_BYTES
from cowfs.oci.documents import ImageConfig, Platform, decode, encode
from cowfs.oci.notes import LayerNote, Notes
from cowfs.oci.packing import Packed, Packing

_EMPTY_BYTES_MAX: Final = 10240


class ExportedLayer(msgspec.Struct, frozen=True):
    """A layer in an image: `name` in the home; `why_new` is empty where its archive is the original one."""

    name: str
    diff_id: str
    size_bytes: int
    why_new: str = ""


class ExportedImage(msgspec.Struct, frozen=True):
    """An image that was written."""

    image_id: str
    tags: list[str]
    layers: list[ExportedLayer]


@dataclass(frozen=True, slots=True)
class ChainLayer:
    """A layer of a chain, and the device that it is packed against; None for the lowest."""

    name: str
    parent: str | None


@dataclass(frozen=True, slots=True)
class ArchivedLayer:
    """A layer whose archive was made, or of which it is known without that: then `file` is None."""

    layer: ChainLayer
    packed: Packed
    note: LayerNote | None
    file: IO[bytes] | None


class Outgoing:
    """Images of the layers of one home.

    Args:
        created: the time that new images and layers are given, as in RFC 3339.
    """

    def __init__(self, home: Home, created: str) -> None:
        self.home = home
        self._created = created
        self.notes = Notes(home.path)
        self.packing = Packing(home, self.notes)

    def chain(self, name: str) -> list[ChainLayer]:
        """A layer and all layers below it, the lowest first. Raises UnknownDevice."""
        parents = {row.name: row.parent for row in self.home.devices()}
        if name not in parents or name == BASE:
            raise UnknownDevice(f"there is no layer '{name}' in {self.home.path}; 'cowfs layer list' lists them")
        found: list[str] = []
        current: str | None = name
        while current is not None and current != BASE and current not in found and current in parents:
            found.append(current)
            current = parents[current]
        found.reverse()
        return [ChainLayer(layer, below) for layer, below in zip(found, [None, *found], strict=False)]

    @contextmanager
    def archived(self, chain: Sequence[ChainLayer], number: int, *, needed: bool) -> Iterator[ArchivedLayer]:
        """A layer of a chain with its archive, for the length of a block.

        Args:
            needed: make the archive, also of a layer that holds what it held when it came.
        """
        layer = chain[number]
        note = self.packing.sealed(layer.name)
        if note is not None and not needed:
            yield ArchivedLayer(layer, Packed(note.diff_id, 0, is_own=False), note, None)
            return
        with tempfile.TemporaryFile() as file:
            packed = self.packing.pack_into(layer.name, layer.parent, file)
            file.seek(0)
            yield ArchivedLayer(layer, packed, note, file)

    def is_left_out(self, archived: ArchivedLayer, chain: Sequence[ChainLayer], kept: int) -> bool:
        """Whether a layer changes nothing, and is none that came with an image."""
        if archived.file is None or self.notes.read(archived.layer.name) is not None:
            return False
        if archived.packed.size_bytes > _EMPTY_BYTES_MAX or (archived.layer is chain[-1] and not kept):
            return False
        data = archived.file.read()
        archived.file.seek(0)
        return not any(data)

    def config(self, layers: Sequence[tuple[str, str]], platform: Platform) -> bytes:
        """The configuration of an image.

        Args:
            layers: name and diff id of each, the lowest first.
            platform: where no image is known that the layers come from.
        """
        diff_ids = [diff_id for _, diff_id in layers]
        for count in range(len(layers), 0, -1):
            note = self.notes.read(layers[count - 1][0])
            if note is None or note.config is None:
                continue
            config = decode(note.config.encode(), ImageConfig, f"the note of layer {layers[count - 1][0]}")
            if config.rootfs.diff_ids == diff_ids[:count]:
                return note.config.encode() if count == len(layers) else self._extended(note.config, layers, count)
        created = self._created
        document: dict[str, Any] = {
            "created": created,
            "architecture": platform.architecture,
            **({"variant": platform.variant} if platform.variant else {}),
            "os": platform.os,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [_history(name, created) for name, _ in layers],
        }
        return encode(document)

    def _extended(self, config: str, layers: Sequence[tuple[str, str]], count: int) -> bytes:
        """A configuration with more layers on those that it has, all else as it was."""
        document: dict[str, Any] = msgspec.json.decode(config)
        document["rootfs"] = {**document["rootfs"], "diff_ids": [diff_id for _, diff_id in layers]}
        history = document.get("history")
        if isinstance(history, list):
            document["history"] = [*history, *(_history(name, self._created) for name, _ in layers[count:])]
        return encode(document)

    def export(
        self,
        name: str,
        layout: ImageLayout,
        tags: Sequence[str],
        platform: Platform,
        report: Callable[[int], object],
    ) -> ExportedImage:
        """Write the image of a layer. Raises CowfsError: a file cannot be read, or the image not be written."""
        chain = self.chain(name)
        layers: list[ExportedLayer] = []
        for number, layer in enumerate(chain):
            with self.archived(chain, number, needed=True) as archived:
                if self.is_left_out(archived, chain, len(layers)):
                    continue
                packed = archived.packed
                file = archived.file
                assert file is not None

                def write(out: Callable[[bytes], object], file: IO[bytes] = file) -> None:
                    while piece := file.read(PIECE_BYTES):
                        out(piece)
                        report(len(piece))

                if not layout.blobs.has(packed.diff_id):
                    layout.blobs.add(packed.diff_id, packed.size_bytes, write)
            layers.append(ExportedLayer(layer.name, packed.diff_id, packed.size_bytes, packed.why_new))
        config = self.config([(layer.name, layer.diff_id) for layer in layers], platform)
        image_id = layout.add_image(tags, config, [(layer.diff_id, layer.size_bytes) for layer in layers])
        layout.finish()
        return ExportedImage(image_id, list(tags), layers)


def _history(name: str, created: str) -> dict[str, str]:
    return {"created": created, "created_by": f"cowfs layer {name}"}
