"""Blobs of a content store: read, decompressed and written, with a content service of the test's."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest
import trio
import trio.testing
import zstandard

from cowfs.containerd.blobs import BlobWriter, Decompressing, compressor_of, read_blob
from cowfs.containerd.client import Client
from cowfs.containerd.grpc import Asked, CallError, Code, Handler, framed, serve_connection
from cowfs.containerd.messages import COMMIT, CONTENT, INTROSPECTION, message_class
from cowfs.errors import ArchiveError

LAYER = "application/vnd.oci.image.layer.v1.tar"
DATA = random.Random(7).randbytes(3 << 20)


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def unpacked(data: bytes) -> bytes:
    return b"".join(iter(Decompressing(io.BytesIO(data)).read, b""))


@pytest.mark.parametrize(
    "blob",
    [
        gzip.compress(DATA)[:-9],
        zstandard.compress(DATA)[:-9],
        gzip.compress(DATA) + b"rest",
        zstandard.compress(DATA) + b"rest",
        b"\x1f\x8b\x08" + bytes(99),
    ],
    ids=["cut off", "cut off zstd", "something after it", "something after zstd", "damaged"],
)
def test_a_damaged_blob_is_refused(blob: bytes) -> None:
    with pytest.raises(ArchiveError, match="decompressed"):
        unpacked(blob)


@pytest.mark.parametrize("kind", ["text/plain", f"{LAYER}+xz", f"{LAYER}+encrypted", ""])
def test_what_is_no_layer_is_not_made(kind: str) -> None:
    assert compressor_of(kind) is None


class Content:
    """A content service with one blob, that sends it in pieces and takes nothing.

    Args:
        root: what containerd says of where its blobs are; nothing when None.
    """

    def __init__(self, blob: bytes, root: Path | None = None) -> None:
        self.blob = blob
        self.headers: dict[str, str] = {}
        self.reads = 0
        self._root = root

    def methods(self) -> dict[str, Handler]:
        asking = {} if self._root is None else {f"/{INTROSPECTION}/Plugins": self._plugins}
        return {f"/{CONTENT}/Read": self.read, f"/{CONTENT}/Info": self._info, **asking}

    async def _plugins(self, asked: Asked) -> AsyncIterator[bytes]:
        assert message_class("PluginsRequest").FromString(asked.message).filters == ["type==io.containerd.content.v1"]
        plugins = [{"id": "far"}, {"id": "content", "exports": {"root": str(self._root)}}]
        yield message_class("PluginsResponse")(plugins=plugins).SerializeToString()

    async def _info(self, asked: Asked) -> AsyncIterator[bytes]:
        digest = message_class("ContentInfoRequest").FromString(asked.message).digest
        if digest != digest_of(self.blob):
            raise CallError(Code.NOT_FOUND, f"content {digest}: not found")
        yield message_class("ContentInfoResponse")(info={"digest": digest}).SerializeToString()

    async def read(self, asked: Asked) -> AsyncIterator[bytes]:
        self.reads += 1
        self.headers = dict(asked.headers)
        request = message_class("ReadContentRequest").FromString(asked.message)
        if request.digest != digest_of(self.blob):
            raise CallError(Code.NOT_FOUND, f"content {request.digest}: not found")
        for begin in range(0, len(self.blob), 1 << 20):
            data = self.blob[begin : begin + (1 << 20)]
            yield message_class("ReadContentResponse")(offset=begin, data=data).SerializeToString()


@asynccontextmanager
async def connected(content: Content) -> AsyncIterator[Client]:
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, theirs, content.methods())
        yield Client(ours, {"containerd-namespace": "n"}, "here")
        await ours.aclose()


async def test_a_blob_is_read_with_the_headers_of_its_client() -> None:
    content, file = Content(DATA), io.BytesIO()
    async with connected(content) as client:
        await read_blob(client, digest_of(DATA), len(DATA), file)
    assert file.getvalue() == DATA
    assert content.headers["containerd-namespace"] == "n"


async def test_a_blob_that_is_not_there_or_of_another_size() -> None:
    async with connected(Content(DATA)) as client:
        with pytest.raises(CallError, match="not found") as caught:
            await read_blob(client, digest_of(b""), 0, io.BytesIO())
        assert caught.value.code is Code.NOT_FOUND
        with pytest.raises(CallError, match=f"{len(DATA)} bytes in containerd's content store, and 5"):
            await read_blob(client, digest_of(DATA), 5, io.BytesIO())


def kept(root: Path, data: bytes) -> Path:
    """A blob as containerd keeps it."""
    path = root / "blobs" / digest_of(data).replace(":", "/")
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


async def test_a_blob_is_read_from_containerds_own_file(tmp_path: Path) -> None:
    content, file = Content(DATA, tmp_path), io.BytesIO()
    kept(tmp_path, DATA)
    async with connected(content) as client:
        await read_blob(client, digest_of(DATA), len(DATA), file)
        assert (file.getvalue(), content.reads) == (DATA, 0)
        with pytest.raises(CallError, match=f"{len(DATA)} bytes in containerd's content store, and 5"):
            await read_blob(client, digest_of(DATA), 5, io.BytesIO())


async def test_a_file_of_a_blob_that_the_namespace_has_not_is_not_read(tmp_path: Path) -> None:
    kept(tmp_path, b"of another namespace")
    async with connected(Content(DATA, tmp_path)) as client:
        with pytest.raises(CallError, match="not found") as caught:
            await read_blob(client, digest_of(b"of another namespace"), 20, io.BytesIO())
    assert caught.value.code is Code.NOT_FOUND


@pytest.mark.parametrize("kind", ["none", "link", "fifo", "directory"])
async def test_a_blob_without_a_file_that_can_be_read_is_sent(kind: str, tmp_path: Path) -> None:
    content, file = Content(DATA, tmp_path), io.BytesIO()
    path = kept(tmp_path, DATA)
    path.rename(tmp_path / "elsewhere")
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    async with connected(content) as client:
        await read_blob(client, digest_of(DATA), len(DATA), file)
    assert (file.getvalue(), content.reads) == (DATA, 1)


@pytest.mark.parametrize("digest", ["sha256:../../secret", "sha256:", "../secret", "md5:" + 32 * "0"])
async def test_a_digest_that_is_none_leads_to_no_file(digest: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    async with connected(Content(DATA, tmp_path)) as client:
        with pytest.raises(CallError, match="not found"):
            await read_blob(client, digest, 6, io.BytesIO())


async def test_a_containerd_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"cannot be reached at .*/none: No such file.*--containerd") as caught:
        async with Client.connected(tmp_path / "none", {}):
            pass
    assert caught.value.code is Code.UNAVAILABLE


async def test_a_containerd_that_ends() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    client = Client(ours, {}, "here")
    await theirs.aclose()
    with pytest.raises(CallError, match="has ended the connection"):
        await read_blob(client, digest_of(DATA), 5, io.BytesIO())


class Store:
    """A content service that blobs are written into: answers each message, as containerd does."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.written = bytearray()
        self.labels: dict[str, str] = {}

    async def serve(self) -> None:
        self._h2.initiate_connection()
        bodies: dict[int, bytearray] = {}
        paths: dict[int, str] = {}
        with_end = set[int]()
        while data := await self._stream.receive_some(1 << 16):
            for event in self._h2.receive_data(bytes(data)):
                if isinstance(event, h2.events.RequestReceived):
                    headers = {str(name): str(value) for name, value in event.headers}
                    paths[event.stream_id] = headers[":path"].rpartition("/")[2]
                    self._h2.send_headers(event.stream_id, [(":status", "200")])
                elif isinstance(event, h2.events.DataReceived):
                    self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    body = bodies.setdefault(event.stream_id, bytearray())
                    body += event.data
                    while len(body) >= 5 and len(body) >= 5 + int.from_bytes(body[1:5], "big"):
                        length = int.from_bytes(body[1:5], "big")
                        answer = self._answer(paths[event.stream_id], bytes(body[5 : 5 + length]))
                        self._h2.send_data(event.stream_id, framed(answer))
                        del body[: 5 + length]
                elif isinstance(event, h2.events.StreamEnded) and event.stream_id not in with_end:
                    with_end.add(event.stream_id)
                    self._h2.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
            await self._stream.send_all(self._h2.data_to_send())

    def _answer(self, method: str, message: bytes) -> bytes:
        if method == "Info":
            info = {"digest": digest_of(bytes(self.written)), "labels": self.labels}
            return bytes(message_class("ContentInfoResponse")(info=info).SerializeToString())
        request = message_class("WriteContentRequest").FromString(message)
        assert request.offset == len(self.written)
        self.written += request.data
        if request.action == COMMIT:
            assert request.expected == digest_of(bytes(self.written))
            self.labels = dict(request.labels)
        return bytes(message_class("WriteContentResponse")(offset=len(self.written)).SerializeToString())


@pytest.mark.parametrize(
    ("kind", "unpack"),
    [("", bytes), ("+gzip", lambda data: zlib.decompress(data, 31)), ("+zstd", unpacked)],
)
async def test_a_blob_is_written_with_its_digests(kind: str, unpack: Callable[[bytes], bytes]) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    store = Store(theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.serve)
        writer = BlobWriter(Client(ours, {}, "here"), LAYER + kind, "")
        for begin in range(0, len(DATA), 100_000):
            await writer.write(DATA[begin : begin + 100_000])
        digest, size_bytes = await writer.commit({"a": "b"})
        nursery.cancel_scope.cancel()
    assert (digest, size_bytes) == (digest_of(bytes(store.written)), len(store.written))
    assert unpack(bytes(store.written)) == DATA
    assert store.labels == {"a": "b", "containerd.io/uncompressed": digest_of(DATA)}
