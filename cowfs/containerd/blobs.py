"""Blobs of containerd's content store: read into a file, and written as they are made.

containerd gives a diff service digests only; the bytes are in files of its content store, where this process may read
those, and else read by its content service, which writes them too. A blob that is written
belongs to the lease of the call, or to one that is made for it and ends by itself: without any, the next garbage
collection of containerd could take it before its user has named it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import secrets
import stat
import zlib
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from typing import IO, Any, Final, Protocol

import trio
import zstandard

from cowfs.containerd.client import Client, ClientCall
from cowfs.containerd.grpc import CallError, Code
from cowfs.containerd.messages import COMMIT, CONTENT, INTROSPECTION, LEASES, STAT, WRITE, message_class
from cowfs.errors import ArchiveError

NAMESPACE: Final = "containerd-namespace"
LEASE: Final = "containerd-lease"
UNCOMPRESSED: Final = "containerd.io/uncompressed"
_EXPIRES: Final = "containerd.io/gc.expire"
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_CONTENT_PLUGINS: Final = "type==io.containerd.content.v1"
_COPIED_BYTES: Final = 4 << 20
_READ_BYTES: Final = 128 << 10
_WRITE_BYTES: Final = 1 << 20
_GZIP_FED_BYTES: Final = 4 << 10  # which become 4 MiB at most
_ZSTD_FED_BYTES: Final = 1 << 10  # which become 32 MiB at most
_GZIP_LEVEL: Final = 6  # as Go's compress/gzip
_GZIP_WBITS: Final = 31


async def read_blob(client: Client, digest: str, size_bytes: int, into: IO[bytes]) -> None:
    """Write a blob into a file. Raises CallError, also when it is not as long as it should be."""
    read = 0
    file = await _open_own_file(client, digest)
    async with aclosing(_sent(client, digest) if file is None else _pieces(file)) as pieces:
        async for data in pieces:
            read += len(data)
            into.write(data)
    if read != size_bytes:
        text = f"blob {digest} has {read} bytes in containerd's content store, and {size_bytes} in its descriptor"
        raise CallError(Code.FAILED_PRECONDITION, text)


async def _sent(client: Client, digest: str) -> AsyncGenerator[bytes, None]:
    """A blob as containerd's content service sends it."""
    call = await client.begin(f"/{CONTENT}/Read")
    await call.send(message_class("ReadContentRequest")(digest=digest), last=True)
    async for message in call.messages():
        yield message_class("ReadContentResponse").FromString(message).data


async def _open_own_file(client: Client, digest: str) -> IO[bytes] | None:
    """The file of a blob in containerd's directory, which costs less than having it sent; None where it has to be.

    It is opened and read in threads, since it may be below a mount of this process.

    Raises:
        CallError: NOT_FOUND where the namespace has no such blob.
    """
    if _DIGEST.fullmatch(digest) is None:
        return None
    try:
        asked = message_class("PluginsRequest")(filters=[_CONTENT_PLUGINS])
        answer = await client.call(f"/{INTROSPECTION}/Plugins", asked, "PluginsResponse")
    except CallError:
        return None
    for root in filter(None, (plugin.exports.get("root") for plugin in answer.plugins)):
        await client.call(f"/{CONTENT}/Info", message_class("ContentInfoRequest")(digest=digest))
        with suppress(OSError):
            return await trio.to_thread.run_sync(_open_regular, f"{root}/blobs/{digest.replace(':', '/')}")
    return None


def _open_regular(path: str) -> IO[bytes]:
    """Raises OSError."""
    file = open(path, "rb", buffering=0, opener=_open_as_it_is)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    return file


