"""A repository of a registry: manifests, blobs, referrers.

A blob that is cut off on its way goes on where it ended, down by Range, up by the offset that the registry has. What
comes is checked by length and digest; what an answer claims counts for nothing.

Source: OCI distribution specification 1.1; distribution 2.8, docs/spec/api.md.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Final

import httpx

from cowfs.oci.documents import (
    INDEXES,
    MANIFESTS,
    MAX_DOCUMENT_BYTES,
    OCI_INDEX,
    Descriptor,
    Index,
    decode,
    digest_of,
    encode,
    hex_of,
    short,
)
from cowfs.oci.http import Answer, Connection, Failure, RegistryError, reason
from cowfs.oci.reference import Reference

Moved = Callable[[int], object]
"""Called with how many bytes have gone over the line since the last call; negative where they have to go again."""

_CHUNK_BYTES: Final = 32 << 20
_AT_ONCE_BYTES: Final = 1 << 20  # goes up in one request
_PIECE_BYTES: Final = 1 << 20
_TRIES: Final = 5  # without getting on by _STEP_BYTES
_STEP_BYTES: Final = 1 << 20
_RANGE: Final = re.compile(r"(?:bytes=)?0-([0-9]{1,19})")
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,19})-[0-9]+/(?:[0-9]+|\*)")
_WAITS_SECONDS: Final = (0.2, 0.5, 1.0, 2.0)


class Cut(Exception):
    """A transfer that ended early."""


class Repository:
    """One repository, by a connection that stays its opener's."""

    def __init__(self, connection: Connection, reference: Reference) -> None:
        self._connection = connection
        self._name = f"{connection.host}/{reference.repository}"
        self._path = reference.repository

    def others_in(self, names: Iterable[str]) -> list[str]:
        """Of names `HOST/REPOSITORY` the other repositories of this registry."""
        parted = [name.partition("/") for name in names]
        return [path for host, _, path in parted if host == self._connection.host and path != self._path]

    # ------------------------------------------------------------------ manifests

    def manifest(self, wanted: str) -> bytes:
        """The manifest or index of a tag or a digest.

        Raises:
            RegistryError: ENOENT where there is none; it is of another digest, or longer than one is.
        """
        found = self.find_manifest(wanted)
        if found is None:
            what = f"no manifest {wanted}" if ":" in wanted else f"no tag {wanted!r}"
            raise RegistryError(f"there is {what} in {self._name}", errno=errno.ENOENT)
        return found

    def find_manifest(self, wanted: str) -> bytes | None:
        """As `manifest`; None where there is none."""
        accept = ", ".join((*MANIFESTS, *INDEXES))
        with self._connection.request("GET", f"{self._path}/manifests/{wanted}", headers={"Accept": accept}) as answer:
            if answer.status == 404:
                return None
            self._require(answer, "the manifest", 200)
            data = answer.read(MAX_DOCUMENT_BYTES, f"the manifest of {self._name}")
        if wanted.startswith("sha256:") and digest_of(data) != wanted:
            raise RegistryError(f"{self._name} sends another manifest than {wanted}: its digest is {digest_of(data)}")
        return data

    def put_manifest(self, wanted: str, data: bytes, media_type: str) -> bool:
        """Store a manifest or index under a tag or its digest; whether the registry keeps lists of referrers itself."""
        headers = {"Content-Type": media_type, "Content-Length": str(len(data))}
        with self._connection.request(
            "PUT", f"{self._path}/manifests/{wanted}", headers=headers, content=lambda: [data]
        ) as answer:
            self._require(answer, "the manifest", 201)
            digest = answer.header("Docker-Content-Digest")
            if digest and digest != digest_of(data):
                raise RegistryError(f"{self._name} stored another manifest than was sent: its digest is {digest[:80]}")
            return bool(answer.header("OCI-Subject"))

    # ------------------------------------------------------------------ referrers

    def referrers(self, digest: str, artifact_type: str) -> list[Descriptor]:
        """The manifests of a type that are about another one."""
        data = None
        with self._connection.request("GET", f"{self._path}/referrers/{digest}") as answer:
            if answer.status == 200 and "json" in answer.header("Content-Type"):
                data = answer.read(MAX_DOCUMENT_BYTES, "the list of referrers")
        if data is None:
            data = self.find_manifest(_referrers_tag(digest))
        if data is None:
            return []
        index = decode(data, Index, f"the list of what refers to {digest} in {self._name}")
        return [entry for entry in index.manifests if entry.artifact_type == artifact_type]

    def add_referrer(self, subject: str, manifest: bytes, entry: Descriptor) -> None:
        """Store a manifest that is about another one, in the place of an earlier one of its type."""
        if self.put_manifest(entry.digest, manifest, entry.media_type):
            return
        tag = _referrers_tag(subject)
        before = self.find_manifest(tag)
        others = decode(before, Index, f"{self._name}:{tag}").manifests if before is not None else []
        kept = [other for other in others if other.artifact_type != entry.artifact_type]
        index = Index(2, [*kept, entry], OCI_INDEX)
        self.put_manifest(tag, encode(index), OCI_INDEX)

    # ------------------------------------------------------------------ blobs, down

    def download(self, blob: Descriptor, file: IO[bytes], moved: Moved) -> None:
        """Write a blob to a file, which may have the beginning of it already.

        Raises:
            RegistryError: it is cut off again and again, is not there, or has another length or digest. The file has
                what is right of it as far as one can know.
        """
        had = file.seek(0, os.SEEK_END)
        if had > blob.size:
            file.truncate(0)
            had = 0
        self._fetch(blob, file, moved)
        if _digest_of_file(file) == blob.digest:
            return
        file.truncate(0)
        moved(-blob.size)
        if not had:
            raise self._another(blob)
        self._fetch(blob, file, moved)  # what was there before was not of this blob
        if _digest_of_file(file) != blob.digest:
            file.truncate(0)
            raise self._another(blob)

    def _another(self, blob: Descriptor) -> RegistryError:
        return RegistryError(
            f"{self._name} sends something else as the blob {blob.digest}: what came has another digest; nothing of it "
            "was kept"
        )

    def _fetch(self, blob: Descriptor, file: IO[bytes], moved: Moved) -> None:
        failures = 0
        farthest = file.seek(0, os.SEEK_END)  # a registry that goes on from the beginning each time gets nowhere
        while (begin := file.seek(0, os.SEEK_END)) < blob.size:
            try:
                self._fetch_from(blob, file, begin, moved)
            except Cut as error:
                failures = 0 if file.tell() - farthest >= _STEP_BYTES else failures + 1
                farthest = max(farthest, file.tell())
                if failures >= _TRIES:
                    raise RegistryError(
                        f"the blob {short(blob.digest)} of {self._name} breaks off each time: {error}; "
                        f"{file.tell()} of {blob.size} bytes are kept; the same command resumes there"
                    ) from error
                self._connection.sleep(_WAITS_SECONDS[min(failures, len(_WAITS_SECONDS) - 1)])

    def _fetch_from(self, blob: Descriptor, file: IO[bytes], begin: int, moved: Moved) -> None:
        """Raises Cut where it ends early."""
        headers = {"Range": f"bytes={begin}-"} if begin else {}
        with self._connection.request("GET", f"{self._path}/blobs/{blob.digest}", headers=headers) as answer:
            if answer.status == 404:
                raise RegistryError(f"{self._name} has no blob {blob.digest}, which its manifest names")
            if begin and (answer.status == 416 or not _goes_on_from(answer, begin)):
                file.truncate(0)
                file.seek(0)
                moved(-begin)
                begin = 0
                if answer.status == 416:
                    raise Cut("it cannot be gone on with")
            self._require(answer, f"the blob {short(blob.digest)}", 200, 206)
            length = answer.header("Content-Length")
            if length.isdecimal() and int(length) != blob.size - begin:
                raise self._wrong_length(blob, f"{int(length) + begin}")
            left = blob.size - begin
            try:
                for piece in answer.pieces():
                    if len(piece) > left:
                        raise self._wrong_length(blob, "more")
                    file.write(piece)
                    left -= len(piece)
                    moved(len(piece))
            except Failure as error:
                raise Cut(reason(error)) from error
        if left:
            raise Cut("the connection was cut")

    def _wrong_length(self, blob: Descriptor, found: str) -> RegistryError:
        return RegistryError(
            f"{self._name} sends {found} bytes as the blob {short(blob.digest)}, of which its manifest says "
            f"{blob.size}; the rest was not read"
        )

    # ------------------------------------------------------------------ blobs, up

    def has(self, digest: str) -> bool:
        with self._connection.request("HEAD", f"{self._path}/blobs/{digest}") as answer:
            if answer.status == 404:
                return False
            self._require(answer, f"the blob {short(digest)}", 200)
            return True

    def mount(self, digest: str, repository: str) -> bool:
        """Have a blob of another repository of the registry in this one; whether it is."""
        query = httpx.QueryParams({"mount": digest, "from": repository})
        with self._connection.request(
            "POST", f"{self._path}/blobs/uploads/?{query}", headers={"Content-Length": "0"}
        ) as answer:
            if answer.status == 202:
                self._cancel(self._location(answer))
            return answer.status == 201

    def upload(self, blob: Descriptor, file: IO[bytes], moved: Moved) -> None:
        """Send a blob. Raises RegistryError where it is refused, or cut off again and again."""
        with self._connection.request(
            "POST", f"{self._path}/blobs/uploads/", headers={"Content-Length": "0"}
        ) as answer:
            self._require(answer, "an upload", 202)
            location = self._location(answer)
            least = answer.header("OCI-Chunk-Min-Length")
        chunk = max(_CHUNK_BYTES, int(least) if re.fullmatch(r"[0-9]{1,12}", least) else 0)
        if blob.size > _AT_ONCE_BYTES:
            location = self._send_chunks(blob, file, location, chunk, moved)
            self._finish_upload(blob, location, None)
        else:
            file.seek(0)
            self._finish_upload(blob, location, file.read())
            moved(blob.size)

    def _send_chunks(
        self, blob: Descriptor, file: IO[bytes], location: httpx.URL, chunk: int, moved: Moved
    ) -> httpx.URL:
        """Send all of a blob; where to go on from there."""
        offset = failures = 0
        while offset < blob.size:
            end = min(offset + chunk, blob.size)
            begin = offset
            try:
                location = self._send_chunk(file, location, offset, end)
                offset = end
            except Cut as error:
                failures += 1
                if failures >= _TRIES:
                    raise RegistryError(
                        f"the upload of blob {short(blob.digest)} to {self._name} breaks off each time: {error}; "
                        f"{offset} of {blob.size} bytes are there"
                    ) from error
                self._connection.sleep(_WAITS_SECONDS[min(failures, len(_WAITS_SECONDS) - 1)])
                location, offset = self._ask_how_far(blob, location)
            if offset - begin >= _STEP_BYTES:
                failures = 0
            moved(offset - begin)
        return location

    def _send_chunk(self, file: IO[bytes], location: httpx.URL, begin: int, end: int) -> httpx.URL:
        def pieces() -> Iterator[bytes]:
            file.seek(begin)
            left = end - begin
            while left and (piece := file.read(min(_PIECE_BYTES, left))):
                left -= len(piece)
                yield piece

        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(end - begin),
            "Content-Range": f"{begin}-{end - 1}",
        }
        try:
            with self._connection.request("PATCH", location, headers=headers, content=pieces, tries=1) as answer:
                if answer.status == 416:
                    raise Cut(answer.problem())
                self._require(answer, "a part of a blob", 202)
                return self._location(answer)
        except RegistryError as error:
            if isinstance(error.__cause__, Failure):
                raise Cut(reason(error.__cause__)) from error
            raise

    def _ask_how_far(self, blob: Descriptor, location: httpx.URL) -> tuple[httpx.URL, int]:
        """Where an upload goes on, and how much of it the registry has."""
        with self._connection.request("GET", location) as answer:
            self._require(answer, "the state of an upload", 204, 202)
            found = _RANGE.fullmatch(answer.header("Range"))
            # `0-0` stands for nothing, and for one byte: what is sent twice is refused, so ask for nothing less.
            last = int(found[1]) if found else 0
            offset = last + 1 if last else 0
            if offset > blob.size:
                raise RegistryError(f"{self._name} has {offset} bytes of a blob of {blob.size}")
            return self._location(answer) if answer.header("Location") else location, offset

    def _finish_upload(self, blob: Descriptor, location: httpx.URL, data: bytes | None) -> None:
        url = location.copy_merge_params({"digest": blob.digest})
        content = data or b""
        headers = {"Content-Length": str(len(content)), "Content-Type": "application/octet-stream"}
        with self._connection.request("PUT", url, headers=headers, content=lambda: [content]) as answer:
            self._require(answer, f"the blob {short(blob.digest)}", 201)

    def _cancel(self, location: httpx.URL) -> None:
        with self._connection.request("DELETE", location):
            pass

    def _location(self, answer: Answer) -> httpx.URL:
        location = answer.header("Location")
        if not location:
            raise RegistryError(f"{self._name} does not say where to continue the upload: there is no header Location")
        return self._connection.resolve(location, answer.url)

    def _require(self, answer: Answer, what: str, *statuses: int) -> None:
        """Raises RegistryError unless the answer has one of these statuses."""
        if answer.status in statuses:
            return
        problem = answer.problem()
        if answer.status in (401, 403):
            raise RegistryError(f"{self._name} refuses {what}: {problem}", errno=errno.EACCES)
        raise RegistryError(f"{self._name} does not answer as a registry about {what}: {problem}")


def _goes_on_from(answer: Answer, begin: int) -> bool:
    found = _CONTENT_RANGE.fullmatch(answer.header("Content-Range"))
    return answer.status == 206 and found is not None and int(found[1]) == begin


def _referrers_tag(digest: str) -> str:
    """Where the list is that a registry does not keep itself (distribution specification 1.1, referrers tag schema)."""
    return f"sha256-{hex_of(digest)}"


def _digest_of_file(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    file.flush()
    file.seek(0)
    while piece := file.read(_PIECE_BYTES):
        digest.update(piece)
    return f"sha256:{digest.hexdigest()}"
