"""Which devices without a name hold the layers of images.

`recover` takes in a device whose record is lost, but it knows the name of few: a layer has the file `id` of the lowest
layer below it, since a snapshot has what its origin has. The daemon's records say which names are wanted, and the
recipe of a layer which files it has and what digest they give. A layer that has no file with content is not known so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from cowfs.docker.stored.store import DockerStore, Layer
from cowfs.errors import CowfsError
from cowfs.home.api.home import Home
from cowfs.home.requests.files import WantedFile
from cowfs.oci import tar_split

_ADOPTED: Final = re.compile(r"recovered-\d+(-\d+)?")


class FoundLayer(NamedTuple):
    """A device, by the name that it has now, and the layer whose files it holds."""

    device: str
    thin_id: int
    layer: Layer


def find_layers(store: DockerStore, home: Home) -> list[FoundLayer]:
    """The layers whose devices have names that `recover` made up, each layer after the one below it.

    Where several devices hold the files of a layer, as those of the layers above it do, it is the one that differs
    least from the layer below, and the oldest of these.
    """
    names = {row.name for row in home.devices()}
    nameless = [home.inspect(name) for name in sorted(names) if _ADOPTED.fullmatch(name)]
    nameless.sort(key=lambda report: report.created_transaction_id)
    place = {name: name for name in names}  # by the name that a layer's device should have: the one that it has
    found = []
    for layer in _lowest_first(store):
        if layer.device in place:
            continue
        below = place.get(store.layers[layer.parent].device) if layer.parent is not None else None
        holders = [report for report in nameless if _holds(home, report.name, layer)]
        if holders:
            chosen = min(holders, key=lambda report: _differing(home, report.name, below))
            nameless.remove(chosen)
            place[layer.device] = chosen.name
            found.append(FoundLayer(chosen.name, chosen.id, layer))
    return found


def _lowest_first(store: DockerStore) -> Iterator[Layer]:
    """The layers whose records, and those of all below them, can be read."""
    above: dict[str | None, list[Layer]] = {}
    for layer in store.layers.values():
        above.setdefault(layer.parent, []).append(layer)
    waiting = above.get(None, [])
    while waiting:
        yield from waiting
        waiting = [higher for layer in waiting for higher in above.get(layer.chain_id, [])]


def _holds(home: Home, device: str, layer: Layer) -> bool:
    has_content = False

    def read(wanted: Sequence[WantedFile], take: tar_split.Out) -> None:
        nonlocal has_content
        has_content = True
        home.read_files(device, wanted, take)

    try:
        return tar_split.build(layer.recipe, read, lambda _data: None).digest == layer.diff_id and has_content
    except CowfsError:
        return False


def _differing(home: Home, device: str, below: str | None) -> int:
    """How many paths differ from those of the layer below; 0 where that is not known."""
    try:
        return 0 if below is None else sum(1 for _ in home.changes(device, below))
    except CowfsError:
        return 0
