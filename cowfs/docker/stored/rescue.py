"""Everything of a daemon's directory that can be read, in a directory, and a list of what cannot.

images/               an OCI layout, which 'docker load' reads as well: tar -C images -c . | docker load
containers/NAME.tar   the files of a container, as 'docker export' writes them; 'docker import' reads them
containers/NAME.json  its settings, as the daemon kept them
rescued.json          what is here, and what could not be read and why

Containers without a name that a file can have are named by their id.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from cowfs.docker.stored.names import device_of, title
from cowfs.docker.stored.saving import ImageSaver, SavedImage
from cowfs.docker.stored.store import Container, DockerStore
from cowfs.errors import CowfsError
from cowfs.home.api.home import Home
from cowfs.oci.blobs import DirectoryBlobs, NotWritten, naming

Progress: TypeAlias = Callable[[str, int, int], object]
_FILE_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,200}")


class RescuedContainer(msgspec.Struct, frozen=True):
    """A container: `archive` is the path of its files below the directory."""

    id: str
    name: str
    archive: str
    size_bytes: int


class Rescued(msgspec.Struct, frozen=True):
    """What was written, and a line about each thing that could not be read."""

    images: list[SavedImage]
    containers: list[RescuedContainer]
    unreadable: list[str]


def rescue(store: DockerStore, home: Home, directory: Path, progress: Progress | None = None) -> Rescued:
    """Write all that can be read.

    Args:
        directory: an empty one.
        progress: called with (what is done next, done, total).

    Raises:
        NotWritten: there is no room for it, or `directory` cannot be written.
    """
    store.read_all()
    unreadable = list(store.unreadable)
    total = len(store.images) + len(store.containers)
    done = 0

    def begin(what: str) -> None:
        nonlocal done
        if progress is not None:
            progress(what, done, total)
        done += 1

    saver = ImageSaver(store, home, DirectoryBlobs(directory / "images"), allow_new_ids=True)
    images = []
    for image in store.images.values():
        begin(f"image {title(image)}")
        try:
            images.append(saver.save(image))
        except NotWritten:
            raise
        except CowfsError as error:
            unreadable.append(f"image {title(image)}: {error.message}")
    saver.finish()
    containers = []
    (directory / "containers").mkdir()
    for container in store.containers.values():
        begin(f"container {title(container)}")
        try:
            containers.append(_rescue_container(store, home, container, directory))
        except NotWritten:
            raise
        except CowfsError as error:
            unreadable.append(f"container {title(container)}: {error.message}")
    rescued = Rescued(images, containers, unreadable)
    _write(directory / "rescued.json", msgspec.json.format(msgspec.json.encode(rescued)) + b"\n")
    return rescued


def _rescue_container(store: DockerStore, home: Home, container: Container, directory: Path) -> RescuedContainer:
    device = device_of(store, container)
    name = container.name if _FILE_NAME.fullmatch(container.name) else container.id
    archive = f"containers/{name}.tar"
    path = directory / archive
    with naming(path), path.open("xb") as file:
        try:
            exported = home.export_archive(device, file.write, sparse=False)
        except BaseException:
            path.unlink()
            raise
    _write(directory / f"containers/{name}.json", container.document_bytes)
    return RescuedContainer(container.id, container.name, archive, exported.size_bytes)


def _write(path: Path, data: bytes) -> None:
    with naming(path):
        path.write_bytes(data)
