"""Commands of the system, those of e2fsprogs above all, and temporary images for them to work on.

The commands want a file. A device of ours is not a file, so its content is copied: only what is mapped, into a sparse
temporary file of the same size, and back only what changed.
"""

from __future__ import annotations

import errno
import functools
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import starmap
from typing import Final

from cowfs.blockdev import BlockDevice, FileDevice, data_ranges
from cowfs.errors import FilesystemError, MissingRequirement
from cowfs.pool.interface import ThinDevice
from cowfs.ranges import Range, RangeSet, difference, intersection
from cowfs.units import format_size

_DIRECTORIES = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin"
PATIENCE_SECONDS: Final = 1800.0
_ENDING_SECONDS: Final = 5.0
_CHUNK_BYTES = 1 << 20
_PAGE_BYTES = 4096
_ZERO_PAGE = bytes(_PAGE_BYTES)


@functools.cache
def find(command: str, package: str = "e2fsprogs") -> str:
    """The absolute path of a command, looked up once. Raises MissingRequirement naming the package to install."""
    path = shutil.which(command, path=_DIRECTORIES) or shutil.which(command)
    if path is None:
        raise MissingRequirement(f"{command} is not installed", remedy=f"apt-get install {package}")
    return os.path.abspath(path)


def run(command: str, arguments: Sequence[str], package: str = "e2fsprogs") -> tuple[int, str]:
    """Run a command, in a separate environment; returns its exit status and what it said.

    Raises:
        MissingRequirement: it is not installed.
        FilesystemError: it does not end (ETIMEDOUT); it is killed, and not waited for where the kernel holds it.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [find(command, package), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={"PATH": _DIRECTORIES, "LC_ALL": "C"},
        )
        try:
            status = _wait(process)
        except BaseException as error:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_ENDING_SECONDS)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise FilesystemError(
                f"{command} was stopped because it did not end within {PATIENCE_SECONDS / 60:g} minutes; "
                "look for errors of the disk in the kernel's log (dmesg)",
                errno=errno.ETIMEDOUT,
            ) from None
        said.seek(0)
        return status, said.read().decode("utf-8", "replace")


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Its exit status, at once: `Popen.wait` with a limit naps for up to 50 ms at a time."""
    fd = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll(PATIENCE_SECONDS * 1000)
    finally:
        os.close(fd)
    return process.wait(0)


def one_line(output: str) -> str:
    """What a command said, for a message."""
    return "; ".join(line.strip() for line in output.splitlines() if line.strip())


@contextmanager
def temporary_image(size_bytes: int, *, holds_little: bool = False) -> Iterator[FileDevice]:
    """A sparse file that is gone afterwards, readable by its owner only.

    Args:
        holds_little: a few megabytes; they may be kept in memory, where holes are known whatever `/tmp` is on.
    """
    with _temporary_file(holds_little) as path:
        try:
            os.truncate(path, size_bytes)
        except OSError as error:
            raise FilesystemError(
                f"cannot make a sparse file of {size_bytes} bytes ({format_size(size_bytes)}) for e2fsprogs in "
                f"{os.path.dirname(path)}: {error.strerror}; take a smaller size, or have temporary files on a file "
                "system that can hold one: a server has them in its home, a command where TMPDIR says",
                errno=error.errno,
            ) from error
        image = FileDevice(path)
        try:
            yield image
        finally:
            image.close()


@contextmanager
def _temporary_file(in_memory: bool) -> Iterator[str]:
    if not in_memory:
        with tempfile.NamedTemporaryFile(prefix="cowfs-", suffix=".img") as file:
            yield file.name
        return
    fd = os.memfd_create("cowfs")
    try:
        yield f"/proc/{_own_name_in_proc()}/fd/{fd}"
    finally:
        os.close(fd)


