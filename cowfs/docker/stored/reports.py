"""What a daemon's directory holds, as structures: rows of images and containers, history, the tree of layers, space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from cowfs.devices.reports import UsageReport
from cowfs.docker.stored.names import title
from cowfs.docker.stored.store import Container, DockerStore, Image


class ImageRow(msgspec.Struct, frozen=True):
    """An image. `size_bytes` is that of the files in its layers, null when a layer is missing; `device` is that of
    its files, null for an image without layers.
    """

    id: str
    tags: list[str]
    digests: list[str]
    created: str
    size_bytes: int | None
    parent: str | None
    device: str | None


class ContainerRow(msgspec.Struct, frozen=True):
    """A container, with the state that the daemon wrote down last; `image` is what it was made from."""

    id: str
    name: str
    image: str
    image_id: str
    command: str
    created: str
    state: str
    exit_code: int
    finished: str | None
    device: str | None


class HistoryRow(msgspec.Struct, frozen=True):
    """A step of an image's making, the newest first. `layer` is the chain id of the layer that it made, if any."""

    created: str
    created_by: str
    comment: str
    size_bytes: int | None
    layer: str | None
    device: str | None


class LayerNode(msgspec.Struct, frozen=True):
    """A layer, what ends in it, and the layers on it."""

    chain_id: str
    device: str
    size_bytes: int
    images: list[str]
    containers: list[str]
    layers: list[LayerNode]


class SpaceRow(msgspec.Struct, frozen=True):
    """The space of an image or a container.

    `size_bytes`: of all its files. `shared_bytes`: of the layers that others have too. `unique_bytes`: of those that
    it alone has. `exclusive_bytes`: what its own devices alone occupy in the pool.
    """

    kind: str
    id: str
    name: str
    size_bytes: int | None
    shared_bytes: int
    unique_bytes: int
    exclusive_bytes: int


def _image_row(store: DockerStore, image: Image) -> ImageRow:
    top = store.layers.get(image.layers[-1]) if image.layers else None
    return ImageRow(
        image.id,
        list(image.tags),
        list(image.digests),
        image.document.created,
        store.size_bytes(image),
        image.parent,
        top.device if top else None,
    )


def listed_images(store: DockerStore, *, everything: bool) -> list[ImageRow]:
    """The images; those without a name that others were built from only with `everything`, as with Docker."""
    parents = {image.parent for image in store.images.values()}
    shown = (image for image in store.images.values() if everything or image.tags or image.id not in parents)
    return [_image_row(store, image) for image in shown]


def container_row(container: Container) -> ContainerRow:
    state = container.document.state
    ended = container.state == "exited"
    return ContainerRow(
        container.id,
        container.name,
        container.document.config.image,
        container.image_id,
        container.command,
        container.document.created,
        container.state,
        state.exit_code,
        state.finished_at if ended else None,
        container.device,
    )


def history(store: DockerStore, image: Image) -> list[HistoryRow]:
    """The steps of an image's making, the newest first."""
    rows = []
    layers = iter(image.layers)
    for entry in image.document.history:
        chain_id = None if entry.empty_layer else next(layers, None)
        layer = store.layers.get(chain_id) if chain_id else None
        size = layer.size_bytes if layer else 0 if entry.empty_layer else None
        device = layer.device if layer else None
        rows.append(HistoryRow(entry.created, entry.created_by, entry.comment, size, chain_id, device))
    for chain_id in layers:  # steps that the image says nothing about
        layer = store.layers.get(chain_id)
        rows.append(
            HistoryRow("", "", "", *((layer.size_bytes, chain_id, layer.device) if layer else (None, chain_id, None)))
        )
    return rows[::-1]


def tree(store: DockerStore) -> list[LayerNode]:
    """The layers, each below the one that it is on, with what ends in it."""
    images: dict[str, list[str]] = {}
    for image in store.images.values():
        if image.layers:
            images.setdefault(image.layers[-1], []).extend(image.tags or [title(image)])
    containers: dict[str, list[str]] = {}
    for container in store.containers.values():
        if container.parent:
            containers.setdefault(container.parent, []).append(title(container))
    on: dict[str | None, list[str]] = {}
    for layer in store.layers.values():
        on.setdefault(layer.parent if layer.parent in store.layers else None, []).append(layer.chain_id)

    def node(chain_id: str) -> LayerNode:
        layer = store.layers[chain_id]
        above = [node(other) for other in on.get(chain_id, [])]
        return LayerNode(
            chain_id,
            layer.device,
            layer.size_bytes,
            sorted(images.get(chain_id, [])),
            containers.get(chain_id, []),
            above,
        )

    return [node(chain_id) for chain_id in on.get(None, [])]


def space(store: DockerStore, usage: UsageReport) -> list[SpaceRow]:
    """The space of the images that are listed, and of the containers."""
    exclusive = {thin.name: thin.exclusive_bytes for thin in usage.thins if thin.name is not None}
    listed = [image for image in store.images.values() if image.tags or not _is_parent(store, image)]
    users: dict[str, int] = {}
    for image in listed:
        for chain_id in image.layers:
            users[chain_id] = users.get(chain_id, 0) + 1
    for container in store.containers.values():
        if container.image_id not in {image.id for image in listed}:
            for chain_id in _below(store, container.parent):
                users[chain_id] = users.get(chain_id, 0) + 1
    rows = [_image_space(store, image, users, exclusive) for image in listed]
    return [*rows, *(_container_space(store, container, exclusive) for container in store.containers.values())]


def _image_space(store: DockerStore, image: Image, users: Mapping[str, int], exclusive: Mapping[str, int]) -> SpaceRow:
    layers = [store.layers[chain_id] for chain_id in image.layers if chain_id in store.layers]
    own = [layer for layer in layers if users[layer.chain_id] == 1]
    return SpaceRow(
        "image",
        image.id,
        title(image),
        store.size_bytes(image),
        sum(layer.size_bytes for layer in layers if users[layer.chain_id] > 1),
        sum(layer.size_bytes for layer in own),
        sum(exclusive.get(layer.device, 0) for layer in own),
    )


def _container_space(store: DockerStore, container: Container, exclusive: Mapping[str, int]) -> SpaceRow:
    below = [store.layers[chain_id].size_bytes for chain_id in _below(store, container.parent)]
    devices = (container.device, container.init_device)
    taken = sum(exclusive.get(device, 0) for device in devices if device is not None)
    return SpaceRow("container", container.id, title(container), None, sum(below), taken, taken)


def _below(store: DockerStore, chain_id: str | None) -> Iterator[str]:
    """A layer and those below it."""
    while chain_id in store.layers:
        assert chain_id is not None
        yield chain_id
        chain_id = store.layers[chain_id].parent


def _is_parent(store: DockerStore, image: Image) -> bool:
    return any(other.parent == image.id for other in store.images.values())


def details(store: DockerStore, found: Image | Container) -> dict[str, Any]:
    """All that is known of an image or a container, with the daemon's own document."""
    if isinstance(found, Container):
        row: msgspec.Struct = container_row(found)
        kind, layers = "container", list(_below(store, found.parent))[::-1]
    else:
        row = _image_row(store, found)
        kind, layers = "image", list(found.layers)
    parts = [
        {"chain_id": chain_id, "diff_id": layer.diff_id, "device": layer.device, "size_bytes": layer.size_bytes}
        if (layer := store.layers.get(chain_id))
        else {"chain_id": chain_id}
        for chain_id in layers
    ]
    document = msgspec.json.decode(found.document_bytes)
    return {"kind": kind, **msgspec.structs.asdict(row), "layers": parts, "document": document}
