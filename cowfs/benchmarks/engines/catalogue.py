"""All engines by name, and what `--over` means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from cowfs.benchmarks.engines.homes import DMTHIN, DMTHIN_FUSE, EMULATED
from cowfs.benchmarks.engines.interface import Engine, Offer
from cowfs.benchmarks.engines.loops import BTRFS, EXT4, XFS
from cowfs.benchmarks.engines.lvm import LVM_THIN
from cowfs.benchmarks.engines.plain import PLAIN
from cowfs.benchmarks.engines.pools import thin_pool_engine
from cowfs.benchmarks.engines.served import BARE, FUSE2FS, QCOW2, QCOW2_NBD
from cowfs.benchmarks.results import Absent
from cowfs.errors import UsageError
from cowfs.units import is_data_block_size, parse_size

ENGINES: Final = {
    engine.name: engine
    for engine in (EMULATED, DMTHIN, DMTHIN_FUSE, LVM_THIN, QCOW2, QCOW2_NBD, BTRFS, XFS, EXT4, FUSE2FS, BARE, PLAIN)
}


class Wanted(NamedTuple):
    """A contender as it was named: an engine, perhaps with the size of its blocks, as in `emulated:256K`."""

    name: str
    engine: Engine
    block_bytes: int | None


def parse_over(text: str) -> list[Wanted]:
    """The contenders of a list with commas. Raises UsageError."""
    found: dict[str, Wanted] = {}
    for name in filter(None, (part.strip() for part in text.split(","))):
        word, colon, size = name.partition(":")
        if word not in ENGINES:
            raise UsageError(f"there is no engine '{word}'; there are {', '.join(ENGINES)}")
        found[name] = Wanted(name, ENGINES[word], _block_bytes(ENGINES[word], name, size) if colon else None)
    if not found:
        raise UsageError("no engine was named after --over; 'cowfs bench --list' shows them")
    return list(found.values())


def _block_bytes(engine: Engine, name: str, size: str) -> int:
    if Offer.BLOCK_SIZE not in engine.offers:
        raise UsageError(f"'{name}': the engine {engine.name} has no block size to choose; write {engine.name}")
    try:
        block_bytes = parse_size(size)
    except ValueError as error:
        raise UsageError(f"'{name}': {error}") from error
    if not is_data_block_size(block_bytes // 512) or block_bytes % 512:
        raise UsageError(f"'{name}': a block is a multiple of 64K, and at most 1G")
    return block_bytes


def usable(wanted: Sequence[Wanted]) -> tuple[list[Wanted], list[Absent]]:
    """Those of the contenders that work here, found by trying, and those that do not."""
    found, missing = [], []
    for one in wanted:
        tried = one.engine.look()
        if tried.usable:
            found.append(one)
        else:
            missing.append(Absent(one.name, tried.problem, tried.remedy))
    return found, missing


def everything() -> list[Wanted]:
    """Every engine, with its own block size."""
    return [Wanted(engine.name, engine, None) for engine in ENGINES.values()]


def with_thin_pool(wanted: Sequence[Wanted], path: str) -> list[Wanted]:
    """Those contenders, with `dmthin` in a pool that is there already. Raises UsageError where it is not among them."""
    engine = thin_pool_engine(path)
    if not any(one.engine.name == engine.name for one in wanted):
        raise UsageError(f"--thin-pool {path} is for the engine {engine.name}; name it in --over")
    for one in wanted:
        if one.engine.name == engine.name and one.block_bytes is not None:
            raise UsageError(f"'{one.name}': the pool {path} has the block size that it has; write {engine.name}")
    return [one._replace(engine=engine) if one.engine.name == engine.name else one for one in wanted]
