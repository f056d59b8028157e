"""The original archive of a layer, byte by byte: its recipe (`tar-split.json.gz`) and the files of its device.

    write_recipe(archive, file)     notes the recipe of an archive that is about to be unpacked
    build(recipe, read_files, out)  makes the archive again

A recipe is a line of JSON for each part of the archive, in order: a segment, whose bytes are in the line (headers,
padding, the end), or a file, of which name, length and checksum are in the line and whose content is in the device.

Source: vbatts/tar-split, `tar/storage/entry.go` and `packer.go`.
"""

from __future__ import annotations

import gzip
import hashlib
import posixpath
import stat
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple, TypeAlias

import msgspec

from cowfs.errors import HomeError
from cowfs.home.requests.files import WantedFile
from cowfs.layers.archive.names import is_reserved
from cowfs.layers.archive.reader import ArchiveReader

Out: TypeAlias = Callable[[bytes | memoryview], object]

_FILE: Final = 1
_SEGMENT: Final = 2
_MAX_LINE_BYTES: Final = 64 << 20
_SEGMENT_BYTES: Final = 1 << 20  # about so much is in a line
_MAX_STORED_BYTES: Final = 16 << 20  # of the content of entries that are not regular files
_FILES_PER_READING: Final = 256


Part: TypeAlias = bytes | WantedFile
ReadFiles: TypeAlias = Callable[[Sequence[WantedFile], Out], object]


class _Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    type: int
    position: int
    name: str = ""
    name_raw: str | None = None
    size: int = 0
    payload: str | None = None


class Built(NamedTuple):
    """An archive that was made again: its digest with `sha256:`, and its length."""

    digest: str
    size_bytes: int


def parts(recipe: Path) -> Iterator[Part]:
    """The parts of an archive: bytes, and the files between them that are not empty.

    Raises:
        HomeError: the recipe is missing or damaged.
    """
    decoder = msgspec.json.Decoder(_Entry)
    try:
        with gzip.open(recipe, "rb") as file:
            position = 0
            while line := file.readline(_MAX_LINE_BYTES):
                if len(line) == _MAX_LINE_BYTES:
                    raise HomeError(f"{recipe} is damaged: a line has more than {_MAX_LINE_BYTES} bytes")
                entry = decoder.decode(line)
                if entry.position != position:
                    raise HomeError(f"{recipe} is damaged: entry {position} is missing")
                position += 1
                if entry.type == _SEGMENT:
                    yield b64decode(entry.payload or "", validate=True)
                elif entry.type != _FILE:
                    raise HomeError(f"{recipe} is damaged: entry {position} is of the unknown type {entry.type}")
                elif entry.size < 0:
                    raise HomeError(f"{recipe} is damaged: entry {position} is of {entry.size} bytes")
                elif entry.size:
                    yield WantedFile(_path(entry), entry.size)
    except OSError as error:
        if isinstance(error, HomeError):
            raise
        raise HomeError(f"{recipe}: {error.strerror or error}", errno=error.errno) from error
    except (EOFError, zlib.error, msgspec.DecodeError, ValueError) as error:
        raise HomeError(f"{recipe} is damaged: {error}") from error


def write_recipe(archive: IO[bytes], file: IO[bytes]) -> bool:
    """Write the recipe of an uncompressed archive, compressed; whether there is one.

    There is none for an archive that has a file twice, or so much that is no plain file that the recipe would be a copy
    of it.

    Raises:
        ArchiveError: the archive is damaged.
    """
    segment = bytearray()
    position = stored_bytes = 0
    seen: set[bytes] = set()
    encoder = msgspec.json.Encoder()
    with gzip.GzipFile("", "wb", 6, file, mtime=0) as out:

        def note(entry: _Entry) -> None:
            nonlocal position
            out.write(encoder.encode(entry) + b"\n")
            position += 1

        def flush() -> None:
            if segment:
                note(_Entry(_SEGMENT, position, payload=b64encode(segment).decode()))
                segment.clear()

        reader = ArchiveReader(archive, end_required=False, watch=segment.extend)
        while (entry := reader.next()) is not None:
            name = posixpath.normpath(b"/" + entry.name)
            is_plain = stat.S_ISREG(entry.kind) and entry.sparse is None and entry.size_bytes > 0
            is_plain = is_plain and (entry.has_true_name or not any(map(is_reserved, name.split(b"/"))))
            if is_plain or len(segment) >= _SEGMENT_BYTES:
                flush()
            if is_plain:
                if name in seen:
                    return False
                seen.add(name)
                note(_Entry(_FILE, position, name_raw=b64encode(name).decode(), size=entry.size_bytes))
            begin = len(segment)
            for _ in reader.pass_over():
                if is_plain:
                    segment.clear()
                elif stored_bytes + len(segment) - begin > _MAX_STORED_BYTES:
                    return False
            stored_bytes += len(segment) - begin
        reader.finish()
        flush()
    return not archive.read(1)


def size_bytes(recipe: Path) -> int:
    """The length of the archive. Raises as `parts`."""
    return sum(len(part) if isinstance(part, bytes) else part.size_bytes for part in parts(recipe))


def build(recipe: Path, read_files: ReadFiles, out: Out) -> Built:
    """Write the archive.

    Args:
        read_files: have its second argument called with the contents of files, one after the other, each exactly as
            long as wanted.

    Raises:
        HomeError: the recipe is missing or damaged; what `read_files` raises.
    """
    digest = hashlib.sha256()
    written = 0

    def take(data: bytes | memoryview) -> None:
        nonlocal written
        digest.update(data)
        written += len(data)
        out(data)

    batch: list[Part] = []
    files = 0
    for part in parts(recipe):
        batch.append(part)
        files += isinstance(part, WantedFile)
        if files == _FILES_PER_READING:
            _write(batch, read_files, take)
            batch.clear()
            files = 0
    _write(batch, read_files, take)
    return Built(f"sha256:{digest.hexdigest()}", written)


def _write(batch: Sequence[Part], read_files: ReadFiles, out: Out) -> None:
    """Write some parts, with one request for all of their files."""
    remaining = iter(batch)
    left = 0  # of the file that is being read

    def next_file() -> int:
        for part in remaining:
            if isinstance(part, WantedFile):
                return part.size_bytes
            out(part)
        return 0

    def take(data: bytes | memoryview) -> None:
        nonlocal left
        view = memoryview(data)
        while view:
            left = left or next_file()
            if not left:
                raise HomeError("more bytes came than the files of the archive have")
            out(view[:left])
            view, left = view[left:], left - min(left, len(view))

    if wanted := [part for part in batch if isinstance(part, WantedFile)]:
        read_files(wanted, take)
    if left or next_file():
        raise HomeError("fewer bytes came than the files of the archive have")


def _path(entry: _Entry) -> bytes:
    name = b64decode(entry.name_raw, validate=True) if entry.name_raw else entry.name.encode(errors="surrogatepass")
    return posixpath.normpath(b"/" + name)
