"""Images become layers of a home, each named by its chain id, so that images share what they share.

A layer is made whole or not at all, and each is complete before the next is begun. Where an image cannot be brought in
to its end, the layers that were made for it are removed again; after a crash they stay, each whole, and the next
attempt goes on from them.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Final, Protocol

import msgspec

from cowfs.devices.on_disk.names import check_name
from cowfs.errors import CowfsError, DeviceExists, UsageError
from cowfs.home.api.home import Home
from cowfs.oci import tar_split
from cowfs.oci.compression import unpacked
from cowfs.oci.documents import BadImage, digest_of, short
from cowfs.oci.found import FoundImage, FoundLayer
from cowfs.oci.notes import LayerNote, Notes
from cowfs.oci.packing import Packing
from cowfs.units import format_size

_ZEROS: Final = bytes(1 << 16)
_ROOM: Final = 2  # an archive of a layer may be so many times as long as its device
_ROOM_BYTES: Final = 64 << 20

Report = Callable[[int], object]


class BroughtLayer(msgspec.Struct, frozen=True):
    """A layer of an image in the home: `state` is `present` where it was there, else of what it was made."""

    id: str
    diff_id: str
    state: str


class Brought(msgspec.Struct, frozen=True):
    """An image that is in the home. `name`: the layer that was made on top of it, if the caller named one."""

    tags: list[str]
    image_id: str | None
    layers: list[BroughtLayer]
    name: str | None = None


class Blocks(Protocol):
    """The blocks of layers, beside an image (`block_deltas`)."""

    def usable(self, number: int, parent_blocks_id: str | None, block_bytes: int) -> bool:
        """Whether layer `number` can be made of its blocks in a pool with such blocks.

        Args:
            parent_blocks_id: of the layer below it; empty where that is not of blocks, None where there is none.
        """
        ...

    def id(self, number: int) -> str: ...

    def fetch(self, numbers: Sequence[int]) -> None:
        """Have the blocks of these layers here."""
        ...

    def make(self, home: Home, number: int, layer: str, parent: str | None) -> None:
        """Make the layer. Raises CowfsError: the blocks are not what they should be; nothing was made."""
        ...


class Incoming:
    """Brings images into one home, which others may use while blobs are on their way.

    Args:
        path: of the home.
        open_home: opens it for the length of a block.
        say: called with a line about what a user should know.
    """

    def __init__(
        self, path: Path, open_home: Callable[[], AbstractContextManager[Home]], say: Callable[[str], object]
    ) -> None:
        self._path = path
        self._open_home = open_home
        self._say = say
        self._notes = Notes(path)

    def require_new(self, name: str) -> None:
        """Raises DeviceExists, UsageError: no layer can be made by this name, whatever the image is."""
        with self._open_home() as home:
            _require_new(home, name)

    def bring(
        self,
        image: FoundImage,
        *,
        name: str | None = None,
        blocks: Blocks | None = None,
        fetch: Callable[[Sequence[FoundLayer]], object] | None = None,
        report: Report | None = None,
    ) -> Brought:
        """Have an image's layers in the home.

        Args:
            name: make this layer on top of them too.
            blocks: of its layers, where there are any.
            fetch: called with the layers that will be read, before any is made.
            report: called with the bytes that were unpacked since the last call.

        Raises:
            BadImage: the image is not what it says; nothing is there that was not before.
            UsageError: a layer that the home has is no longer what it was.
            CowfsError: as `Home.layers.make`.
        """
        with self._open_home() as home:
            plan = _Bringing(home, self._notes, image, blocks, self._say, report or _ignore).plan(name)
        if fetch is not None:
            fetch([layer for layer, state in zip(image.layers, plan, strict=True) if state == "archive"])
        if blocks is not None:
            blocks.fetch([number for number, state in enumerate(plan) if state == "blocks"])
        with self._open_home() as home:
            bringing = _Bringing(home, self._notes, image, blocks, self._say, report or _ignore)
            layers = bringing.bring(name)
        image_id = None if image.config_bytes is None else digest_of(image.config_bytes)
        return Brought(list(image.tags), image_id, layers, name)


class _Bringing:
    """One image, and the home that is open for it."""

    def __init__(
        self,
        home: Home,
        notes: Notes,
        image: FoundImage,
        blocks: Blocks | None,
        say: Callable[[str], object],
        report: Report,
    ) -> None:
        self._home = home
        self._notes = notes
        self._packing = Packing(home, notes)
        self._image = image
        self._blocks = blocks
        self._say = say
        self._report = report
        self._made: list[str] = []

    def bring(self, name: str | None) -> list[BroughtLayer]:
        try:
            layers = self._make_layers(self.plan(name))
            if name is not None:
                self._home.layers.create(name, self._image.layer_names[-1] if self._image.layers else None)
        except BaseException:
            for layer in reversed(self._made):
                with suppress(CowfsError):
                    self._home.layers.remove(layer)
                    self._notes.remove(layer)
            raise
        self._note_image()
        return layers

    def plan(self, name: str | None) -> list[str]:
        """What is to be done about each layer: `present`, `blocks`, `archive`.

        Raises:
            DeviceExists: the name is taken.
            UsageError: a layer is there and was changed.
        """
        if name is not None:
            _require_new(self._home, name, self._image.layer_names)
        if noted := self._notes.layers():
            self._notes.remove_others(noted, self._home.layers.list())
        plan = []
        image, blocks = self._image, self._blocks
        block_bytes = self._home.status().block_bytes
        parent_blocks_id: str | None = None
        parent: str | None = None
        for number, layer in enumerate(image.layer_names):
            if self._home.layers.exists(layer):
                if self._packing.has_changed(layer, parent):
                    raise UsageError(
                        f"the layer {layer} of {image.name} is in the home, and its files were changed since it came; "
                        f"keep them by 'cowfs rename {layer} NAME', or run 'cowfs layer remove {layer}'"
                    )
                note = self._packing.sealed(layer) if blocks is not None else None
                plan.append("present")
                parent_blocks_id = "" if note is None else note.blocks_id
            elif blocks is not None and blocks.usable(number, parent_blocks_id, block_bytes):
                plan.append("blocks")
                parent_blocks_id = blocks.id(number)
            else:
                plan.append("archive")
                parent_blocks_id = ""
            parent = layer
        return plan

    def _make_layers(self, plan: list[str]) -> list[BroughtLayer]:
        layers = []
        image, blocks = self._image, self._blocks
        parent: str | None = None
        may_use_blocks = True
        for number, (layer, found) in enumerate(zip(image.layer_names, image.layers, strict=True)):
            state = plan[number]
            if state == "blocks" and not may_use_blocks:
                state = "archive"
            try:
                if state == "blocks" and blocks is not None:
                    state = self._make_of_blocks(blocks, number, layer, parent)
                    may_use_blocks = state == "blocks"
                if state == "archive":
                    self._make_of_archive(found, layer, parent)
                if state != "present":
                    self._made.append(layer)
                    self._note_layer(found, layer, blocks.id(number) if blocks and state == "blocks" else "")
            except DeviceExists:
                state = "present"  # another process was faster
            layers.append(BroughtLayer(layer, found.diff_id, state))
            parent = layer
        return layers

    def _make_of_blocks(self, blocks: Blocks, number: int, layer: str, parent: str | None) -> str:
        """What the layer has to be made of: `blocks`, and it is made, or `archive`."""
        try:
            blocks.make(self._home, number, layer, parent)
        except DeviceExists:
            raise
        except (UsageError, BadImage) as error:
            which = f"layer {short(self._image.layers[number].diff_id)} beside {self._image.name}"
            self._say(f"the blocks of {which} are not used, but its archive: {error.message}")
            return "archive"
        return "blocks"

    def _make_of_archive(self, found: FoundLayer, layer: str, parent: str | None) -> None:
        what = f"layer {short(found.diff_id)} of {self._image.name}"
        with (
            found.open() as stored,
            self._unpacked(stored, found, parent, what) as archive,
            tempfile.TemporaryFile(dir=self._home.path) as recipe,
        ):
            has_recipe = tar_split.write_recipe(archive, recipe)
            archive.seek(0)
            self._home.layers.make(layer, parent, archive, end_required=False)
            if has_recipe:
                recipe.seek(0)
                self._notes.write_recipe(layer, recipe)

    @contextmanager
    def _unpacked(self, stored: IO[bytes], found: FoundLayer, parent: str | None, what: str) -> Iterator[IO[bytes]]:
        """A layer's archive, uncompressed and checked by both of its digests, in a file without a name."""
        device_bytes = self._home.status().base_size_bytes if parent is None else self._home.inspect(parent).size_bytes
        limit = _ROOM * device_bytes + _ROOM_BYTES
        diff, watched = hashlib.sha256(), _Watched(stored, self._report)
        with tempfile.TemporaryFile(dir=self._home.path) as archive:
            try:
                for piece in unpacked(watched, limit, what):
                    diff.update(piece)
                    for begin in range(0, len(piece), len(_ZEROS)):
                        part = piece[begin : begin + len(_ZEROS)]
                        if part == _ZEROS:
                            archive.seek(len(part), 1)
                        else:
                            archive.write(part)
                archive.truncate()
            except CowfsError:
                raise
            except OSError as error:
                raise CowfsError(
                    f"cannot unpack {what} in {self._home.path}: {error.strerror}; nothing was made", errno=error.errno
                ) from error
            watched.read_rest()
            if found.blob is not None and (watched.digest, watched.size_bytes) != (found.blob.digest, found.blob.size):
                raise BadImage(
                    f"{what} is damaged: {found.blob.digest} of {format_size(found.blob.size)} was expected, and "
                    f"{watched.digest} of {format_size(watched.size_bytes)} is there"
                )
            if f"sha256:{diff.hexdigest()}" != found.diff_id:
                raise BadImage(
                    f"{what} is damaged: its archive has the digest sha256:{diff.hexdigest()}, and the image's "
                    f"configuration says {found.diff_id}"
                )
            archive.seek(0)
            yield archive

    def _note_layer(self, found: FoundLayer, layer: str, blocks_id: str) -> None:
        image = self._image
        sources = [image.source] if image.source and found.blob is not None else []
        seal = self._home.layers.seal(layer)
        self._notes.write(layer, LayerNote(found.diff_id, seal, found.blob, sources, None, blocks_id))

    def _note_image(self) -> None:
        """Note the configuration with the highest layer, and where the layers are."""
        image = self._image
        last = image.layer_names[-1] if image.layers else None
        for layer, found in zip(image.layer_names, image.layers, strict=True):
            note = self._notes.read(layer)
            if note is None or note.diff_id != found.diff_id:
                continue
            changed = note
            if image.source and image.source not in note.sources and found.blob == note.blob:
                changed = msgspec.structs.replace(changed, sources=[*note.sources, image.source])
            if layer == last and image.config_bytes is not None:
                changed = msgspec.structs.replace(changed, config=image.config_bytes.decode())
            if changed != note:
                self._notes.write(layer, changed)


def _require_new(home: Home, name: str, taken: Sequence[str] = ()) -> None:
    check_name(name)
    if name in taken or any(row.name == name for row in home.devices()):
        raise DeviceExists(f"device '{name}' exists already; choose another name, or remove it first")


class _Watched:
    """A file whose digest and length are taken as it is read."""

    def __init__(self, file: IO[bytes], report: Report) -> None:
        self._file = file
        self._report = report
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def read(self, count: int) -> bytes:
        data = self._file.read(count)
        self._digest.update(data)
        self.size_bytes += len(data)
        self._report(len(data))
        return data

    def read_rest(self) -> None:
        while self.read(1 << 20):
            pass

    @property
    def digest(self) -> str:
        return f"sha256:{self._digest.hexdigest()}"


def _ignore(_bytes: int) -> None:
    pass
