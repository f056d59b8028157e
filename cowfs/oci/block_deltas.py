"""Beside an image, for other homes: the blocks of its layers, so that a pull shares blocks and brings what changed.

They are an artifact that refers to the image (`subject`), which other tools leave alone:

    artifactType   application/vnd.cowfs.layer-blocks.v1
    layers         one for each layer of the image, the lowest first: changes (`cowfs.home.requests.blocks`), by gzip;
                   of the lowest one all blocks, of each other one those in which it differs from the one below it

What a layer's blocks are is said by their *blocks id*: the chain id of the digests of the changes, uncompressed, up to
it. A layer is made of its blocks where the one below it has the blocks that they were read beside, the pool has blocks
of the same size, and the archive that is packed of the result has the digest that the image says. Otherwise it is made
of its archive.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Final

from cowfs.home.api.home import Home
from cowfs.home.requests.blocks import CHANGE
from cowfs.home.requests.disks import RANGE_BYTES
from cowfs.home.requests.new_layers import LayerBlocks
from cowfs.oci.compression import compressor, unpacked
from cowfs.oci.documents import (
    EMPTY_CONFIG,
    OCI_MANIFEST,
    BadImage,
    Descriptor,
    Index,
    Manifest,
    chain_ids,
    check_digest,
    decode_manifest,
    digest_of,
    encode,
    short,
)
from cowfs.oci.http import RegistryError
from cowfs.oci.registry import Repository
from cowfs.oci.remote import RemoteImage

ARTIFACT: Final = "application/vnd.cowfs.layer-blocks.v1"
_BLOCKS: Final = "application/vnd.cowfs.layer-blocks.v1.changes+gzip"
_DIFF_ID: Final = "io.cowfs.diff-id"
_DIGEST: Final = "io.cowfs.changes.digest"
_BYTES: Final = "io.cowfs.changes.bytes"
_DEVICE_BYTES: Final = "io.cowfs.device.bytes"
_BLOCK_BYTES: Final = "io.cowfs.block.bytes"
_EMPTY: Final = b"{}"
_NUMBER_MAX: Final = 1 << 60


@dataclass(frozen=True, slots=True)
class LayerDelta:
    """The changes of one layer.

    `digest` and `size_bytes` are of the changes, uncompressed; `blob` is what is stored.
    """

    diff_id: str
    digest: str
    size_bytes: int
    device: LayerBlocks
    blob: Descriptor


class PulledBlocks:
    """The blocks beside an image of a registry."""

    def __init__(self, image: RemoteImage, deltas: Sequence[LayerDelta]) -> None:
        self._image = image
        self._deltas = deltas
        self._ids = list(chain_ids([delta.digest for delta in deltas]))

    def usable(self, number: int, parent_blocks_id: str | None, block_bytes: int) -> bool:
        if number >= len(self._deltas) or self._deltas[number].device.block_bytes != block_bytes:
            return False
        return parent_blocks_id == (self._ids[number - 1] if number else None)

    def id(self, number: int) -> str:
        return self._ids[number]

    def fetch(self, numbers: Sequence[int]) -> None:
        self._image.fetch([self._deltas[number].blob for number in numbers])

    def make(self, home: Home, number: int, layer: str, parent: str | None) -> None:
        delta = self._deltas[number]
        with self._image.reading(delta.blob) as file:
            home.layers.make_of_blocks(layer, parent, delta.device.size_bytes, delta.diff_id, _changes(file, delta))


def find_blocks(image: RemoteImage, say: Callable[[str], object]) -> PulledBlocks | None:
    """The blocks that the registry has beside an image; None where there are none.

    Args:
        say: called with a line where there are some and they cannot be used.
    """
    try:
        return _find_blocks(image)
    except (BadImage, RegistryError) as error:
        say(f"the blocks beside {image.image.name} are not used: {error.message}")
        return None


def _find_blocks(image: RemoteImage) -> PulledBlocks | None:
    found = image.repository.referrers(image.digest, ARTIFACT)
    if not found:
        return None
    where = f"the blocks beside {image.image.name}"
    manifest = decode_manifest(image.repository.manifest(found[-1].digest), where)
    if isinstance(manifest, Index) or manifest.subject is None or manifest.subject.digest != image.digest:
        raise BadImage(f"{where} are of something else")
    deltas = [_delta_in(layer, where) for layer in manifest.layers]
    diff_ids = [layer.diff_id for layer in image.image.layers]
    if [delta.diff_id for delta in deltas] != diff_ids[: len(deltas)]:
        raise BadImage(f"{where} are of other layers")
    return PulledBlocks(image, deltas)


def _delta_in(layer: Descriptor, where: str) -> LayerDelta:
    notes = layer.annotations or {}

    def number(key: str) -> int:
        text = notes.get(key, "")
        if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= _NUMBER_MAX):
            raise BadImage(f"{where} are damaged: {key} is {text[:40]!r}")
        return int(text)

    if layer.media_type != _BLOCKS:
        raise BadImage(f"{where} are of the type {layer.media_type[:100]!r}")
    device = LayerBlocks(number(_DEVICE_BYTES), number(_BLOCK_BYTES))
    diff_id, digest = (check_digest(notes.get(key, ""), where) for key in (_DIFF_ID, _DIGEST))
    return LayerDelta(diff_id, digest, number(_BYTES), device, layer)


def _changes(file: IO[bytes], delta: LayerDelta) -> Iterator[bytes]:
    """The changes in a file, checked by their digest and length when the last one was given. Raises BadImage."""
    what = f"the blocks of layer {short(delta.diff_id)}"
    digest = hashlib.sha256()
    left = bytearray()
    for piece in unpacked(file, delta.size_bytes, what):
        digest.update(piece)
        left += piece
        while len(left) >= CHANGE.size:
            has_data, _, length = CHANGE.unpack_from(left)
            if length > RANGE_BYTES and has_data:
                raise BadImage(f"{what} are damaged: a change of {length} bytes")
            end = CHANGE.size + (length if has_data else 0)
            if len(left) < end:
                break
            yield bytes(left[:end])
            del left[:end]
    if left or f"sha256:{digest.hexdigest()}" != delta.digest:
        raise BadImage(f"{what} are damaged: they have another digest than the image's list of them says")


def read_delta(home: Home, layer: str, parent: str | None, diff_id: str, file: IO[bytes]) -> LayerDelta:
    """Write the changes of a layer, compressed, to a file."""
    digest, stored = hashlib.sha256(), hashlib.sha256()
    size_bytes = stored_bytes = 0
    packer = compressor()

    def write(data: bytes) -> None:
        nonlocal stored_bytes
        stored.update(data)
        stored_bytes += len(data)
        file.write(data)

    def take(change: bytes) -> None:
        nonlocal size_bytes
        digest.update(change)
        size_bytes += len(change)
        write(packer.compress(change))

    device = home.layers.read_blocks(layer, parent, take)
    write(packer.flush())
    blob = Descriptor(_BLOCKS, f"sha256:{stored.hexdigest()}", stored_bytes)
    return LayerDelta(diff_id, f"sha256:{digest.hexdigest()}", size_bytes, device, blob)


def push_blocks(repository: Repository, subject: Descriptor, deltas: Sequence[LayerDelta]) -> str:
    """Store what names the blocks of an image, which are there. Returns its digest."""
    if not repository.has(digest_of(_EMPTY)):
        with tempfile.TemporaryFile() as file:
            file.write(_EMPTY)
            repository.upload(Descriptor(EMPTY_CONFIG, digest_of(_EMPTY), len(_EMPTY)), file, lambda _count: None)
    layers = [
        Descriptor(
            _BLOCKS,
            delta.blob.digest,
            delta.blob.size,
            annotations={
                _DIFF_ID: delta.diff_id,
                _DIGEST: delta.digest,
                _BYTES: str(delta.size_bytes),
                _DEVICE_BYTES: str(delta.device.size_bytes),
                _BLOCK_BYTES: str(delta.device.block_bytes),
            },
        )
        for delta in deltas
    ]
    config = Descriptor(EMPTY_CONFIG, digest_of(_EMPTY), len(_EMPTY))
    manifest = encode(Manifest(2, config, layers, OCI_MANIFEST, ARTIFACT, subject))
    digest = digest_of(manifest)
    entry = Descriptor(OCI_MANIFEST, digest, len(manifest), artifact_type=ARTIFACT)
    repository.add_referrer(subject.digest, manifest, entry)
    return digest
