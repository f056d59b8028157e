"""What users call images and containers: names, tags, digests, ids and the beginnings of ids.

A container goes before an image, as with `docker inspect`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, TypeAlias, TypeVar

from cowfs.docker.stored.store import Container, DockerStore, Image, short
from cowfs.errors import UnknownDevice, UsageError

Found: TypeAlias = Container | Image
F = TypeVar("F", Container, Image)
_ID_PART: Final = re.compile(r"[0-9a-f]{1,64}")
_PUBLIC: Final = ("docker.io/library/", "index.docker.io/library/", "docker.io/", "index.docker.io/")
_SHOWN: Final = 5


def find(store: DockerStore, name: str) -> Found:
    """The container or image of a name.

    Raises:
        UnknownDevice: there is none.
        UsageError: several ids begin with it.
    """
    found = _container(store, name) or _image(store, name)
    if found is None:
        raise UnknownDevice(
            f"there is no container or image '{name}' in {store.place.root}; 'docker ps' and 'docker images' list them"
        )
    return found


def find_image(store: DockerStore, name: str) -> Image:
    """The image of a name. Raises as `find`."""
    found = _image(store, name)
    if found is not None:
        return found
    hint = (
        "that is a container, which 'docker export' writes" if _container(store, name) else "'docker images' lists them"
    )
    raise UnknownDevice(f"there is no image '{name}' in {store.place.root}; {hint}")


def find_container(store: DockerStore, name: str) -> Container:
    """The container of a name. Raises as `find`."""
    found = _container(store, name)
    if found is not None:
        return found
    hint = "that is an image, which 'docker save' writes" if _image(store, name) else "'docker ps' lists them"
    raise UnknownDevice(f"there is no container '{name}' in {store.place.root}; {hint}")


def device_of(store: DockerStore, found: Found) -> str:
    """The device with the files of a container or an image.

    Raises:
        UnknownDevice: it has no files, or the record that names them is missing.
    """
    if isinstance(found, Container):
        if found.device is None:
            record = store.place.images / "layerdb" / "mounts" / found.id
            raise UnknownDevice(f"the files of container {found.name} are not known: there is no {record / 'mount-id'}")
        return found.device
    layers = store.layers_of(found)
    if not layers:
        raise UnknownDevice(f"image {short(found.id)} has no layers, so no files")
    return layers[-1].device


def tag_of(image: Image, name: str) -> str | None:
    """The tag of an image that a name means, None where it is not one of its tags."""
    name = _familiar(name)
    tag = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    return tag if tag in image.tags else None


def title(found: Found) -> str:
    """What to call a container or an image in a message."""
    if isinstance(found, Container):
        return found.name or short(found.id)
    return found.tags[0] if found.tags else short(found.id)


def _container(store: DockerStore, name: str) -> Container | None:
    if name in store.containers:
        return store.containers[name]
    for container in store.containers.values():
        if container.name == name.removeprefix("/"):
            return container
    return _by_beginning(store.containers.values(), name, "container")


def _image(store: DockerStore, name: str) -> Image | None:
    name = _familiar(name)
    digits = name.removeprefix("sha256:")
    if digits in store.images:
        return store.images[digits]
    for image in store.images.values():
        if tag_of(image, name) or name in image.digests:
            return image
    return _by_beginning(store.images.values(), digits, "image")


def _by_beginning(things: Iterable[F], digits: str, kind: str) -> F | None:
    if not _ID_PART.fullmatch(digits):
        return None
    found = [thing for thing in things if thing.id.startswith(digits)]
    if len(found) > 1:
        some = ", ".join(short(thing.id) for thing in found[:_SHOWN])
        more = ", ..." if len(found) > _SHOWN else ""
        raise UsageError(f"'{digits}' is the beginning of {len(found)} {kind} ids: {some}{more}; write more digits")
    return found[0] if found else None


def _familiar(name: str) -> str:
    """A reference without the names of the public registry, as the daemon keeps it."""
    for prefix in _PUBLIC:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name
