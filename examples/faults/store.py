"""A tiny store of keys and values: a log of records with checksums, the last record of a key counts."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from types import TracebackType
from typing import Self

_HEADER = struct.Struct("<III")  # checksum of the rest, length of the key, length of the value


class DamagedStore(Exception):
    """A record in the middle of the log is not what was written."""


class Store:
    """An open store. What `put` has returned from is there after a crash; what it has raised for may be, or not.

    Raises:
        DamagedStore: the log is damaged before its end.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._values: dict[bytes, bytes] = {}
        try:
            self._end = self._replay(path.read_bytes())
            os.ftruncate(self._fd, self._end)  # what a crash has left of the last record
        except BaseException:
            os.close(self._fd)
            raise

    def get(self, key: bytes) -> bytes | None:
        return self._values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        body = struct.pack("<II", len(key), len(value)) + key + value
        record = memoryview(struct.pack("<I", zlib.crc32(body)) + body)
        position = self._end
        try:
            while record:
                written = os.pwrite(self._fd, record, position)
                position, record = position + written, record[written:]
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self._end)  # half a record may not stand before the next one
            raise
        self._end = position
        self._values[key] = value

    def _replay(self, log: bytes) -> int:
        """The end of the last record that is whole."""
        position = 0
        while position + _HEADER.size <= len(log):
            checksum, key_length, value_length = _HEADER.unpack_from(log, position)
            begin = position + _HEADER.size
            end = begin + key_length + value_length
            if end > len(log) or zlib.crc32(log[position + 4 : end]) != checksum:
                if self._is_followed_by_a_record(log, position + 1):
                    raise DamagedStore(f"the record at {position} is damaged, and others follow it")
                break
            self._values[log[begin : begin + key_length]] = log[begin + key_length : end]
            position = end
        return position

    @staticmethod
    def _is_followed_by_a_record(log: bytes, position: int) -> bool:
        for start in range(position, len(log) - _HEADER.size):
            checksum, key_length, value_length = _HEADER.unpack_from(log, start)
            end = start + _HEADER.size + key_length + value_length
            if key_length and end <= len(log) and zlib.crc32(log[start + 4 : end]) == checksum:
                return True
        return False

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
