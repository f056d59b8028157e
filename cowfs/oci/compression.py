"""gzip, the same bytes each time on the way out; gzip and zstd on the way in, with a limit on the decompressed size."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final, Protocol

from cowfs.errors import MissingRequirement
from cowfs.oci.documents import BadImage
from cowfs.units import format_size

PIECE_BYTES: Final = 1 << 20
_GZIP: Final = 31  # window bits: with a header, in which zlib writes no name and no time
_LEVEL: Final = 6
_MAGIC_GZIP: Final = b"\x1f\x8b"
_MAGIC_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_WINDOW_BYTES_MAX: Final = 128 << 20  # of memory, zstd's own default limit
_MAGIC_OTHERS: Final = {b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


def compressor() -> zlib._Compress:
    return zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)


class Readable(Protocol):
    def read(self, count: int, /) -> bytes: ...


def unpacked(file: Readable, limit_bytes: int, what: str) -> Iterator[bytes]:
    """What a file holds, decompressed where it is compressed, in pieces of at most PIECE_BYTES.

    Raises:
        BadImage: it is damaged, or more than `limit_bytes` come of it.
        MissingRequirement: it is compressed by zstd, and the package for that is not there.
    """
    first = file.read(PIECE_BYTES)
    _require_known(first, what)
    if first.startswith(_MAGIC_GZIP):
        pieces = _decompressed(first, file, what)
    elif first.startswith(_MAGIC_ZSTD):
        pieces = _decompressed_zstd(first, file, what)
    else:
        pieces = _plain(first, file)
    left = limit_bytes
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise BadImage(f"{what} holds more than {format_size(limit_bytes)}, which a layer of this home cannot be")
        yield piece


def is_compressed(first: bytes) -> bool:
    """Whether a file begins as one that `unpacked` decompresses."""
    return first.startswith((_MAGIC_GZIP, _MAGIC_ZSTD))


def _require_known(data: bytes, what: str) -> None:
    for magic, name in _MAGIC_OTHERS.items():
        if data.startswith(magic):
            raise BadImage(f"{what} is compressed with {name}; decompress it first")


def _plain(data: bytes, file: Readable) -> Iterator[bytes]:
    while data:
        yield data
        data = file.read(PIECE_BYTES)


def _decompressed(data: bytes, file: Readable, what: str) -> Iterator[bytes]:
    """The members of a gzip file, one after the other; zeros may follow."""
    try:
        while data:
            member = zlib.decompressobj(_GZIP)
            while not member.eof:
                if not data and not (data := file.read(PIECE_BYTES)):
                    raise BadImage(f"{what} is cut off: its compressed data does not end")
                piece = member.decompress(data, PIECE_BYTES)
                data = member.unconsumed_tail
                if piece:
                    yield piece
            data = (member.unused_data or file.read(PIECE_BYTES)).lstrip(b"\0")
            while not data and (data := file.read(PIECE_BYTES)):
                data = data.lstrip(b"\0")
    except zlib.error as error:
        raise BadImage(f"{what} is damaged: {error}") from None


def _decompressed_zstd(first: bytes, file: Readable, what: str) -> Iterator[bytes]:
    try:
        import zstandard  # noqa: PLC0415  (few layers need it)
    except ModuleNotFoundError:
        raise MissingRequirement(
            f"{what} is compressed with zstd, which the package zstandard reads",
            remedy="pip install 'cowfs-thin[registry]'",
        ) from None
    whole = _Joined(first, file)
    try:
        unpacking = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX)
        with unpacking.stream_reader(whole, read_size=PIECE_BYTES, read_across_frames=True) as reader:  # type: ignore[arg-type]
            while piece := reader.read(PIECE_BYTES):
                yield piece
    except zstandard.ZstdError as error:
        raise BadImage(f"{what} is damaged: {error}") from None


class _Joined:
    """A file preceded by the bytes that were read from it."""

    def __init__(self, first: bytes, file: Readable) -> None:
        self._first = first
        self._file = file

    def read(self, count: int = -1, /) -> bytes:
        if self._first:
            data, self._first = self._first, b""
            return data
        return self._file.read(count)
