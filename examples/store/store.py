"""A tiny key-value store: a log of changes in one file, read into memory when it is opened."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self


class Store:
    """Every change is durable when the call returns. `compact` writes the log anew without what has been replaced."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "log"
        self._values: dict[str, object] = {}
        end = self._read()
        self._log = self._path.open("ab", buffering=0)
        self._log.truncate(end)  # a change that a crash has cut off was not promised
        _sync_directory(directory)

    def get(self, key: str) -> object:
        return self._values.get(key)

    def put(self, key: str, value: object) -> None:
        end = self._log.seek(0, os.SEEK_END)
        line = json.dumps([key, value]).encode() + b"\n"
        try:
            while line:
                line = line[self._log.write(line) :]
            os.fsync(self._log.fileno())
        except OSError:
            self._log.truncate(end)
            raise
        self._values[key] = value

    def compact(self) -> None:
        new = self._directory / "log.new"
        with new.open("wb") as file:
            for item in self._values.items():
                file.write(json.dumps(item).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        new.rename(self._path)
        _sync_directory(self._directory)
        self._log.close()
        self._log = self._path.open("ab", buffering=0)

    def close(self) -> None:
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _read(self) -> int:
        """Take in the log up to the first line that is not whole; where that begins."""
        end = 0
        if self._path.exists():
            for line in self._path.read_bytes().splitlines(keepends=True):
                try:
                    key, value = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):
                    break
                self._values[key] = value
                end += len(line)
        return end


def _sync_directory(directory: Path) -> None:
    """Make names durable that were made or changed."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
