"""Snapshots in homes of a terabyte that is mapped, and of ten thousand snapshots.

What is mapped there is mapped by the metadata alone, which is written in one pass: no data is behind it. Every size has
a separate home, made once.
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from cowfs.benchmarks.engines.interface import Contender, Offer
from cowfs.benchmarks.meter import TIME_EACH, Meter
from cowfs.benchmarks.workloads.interface import Measure
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.home.api.home import Home, open_home
from cowfs.home.maintenance import restore_home
from cowfs.units import format_size

BLOCK_BYTES: Final = 64 << 10
_ORIGIN: Final = "web"
_BASE_BYTES: Final = 64 << 20
_SPARE_BLOCKS: Final = 1 << 14
_AT_ONCE: Final = 5


class SnapshotsOfMapped:
    """Args: sizes: of what is mapped, in bytes, ascending."""

    name = "snapshot-mapped"
    title = "Does a snapshot take longer when a terabyte is mapped?"
    expectation = (
        "No: it copies the root of a tree, and that of 16 M mappings is one level deeper than that of 16 k. To take or "
        "remove one is some ten blocks of metadata, a commit, and files of the home that are flushed."
    )
    needs = Offer.HOME
    x_unit = "bytes mapped"
    warms_up = True

    def __init__(self, *, sizes: Sequence[int]) -> None:
        self._sizes = tuple(sizes)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"sizes": list(self._sizes), "snapshots": _AT_ONCE}

    @contextmanager
    def prepared(self, contender: Contender) -> Iterator[Measure]:
        def make(path: Path, size_bytes: int) -> None:
            make_mapped_home(path, size_bytes // BLOCK_BYTES, backend=contender.backend)

        with _homes(contender, self._sizes, make) as homes:
            yield lambda meter: _measure(meter, homes, lambda size: f"{format_size(size)} mapped")


class SnapshotsAmongMany:
    """Args: numbers: of the snapshots that there are, ascending."""

    name = "snapshot-many"
    title = "Does a snapshot take longer among ten thousand?"
    expectation = "Next to nothing: the trees of devices are a level deeper, and a record is a separate file."
    needs = Offer.HOME
    x_unit = "snapshots"
    warms_up = True

    def __init__(self, *, numbers: Sequence[int]) -> None:
        self._numbers = tuple(numbers)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"numbers": list(self._numbers), "snapshots": _AT_ONCE}

    @contextmanager
    def prepared(self, contender: Contender) -> Iterator[Measure]:
        def make(path: Path, number: int) -> None:
            with open_home(path, backend=contender.backend, create=True, options=_options(0)) as home:
                home.create(_ORIGIN)
                home.create_many([f"kept-{at}" for at in range(number)], parent=_ORIGIN)

        with _homes(contender, self._numbers, make) as homes:
            yield lambda meter: _measure(meter, homes, lambda number: f"{number} snapshots")


@contextmanager
def _homes(contender: Contender, sizes: Sequence[int], make: Callable[[Path, int], None]) -> Iterator[dict[int, Home]]:
    """An open home for each size, removed at the end."""
    directory = contender.directory / "large"
    directory.mkdir()
    try:
        with ExitStack() as stack:
            homes = {}
            for size in sizes:
                make(directory / str(size), size)
                homes[size] = stack.enter_context(open_home(directory / str(size), backend=contender.backend))
            yield homes
    finally:
        shutil.rmtree(directory)


def _measure(meter: Meter, homes: Mapping[int, Home], text: Callable[[int], str]) -> None:
    names = [f"taken-{number}" for number in range(_AT_ONCE)]
    for size, home in homes.items():
        with _line(meter, "take one", text(size), size):
            for name in names:
                home.snapshot(_ORIGIN, name)
        with _line(meter, "activate one", text(size), size):
            for name in names:
                with home.device(name):
                    pass
        with _line(meter, "remove one", text(size), size):
            for name in names:
                home.remove(name)


@contextmanager
def _line(meter: Meter, what: str, size: str, x: int) -> Iterator[None]:
    with meter.line(f"{what}, {size}", TIME_EACH, x=x, series=what, is_counted=False, in_process=True) as work:
        yield
        work.requests = _AT_ONCE


def make_mapped_home(path: Path, mapped_blocks: int, *, backend: str = "emulated") -> None:
    """A home whose device web maps so many blocks more, by its metadata; `snapshot` is a snapshot of it."""
    with open_home(path, backend=backend, create=True, options=_options(mapped_blocks)) as home:
        web = home.create(_ORIGIN).id
        text = io.StringIO()
        home.dump(text)
        size_blocks = home.inspect(_ORIGIN).size_bytes // BLOCK_BYTES
    free = _SPARE_BLOCKS // 2  # what the devices map lies before
    more = f'<range_mapping origin_begin="{size_blocks}" data_begin="{free}" length="{mapped_blocks}" time="0"/>'

    def with_more(device: re.Match[str]) -> str:
        mapped = int(device["mapped"]) + mapped_blocks
        return f'{device["head"]}mapped_blocks="{mapped}"{device["rest"]}{more}</device>'

    pattern = rf'(?P<head><device dev_id="{web}" )mapped_blocks="(?P<mapped>\d+)"(?P<rest>.*?)</device>'
    xml = re.sub(pattern, with_more, text.getvalue(), flags=re.DOTALL)
    restore_home(path, io.BytesIO(xml.encode()))
    with open_home(path, backend=backend) as home:
        home.snapshot(_ORIGIN, "snapshot")
        assert home.inspect(_ORIGIN).mapped_bytes >= mapped_blocks * BLOCK_BYTES


def _options(mapped_blocks: int) -> HomeOptions:
    return HomeOptions(
        data_size_bytes=(mapped_blocks + _SPARE_BLOCKS) * BLOCK_BYTES,
        metadata_size_bytes=(mapped_blocks // 50 + (1 << 14)) * 4096,
        base_size_bytes=_BASE_BYTES,
        min_free_percent=0,
    )
