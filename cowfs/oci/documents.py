"""The documents of images: manifests, indexes and configurations, as structures and checked.

Known are those of OCI and of Docker's schema 2; other keys stay in the bytes alone.

Source: OCI image specification 1.1, manifest.md, image-index.md, config.md; distribution 2.8, manifest/schema2.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeVar

import msgspec

from cowfs.errors import CowfsError, UsageError

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
EMPTY_CONFIG: Final = "application/vnd.oci.empty.v1+json"
_DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
_DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
_DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
MANIFESTS: Final = (OCI_MANIFEST, _DOCKER_MANIFEST)
INDEXES: Final = (OCI_INDEX, _DOCKER_LIST)
_CONFIGS: Final = (OCI_CONFIG, _DOCKER_CONFIG)
_LAYERS: Final = (
    *(OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD),
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
)
MAX_DOCUMENT_BYTES: Final = 4 << 20  # what registries and containerd take
MAX_LAYERS: Final = 1024
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_ARCHITECTURES: Final = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "i386": ("386", ""),
}

D = TypeVar("D")


class BadImage(CowfsError):
    """An image that is damaged, or is something else than an image of layers; nothing was made of it."""


class Platform(msgspec.Struct, frozen=True, omit_defaults=True):
    """`linux/arm64/v8`: what an image runs on."""

    architecture: str = ""
    os: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def suits(self, wanted: Platform) -> bool:
        """Whether an image for this platform is one for `wanted`, of which the variant may be left out."""
        if (self.os, self.architecture) != (wanted.os, wanted.architecture):
            return False
        if not wanted.variant or not self.variant:
            return True
        return self.variant == wanted.variant


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A blob by its digest, with its length in bytes."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: dict[str, str] | None = None
    artifact_type: str = ""

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.digest):
            raise ValueError(f"{self.digest[:80]!r} is not a digest of SHA-256")
        if self.size < 0:
            raise ValueError(f"{self.size} is not a length")


class Manifest(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """An image, or an artifact: `config`, and `layers`, the lowest first."""

    schema_version: int
    config: Descriptor
    layers: list[Descriptor]
    media_type: str = ""
    artifact_type: str = ""
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class Index(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Manifests, of one image for several platforms, or of one layout."""

    schema_version: int
    manifests: list[Descriptor]
    media_type: str = ""


class RootFs(msgspec.Struct, frozen=True):
    type: str = "layers"
    diff_ids: list[str] = []

    def __post_init__(self) -> None:
        for diff_id in self.diff_ids:
            if not _DIGEST.fullmatch(diff_id):
                raise ValueError(f"{diff_id[:80]!r} is not a digest of SHA-256")


class ImageConfig(msgspec.Struct, frozen=True):
    """An image's configuration; its digest is the image's id."""

    rootfs: RootFs
    architecture: str = ""
    os: str = ""
    variant: str = ""

    @property
    def platform(self) -> Platform:
        return Platform(self.architecture, self.os, self.variant)


class _Kind(msgspec.Struct, rename="camel"):
    """Recognises documents that do not state their type."""

    schema_version: int = 0
    media_type: str = ""
    manifests: msgspec.Raw = msgspec.Raw()
    config: msgspec.Raw = msgspec.Raw()


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def check_digest(text: str, where: str) -> str:
    """Raises BadImage for text that is not a digest of SHA-256."""
    if not _DIGEST.fullmatch(text):
        raise BadImage(f"{where} is damaged: {text[:80]!r} is not a digest of SHA-256")
    return text


