"""Images in registries, whose layers are downloaded into a home before they are unpacked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import IO, Final, Self

from cowfs.errors import CowfsError, UsageError
from cowfs.oci.documents import (
    MAX_DOCUMENT_BYTES,
    BadImage,
    Descriptor,
    Index,
    Platform,
    check_is_image,
    choose,
    decode_config,
    decode_manifest,
    digest_of,
)
from cowfs.oci.downloads import Downloads
from cowfs.oci.found import FoundImage, FoundLayer
from cowfs.oci.reference import Reference
from cowfs.oci.registry import Moved, Repository

_INDEXES_MAX: Final = 4  # one in the other
_BLOB_BYTES_MAX: Final = 1 << 50


class RemoteImage:
    """An image of a registry for one platform, found by its manifest.

    Attributes:
        digest: of its manifest; `top_digest`: of what the reference names, which may be an index.
        size_bytes: of its layers as they are stored; `downloaded_bytes` is what came over the line of them so far.
    """

    def __init__(
        self, repository: Repository, reference: Reference, platform: Platform, downloads: Downloads, moved: Moved
    ) -> None:
        self.repository = repository
        self._downloads = downloads
        self._report = moved
        self.downloaded_bytes = 0
        self._files: dict[str, IO[bytes]] = {}
        self._stack = ExitStack()
        where = str(reference)
        data = repository.manifest(reference.wanted)
        self.top_digest = digest_of(data)
        for _ in range(_INDEXES_MAX):
            manifest = decode_manifest(data, where)
            if not isinstance(manifest, Index):
                break
            entry = choose(manifest, platform, where)
            data = repository.manifest(entry.digest)
        else:
            raise BadImage(f"{where}: too many indexes, one in the other")
        check_is_image(manifest, where)
        self.digest = digest_of(data)
        self.manifest = manifest
        self.size_bytes = sum(layer.size for layer in manifest.layers)
        if self.size_bytes > _BLOB_BYTES_MAX:
            raise BadImage(f"{where} is damaged: its layers are of {self.size_bytes} bytes")
        config_bytes = self._read_config(manifest.config, where)
        config = decode_config(config_bytes, manifest.layers, where)
        found = config.platform
        if found.os and found.architecture and not found.suits(platform):
            raise UsageError(f"{where} is an image for {found}, not for {platform}; see --platform")
        layers = tuple(
            FoundLayer(diff_id, blob, partial(self.reading, blob))
            for diff_id, blob in zip(config.rootfs.diff_ids, manifest.layers, strict=True)
        )
        tags = (str(reference),)
        source = f"{reference.host}/{reference.repository}"
        self.image = FoundImage(where, tags, config_bytes, config, layers, source)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """What is complete and was used is removed; what is not stays for the next attempt."""
        with self._stack:
            if kind is None:
                for digest in self._files:
                    self._downloads.remove(digest)
                self._downloads.tidy()

    def fetch_layers(self, layers: Sequence[FoundLayer]) -> None:
        """Have the archives of layers here."""
        self.fetch([layer.blob for layer in layers if layer.blob is not None])

    def fetch(self, blobs: Sequence[Descriptor]) -> None:
        """Have blobs here, all of each. In order, so that two processes do not wait for each other."""
        for blob in sorted(blobs, key=lambda blob: blob.digest):
            self._fetch(blob)

    def _fetch(self, blob: Descriptor) -> None:
        if blob.digest in self._files:
            return
        file = self._stack.enter_context(self._downloads.file(blob.digest))
        self._files[blob.digest] = file
        self._report(min(file.seek(0, os.SEEK_END), blob.size))
        try:
            self.repository.download(blob, file, self._moved)
        except CowfsError:
            raise
        except OSError as error:
            path = self._downloads.path(blob.digest)
            reason = (
                f"{error.strerror or error}; what is there of it stays for the next attempt, unless that is removed"
            )
            raise CowfsError(f"cannot write the blob {path}: {reason}", errno=error.errno) from error

    def _moved(self, count_bytes: int) -> None:
        self.downloaded_bytes += max(count_bytes, 0)
        self._report(count_bytes)

    @contextmanager
    def reading(self, blob: Descriptor) -> Iterator[IO[bytes]]:
        self._fetch(blob)
        file = self._files[blob.digest]
        file.seek(0)
        yield file

    def _read_config(self, blob: Descriptor, where: str) -> bytes:
        if blob.size > MAX_DOCUMENT_BYTES:
            raise BadImage(f"{where} is damaged: its configuration is of {blob.size} bytes")
        self._downloads.remove_others([blob.digest, *(layer.digest for layer in self.manifest.layers)])
        with self._downloads.file(blob.digest) as file:
            self.repository.download(blob, file, _ignore)
            file.seek(0)
            data = file.read()
            self._downloads.remove(blob.digest)
        return data


def _ignore(_bytes: int) -> None:
    pass
