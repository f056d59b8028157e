"""Images for several platforms under one tag: the index that lists them, when one of them is pushed.

What others wrote into an index stays as it is, but for what was about the image that is replaced.
"""

from __future__ import annotations

import tempfile
from typing import Any, Final

import msgspec

from cowfs.oci.documents import (
    MAX_DOCUMENT_BYTES,
    OCI_INDEX,
    OCI_MANIFEST,
    BadImage,
    Descriptor,
    Index,
    Manifest,
    Platform,
    check_is_image,
    decode,
    decode_config,
    decode_manifest,
    digest_of,
    encode,
)
from cowfs.oci.registry import Repository

_SUBJECT: Final = "vnd.docker.reference.digest"  # of an attestation: the manifest that it is about


def index_with(repository: Repository, tag: str, image: Descriptor, where: str) -> bytes:
    """The index of a tag with an image in it, in the place of that for the same platform.

    Args:
        image: its manifest, and its platform.

    Raises:
        BadImage: under the tag is something else than an image, or images for platforms.
    """
    before = repository.find_manifest(tag)
    kept = [] if before is None else _others(repository, before, image, where)
    data = encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*kept, msgspec.to_builtins(image)]})
    if len(data) > MAX_DOCUMENT_BYTES:
        raise BadImage(f"{where} would have a list of {len(data)} bytes, and registries take {MAX_DOCUMENT_BYTES}")
    return data


def _others(repository: Repository, before: bytes, image: Descriptor, where: str) -> list[Any]:
    """What stays of what a tag had, as it is written there."""
    manifest = decode_manifest(before, where)
    if isinstance(manifest, Manifest):
        media_type = manifest.media_type or OCI_MANIFEST
        alone = Descriptor(media_type, digest_of(before), len(before), _platform_of(repository, manifest, where))
        manifest = Index(2, [alone])
        written = [msgspec.to_builtins(alone)]
    else:
        written = decode(before, dict[str, Any], where)["manifests"]
    assert image.platform is not None
    gone = {
        entry.digest
        for entry in manifest.manifests
        if entry.digest == image.digest or (entry.platform is not None and entry.platform.suits(image.platform))
    }
    gone |= {entry.digest for entry in manifest.manifests if (entry.annotations or {}).get(_SUBJECT) in gone}
    return [text for text, entry in zip(written, manifest.manifests, strict=True) if entry.digest not in gone]


def _platform_of(repository: Repository, manifest: Manifest, where: str) -> Platform:
    check_is_image(manifest, where)
    if manifest.config.size > MAX_DOCUMENT_BYTES:
        raise BadImage(f"{where} is damaged: its configuration is of {manifest.config.size} bytes")
    with tempfile.TemporaryFile() as file:
        repository.download(manifest.config, file, lambda _count: None)
        file.seek(0)
        return decode_config(file.read(), manifest.layers, where).platform
