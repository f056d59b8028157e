"""Layers of a home go to a registry as an image, and beside it the blocks of its layers for other homes.

First all that the registry does not have is written to files, with the home open; then it is sent, without the home.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import IO

import msgspec

from cowfs.ending import Closing
from cowfs.errors import CowfsError
from cowfs.home.api.home import Home
from cowfs.oci.block_deltas import LayerDelta, push_blocks, read_delta
from cowfs.oci.compression import PIECE_BYTES, compressor
from cowfs.oci.documents import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    Manifest,
    Platform,
    decode,
    digest_of,
    encode,
    oci_layer_type,
)
from cowfs.oci.outgoing import ArchivedLayer, ChainLayer, Outgoing
from cowfs.oci.platform_lists import index_with
from cowfs.oci.reference import Reference
from cowfs.oci.registry import Repository


class PushedLayer(msgspec.Struct, frozen=True):
    """A layer of an image in a registry.

    `state` is `present` where the registry had it, `mounted` where another repository of it had, else `uploaded`.
    `why_new` is empty where its archive is the original one.
    """

    name: str
    diff_id: str
    digest: str
    size_bytes: int
    state: str
    why_new: str = ""


class Pushed(msgspec.Struct, frozen=True):
    """An image in a registry. `blocks`: the digest of what names the blocks of its layers, null where there are none;
    `uploaded_bytes` counts both. `platform`: that of the image that the layers came with, or else the wanted one.
    `index`: the digest of the list of platforms that it was put into, null without one.
    """

    reference: str
    digest: str
    image_id: str
    layers: list[PushedLayer]
    blocks: str | None
    uploaded_bytes: int
    platform: str
    index: str | None = None


class Push(Closing):
    """A push of a layer of one home to one repository. Close it.

    Args:
        open_home: opens the home for the length of a block.
        report: called with (bytes that have gone over the line, bytes in all).
        say: called with a line about what a user should know.
        created: the time that new images and layers are given, as in RFC 3339.
    """

    def __init__(
        self,
        open_home: Callable[[], AbstractContextManager[Home]],
        repository: Repository,
        reference: Reference,
        report: Callable[[int, int], object],
        say: Callable[[str], object],
        *,
        created: str,
    ) -> None:
        self._open_home = open_home
        self._created = created
        self._repository = repository
        self._reference = reference
        self._report = report
        self._say = say
        self._files = ExitStack()
        self._waiting: dict[str, tuple[Descriptor, IO[bytes]]] = {}  # by digest, in order
        self._deltas: list[LayerDelta] = []
        self._layers: list[PushedLayer] = []
        self._blobs: list[Descriptor] = []  # of the layers
        self._uploaded_bytes = 0

    def close(self) -> None:
        self._files.close()

    def push(self, name: str, platform: Platform, *, with_blocks: bool = True, into_index: bool = False) -> Pushed:
        """Push a layer with all layers below it.

        Args:
            into_index: the tag becomes, or stays, a list of images for several platforms, with this one in it.

        Raises:
            UnknownDevice; RegistryError: the registry cannot be reached, or refuses. The tag is as it was then.
        """
        with self._open_home() as home:
            config = self._collect(Outgoing(home, self._created), name, platform, with_blocks=with_blocks)
        manifest = self._send(config)
        entry = Descriptor(OCI_MANIFEST, digest_of(manifest), len(manifest))
        blocks = index = None
        if self._deltas or into_index:
            self._repository.put_manifest(entry.digest, manifest, OCI_MANIFEST)
        if self._deltas:  # beside a manifest that has no tag yet: who finds the tag finds the blocks
            blocks = push_blocks(self._repository, entry, self._deltas)
        tag, found = self._reference.wanted, decode(config, ImageConfig, name).platform
        if into_index:
            listed = msgspec.structs.replace(entry, platform=found)
            data = index_with(self._repository, tag, listed, str(self._reference))
            self._repository.put_manifest(tag, data, OCI_INDEX)
            index = digest_of(data)
        else:
            self._repository.put_manifest(tag, manifest, OCI_MANIFEST)
        image_id, uploaded_bytes = digest_of(config), self._uploaded_bytes
        reference = str(self._reference)
        return Pushed(reference, entry.digest, image_id, self._layers, blocks, uploaded_bytes, str(found), index)

    # ------------------------------------------------------------------ with the home

    def _collect(self, outgoing: Outgoing, name: str, platform: Platform, *, with_blocks: bool) -> bytes:
        """Write what the registry does not have of the layers to files; the image's configuration."""
        chain = outgoing.chain(name)
        below: str | None = None
        for number, layer in enumerate(chain):
            seal = outgoing.home.layers.seal(layer.name) if with_blocks else ""
            with outgoing.archived(chain, number, needed=False) as archived:
                if outgoing.is_left_out(archived, chain, len(self._layers)):
                    continue
                blob, state = self._collect_layer(outgoing, archived, chain, number)
                packed = archived.packed
            self._blobs.append(blob)
            self._layers.append(PushedLayer(layer.name, packed.diff_id, blob.digest, blob.size, state, packed.why_new))
            if with_blocks:
                with_blocks = self._collect_blocks(outgoing, archived, below, seal)
            below = layer.name
        return outgoing.config([(layer.name, layer.diff_id) for layer in self._layers], platform)

    def _collect_layer(
        self, outgoing: Outgoing, archived: ArchivedLayer, chain: Sequence[ChainLayer], number: int
    ) -> tuple[Descriptor, str]:
        """The blob of a layer's archive, and how it comes into the registry."""
        note = archived.note
        if note is not None and note.blob is not None and note.diff_id == archived.packed.diff_id:
            blob = Descriptor(oci_layer_type(note.blob.media_type), note.blob.digest, note.blob.size)
            if self._repository.has(blob.digest):
                return blob, "present"
            for repository in self._repository.others_in(note.sources):
                if self._repository.mount(blob.digest, repository):
                    return blob, "mounted"
        if archived.file is None:
            with outgoing.archived(chain, number, needed=True) as made:
                if made.packed.diff_id != archived.packed.diff_id:
                    raise CowfsError(
                        f"the layer '{made.layer.name}' is another one than when it came, though nothing was written "
                        f"to it: {made.packed.why_new or 'its archive has another digest'}"
                    )
                return self._collect_archive(made)
        return self._collect_archive(archived)

    def _collect_archive(self, archived: ArchivedLayer) -> tuple[Descriptor, str]:
        assert archived.file is not None
        file = self._new_file()
        digest = hashlib.sha256()
        packer = compressor()

        def write(data: bytes) -> None:
            digest.update(data)
            file.write(data)

        archived.file.seek(0)
        while piece := archived.file.read(PIECE_BYTES):
            write(packer.compress(piece))
        write(packer.flush())
        blob = Descriptor(OCI_LAYER_GZIP, f"sha256:{digest.hexdigest()}", file.tell())
        return blob, self._collect_blob(blob, file)

    def _collect_blocks(self, outgoing: Outgoing, archived: ArchivedLayer, below: str | None, seal: str) -> bool:
        """Whether a layer's blocks can go beside the image: another home can check them, and they hold still."""
        layer, packed, note = archived.layer, archived.packed, archived.note
        if not packed.is_own and not (note is not None and note.blocks_id):
            own = outgoing.packing.pack_anew(layer.name, layer.parent, lambda _piece: None)
            if own.diff_id != packed.diff_id:
                return False
        file = self._new_file()
        delta = read_delta(outgoing.home, layer.name, below, packed.diff_id, file)
        if outgoing.home.layers.seal(layer.name) != seal:
            self._say(f"the layer '{layer.name}' is being written, so its archive is pushed, and not its blocks")
            return False
        self._collect_blob(delta.blob, file)
        self._deltas.append(delta)
        return True

    def _new_file(self) -> IO[bytes]:
        return self._files.enter_context(tempfile.TemporaryFile())

    def _collect_blob(self, blob: Descriptor, file: IO[bytes]) -> str:
        if self._repository.has(blob.digest):
            file.truncate(0)
            return "present"
        self._waiting.setdefault(blob.digest, (blob, file))
        return "uploaded"

    # ------------------------------------------------------------------ without it

    def _send(self, config: bytes) -> bytes:
        """Send what waits, and the configuration; the manifest of the image."""
        blob = Descriptor(OCI_CONFIG, digest_of(config), len(config))
        file = self._new_file()
        file.write(config)
        self._collect_blob(blob, file)
        total = sum(waiting.size for waiting, _ in self._waiting.values())

        def moved(count_bytes: int) -> None:
            self._uploaded_bytes += count_bytes
            self._report(self._uploaded_bytes, total)

        for waiting, content in self._waiting.values():
            self._repository.upload(waiting, content, moved)
        return encode(Manifest(2, blob, self._blobs, OCI_MANIFEST))
