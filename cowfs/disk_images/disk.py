"""The data of a disk in an image file, read where it lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final, NamedTuple

from cowfs.blockdev import FileDevice, data_ranges
from cowfs.disk_images.formats import Format
from cowfs.disk_images.qcow2_reading import Run, read_tables
from cowfs.steps import Progress

BLOCK_BYTES: Final = 64 << 10
"""Data is given in blocks of so many bytes that are not all zeros: the least size of a pool's blocks."""

_READ_BYTES: Final = 512 << 10
_ZEROS: Final = bytes(BLOCK_BYTES)


class DiskImage(NamedTuple):
    """A disk in a file that is open.

    Args:
        size_bytes: of the disk, which need not be whole sectors.
        runs: where in the file its data is; what is in none of them is zeros.
    """

    file: FileDevice
    size_bytes: int
    runs: list[Run]

    def data(self, progress: Progress | None = None) -> Iterator[tuple[int, bytes]]:
        """(offset, data) of what is not zeros, in order, in whole blocks of the disk.

        Args:
            progress: called with (bytes of the disk done, bytes in all).
        """
        for run in self.runs:
            for begin, end in self._in_blocks(run):
                for offset in range(begin, end, _READ_BYTES):
                    if progress is not None:
                        progress(offset, self.size_bytes)
                    data = self.file.pread(offset - run.offset + run.place, min(_READ_BYTES, end - offset))
                    for at, length in not_zeros(data):
                        yield offset + at, data if length == len(data) else data[at : at + length]

    def _in_blocks(self, run: Run) -> Iterator[tuple[int, int]]:
        """(begin, end) on the disk of the parts of a run that are not holes of the file, in blocks, each once."""
        done, shift = run.offset, run.offset - run.place
        for begin, end in data_ranges(self.file, run.place, run.place + run.length):
            first = max(done, (begin + shift) // BLOCK_BYTES * BLOCK_BYTES)
            done = min(run.offset + run.length, -(-(end + shift) // BLOCK_BYTES) * BLOCK_BYTES)
            if first < done:
                yield first, done


def not_zeros(data: bytes) -> Iterator[tuple[int, int]]:
    """(offset, length) of the runs of blocks that are not all zeros."""
    begin = None
    for at in range(0, len(data), BLOCK_BYTES):
        if data.startswith(_ZEROS[: len(data) - at], at):
            if begin is not None:
                yield begin, at - begin
                begin = None
        elif begin is None:
            begin = at
    if begin is not None:
        yield begin, len(data) - begin


@contextmanager
def open_disk(path: str, kind: Format, *, follow_others: bool = False) -> Iterator[DiskImage]:
    """The disk in an image file.

    Args:
        follow_others: read the other files that the image refers to, too.

    Raises:
        UsageError: the image is damaged or encrypted, or refers to other files.
        MissingRequirement: qemu-img is needed, and not there.
        OSError: the file cannot be read.
    """
    with closing(FileDevice(path, read_only=True)) as file:
        tables = read_tables(file) if kind == "qcow2" else None
        if tables is not None:
            yield DiskImage(file, *tables)
        elif kind == "raw":
            yield DiskImage(file, file.size_bytes, [Run(0, 0, file.size_bytes)])
        else:
            from cowfs.disk_images.qemu_img import converted

            with converted(path, kind, follow_others=follow_others) as raw, open_disk(raw, "raw") as disk:
                yield disk
