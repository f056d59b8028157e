"""Pools for benchmarks: empty ones, and large ones written in one pass instead of block by block."""

from __future__ import annotations

from array import array
from pathlib import Path

from cowfs.blockdev import FileDevice
from cowfs.pool import Pool, PoolTable, load_backend
from cowfs.thinmeta.builder import MetadataBuilder
from cowfs.thinmeta.format import pack_mapping
from cowfs.units import Sectors

BLOCK_SECTORS = 128
BLOCK_BYTES = BLOCK_SECTORS * 512
SCATTER = 0x9E3779B1  # odd, so that multiplying by it permutes any power of two


def make_files(directory: Path, *, data_blocks: int, metadata_bytes: int) -> PoolTable:
    """Two sparse files and the table of the pool on them; zeros, so opening it formats it."""
    directory.mkdir(parents=True, exist_ok=True)
    metadata, data = directory / "metadata", directory / "data"
    for path, size_bytes in ((metadata, metadata_bytes), (data, data_blocks * BLOCK_BYTES)):
        with path.open("wb") as file:
            file.truncate(size_bytes)
    return PoolTable(
        length_sectors=Sectors(data_blocks * BLOCK_SECTORS),
        metadata_device=str(metadata),
        data_device=str(data),
        block_sectors=Sectors(BLOCK_SECTORS),
    )


def open_pool(table: PoolTable) -> Pool:
    return load_backend("emulated").open_pool("bench", table)


def build_pool(directory: Path, mapped_blocks: int, *, spare_blocks: int) -> PoolTable:
    """A pool with thin 1 mapping `mapped_blocks` (a power of two), no two neighbours on neighbouring data blocks.

    So every mapping is separate: nothing folds into runs.
    """
    metadata_bytes = (mapped_blocks // 100 + 4096) * 4096
    table = make_files(directory, data_blocks=mapped_blocks + spare_blocks, metadata_bytes=metadata_bytes)
    device = FileDevice(table.metadata_device)
    try:
        builder = MetadataBuilder(device, data_block_sectors=BLOCK_SECTORS, data_blocks=table.data_blocks)
        tree = builder.mapping_tree()
        mask = mapped_blocks - 1
        for vblock in range(mapped_blocks):
            tree.push(vblock, (pack_mapping(vblock * SCATTER & mask, 0),))
        builder.add_thin(1, tree, transaction_id=0, creation_time=0, snapshotted_time=0)
        builder.finish(time=0, transaction_id=0)
        device.flush()
    finally:
        device.close()
    return table


def random_order(count: int) -> array[int]:
    """0..count-1, each once, scattered, the same in every run; `count` is a power of two."""
    return array("Q", (index * SCATTER & (count - 1) for index in range(count)))
