"""Images in files and directories: archives of `docker save`, OCI layouts, and single layers.

    a directory   an OCI layout (`oci-layout`, `index.json`), or an unpacked archive of `docker save` (`manifest.json`)
    a file        the same as a tar archive, or else the tar archive of one layer; compressed by gzip or not

Nothing outside the directory is read, whatever names its documents give.

Source: OCI image specification 1.1, image-layout.md; moby 20.10, `image/tarexport`.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Final, NamedTuple

import msgspec

from cowfs.errors import ArchiveError, CowfsError, UsageError
from cowfs.layers.archive.reader import ArchiveReader
from cowfs.oci.blobs import blob_path
from cowfs.oci.compression import PIECE_BYTES, is_compressed, unpacked
from cowfs.oci.documents import (
    INDEXES,
    MANIFESTS,
    MAX_DOCUMENT_BYTES,
    BadImage,
    Descriptor,
    ImageConfig,
    Index,
    Platform,
    RootFs,
    check_is_image,
    choose,
    decode,
    decode_config,
    decode_manifest,
    digest_of,
)
from cowfs.oci.found import FoundImage, FoundLayer

_INDEX: Final = "index.json"
_LAYOUT: Final = "oci-layout"
_DOCKER: Final = "manifest.json"
_LINKS_MAX: Final = 8
_INDEXES_MAX: Final = 4  # one in the other
_FULL_NAME: Final = "io.containerd.image.name"
_REF_NAME: Final = "org.opencontainers.image.ref.name"
_ATTESTATION: Final = "vnd.docker.reference.type"


class _DockerImage(msgspec.Struct, frozen=True, rename="pascal"):
    """An image in `manifest.json` of `docker save`."""

    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


class _Files(ABC):
    """The files of a directory or of an archive, by their names in it."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def has(self, path: str) -> bool: ...

    @abstractmethod
    def open(self, path: str) -> IO[bytes]:
        """Raises BadImage where it is missing."""
        ...

    def document(self, path: str) -> bytes:
        with self.open(path) as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
        if len(data) > MAX_DOCUMENT_BYTES:
            raise BadImage(f"{self.name}: {path} has more than {MAX_DOCUMENT_BYTES} bytes, which no document has")
        return data

    def blob(self, blob: Descriptor) -> bytes:
        """A document among the blobs, checked by its digest."""
        data = self.document(blob_path(blob.digest))
        if digest_of(data) != blob.digest:
            raise BadImage(f"{self.name}: the blob {blob.digest} is damaged: its digest is {digest_of(data)}")
        return data

    def missing(self, path: str) -> BadImage:
        return BadImage(f"{self.name} is incomplete: there is no {path[:200]!r} in it")


