"""Metadata that looks valid and lies: all that reads or writes it ends, with the package's own errors at most."""

from __future__ import annotations

import contextlib
import random

import pytest

from cowfs.blockdev import MemoryDevice
from cowfs.errors import CowfsError
from cowfs.testing.blockdev import memory_device
from cowfs.thinmeta import Metadata
from cowfs.thinmeta.delta import changed_ranges
from cowfs.thinmeta.usage import usage
from cowfs.units import METADATA_BLOCK_BYTES
from tests.kit.damage import DAMAGES, MetadataEditor
from tests.thinmeta.conftest import copy_of, map_blocks

HEADER_FIELDS = (4, 8, 16, 20, 24, 28, 32, 40, 64, 72, 80, 88, 192, 200, 208, 216, 320, 328, 336)


def use(device: MemoryDevice) -> None:
    """What a pool does with its metadata."""
    metadata = Metadata.open(device)
    for thin_id in metadata.thin_ids():
        metadata.details(thin_id)
        thin = metadata.open_thin(thin_id)
        thin.lookup(0, 500)
        thin.highest()
        list(thin.extents())
    metadata.create_snap(100, 1)
    map_blocks(metadata, 100, 300, 40)
    metadata.open_thin(2).remove(0, 900)
    metadata.delete_thin(3)
    metadata.commit()


def look(device: MemoryDevice) -> None:
    usage(device)
    list(changed_ranges(device, 1, 3))


@pytest.mark.parametrize("name", DAMAGES)
def test_each_defect(name: str, sample: MemoryDevice) -> None:
    DAMAGES[name](sample)
    for work in (use, look):
        with contextlib.suppress(CowfsError):
            work(copy_of(sample))


@pytest.mark.parametrize("seed", range(4))
def test_random_lies_under_right_checksums(seed: int, sample_content: bytes) -> None:
    rng = random.Random(seed)
    editor = MetadataEditor(memory_device(sample_content))
    counts = editor.counts(editor.metadata_bitmap())
    used = [block for block in range(editor.reader.blocks) if counts[block]]
    for _ in range(60):
        device = memory_device(sample_content)
        offset = rng.choice([rng.choice(HEADER_FIELDS), rng.randrange(4, METADATA_BLOCK_BYTES - 8)])
        MetadataEditor(device).patch(rng.choice(used), offset, rng.randbytes(rng.randrange(1, 9)))
        for work in (use, look):
            with contextlib.suppress(CowfsError):
                work(copy_of(device))
