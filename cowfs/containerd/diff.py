"""containerd's diff service: layers are unpacked into snapshots, and made of them, in this process.

Only for mounts of this home's snapshots; for any other ones the answer is UNIMPLEMENTED, and containerd asks its next
differ. What is served here:

    Apply    a layer's blob into an active snapshot that is not in use: all of it or nothing
    Diff     what a snapshot has against another one, as a blob in containerd's content store: O(changed)
"""

from __future__ import annotations

import datetime
import logging
import tempfile
from collections.abc import Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import IO, Any, Final, cast

import trio

from cowfs.containerd.blobs import LEASE, NAMESPACE, BlobWriter, Decompressing, compressor_of, make_lease, read_blob
from cowfs.containerd.calls import Decide, Method
from cowfs.containerd.client import Client
from cowfs.containerd.grpc import Asked, CallError, Code
from cowfs.containerd.messages import ACTIVE, DIFF, message_class
from cowfs.containerd.refusals import as_call_errors, decoded
from cowfs.containerd.snapshots import Snapshotter
from cowfs.containerd.store import Snapshot

_log = logging.getLogger(__name__)

_LAYER_TYPES: Final = (
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
)
_COMPRESSIONS: Final = ("", ".gzip", "+gzip", "+zstd")
_DEFAULT_TYPE: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
_IN_MEMORY_BYTES: Final = 8 << 20
_PIECE_BYTES: Final = 128 << 10
_LEASE_SECONDS: Final = 3600
_NOT_OURS: Final = "these mounts are not of a snapshot of this home"


class DiffService:
    """Both methods, over the snapshots of a home.

    Args:
        containerd: its socket.
        directory: for blobs while they are unpacked; nothing with a name is made there.
        now: the time, in seconds since 1970.
    """

    def __init__(self, snapshotter: Snapshotter, containerd: Path, directory: Path, now: Callable[[], float]) -> None:
        self._snapshotter = snapshotter
        self._containerd = containerd
        self._directory = directory
        self._now = now

    def methods(self) -> dict[str, Method]:
        """By path."""
        found = {"Apply": self._apply, "Diff": self._diff}
        return {f"/{DIFF}/{name}": Method(run, takes_long=lambda _asked: True) for name, run in found.items()}

    async def _apply(self, asked: Asked, _decide: Decide) -> bytes:
        request = decoded("ApplyRequest", asked.message)
        if not _is_layer(request.diff.media_type):
            raise CallError(Code.UNIMPLEMENTED, f"a diff of type {request.diff.media_type} is not unpacked here")
        snapshot = await self._snapshotter.mounted(request.mounts)
        if snapshot is None or snapshot.kind != ACTIVE:
            raise CallError(Code.UNIMPLEMENTED, _NOT_OURS)
        with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES, dir=str(self._directory)) as blob:
            try:
                async with Client.connected(self._containerd, _own_headers(asked.headers, snapshot)) as client:
                    await read_blob(client, request.diff.digest, request.diff.size, blob)
                blob.seek(0)
            except OSError as error:
                text = f"blob {request.diff.digest} cannot be kept in {self._directory}: {error.strerror}"
                raise CallError(Code.RESOURCE_EXHAUSTED, text) from None
            content = Decompressing(blob)
            await self._snapshotter.unpack(snapshot, cast("IO[bytes]", content))
            with as_call_errors():
                while content.read():  # what follows the end of the archive is part of the digest
                    await trio.lowlevel.checkpoint()
        _log.info("unpacked %s into snapshot %s: %d bytes", request.diff.digest, snapshot.key, content.size_bytes)
        applied = {
            "media_type": "application/vnd.oci.image.layer.v1.tar",
            "digest": content.digest,
            "size": content.size_bytes,
        }
        answer: bytes = message_class("ApplyResponse")(applied=applied).SerializeToString()
        return answer

    async def _diff(self, asked: Asked, _decide: Decide) -> bytes:
        request = decoded("DiffRequest", asked.message)
        media_type = request.media_type or _DEFAULT_TYPE
        if compressor_of(media_type) is None:
            raise CallError(Code.UNIMPLEMENTED, f"a diff of type {media_type} is not made here")
        if request.HasField("source_date_epoch"):
            raise CallError(Code.UNIMPLEMENTED, "times of files are not changed here")
        left, right = await self._left(request), await self._snapshotter.mounted(request.right)
        if right is None:
            raise CallError(Code.UNIMPLEMENTED, _NOT_OURS)
        headers = _own_headers(asked.headers, right)
        if LEASE not in headers:
            async with Client.connected(self._containerd, headers) as client:
                headers[LEASE] = await make_lease(client, self._when_a_lease_ends())
        async with Client.connected(self._containerd, headers) as client:
            writer = BlobWriter(client, media_type, request.ref)
            async with aclosing(self._snapshotter.archive(right, left)) as pieces:
                async for piece in pieces:
                    for begin in range(0, len(piece), _PIECE_BYTES):
                        await writer.write(piece[begin : begin + _PIECE_BYTES])
                        await trio.lowlevel.checkpoint()
            digest, size_bytes = await writer.commit(dict(request.labels))
        _log.info("made %s of snapshot %s: %d bytes", digest, right.key, size_bytes)
        made = {"media_type": media_type, "digest": digest, "size": size_bytes}
        answer: bytes = message_class("DiffResponse")(diff=made).SerializeToString()
        return answer

    async def _left(self, request: Any) -> Snapshot | None:
        """What is compared with; None for nothing."""
        if not request.left:
            return None
        left = await self._snapshotter.mounted(request.left)
        if left is None:
            raise CallError(Code.UNIMPLEMENTED, _NOT_OURS)
        return left

    def _when_a_lease_ends(self) -> str:
        return datetime.datetime.fromtimestamp(self._now() + _LEASE_SECONDS, datetime.UTC).isoformat()


def _own_headers(headers: Mapping[str, str], snapshot: Snapshot) -> dict[str, str]:
    """What containerd expects in each call: the namespace, and the lease where there is one.

    containerd passes them on only for what it does itself. For what a client of it does, the namespace is in the key
    of the snapshot: NAMESPACE/NUMBER/KEY.
    """
    own = {name: headers[name] for name in (NAMESPACE, LEASE) if name in headers}
    if NAMESPACE not in own:
        own[NAMESPACE] = snapshot.key.partition("/")[0]
    return own


def _is_layer(media_type: str) -> bool:
    return any(media_type == kind + compression for kind in _LAYER_TYPES for compression in _COMPRESSIONS)
