"""A tree of files as a sequence of records, depth first, and its form as bytes.

    Node            a file of any kind. A directory, and a file whose content is not in the record, stay open until
    Data            ... (of the file that is open)
    Link            another name of an earlier file
    End             ... its end
    Problem         something that could not be read

Names are bytes without `/`. Times are nanoseconds since 1970. As bytes, a batch of records is msgpack.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import Final, TypeAlias

import msgspec

from cowfs.errors import UsageError
from cowfs.steps import Pieces

PIECE_BYTES: Final = 1 << 20
BATCH_BYTES_MAX: Final = 8 << 20
_BATCH_BYTES: Final = 1 << 20
_BATCH_RECORDS: Final = 512
_RECORD_BYTES: Final = 128
_RECORDS_PER_STEP: Final = 32


class Node(msgspec.Struct, frozen=True, array_like=True, tag=0, gc=False):
    """A file, directory, symbolic link (`content` is its target) or special file.

    Attributes:
        content: of a regular file, all of it or nothing; in the second case its data follows unless it is a hole.
        number: of one that has more names, for `Link`; 0 for all others.
    """

    name: bytes
    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    size_bytes: int = 0
    content: bytes = b""
    rdev: int = 0
    number: int = 0
    xattrs: dict[bytes, bytes] = {}

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_open(self) -> bool:
        """Whether an `End` follows."""
        return self.is_directory or (stat.S_ISREG(self.mode) and len(self.content) < self.size_bytes)


class Link(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Another name of the node of this number."""

    name: bytes
    number: int


class Data(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """A part of the file that is open."""

    offset: int
    content: bytes


class End(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """The end of the directory or file that is open; `is_whole`: all of a file came."""

    is_whole: bool = True


class Problem(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """A line about what could not be read."""

    text: str


Record: TypeAlias = Node | Link | Data | End | Problem

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(list[Record])


class Batch:
    """Some records. They become bytes where they go to another process, and stay what they are within one."""

    __slots__ = ("records", "size_bytes")

    def __init__(self, records: list[Record], size_bytes: int) -> None:
        self.records = records
        self.size_bytes = size_bytes

    def __len__(self) -> int:
        """About how many bytes they are."""
        return self.size_bytes

    def __bytes__(self) -> bytes:
        return _ENCODER.encode(self.records)


def batches(records: Iterable[Record | None]) -> Pieces[Batch]:
    """Records in batches, of about a MiB, and at most `BATCH_BYTES_MAX`."""
    batch: list[Record] = []
    size = 0
    for count, record in enumerate(records, 1):
        if record is not None:
            batch.append(record)
            size += _RECORD_BYTES
            if isinstance(record, Node | Data):
                size += len(record.content)
            if size >= _BATCH_BYTES or len(batch) >= _BATCH_RECORDS:
                yield Batch(batch, size)
                batch, size = [], 0
        if count % _RECORDS_PER_STEP == 0:
            yield None
    if batch:
        yield Batch(batch, size)


def records_in(batch: bytes | Batch) -> list[Record]:
    """The records of a batch. Raises UsageError for bytes that are none."""
    if isinstance(batch, Batch):
        return batch.records
    try:
        return _DECODER.decode(batch)
    except msgspec.MsgspecError as error:
        raise UsageError(f"not a batch of files: {error}") from None


def show(path: bytes) -> str:
    """A path for a message."""
    return path.decode(errors="backslashreplace")
