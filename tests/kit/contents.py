"""What a home consists of, byte by byte, to find that nothing has changed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, TypeAlias

from cowfs.blockdev import FileDevice, data_ranges

_BLOCK_BYTES: Final = 4096
Contents: TypeAlias = dict[str, tuple[int, dict[int, bytes]]]


def contents(directory: Path, *, leave_out: Collection[str] = ("cowfs.lock",)) -> Contents:
    """The regular files below a directory by path: the size of each, and by offset the blocks that are not all zeros.

    Holes are not read: the data of a home is mostly one.
    """
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name not in leave_out]
    return {str(path.relative_to(directory)): (path.stat().st_size, dict(_blocks(path))) for path in files}


def _blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    zeros = bytes(_BLOCK_BYTES)
    with closing(FileDevice(path, read_only=True)) as file:
        for begin, end in data_ranges(file):
            for offset in range(begin, end, _BLOCK_BYTES):
                block = file.pread(offset, min(_BLOCK_BYTES, end - offset))
                if block != zeros[: len(block)]:
                    yield offset, block
