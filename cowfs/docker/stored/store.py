"""A daemon's images, containers and layers by its own records, without opening the pool.

    store = DockerStore(place)
    store.images, store.containers, store.layers     what can be read
    store.unreadable                                 a line about each record that cannot

One damaged record does not hide the others.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from cowfs.docker.stored.documents import (
    ContainerDocument,
    DevicesDocument,
    ImageDocument,
    RepositoriesDocument,
    check_digest,
    decode,
    read_digest,
    read_document,
    read_word,
)
from cowfs.docker.stored.place import DRIVER, DockerPlace
from cowfs.errors import FilesystemError, HomeError
from cowfs.oci.documents import chain_ids

_SHORT_DIGITS: Final = 12
_PREFIX: Final = "sha256:"
_HEX: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of images: `layerdb/sha256/CHAIN`.

    Attributes:
        chain_id: of it and those below it; `diff_id`: of its own archive. Both with `sha256:`.
        parent: chain id of the layer below, None for the lowest.
        device: the device with its files and those of the layers below.
        size_bytes: of the files in its own archive.
        recipe: the file from which its archive is made again; it may be missing.
    """

    chain_id: str
    diff_id: str
    parent: str | None
    device: str
    size_bytes: int
    recipe: Path


@dataclass(frozen=True, slots=True)
class Image:
    """An image.

    Attributes:
        id: 64 hexadecimal digits, the digest of `document_bytes`.
        tags: as `docker images` shows them, `name:tag`, sorted; `digests`: `name@sha256:...`.
        parent: the image that it was built from here, None when it is not known.
        layers: chain ids, the lowest first.
    """

    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    parent: str | None
    layers: tuple[str, ...]
    document: ImageDocument
    document_bytes: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Container:
    """A container.

    Attributes:
        image_id: 64 digits, empty when it is not known; `parent`: chain id of the layer below it, None for none.
        device: the device with its files; None when the daemon's record of it is missing.
    """

    id: str
    name: str
    image_id: str
    parent: str | None
    device: str | None
    init_device: str | None
    document: ContainerDocument
    document_bytes: bytes = field(repr=False)

    @property
    def command(self) -> str:
        return " ".join([self.document.path, *self.document.args])

    @property
    def state(self) -> str:
        """`created`, `running`, ... as it was when the daemon last wrote it down."""
        state = self.document.state
        for name in ("paused", "restarting", "running", "dead"):
            if getattr(state, name):
                return name
        return "exited" if state.started_at and not state.started_at.startswith("0001-") else "created"


