"""What a home knows of the images that its layers came from, in `cowfs.images/` beside its records.

    LAYER.json          the layer's digests, and the configuration of the image that ended in it
    LAYER.recipe        how its original archive is made of its files again (`tar_split`)

Layers that came from images are named by their chain id, 64 hexadecimal digits, and so are their notes. A note is no
part of the home: without it, or where it is damaged, a layer is packed anew. Whether it still speaks of what the layer
holds is known by the layer's seal.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

import msgspec

from cowfs.devices.on_disk.files import HomeFiles
from cowfs.errors import CowfsError
from cowfs.new_files import new_file
from cowfs.oci.documents import Descriptor

_NAME: Final = re.compile(r"[0-9a-f]{64}")
_FILE: Final = re.compile(r"([0-9a-f]{64})\.(?:json|recipe)")
_NOTE_BYTES_MAX: Final = 8 << 20


class LayerNote(msgspec.Struct, frozen=True, omit_defaults=True):
    """About one layer.

    Attributes:
        diff_id: digest of its archive.
        seal: of the layer when it held just that; empty where it was not taken.
        blob: its archive as it was stored where it came from.
        sources: `HOST/REPOSITORY` where that blob is.
        config: of the image that ended in this layer, the last that came.
        blocks_id: digest of the blocks of the layer and of all layers below it; empty where it was not made of
            blocks.
    """

    diff_id: str
    seal: str = ""
    blob: Descriptor | None = None
    sources: list[str] = []
    config: str | None = None
    blocks_id: str = ""


class Notes:
    """The notes of one home. Errors of the disk are CowfsError, naming the file; a note that is damaged is none."""

    def __init__(self, home: Path) -> None:
        self._directory = Path(HomeFiles(os.fspath(home)).images)

    def read(self, layer: str) -> LayerNote | None:
        if not _NAME.fullmatch(layer):
            return None
        try:
            with (self._directory / f"{layer}.json").open("rb") as file:
                return msgspec.json.decode(file.read(_NOTE_BYTES_MAX), type=LayerNote)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    def write(self, layer: str, note: LayerNote) -> None:
        with self._file(f"{layer}.json") as file:
            file.write(msgspec.json.encode(note))

    def recipe(self, layer: str) -> Path | None:
        path = self._directory / f"{layer}.recipe"
        return path if _NAME.fullmatch(layer) and path.is_file() else None

    def write_recipe(self, layer: str, recipe: IO[bytes]) -> None:
        with self._file(f"{layer}.recipe") as file:
            shutil.copyfileobj(recipe, file)

    def remove(self, layer: str) -> None:
        for ending in ("json", "recipe"):
            with suppress(OSError):
                (self._directory / f"{layer}.{ending}").unlink()

    def layers(self) -> set[str]:
        """The layers that there are notes of."""
        try:
            names = os.listdir(self._directory)
        except OSError:
            return set()
        return {found[1] for name in names if (found := _FILE.fullmatch(name))}

    def remove_others(self, noted: Iterable[str], layers: Iterable[str]) -> None:
        """Remove the notes of layers that no longer exist.

        Args:
            noted: `layers()`, asked before it was asked which layers there are.
        """
        for layer in set(noted) - set(layers):
            self.remove(layer)

    def _file(self, name: str) -> _Writing:
        return _Writing(self._directory / name)


class _Writing:
    """A file that takes its place when it is complete."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> IO[bytes]:
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            self._new = new_file(os.fspath(self._path), force=True, is_private=True)
            return self._new.__enter__()
        except OSError as error:
            raise self._named(error) from error

    def __exit__(self, *exception: object) -> None:
        try:
            self._new.__exit__(*exception)  # type: ignore[arg-type]
        except CowfsError:
            raise
        except OSError as error:
            raise self._named(error) from error

    def _named(self, error: OSError) -> CowfsError:
        return CowfsError(f"cannot write {self._path}: {error.strerror or error}", errno=error.errno)
