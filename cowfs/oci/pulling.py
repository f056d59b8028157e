"""An image of a registry becomes layers of a home: of the blocks beside it where that can be, else of its archives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from cowfs.home.api.home import Home
from cowfs.oci.block_deltas import find_blocks
from cowfs.oci.documents import Platform
from cowfs.oci.downloads import Downloads
from cowfs.oci.incoming import BroughtLayer, Incoming
from cowfs.oci.reference import Reference
from cowfs.oci.registry import Repository
from cowfs.oci.remote import RemoteImage


class Pulled(msgspec.Struct, frozen=True):
    """An image that came from a registry. `digest` is of what `reference` names; `name` as in `Brought`."""

    reference: str
    digest: str
    platform: str
    image_id: str | None
    layers: list[BroughtLayer]
    name: str | None
    downloaded_bytes: int


def pull(
    home: Path,
    open_home: Callable[[], AbstractContextManager[Home]],
    repository: Repository,
    reference: Reference,
    platform: Platform,
    *,
    name: str | None = None,
    report: Callable[[int, int], object],
    say: Callable[[str], object],
) -> Pulled:
    """Have an image in a home: all of its layers, or no new one.

    Args:
        home: where it is; `open_home` opens it for the length of a block.
        name: make this layer on top of the image too.
        report: called with (bytes done, bytes in all), each counted once for the line and once for the unpacking.
        say: called with a line about what a user should know.

    Raises:
        RegistryError, BadImage, and as `Incoming.bring`. What was downloaded by then stays for a later attempt.
    """
    done = total = 0

    def moved(count_bytes: int) -> None:
        nonlocal done
        done += count_bytes
        report(min(max(done, 0), total), total)

    incoming = Incoming(home, open_home, say)
    if name is not None:
        incoming.require_new(name)  # before anything is asked of the registry
    with RemoteImage(repository, reference, platform, Downloads(home), moved) as image:
        total = 2 * image.size_bytes
        blocks = find_blocks(image, say)
        brought = incoming.bring(image.image, name=name, blocks=blocks, fetch=image.fetch_layers, report=moved)
    return Pulled(
        str(reference),
        image.top_digest,
        str(image.image.config.platform),
        brought.image_id,
        brought.layers,
        brought.name,
        image.downloaded_bytes,
    )
