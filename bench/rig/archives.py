"""Tar archives for layers, and how large everything is in the benchmarks of layers."""

from __future__ import annotations

import io
import random
import tarfile
from dataclasses import dataclass
from pathlib import Path

EDITS = 10
FILES_PER_DIRECTORY = 100


@dataclass(frozen=True)
class Sizes:
    """How much of everything: the layer that is applied, the tree in which changes are looked for, layers at start."""

    rounds: int
    layer_files: int
    layer_bytes: int
    tree_files: int
    layers: int


def tree(directory: Path, name: str, files: int, total_bytes: int) -> Path:
    """A tar archive of files of equal size, a hundred to a directory."""
    path = directory / name
    data = random.Random(name).randbytes(total_bytes // files)
    with tarfile.open(path, "w") as tar:
        for number in range(files):
            if number % FILES_PER_DIRECTORY == 0:
                item = tarfile.TarInfo(f"d{number // FILES_PER_DIRECTORY}")
                item.type, item.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(item)
            item = tarfile.TarInfo(f"d{number // FILES_PER_DIRECTORY}/f{number}")
            item.size = len(data)
            tar.addfile(item, io.BytesIO(data))
    return path


def edits(sizes: Sizes) -> bytes:
    """A tar archive of ten of the tree's files with other content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in random.Random(1).sample(range(sizes.tree_files), EDITS):
            item = tarfile.TarInfo(f"d{number // FILES_PER_DIRECTORY}/f{number}")
            item.size, item.mtime = 4, 1_700_000_000
            tar.addfile(item, io.BytesIO(b"edit"))
    return out.getvalue()