def decode(data: bytes, kind: type[D], where: str) -> D:
    """A document as a structure. Raises BadImage."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadImage(f"{where} is damaged: {error}") from None


def decode_manifest(data: bytes, where: str) -> Manifest | Index:
    """A manifest or an index. Raises BadImage for anything else, and for more layers than an image has."""
    kind = decode(data, _Kind, where)
    if kind.schema_version != 2:
        hint = "; it is of the schema 1, which Docker no longer writes" if kind.schema_version == 1 else ""
        raise BadImage(f"{where} is not the manifest of an image: its schemaVersion is {kind.schema_version}{hint}")
    has_manifests, has_config = bytes(kind.manifests) != b"", bytes(kind.config) != b""
    if has_manifests and has_config:
        raise BadImage(f"{where} is damaged: it is a manifest and an index")  # CVE-2021-41190
    if kind.media_type in INDEXES or (not kind.media_type and has_manifests):
        return decode(data, Index, where)
    if kind.media_type in MANIFESTS or (not kind.media_type and has_config):
        manifest = decode(data, Manifest, where)
        if len(manifest.layers) > MAX_LAYERS:
            raise BadImage(f"{where} has {len(manifest.layers)} layers, and {MAX_LAYERS} is the most")
        return manifest
    raise BadImage(f"{where} is not the manifest of an image: its media type is {kind.media_type[:100]!r}")


def check_is_image(manifest: Manifest, where: str) -> None:
    """Raises BadImage where a manifest is of an artifact, or a layer is packed in a way that is not read here."""
    if manifest.config.media_type not in _CONFIGS:
        raise BadImage(
            f"{where} is not an image of layers: its configuration is of the type {manifest.config.media_type[:100]!r}"
        )
    for layer in manifest.layers:
        if layer.media_type not in _LAYERS:
            raise BadImage(
                f"{where}: layer {short(layer.digest)} is of the type {layer.media_type[:100]!r}, and tar archives are "
                "read, compressed by gzip, zstd or not"
            )


def decode_config(data: bytes, layers: Sequence[object], where: str) -> ImageConfig:
    """The configuration of an image with these layers. Raises BadImage."""
    config = decode(data, ImageConfig, where)
    if len(config.rootfs.diff_ids) != len(layers):
        raise BadImage(
            f"{where} is damaged: the image has {len(layers)} layers and its configuration "
            f"{len(config.rootfs.diff_ids)} diff ids"
        )
    return config


def chain_ids(diff_ids: Sequence[str]) -> Iterator[str]:
    """The chain ids of layers by their diff ids, the lowest first (OCI image specification 1.0, config.md)."""
    chain_id = ""
    for diff_id in diff_ids:
        chain_id = digest_of(f"{chain_id} {diff_id}".encode()) if chain_id else diff_id
        yield chain_id


def oci_layer_type(media_type: str) -> str:
    """The type of a layer in a manifest of OCI, by its type in any one."""
    if media_type == OCI_LAYER_ZSTD:
        return OCI_LAYER_ZSTD
    return OCI_LAYER_GZIP if "gzip" in media_type else OCI_LAYER


def hex_of(digest: str) -> str:
    return digest.removeprefix("sha256:")


def short(digest: str) -> str:
    """The first digits of a digest, as Docker shows them."""
    return hex_of(digest)[:12]


def own_platform() -> Platform:
    machine = platform.machine()
    architecture, variant = _ARCHITECTURES.get(machine, (machine, ""))
    return Platform(architecture, "linux", variant)


def parse_platform(text: str) -> Platform:
    """`OS/ARCHITECTURE[/VARIANT]`. Raises UsageError."""
    parts = text.split("/")
    if not 2 <= len(parts) <= 3 or not all(re.fullmatch(r"[a-z0-9_.-]{1,40}", part) for part in parts):
        raise UsageError(f"{text[:80]!r} is not a platform; write OS/ARCHITECTURE[/VARIANT], as in linux/arm64")
    os, architecture, *variant = parts
    return Platform(architecture, os, *variant)


def choose(index: Index, wanted: Platform, where: str) -> Descriptor:
    """The manifest of an index for a platform. Raises UsageError, which names the platforms that there are."""
    found = [entry for entry in index.manifests if entry.media_type in (*MANIFESTS, *INDEXES)]
    exact = [entry for entry in found if entry.platform is not None and entry.platform.suits(wanted)]
    if exact:
        same = [entry for entry in exact if entry.platform == wanted]
        return (same or exact)[0]
    if len(found) == 1 and found[0].platform is None:
        return found[0]
    names = sorted({str(entry.platform) for entry in found if entry.platform is not None} - {"unknown/unknown"})
    offered = f"it is there for {', '.join(names[:20])}; choose one with --platform" if names else "it names none"
    raise UsageError(f"{where} has no image for {wanted}: {offered}")


def encode(value: Any) -> bytes:
    """A document as bytes, the same each time."""
    return msgspec.json.encode(value)
