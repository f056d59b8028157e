"""How a process that serves a mount has ended, written into files that other processes have sent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Final

import msgspec

from cowfs.error_record import ErrorRecord, record_error

_MAX_FILES: Final = 16  # of unmounts that were tried; the last ones count


class Ended(msgspec.Struct, frozen=True, omit_defaults=True):
    """The end of a server, and the error that it ended with."""

    error: ErrorRecord | None = None


class EndReports:
    """Files of other processes, into each of which is written how a block ends."""

    def __init__(self) -> None:
        self._files: list[int] = []

    def add(self, file: IO[bytes]) -> None:
        self._files.append(os.dup(file.fileno()))
        if len(self._files) > _MAX_FILES:
            os.close(self._files.pop(0))

    @contextmanager
    def reporting(self) -> Iterator[None]:
        ended = Ended()
        try:
            yield
        except Exception as error:
            ended = Ended(record_error(error))
            raise
        finally:
            for fd in self._files:
                with suppress(OSError):
                    os.pwrite(fd, msgspec.json.encode(ended), 0)
                os.close(fd)
            self._files.clear()