class _DirectoryFiles(_Files):
    def __init__(self, directory: Path) -> None:
        super().__init__(os.fspath(directory))
        self._directory = directory.resolve()

    def has(self, path: str) -> bool:
        return (self._directory / path).is_file()

    def open(self, path: str) -> IO[bytes]:
        whole = (self._directory / path).resolve()
        if not whole.is_relative_to(self._directory):
            raise BadImage(f"{self.name} is damaged: it names {path[:200]!r}, which is outside of it")
        try:
            fd = os.open(whole, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise self.missing(path) from None
        except OSError as error:
            raise CowfsError(f"cannot read {whole}: {error.strerror}", errno=error.errno) from error
        file = os.fdopen(fd, "rb")
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            file.close()
            raise BadImage(f"{self.name} is damaged: {path[:200]!r} is not a file")
        return file


class _Member(NamedTuple):
    """A file of an archive: where its content is, or the name that it is a link to."""

    offset: int
    size_bytes: int
    target: str = ""


class _ArchiveFiles(_Files):
    """The files of an uncompressed tar archive, which stays the caller's."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        super().__init__(name)
        self._file = file
        self._members = dict(_members(file))

    def has(self, path: str) -> bool:
        return self._find(path) is not None

    def open(self, path: str) -> IO[bytes]:
        member = self._find(path)
        if member is None:
            raise self.missing(path)
        return _section(self._file, member.offset, member.size_bytes)

    def _find(self, path: str) -> _Member | None:
        name = _clean(path)
        for _ in range(_LINKS_MAX):
            member = self._members.get(name)
            if member is None or not member.target:
                return member
            name = member.target
        return None


class _Section(io.RawIOBase):
    """A part of a file, by offset, so that several may be read at once."""

    def __init__(self, file: IO[bytes], offset: int, size_bytes: int) -> None:
        self._fd = file.fileno()
        self._position = offset
        self._end = offset + size_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        data = os.pread(self._fd, min(len(buffer), self._end - self._position), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _section(file: IO[bytes], offset: int, size_bytes: int) -> IO[bytes]:
    return io.BufferedReader(_Section(file, offset, size_bytes), PIECE_BYTES)  # type: ignore[type-var]


def _members(file: IO[bytes]) -> Iterator[tuple[str, _Member]]:
    """Raises ArchiveError."""
    position = 0

    def watch(data: bytes) -> None:
        nonlocal position
        position += len(data)

    reader = ArchiveReader(file, end_required=False, watch=watch)
    while (entry := reader.next()) is not None:
        name = _clean(os.fsdecode(entry.name))
        if stat.S_ISREG(entry.kind) and entry.sparse is None:
            yield name, _Member(position, entry.size_bytes)
        elif stat.S_ISLNK(entry.kind):
            yield name, _Member(0, 0, _clean(posixpath.join(posixpath.dirname(name), os.fsdecode(entry.target))))
        elif entry.kind == 0:
            yield name, _Member(0, 0, _clean(os.fsdecode(entry.target)))
        for _ in reader.pass_over():
            pass
    reader.finish()


def _clean(name: str) -> str:
    return posixpath.normpath(f"/{name}").lstrip("/")


@contextmanager
def open_images(
    path: str | os.PathLike[str], wanted: Platform, *, limit_bytes: int, scratch: Path
) -> Iterator[list[FoundImage]]:
    """The images in a file or a directory, whose layers can be read as long as the block lasts.

    Args:
        wanted: the platform of those that are there for several.
        limit_bytes: what a compressed file may unpack to.
        scratch: a directory for that.

    Raises:
        BadImage: what is there is damaged, or no image; CowfsError: it cannot be read.
    """
    with ExitStack() as stack:
        name = os.fspath(path)
        try:
            if os.path.isdir(path):
                yield _images_in(_DirectoryFiles(Path(path)), wanted, None)
                return
            file: IO[bytes] = stack.enter_context(_open_regular(name))
            if is_compressed(file.read(4)):
                file.seek(0)
                file = stack.enter_context(_decompressed(file, name, limit_bytes, scratch))
            file.seek(0)
        except CowfsError:
            raise
        except OSError as error:
            raise CowfsError(f"cannot read {name}: {error.strerror or error}", errno=error.errno) from error
        try:
            yield _images_in(_ArchiveFiles(file, name), wanted, file)
        except ArchiveError as error:
            raise error.of(name) from error


def _open_regular(name: str) -> IO[bytes]:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UsageError(f"{name} is neither a file nor a directory; write what it gives to a file, and import that")
    return os.fdopen(fd, "rb")


@contextmanager
def _decompressed(file: IO[bytes], name: str, limit_bytes: int, scratch: Path) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile(dir=scratch) as whole:
        for piece in unpacked(file, limit_bytes, name):
            whole.write(piece)
        whole.flush()
        yield whole


def _images_in(files: _Files, wanted: Platform, archive: IO[bytes] | None) -> list[FoundImage]:
    if files.has(_INDEX) and files.has(_LAYOUT):
        return _images_of_layout(files, wanted)
    if files.has(_DOCKER):
        return _images_of_docker(files)
    if archive is not None:
        return [_single_layer(archive, files.name)]
    raise UsageError(
        f"{files.name} is no OCI layout: there is no {_INDEX!r} in it; a directory of files is brought in by 'cowfs "
        "import'"
    )


def _images_of_layout(files: _Files, wanted: Platform) -> list[FoundImage]:
    index = decode(files.document(_INDEX), Index, f"{files.name}/{_INDEX}")
    found: dict[str, tuple[Descriptor, list[str]]] = {}
    for entry in index.manifests:
        if entry.media_type not in (*MANIFESTS, *INDEXES) or _ATTESTATION in (entry.annotations or {}):
            continue
        tags = found.setdefault(entry.digest, (entry, []))[1]
        tags.extend(tag for tag in [_tag_of(entry)] if tag and tag not in tags)
    if not found:
        raise BadImage(f"{files.name} is a layout without an image")
    return [_image_of_layout(files, entry, tags, wanted) for entry, tags in found.values()]


def _tag_of(entry: Descriptor) -> str:
    annotations = entry.annotations or {}
    return annotations.get(_FULL_NAME) or annotations.get(_REF_NAME, "")


def _image_of_layout(files: _Files, entry: Descriptor, tags: Sequence[str], wanted: Platform) -> FoundImage:
    where = f"{files.name}, image {tags[0] if tags else entry.digest}"
    for _ in range(_INDEXES_MAX):
        manifest = decode_manifest(files.blob(entry), where)
        if not isinstance(manifest, Index):
            check_is_image(manifest, where)
            data = files.blob(manifest.config)
            config = decode_config(data, manifest.layers, where)
            layers = tuple(
                FoundLayer(diff_id, blob, partial(files.open, blob_path(blob.digest)))
                for diff_id, blob in zip(config.rootfs.diff_ids, manifest.layers, strict=True)
            )
            return FoundImage(where, tuple(tags), data, config, layers)
        entry = choose(manifest, wanted, where)
    raise BadImage(f"{where}: too many indexes, one in the other")


def _images_of_docker(files: _Files) -> list[FoundImage]:
    images = decode(files.document(_DOCKER), list[_DockerImage], f"{files.name}/{_DOCKER}")
    if not images:
        raise BadImage(f"{files.name} is an archive of 'docker save' without an image")
    found = []
    for image in images:
        tags = tuple(image.repo_tags or ())
        where = f"{files.name}, image {tags[0] if tags else image.config[:80]}"
        data = files.document(image.config)
        config = decode_config(data, image.layers, where)
        layers = tuple(
            FoundLayer(diff_id, None, partial(files.open, path))
            for diff_id, path in zip(config.rootfs.diff_ids, image.layers, strict=True)
        )
        found.append(FoundImage(where, tags, data, config, layers))
    return found


def _single_layer(archive: IO[bytes], name: str) -> FoundImage:
    """An archive that is one layer."""
    size_bytes = os.fstat(archive.fileno()).st_size
    if not size_bytes:
        raise UsageError(f"{name} is empty, not even an archive of no files; see what should have written it")
    digest = hashlib.sha256()
    archive.seek(0)
    while piece := archive.read(PIECE_BYTES):
        digest.update(piece)
    diff_id = f"sha256:{digest.hexdigest()}"

    def open_layer() -> IO[bytes]:
        return _section(archive, 0, size_bytes)

    return FoundImage(name, (), None, ImageConfig(RootFs(diff_ids=[diff_id])), (FoundLayer(diff_id, None, open_layer),))
