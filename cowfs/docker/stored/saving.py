"""Images as blobs, with the ids that they had: each layer is made again from its recipe and checked by its digest.

A layer whose recipe is missing, or, where that is allowed, damaged, gets a new archive of the same files; it and the
images on it then have new ids, which `SavedImage` and `SavedLayer` say.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from cowfs.docker.stored.store import DockerStore, Image, Layer, short
from cowfs.errors import CowfsError, HomeError, UnknownDevice
from cowfs.home.api.home import Home
from cowfs.home.requests.files import WantedFile
from cowfs.oci import tar_split
from cowfs.oci.blobs import Blobs, ImageLayout
from cowfs.oci.documents import encode

_COPY_BYTES: Final = 1 << 20


class SavedLayer(msgspec.Struct, frozen=True):
    """A layer as it was saved; `why_new` is empty where its archive is the original one, byte by byte."""

    diff_id: str
    size_bytes: int
    why_new: str = ""


class SavedImage(msgspec.Struct, frozen=True):
    """An image as it was saved: with `original_id` unless a layer is new."""

    id: str
    original_id: str
    tags: list[str]
    layers: list[SavedLayer]

    @property
    def is_original(self) -> bool:
        return self.id == self.original_id


class ImageSaver:
    """Saves images of one store to one place, layers that they share once.

    Args:
        home: the daemon's devicemapper home.
        allow_new_ids: pack the files anew where the original archive cannot be made.
        progress: called with (bytes written, None).
    """

    def __init__(
        self,
        store: DockerStore,
        home: Home,
        blobs: Blobs,
        *,
        allow_new_ids: bool = False,
        progress: Callable[[int, int | None], object] | None = None,
    ) -> None:
        self._store = store
        self._home = home
        self._blobs = blobs
        self._allow_new_ids = allow_new_ids
        self._progress = progress
        self._done_bytes = 0
        self._layers: dict[str, SavedLayer] = {}  # by chain id
        self._layout = ImageLayout(blobs)

    def save(self, image: Image, tags: Iterable[str] | None = None) -> SavedImage:
        """Save an image.

        Args:
            tags: those that it is saved under; all of its own when None.

        Raises:
            HomeError: a layer is missing, its recipe is damaged, or its files are no longer those of its digest.
            CowfsError: a file cannot be read, or a blob cannot be written.
        """
        names = list(image.tags if tags is None else tags)
        layers = [self._save_layer(layer) for layer in self._store.layers_of(image)]
        document = image.document_bytes
        if any(layer.why_new for layer in layers):
            document = _with_layers(document, [layer.diff_id for layer in layers])
        config = self._layout.add_image(names, document, [(layer.diff_id, layer.size_bytes) for layer in layers])
        return SavedImage(config.removeprefix("sha256:"), image.id, names, layers)

    def finish(self) -> None:
        """Write the documents that name what was saved."""
        self._layout.finish()

    def _save_layer(self, layer: Layer) -> SavedLayer:
        saved = self._layers.get(layer.chain_id)
        if saved is None:
            try:
                saved = self._save_original(layer)
            except UnknownDevice:
                raise
            except HomeError as error:
                if layer.recipe.exists() and not self._allow_new_ids:
                    raise HomeError(
                        f"{error.message}; --new-ids packs its files as they are, with new ids", errno=error.errno
                    ) from error
                saved = self._save_anew(layer, error.message)
            self._layers[layer.chain_id] = saved
        return saved

    def _save_original(self, layer: Layer) -> SavedLayer:
        size_bytes = tar_split.size_bytes(layer.recipe)
        if not self._blobs.has(layer.diff_id):
            if self._allow_new_ids and not self._blobs.can_undo:
                self._build(layer, lambda _data: None)
            self._blobs.add(layer.diff_id, size_bytes, lambda out: self._build(layer, out))
        return SavedLayer(layer.diff_id, size_bytes)

    def _build(self, layer: Layer, out: tar_split.Out) -> None:
        def read_files(wanted: Sequence[WantedFile], take: tar_split.Out) -> None:
            not_written: CowfsError | None = None

            def write(data: bytes | memoryview) -> None:
                nonlocal not_written
                try:
                    take(data)
                except CowfsError as error:
                    not_written = error
                    raise

            try:
                self._home.read_files(layer.device, wanted, write)
            except CowfsError as error:
                if error is not_written:
                    raise
                if isinstance(error, UnknownDevice):
                    raise UnknownDevice(
                        f"the files of layer {short(layer.diff_id)} are missing: {error.message}; "
                        "'cowfs recover --dry-run' says whether the pool still has them"
                    ) from error
                raise HomeError(f"layer {short(layer.diff_id)} is damaged: {error.message}") from error

        built = tar_split.build(layer.recipe, read_files, lambda data: self._count(data, out))
        if built.digest != layer.diff_id:
            raise HomeError(
                f"layer {short(layer.diff_id)} is damaged: its archive has the digest {built.digest} now, so a file in "
                f"the device {layer.device} is no longer what it was"
            )

    def _save_anew(self, layer: Layer, why: str) -> SavedLayer:
        """Pack what a layer changed, as its files are now."""
        parent = self._store.layers[layer.parent].device if layer.parent in self._store.layers else None
        if parent is None and layer.parent is not None:
            raise HomeError(f"layer {short(layer.diff_id)} cannot be packed: the layer below it is missing")
        digest = hashlib.sha256()
        size_bytes = 0
        with tempfile.TemporaryFile() as archive:
            with self._home.layers.diff(layer.device, parent) as packed:
                while piece := packed.read(_COPY_BYTES):
                    digest.update(piece)
                    size_bytes += len(piece)
                    archive.write(piece)
            diff_id = f"sha256:{digest.hexdigest()}"

            def write(out: tar_split.Out) -> None:
                archive.seek(0)
                while piece := archive.read(_COPY_BYTES):
                    self._count(piece, out)

            if not self._blobs.has(diff_id):
                self._blobs.add(diff_id, size_bytes, write)
        return SavedLayer(diff_id, size_bytes, why)

    def _count(self, data: bytes | memoryview, out: tar_split.Out) -> None:
        out(data)
        self._done_bytes += len(data)
        if self._progress is not None:
            self._progress(self._done_bytes, None)


def _with_layers(document: bytes, diff_ids: list[str]) -> bytes:
    """An image's configuration with other layers, all else as it was."""
    config: dict[str, Any] = msgspec.json.decode(document)
    config["rootfs"] = {**config["rootfs"], "diff_ids": diff_ids}
    return encode(config)