def _open_as_it_is(path: str, flags: int) -> int:
    """No link is followed, and no writer of a fifo waited for."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


async def _pieces(file: IO[bytes]) -> AsyncGenerator[bytes, None]:
    with file:
        while True:
            try:
                data = await trio.to_thread.run_sync(file.read, _COPIED_BYTES)
            except OSError as error:
                raise CallError(Code.UNAVAILABLE, f"{file.name} cannot be read: {error.strerror}") from None
            if not data:
                return
            yield data


class Decompressing(io.RawIOBase):
    """What a blob holds, whatever it is compressed by, and its digest.

    Args:
        blob: gzip, zstd, or not compressed.

    `read` raises ArchiveError for a blob that is damaged or cut off.
    """

    def __init__(self, blob: IO[bytes]) -> None:
        self._hash = hashlib.sha256()
        self.size_bytes = 0
        magic = blob.read(len(_ZSTD))
        blob.seek(-len(magic), io.SEEK_CUR)
        if magic.startswith(_GZIP):
            self._read: Callable[[int], bytes] = _Members(
                blob, lambda: zlib.decompressobj(_GZIP_WBITS), _GZIP_FED_BYTES
            ).read
        elif magic == _ZSTD:
            self._read = _Members(blob, zstandard.ZstdDecompressor().decompressobj, _ZSTD_FED_BYTES).read
        else:
            self._read = blob.read

    @property
    def digest(self) -> str:
        """Of what was read so far."""
        return f"sha256:{self._hash.hexdigest()}"

    def readable(self) -> bool:
        return True

    def read(self, size: int = _READ_BYTES) -> bytes:
        try:
            data = self._read(min(size, _READ_BYTES) if size >= 0 else _READ_BYTES)
        except (zlib.error, zstandard.ZstdError) as error:
            raise ArchiveError(f"the layer's blob cannot be decompressed: {error}") from None
        self._hash.update(data)
        self.size_bytes += len(data)
        return data


class _Members:
    """All members of a gzip file, or frames of a zstd one, one after the other.

    Args:
        begin: makes what decompresses one member.
        fed_bytes: given to it at a time, which bounds what comes out.
    """

    def __init__(self, file: IO[bytes], begin: Callable[[], Any], fed_bytes: int) -> None:
        self._file = file
        self._begin = begin
        self._fed_bytes = fed_bytes
        self._member: Any = None
        self._packed = b""
        self._unpacked = memoryview(b"")

    def read(self, size: int) -> bytes:
        while not self._unpacked:
            if not self._packed:
                self._packed = self._file.read(_READ_BYTES)
            if self._member is None:
                if not self._packed:
                    return b""
                self._member = self._begin()
            elif not self._packed:
                raise zlib.error("it is cut off")
            fed, self._packed = self._packed[: self._fed_bytes], self._packed[self._fed_bytes :]
            self._unpacked = memoryview(self._member.decompress(fed))
            if self._member.eof:
                self._packed = self._member.unused_data + self._packed
                self._member = None
        data, self._unpacked = bytes(self._unpacked[:size]), self._unpacked[size:]
        return data


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def compressor_of(media_type: str) -> _Compressor | None:
    """None for a type of layers that is not made here."""
    base, _, compression = media_type.partition("+")
    if base not in {"application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar"}:
        return {
            "application/vnd.docker.image.rootfs.diff.tar.gzip": _gzip_compressor,
        }.get(media_type, lambda: None)()
    makers: dict[str, Callable[[], _Compressor]] = {
        "": _Plain,
        "gzip": _gzip_compressor,
        "zstd": lambda: zstandard.ZstdCompressor().compressobj(),
    }
    maker = makers.get(compression)
    return None if maker is None else maker()


def _gzip_compressor() -> _Compressor:
    return zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WBITS)


class BlobWriter:
    """A blob that is being written; `commit` makes it one of the content store, anything else leaves nothing.

    Args:
        client: has a lease among its headers.
    """

    def __init__(self, client: Client, media_type: str, ref: str) -> None:
        compressor = compressor_of(media_type)
        assert compressor is not None
        self._client = client
        self._compressor = compressor
        self._ref = ref or f"cowfs-{secrets.token_hex(16)}"
        self._call: ClientCall | None = None
        self._gathered = bytearray()
        self._offset = 0
        self._plain, self._packed = hashlib.sha256(), hashlib.sha256()

    async def write(self, data: bytes) -> None:
        self._plain.update(data)
        self._gather(self._compressor.compress(data))
        if len(self._gathered) >= _WRITE_BYTES:
            await self._send()

    async def commit(self, labels: Mapping[str, str]) -> tuple[str, int]:
        """The digest of the blob, and its size in bytes."""
        self._gather(self._compressor.flush())
        await self._send()
        digest = f"sha256:{self._packed.hexdigest()}"
        labels = {**labels, UNCOMPRESSED: f"sha256:{self._plain.hexdigest()}"}
        try:
            await self._exchange(action=COMMIT, total=self._offset, offset=self._offset, expected=digest, labels=labels)
        except CallError as error:
            if error.code is not Code.ALREADY_EXISTS:
                raise
        await self._label(digest, labels)
        return digest, self._offset

    async def _label(self, digest: str, labels: Mapping[str, str]) -> None:
        """A blob that was there already has no label of ours yet."""
        answer = await self._client.call(
            f"/{CONTENT}/Info", message_class("ContentInfoRequest")(digest=digest), "ContentInfoResponse"
        )
        if answer.info.labels.get(UNCOMPRESSED) != labels[UNCOMPRESSED]:
            update = message_class("UpdateContentRequest")(
                info={"digest": digest, "labels": {UNCOMPRESSED: labels[UNCOMPRESSED]}},
                update_mask={"paths": [f"labels.{UNCOMPRESSED}"]},
            )
            await self._client.call(f"/{CONTENT}/Update", update)

    def _gather(self, data: bytes) -> None:
        self._packed.update(data)
        self._gathered += data

    async def _send(self) -> None:
        if self._gathered:
            data = bytes(self._gathered)
            self._gathered.clear()
            await self._exchange(action=WRITE, offset=self._offset, data=data)
            self._offset += len(data)

    async def _exchange(self, **fields: Any) -> None:
        """Send a message, and have its answer."""
        if self._call is None:
            self._call = await self._client.begin(f"/{CONTENT}/Write")
            await self._exchange(action=STAT, ref=self._ref)
        await self._call.send(message_class("WriteContentRequest")(**fields))
        answer = await self._call.receive()
        if answer is None:
            raise CallError(Code.UNAVAILABLE, "containerd ended the writing of a blob early")


async def make_lease(client: Client, expires: str) -> str:
    """The id of a new lease that ends by itself, at a time as RFC 3339 has it."""
    name = f"cowfs-{secrets.token_hex(8)}"
    request = message_class("CreateLeaseRequest")(id=name, labels={_EXPIRES: expires})
    await client.call(f"/{LEASES}/Create", request)
    return name