def _own_name_in_proc() -> str:
    """This process in /proc: its pid, unless /proc is that of an outer pid namespace.

    Raises:
        MissingRequirement: /proc is not mounted, or is that of a pid namespace without this process.
    """
    try:
        return os.readlink("/proc/self")
    except OSError as error:
        raise MissingRequirement(
            "/proc does not show this process, so that e2fsprogs cannot be given an image in memory",
            remedy="mount -t proc proc /proc (or start the pid namespace with: unshare --pid --fork --mount-proc)",
            errno=error.errno,
        ) from error


def mapped_ranges(device: BlockDevice) -> Iterator[Range]:
    """The bytes of a device that may be other than zeros, in order."""
    if isinstance(device, ThinDevice):
        for extent in device.extents():
            begin = extent.vblock * device.block_bytes
            end = min(begin + extent.length * device.block_bytes, device.size_bytes)
            if begin < end:
                yield Range(begin, end)
    else:
        yield from starmap(Range, data_ranges(device))


def copy_mapped(source: BlockDevice, target: BlockDevice, *, within: RangeSet | None = None) -> None:
    """Copy what `source` holds to `target`, which reads as zeros; zero pages are not written.

    Args:
        within: copy only these bytes.
    """
    mapped = mapped_ranges(source)
    for offset, length in _pieces(mapped if within is None else intersection(mapped, within)):
        data = source.pread(offset, length)
        for start, stop in _nonzero_runs(data):
            target.pwrite(offset + start, memoryview(data)[start:stop])


def _nonzero_runs(data: bytes) -> Iterator[tuple[int, int]]:
    """Runs of pages that are not all zeros."""
    if _ZERO_PAGE not in data:
        yield 0, len(data)
        return
    start = None
    for begin in range(0, len(data), _PAGE_BYTES):
        page = data[begin : begin + _PAGE_BYTES]
        empty = page == _ZERO_PAGE[: len(page)]
        if empty and start is not None:
            yield start, begin
            start = None
        elif not empty and start is None:
            start = begin
    if start is not None:
        yield start, len(data)


def touched_bytes(image: BlockDevice, block_bytes: int) -> int:
    """What a pool with blocks of `block_bytes` maps for what `copy_mapped` writes."""
    touched: set[int] = set()
    for offset, length in _pieces(mapped_ranges(image)):
        for start, stop in _nonzero_runs(image.pread(offset, length)):
            touched.update(range((offset + start) // block_bytes, (offset + stop - 1) // block_bytes + 1))
    return len(touched) * block_bytes


def copy_changes(image: BlockDevice, device: BlockDevice, *, within: RangeSet | None = None) -> int:
    """Write what differs in `image` back to `device`; returns how many bytes that were.

    What `image` has no data for was not on the device either, or was zeroed and is made so.

    Args:
        within: look only at these bytes.
    """
    wanted = RangeSet([(0, device.size_bytes)]) if within is None else within
    data = list(intersection(mapped_ranges(image), wanted))
    gone = list(difference(intersection(mapped_ranges(device), wanted), RangeSet(data)))
    written = sum(_copy_changed_pages(image, device, *piece) for piece in _pieces(data))
    return written + sum(_zero(device, *piece) for piece in _pieces(gone))


def _pieces(ranges: Iterable[Range]) -> Iterator[tuple[int, int]]:
    """(offset, length), bounded."""
    for begin, end in ranges:
        for offset in range(begin, end, _CHUNK_BYTES):
            yield offset, min(_CHUNK_BYTES, end - offset)


def _copy_changed_pages(image: BlockDevice, device: BlockDevice, offset: int, length: int) -> int:
    new, old = image.pread(offset, length), device.pread(offset, length)
    if new == old:
        return 0
    written = 0
    for begin in range(0, length, _PAGE_BYTES):
        page = new[begin : begin + _PAGE_BYTES]
        if page != old[begin : begin + _PAGE_BYTES]:
            device.pwrite(offset + begin, page)
            written += len(page)
    return written


def _zero(device: BlockDevice, offset: int, length: int) -> int:
    """Zero what is not zero already."""
    if not device.pread(offset, length).strip(b"\0"):
        return 0
    device.zero(offset, length)
    return length
