"""Content-addressed blobs in a directory or a tar archive, in the layout of OCI images.

oci-layout, index.json            what OCI tools read
manifest.json                     what 'docker load' reads, which finds its layers among the blobs
blobs/sha256/DIGEST               configurations, manifests, layers

The documents that name the blobs come last, so what ends early names nothing.

Source: OCI image specification 1.0, image-layout.md; moby 20.10, `image/tarexport`.
"""

from __future__ import annotations

import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, ClassVar, Final

from cowfs.errors import CowfsError
from cowfs.oci.documents import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, digest_of, encode
from cowfs.oci.tar_split import Out

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
        digest = digest_of(data)
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


class ImageLayout:
    """Images among blobs, and the documents that name them, for 'docker load' and for OCI tools."""

    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs
        self._for_docker: list[dict[str, object]] = []
        self._for_oci: list[dict[str, object]] = []

    def add_image(self, tags: Sequence[str], config: bytes, layers: Sequence[tuple[str, int]]) -> str:
        """Add an image whose layers are there.

        Args:
            layers: the diff id and the length of each, uncompressed, the lowest first.

        Returns:
            The image's id, with `sha256:`.
        """
        image_id = self.blobs.add_document(config)
        paths = [blob_path(diff_id) for diff_id, _ in layers]
        self._for_docker.append({"Config": blob_path(image_id), "RepoTags": list(tags) or None, "Layers": paths})
        manifest = encode(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {"mediaType": OCI_CONFIG, "digest": image_id, "size": len(config)},
                "layers": [{"mediaType": OCI_LAYER, "digest": digest, "size": size} for digest, size in layers],
            }
        )
        digest = self.blobs.add_document(manifest)
        entry: dict[str, object] = {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(manifest)}
        for tag in tags:
            annotations = {
                "io.containerd.image.name": _full_name(tag),
                "org.opencontainers.image.ref.name": tag.rpartition(":")[2],
            }
            self._for_oci.append({**entry, "annotations": annotations})
        if not tags:
            self._for_oci.append(entry)
        return image_id

    def finish(self) -> None:
        """Write the documents that name what was added."""
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": self._for_oci}
        self.blobs.finish({"index.json": encode(index), "manifest.json": encode(self._for_docker)})


def _full_name(tag: str) -> str:
    """A reference with the registry that it is of, as containerd keeps it."""
    first, slash, _ = tag.partition("/")
    if not slash:
        return f"docker.io/library/{tag}"
    return tag if "." in first or ":" in first or first == "localhost" else f"docker.io/{tag}"


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