class DockerStore:
    """What a daemon with the devicemapper driver stored. Everything is read when it is first needed."""

    def __init__(self, place: DockerPlace) -> None:
        self.place = place
        self.unreadable: list[str] = []

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """By chain id."""
        directory = self.place.images / "layerdb" / "sha256"
        found = {}
        for name in self._names(directory):
            with self._noting():
                layer = _read_layer(directory / name)
                found[layer.chain_id] = layer
        return found

    @cached_property
    def images(self) -> dict[str, Image]:
        """By id, the newest first."""
        directory = self.place.images / "imagedb" / "content" / "sha256"
        references = self._references()
        found = []
        for name in self._names(directory):
            with self._noting():
                found.append(self._read_image(directory / name, references.get(name, [])))
        found.sort(key=lambda image: image.document.created, reverse=True)
        return {image.id: image for image in found}

    @cached_property
    def containers(self) -> dict[str, Container]:
        """By id, the newest first."""
        found = []
        for name in self._names(self.place.containers):
            with self._noting():
                found.append(self._read_container(name))
        found.sort(key=lambda container: container.document.created, reverse=True)
        return {container.id: container for container in found}

    def read_all(self) -> None:
        """Read everything, so that `unreadable` is complete."""
        for _ in (self.layers, self.images, self.containers):
            pass

    def require_readable_files(self) -> None:
        """Raises FilesystemError where the devices hold another file system than ext4 or xfs."""
        path = self.place.home / "metadata" / "deviceset-metadata"
        if not path.exists():
            return
        filesystem = decode(path, read_document(path), DevicesDocument).filesystem
        if filesystem not in ("", "ext4", "xfs"):
            raise FilesystemError(
                f"the devices of {self.place.home} hold {filesystem}, and cowfs reads ext4 and xfs alone; the disk of "
                "one for the kernel to mount: cowfs mount --raw --read-only NAME MNT"
            )

    def layers_of(self, image: Image) -> list[Layer]:
        """An image's layers, the lowest first. Raises HomeError when one is missing."""
        found = []
        for chain_id in image.layers:
            if chain_id not in self.layers:
                missing = self.place.images / "layerdb" / "sha256" / chain_id.removeprefix(_PREFIX)
                raise HomeError(f"a layer of image {short(image.id)} is missing: there is no readable {missing}")
            found.append(self.layers[chain_id])
        return found

    def size_bytes(self, image: Image) -> int | None:
        """The files of all layers of an image, as `docker images` counts them; None when a layer is missing."""
        sizes = [self.layers[chain_id].size_bytes for chain_id in image.layers if chain_id in self.layers]
        return sum(sizes) if len(sizes) == len(image.layers) else None

    def _names(self, directory: Path) -> list[str]:
        """The entries of a directory that are named by a digest; none where it is missing."""
        try:
            return sorted(name for name in os.listdir(directory) if _HEX.fullmatch(name))
        except FileNotFoundError:
            if directory == self.place.containers:
                return []  # a copy of the images alone
            self.unreadable.append(f"{directory} is missing")
        except OSError as error:
            self.unreadable.append(f"{directory}: {error.strerror}")
        return []

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """A block whose HomeError becomes a line about what cannot be read."""
        try:
            yield
        except HomeError as error:
            self.unreadable.append(error.message)

    def _references(self) -> dict[str, list[str]]:
        """Image id -> references."""
        path = self.place.images / "repositories.json"
        found: dict[str, list[str]] = {}
        with self._noting():
            document = decode(path, read_document(path), RepositoriesDocument)
            for references in document.repositories.values():
                for reference, digest in references.items():
                    found.setdefault(check_digest(digest, path).removeprefix(_PREFIX), []).append(reference)
        return found

    def _read_image(self, path: Path, references: Sequence[str]) -> Image:
        data = read_document(path)
        if hashlib.sha256(data).hexdigest() != path.name:
            raise HomeError(f"{path} is damaged: its content has another digest than its name")
        document = decode(path, data, ImageDocument)
        parent_path = self.place.images / "imagedb" / "metadata" / "sha256" / path.name / "parent"
        parent = read_digest(parent_path).removeprefix(_PREFIX) if parent_path.exists() else None
        digests = [check_digest(diff_id, path) for diff_id in document.rootfs.diff_ids]
        return Image(
            id=path.name,
            tags=tuple(sorted(reference for reference in references if "@" not in reference)),
            digests=tuple(sorted(reference for reference in references if "@" in reference)),
            parent=parent,
            layers=tuple(chain_ids(digests)),
            document=document,
            document_bytes=data,
        )

    def _read_container(self, name: str) -> Container:
        path = self.place.containers / name / "config.v2.json"
        data = read_document(path)
        document = decode(path, data, ContainerDocument)
        if document.id != name:
            raise HomeError(f"{path} is of another container, {document.id[:80]!r}")
        if document.driver not in ("", DRIVER):
            raise HomeError(f"{path} is of a container of the driver {document.driver[:80]!r}")
        record = self.place.images / "layerdb" / "mounts" / name
        return Container(
            id=name,
            name=document.name.removeprefix("/"),
            image_id=document.image.removeprefix(_PREFIX),
            parent=read_digest(record / "parent") if (record / "parent").exists() else None,
            device=_device_name(record / "mount-id") if (record / "mount-id").exists() else None,
            init_device=_device_name(record / "init-id") if (record / "init-id").exists() else None,
            document=document,
            document_bytes=data,
        )


def short(digest: str) -> str:
    """The first digits of an id, as Docker shows them."""
    return digest.removeprefix(_PREFIX)[:_SHORT_DIGITS]


def _read_layer(path: Path) -> Layer:
    parent = read_digest(path / "parent") if (path / "parent").exists() else None
    diff_id = read_digest(path / "diff")
    *_, chain_id = chain_ids([diff_id] if parent is None else [parent, diff_id])
    if chain_id != _PREFIX + path.name:
        raise HomeError(f"{path} is damaged: its name is not that of its parent and its content")
    size = read_word(path / "size")
    if not size.isdecimal():
        raise HomeError(f"{path / 'size'} is damaged: {size[:80]!r} is not a number of bytes")
    device = _device_name(path / "cache-id")
    return Layer(chain_id, diff_id, parent, device, int(size), path / "tar-split.json.gz")


def _device_name(path: Path) -> str:
    name = read_word(path)
    if not name or "/" in name or not name.isprintable():
        raise HomeError(f"{path} is damaged: {name[:80]!r} is not the name of a device")
    return name
