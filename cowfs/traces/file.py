"""cowfs's own format of traces, version 1. Numbers are little endian; docs/trace-format.md says the same.

    8 bytes   "cowfstrc"
    u32       version, 1
    u32       length of the header
    header    JSON: {"device": "web", "size_bytes": 10737418240, "began": 1700000000.0}
    blocks    until the end

A block has up to 4096 requests. What was written of a trace that was cut off is readable up to its last whole block.

    u32       length of the data that follows, in bytes
    u32       how many requests it has
    u32       CRC-32 of the data
    data      deflated (zlib), for each request 26 bytes:
                u64  time, in nanoseconds since the trace began
                u64  offset in bytes
                u64  length in bytes
                u8   kind: 0 read, 1 write, 2 flush, 3 discard, 4 zero
                u8   1 for a write that is durable when it is answered, else 0

The last block of a whole trace has 0 requests, and as its data a u64: how many requests could not be recorded.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import IO, Final

import msgspec

from cowfs.traces.requests import (
    FURTHEST_BYTES,
    KIND_NAMES,
    Reading,
    Trace,
    TracedRequest,
    TraceEnd,
    TraceHeader,
    bad_trace,
)

MAGIC: Final = b"cowfstrc"
VERSION: Final = 1
BLOCK_REQUESTS: Final = 4096
_BEGIN: Final = struct.Struct("<8sII")
_BLOCK: Final = struct.Struct("<III")
_REQUEST: Final = struct.Struct("<QQQBB")
_LOST: Final = struct.Struct("<Q")
_MOST_HEADER_BYTES: Final = 64 << 10
_MOST_DATA_BYTES: Final = 2 * BLOCK_REQUESTS * _REQUEST.size
_LEVEL: Final = 1  # 4096 requests take 1 ms; the best level is 8 times as slow and saves a tenth


def encode_header(header: TraceHeader) -> bytes:
    text = msgspec.json.encode(header)
    return _BEGIN.pack(MAGIC, VERSION, len(text)) + text


def encode_block(requests: Sequence[tuple[int, int, int, int, bool]]) -> bytes:
    """A block of at most `BLOCK_REQUESTS` requests, at least one."""
    assert 0 < len(requests) <= BLOCK_REQUESTS
    pack = _REQUEST.pack
    packed = b"".join([pack(time, offset, length, kind, sync) for time, kind, offset, length, sync in requests])
    data = zlib.compress(packed, _LEVEL)
    return _BLOCK.pack(len(data), len(requests), zlib.crc32(data)) + data


def encode_end(lost: int) -> bytes:
    data = _LOST.pack(lost)
    return _BLOCK.pack(len(data), 0, zlib.crc32(data)) + data


def open_trace(path: str) -> Trace:
    """Raises UsageError: it is none, or one of a later version; OSError."""
    with open(path, "rb") as file:
        header = _read_header(path, file)
        begin = file.tell()

    def read() -> Reading:
        with open(path, "rb") as file:
            file.seek(begin)
            return (yield from _blocks(path, file))

    return Trace(path, "trace", header, read)


def _read_header(path: str, file: IO[bytes]) -> TraceHeader:
    begin = file.read(_BEGIN.size)
    if len(begin) < _BEGIN.size:
        raise bad_trace(path, f"byte {len(begin)}", "it ends before its header does")
    magic, version, length = _BEGIN.unpack(begin)
    if magic != MAGIC:
        raise bad_trace(path, "byte 0", "no trace of cowfs begins like this")
    if version != VERSION:
        raise bad_trace(path, "byte 8", f"it is of version {version}, and this cowfs reads version {VERSION}")
    text = file.read(min(length, _MOST_HEADER_BYTES))
    try:
        header = msgspec.json.decode(text, type=TraceHeader)
    except msgspec.MsgspecError as error:
        raise bad_trace(path, f"byte {_BEGIN.size}", f"its header cannot be read ({error})") from None
    if len(text) < length or not 0 <= (header.size_bytes or 0) <= FURTHEST_BYTES:
        raise bad_trace(path, f"byte {_BEGIN.size}", "its header is not whole")
    return header


def _blocks(path: str, file: IO[bytes]) -> Reading:
    while (block := _next_block(file)) is not None:
        place = file.tell()
        count, data = block
        if count == 0:
            if len(data) != _LOST.size or file.read(1):
                raise bad_trace(path, f"byte {place}", "something follows its end")
            return TraceEnd(lost=_LOST.unpack(data)[0])
        unpacker = zlib.decompressobj()
        try:
            packed = unpacker.decompress(data, count * _REQUEST.size)
        except zlib.error as error:
            raise bad_trace(path, f"the block before byte {place}", str(error)) from None
        if len(packed) != count * _REQUEST.size:
            raise bad_trace(path, f"the block before byte {place}", f"it does not have its {count} requests")
        for time, offset, length, kind, sync in _REQUEST.iter_unpack(packed):
            if kind >= len(KIND_NAMES) or sync > 1 or offset > FURTHEST_BYTES or length > FURTHEST_BYTES - offset:
                raise bad_trace(path, f"the block before byte {place}", "a request that cannot be")
            yield TracedRequest(time, kind, offset, length, bool(sync))
    return TraceEnd(is_whole=False)


def _next_block(file: IO[bytes]) -> tuple[int, bytes] | None:
    """How many requests, and the data; None where no whole block follows."""
    head = file.read(_BLOCK.size)
    if len(head) < _BLOCK.size:
        return None
    length, count, checksum = _BLOCK.unpack(head)
    if not 0 < length <= _MOST_DATA_BYTES or count > BLOCK_REQUESTS:
        return None
    data = file.read(length)
    return (count, data) if len(data) == length and zlib.crc32(data) == checksum else None
