"""Content-addressed blobs in a directory or a tar archive, in the layout of OCI images.

oci-layout, index.json            what OCI tools read
manifest.json                     what 'docker load' reads, which finds its layers among the blobs
blobs/sha256/DIGEST               configurations, manifests, layers

The documents that name the blobs come last, so what ends early names nothing.

Source: OCI image specification 1.0, image-layout.md; moby 20.10, `image/tarexport`.
"""

from __future__ import annotations

import hashlib
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, ClassVar, Final

from cowfs.docker.stored.tar_split import Out
from cowfs.errors import CowfsError

_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'
_RECORD_BYTES: Final = 10240
Write = Callable[[Out], object]


class NotWritten(CowfsError):
    """The host took no more: what was to be written is not there."""


class Blobs(ABC):
    """Where blobs and the documents about them go. Each blob is written once.

    `can_undo`: a blob that fails leaves nothing behind.
    """

    can_undo: ClassVar[bool]

    def __init__(self) -> None:
        self._have: set[str] = set()

    def has(self, digest: str) -> bool:
        return digest in self._have

    def add_document(self, data: bytes) -> str:
        """Add a blob that is at hand; its digest, with `sha256:`."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if not self.has(digest):
            self.add(digest, len(data), lambda out: out(data))
        return digest

    def add(self, digest: str, size_bytes: int, write: Write) -> None:
        """Add a blob.

        Args:
            write: calls its argument with the content, piece by piece: `size_bytes` in all, of this digest.

        Raises:
            What `write` raises; NotWritten. The blob is not there then.
        """
        self._write(blob_path(digest), size_bytes, write)
        self._have.add(digest)

    def finish(self, documents: dict[str, bytes]) -> None:
        """Write the documents that name the blobs; nothing may be added after this."""
        for name, data in {"oci-layout": _LAYOUT, **documents}.items():
            self._write(name, len(data), lambda out, data=data: out(data))  # type: ignore[misc]

    @abstractmethod
    def _write(self, name: str, size_bytes: int, write: Write) -> None: ...


class DirectoryBlobs(Blobs):
    """Blobs in a directory; a blob has its name when it is complete."""

    can_undo = True

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        with naming(directory):
            (directory / "blobs" / "sha256").mkdir(parents=True)

    def _write(self, name: str, size_bytes: int, write: Write) -> None:  # noqa: ARG002
        path = self._directory / name
        partial = path.with_name(f".{path.name}.partial")
        with naming(path):
            try:
                with partial.open("xb") as file:
                    write(file.write)
                partial.rename(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise


class ArchiveBlobs(Blobs):
    """Blobs in a tar archive, as a stream. After an error the archive has no end: no program takes it for whole.

    Args:
        file: where to write.
        name: of it, for messages.
    """

    can_undo = False

    def __init__(self, file: IO[bytes], name: str) -> None:
        super().__init__()
        self._file = file
        self._name = name
        self._position = 0
        for directory in ("blobs", "blobs/sha256"):
            item = tarfile.TarInfo(directory)
            item.type, item.mode = tarfile.DIRTYPE, 0o755
            self._put(item.tobuf(tarfile.PAX_FORMAT))

    def _write(self, name: str, size_bytes: int, write: Write) -> None:
        item = tarfile.TarInfo(name)
        item.size = size_bytes
        self._put(item.tobuf(tarfile.PAX_FORMAT))
        end = self._position + size_bytes
        write(self._put)
        if self._position != end:
            raise CowfsError(
                f"{self._name}: {name} came to {self._position - end + size_bytes} bytes, not {size_bytes}"
            )
        self._put(bytes(-self._position % tarfile.BLOCKSIZE))

    def finish(self, documents: dict[str, bytes]) -> None:
        super().finish(documents)
        end = self._position + 2 * tarfile.BLOCKSIZE
        self._put(bytes(2 * tarfile.BLOCKSIZE + -end % _RECORD_BYTES))

    def _put(self, data: bytes | memoryview) -> None:
        with naming(self._name):
            self._file.write(data)
        self._position += len(data)


def blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Errors of the host with the file that they are about."""
    try:
        yield
    except CowfsError:
        raise
    except OSError as error:
        raise NotWritten(f"cannot write {path}: {error.strerror or error}", errno=error.errno) from error
