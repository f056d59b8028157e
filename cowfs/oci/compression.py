"""gzip: the same bytes each time on the way out, with a limit on the way in."""

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
_MAGIC_OTHERS: Final = {b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


def compressor() -> zlib._Compress:
    return zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)


class Readable(Protocol):
    def read(self, count: int, /) -> bytes: ...


def unpacked(file: Readable, limit_bytes: int, what: str) -> Iterator[bytes]:
    """What a file holds, decompressed where it is compressed, in pieces of at most PIECE_BYTES.

    Raises:
        BadImage: it is damaged, or more than `limit_bytes` come of it.
        MissingRequirement: it is compressed in another way than by gzip.
    """
    first = file.read(PIECE_BYTES)
    _require_known(first, what)
    pieces = _decompressed(first, file, what) if first.startswith(_MAGIC_GZIP) else _plain(first, file)
    left = limit_bytes
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise BadImage(
                f"{what} unpacks to more than {format_size(limit_bytes)}, which a layer of this home cannot be"
            )
        yield piece


def _require_known(data: bytes, what: str) -> None:
    if data.startswith(_MAGIC_ZSTD):
        raise MissingRequirement(
            f"{what} is compressed with zstd, which is not read here",
            remedy="skopeo copy --dest-compress-format gzip SOURCE TARGET",
        )
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
