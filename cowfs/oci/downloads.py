"""Blobs on their way into a home, in `cowfs.downloads/`: what an attempt has got, a later one goes on with.

A file is named by its blob's digest, and locked (flock) by the process that fetches it. What is there of no image that
is being pulled is removed by the next pull.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from cowfs.devices.on_disk.files import HomeFiles
from cowfs.errors import CowfsError
from cowfs.oci.documents import hex_of

_NAME: Final = re.compile(r"[0-9a-f]{64}")


class Downloads:
    """The downloads of one home."""

    def __init__(self, home: Path) -> None:
        self._directory = Path(HomeFiles(os.fspath(home)).downloads)

    def path(self, digest: str) -> Path:
        """Where the file for a blob is."""
        return self._directory / hex_of(digest)

    @contextmanager
    def file(self, digest: str) -> Iterator[IO[bytes]]:
        """The file for a blob, with what there is of it; no other process has it as long as the block lasts."""
        path = self.path(digest)
        try:
            file = _locked(path)
        except OSError as error:
            raise CowfsError(f"cannot write {path}: {error.strerror or error}", errno=error.errno) from error
        with file:
            yield file

    def remove(self, digest: str) -> None:
        """Remove a file that this process has, or that is not needed any more."""
        with suppress(OSError):
            self.path(digest).unlink()

    def tidy(self) -> None:
        """Remove the directory where nothing is left in it."""
        with suppress(OSError):
            self._directory.rmdir()

    def remove_others(self, wanted: Iterable[str]) -> None:
        """Remove what is of other blobs than these, and of no process."""
        names = {hex_of(digest) for digest in wanted}
        with suppress(OSError):
            for name in os.listdir(self._directory):
                if _NAME.fullmatch(name) and name not in names:
                    _remove_unlocked(self._directory / name)


def _locked(path: Path) -> IO[bytes]:
    """An open file that has this name and that this process alone has."""
    while True:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:  # another pull has ended, and has tidied up
            continue
        file = os.fdopen(fd, "r+b")
        fcntl.flock(fd, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(fd).st_ino:
                return file
        file.close()  # who had it has removed it


def _remove_unlocked(path: Path) -> None:
    with path.open("rb") as file, suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
