"""The program qemu-img, for what only it reads.

It gets the format that was found, never one that it guesses, and only files that the user named: an image that refers
to others is refused, unless that is asked for.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from cowfs.errors import MissingRequirement, UsageError

_LEAKED: Final = 3  # the exit status of a check that found clusters that nothing uses, and no damage
_VDI_HEADER_BYTES: Final = 392  # as far as it is read here


class _Extent(msgspec.Struct, frozen=True):
    filename: str = ""


class _Specific(msgspec.Struct, frozen=True, rename="kebab"):
    extents: list[_Extent] = []
    data_file: str | None = None


class _FormatSpecific(msgspec.Struct, frozen=True):
    data: _Specific = _Specific()


class _ImageInfo(msgspec.Struct, frozen=True, rename="kebab"):
    """What `qemu-img info --output=json` says."""

    backing_filename: str | None = None
    encrypted: bool = False
    format_specific: _FormatSpecific = _FormatSpecific()


@contextmanager
def converted(path: str, kind: str, *, follow_others: bool) -> Iterator[str]:
    """The disk in an image as a raw file with holes, in a separate directory.

    Raises:
        UsageError: the image is encrypted or damaged, or refers to other files.
        MissingRequirement: qemu-img is not there.
    """
    info = msgspec.json.decode(_run(path, "info", "--output=json", "-f", kind, path), type=_ImageInfo)
    if info.encrypted:
        raise UsageError(f"the image {path} is encrypted; decrypt it first: qemu-img convert")
    others = [extent.filename for extent in info.format_specific.data.extents]
    others += [info.format_specific.data.data_file or path, info.backing_filename or path]
    other = next((other for other in others if other and os.path.realpath(other) != path), None)
    if other is not None and not follow_others:
        raise UsageError(f"the image {path} needs the file {other}, which was not read; --follow-backing reads it too")
    _run(path, "check", "-f", kind, path, good=(0, _LEAKED))
    if kind == "vdi":
        _check_vdi_is_whole(path)
    with tempfile.TemporaryDirectory(prefix="cowfs-import-") as directory:
        disk = os.path.join(directory, "disk")
        _run(path, "convert", "-f", kind, "-O", "raw", path, disk)
        yield disk


def _check_vdi_is_whole(path: str) -> None:
    """qemu-img reads zeros where a vdi image breaks off, and its check finds nothing.

    The header has at 344 where the blocks begin, at 376 their size, at 388 how many there are: VirtualBox, VDICore.h.
    """
    with open(path, "rb") as file:
        header = file.read(_VDI_HEADER_BYTES)
        found_bytes = file.seek(0, os.SEEK_END)
    begin, block_bytes, blocks = (int.from_bytes(header[at : at + 4], "little") for at in (344, 376, 388))
    whole_bytes = max(_VDI_HEADER_BYTES, begin + blocks * block_bytes)
    if found_bytes < whole_bytes:
        raise UsageError(f"the image {path} breaks off: it has {found_bytes} bytes of {whole_bytes}")


def _run(about: str, *words: str, good: tuple[int, ...] = (0,)) -> bytes:
    program = shutil.which("qemu-img")
    if program is None:
        raise MissingRequirement("qemu-img is not installed", remedy="apt-get install qemu-utils", errno=errno.ENOENT)
    done = subprocess.run([program, *words], capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode not in good:
        said = (done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[0]
        raise UsageError(f"qemu-img {words[0]} of {about} failed: {said.removeprefix('qemu-img: ')}")
    return done.stdout
