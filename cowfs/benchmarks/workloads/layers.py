"""Layers of containers, in a home of cowfs: an archive is unpacked into one, and what it changed is listed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from cowfs.benchmarks.engines.interface import Contender, Offer
from cowfs.benchmarks.meter import RATE, TIME, Meter
from cowfs.benchmarks.workloads.interface import Measure
from cowfs.benchmarks.workloads.trees import make_archive
from cowfs.home.api.home import open_home

_BASE: Final = "base-image"
_LAYER: Final = "layer"


class LayerWork:
    """Args: files: in the archive of the base image; changed: in that of the layer."""

    name = "layers"
    title = "What do layers of containers cost: unpacking an archive, and listing what it changed?"
    expectation = (
        "An archive is unpacked without a mount, so a file costs its inode, its name and its bytes, and the layer is "
        "durable at the end. What changed is found by the blocks that differ, whatever the number of files."
    )
    needs = Offer.HOME
    x_unit = ""
    warms_up = False

    def __init__(self, *, files: int, changed: int, seed: int) -> None:
        self._files = files
        self._changed = changed
        self._seed = seed

    @property
    def parameters(self) -> dict[str, Any]:
        return {"files": self._files, "changed": self._changed, "seed": self._seed}

    @contextmanager
    def prepared(self, contender: Contender) -> Iterator[Measure]:
        """Each round has a separate home."""
        archive, changes = make_archive(self._files, self._seed), make_archive(self._changed, self._seed + 1)

        def measure(meter: Meter) -> None:
            with contender.home() as path, open_home(path, backend=contender.backend) as home:
                layers = home.layers
                layers.create(_BASE)
                with meter.line("apply of the base image, files", RATE, is_counted=False, in_process=True) as work:
                    layers.apply(_BASE, io.BytesIO(archive))
                    work.requests = self._files
                layers.create(_LAYER, _BASE)
                with meter.line("apply of a layer, files", RATE, is_counted=False, in_process=True) as work:
                    layers.apply(_LAYER, io.BytesIO(changes))
                    work.requests = self._changed
                with meter.line("list of what the layer changed", TIME, is_counted=False, in_process=True) as work:
                    work.requests = sum(1 for _ in layers.changes(_LAYER, _BASE))

        yield measure
