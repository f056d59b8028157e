"""The layers of a home as archives: the original one where a layer came from an image, or a new one of its changes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

from cowfs.errors import CowfsError
from cowfs.home.api.home import Home
from cowfs.home.requests.files import WantedFile
from cowfs.oci import tar_split
from cowfs.oci.compression import PIECE_BYTES
from cowfs.oci.notes import LayerNote, Notes


@dataclass(frozen=True, slots=True)
class Packed:
    """An archive that was written.

    `is_own`: it is what cowfs packs of the layer's files, so that a home with the files can make it again.
    `why_new`: why it is not the original archive of a layer that came from an image; empty where it is, or where there
    is none.
    """

    diff_id: str
    size_bytes: int
    is_own: bool
    why_new: str = ""


class Packing:
    """Archives of the layers of one home."""

    def __init__(self, home: Home, notes: Notes) -> None:
        self._home = home
        self._notes = notes

    def sealed(self, layer: str) -> LayerNote | None:
        """The note of a layer that holds what it held when it came; None where there is none, or it was changed."""
        note = self._notes.read(layer)
        if note is None or not note.seal or self._home.layers.seal(layer) != note.seal:
            return None
        return note

    def has_changed(self, layer: str, parent: str | None) -> bool:
        """Whether a layer that came from an image holds other files now."""
        note = self._notes.read(layer)
        if note is None or not note.seal or self._home.layers.seal(layer) == note.seal:
            return False
        digest = hashlib.sha256()
        try:
            packed = self.pack(layer, parent, digest.update)
        except CowfsError:
            return True
        return packed.diff_id != note.diff_id

    def pack(self, layer: str, parent: str | None, out: Callable[[bytes], object]) -> Packed:
        """Write the archive of a layer; the original one, where a recipe has it, even if it is of other files by now.

        Raises:
            CowfsError: a file cannot be read.
        """
        recipe = self._notes.recipe(layer)
        if recipe is None:
            return self.pack_anew(layer, parent, out)

        def read_files(wanted: Sequence[WantedFile], take: tar_split.Out) -> None:
            self._home.read_files(layer, wanted, take)

        built = tar_split.build(recipe, read_files, lambda data: out(bytes(data)))
        return Packed(built.digest, built.size_bytes, is_own=False)

    def pack_anew(self, layer: str, parent: str | None, out: Callable[[bytes], object]) -> Packed:
        """Write what a layer changed, as its files are now."""
        digest = hashlib.sha256()
        size_bytes = 0
        with self._home.layers.diff(layer, parent) as archive:
            while piece := archive.read(PIECE_BYTES):
                digest.update(piece)
                size_bytes += len(piece)
                out(piece)
        return Packed(f"sha256:{digest.hexdigest()}", size_bytes, is_own=True)

    def pack_into(self, layer: str, parent: str | None, file: IO[bytes]) -> Packed:
        """Write the archive of a layer to an empty file: the original one where that can be made."""
        note = self._notes.read(layer)
        if note is not None and self._notes.recipe(layer) is not None:
            why = "a file of it is no longer what it was"
            try:
                packed = self.pack(layer, parent, file.write)
                if packed.diff_id == note.diff_id:
                    return packed
            except CowfsError as error:
                why = error.message
            file.seek(0)
            file.truncate()
            packed = self.pack_anew(layer, parent, file.write)
            return Packed(packed.diff_id, packed.size_bytes, is_own=True, why_new=why)
        packed = self.pack_anew(layer, parent, file.write)
        if note is not None and packed.diff_id != note.diff_id:
            return Packed(packed.diff_id, packed.size_bytes, is_own=True, why_new="its original archive is not known")
        return packed
