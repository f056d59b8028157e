"""An image that was found elsewhere: its configuration is at hand, its layers can be read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO

from cowfs.oci.documents import Descriptor, ImageConfig, chain_ids, hex_of


@dataclass(frozen=True, slots=True)
class FoundLayer:
    """A layer of an image.

    Attributes:
        diff_id: the digest that its archive must have, uncompressed.
        blob: its archive as it is stored; None where it is only known by its diff id.
        open: the archive as it is stored, compressed or not, for the length of a block.
    """

    diff_id: str
    blob: Descriptor | None
    open: Callable[[], AbstractContextManager[IO[bytes]]]


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image.

    Attributes:
        name: for messages.
        tags: what it is called where it is.
        config_bytes: its configuration, whose digest is the image's id; None for a single layer, which has none.
        source: `HOST/REPOSITORY` of a registry, empty elsewhere.
    """

    name: str
    tags: tuple[str, ...]
    config_bytes: bytes | None
    config: ImageConfig
    layers: tuple[FoundLayer, ...]
    source: str = ""

    @property
    def layer_names(self) -> list[str]:
        """What its layers are called in a home, the lowest first: by their chain ids."""
        return [hex_of(chain_id) for chain_id in chain_ids([layer.diff_id for layer in self.layers])]
