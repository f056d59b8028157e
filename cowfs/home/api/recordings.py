"""Recordings of the devices of a home, and crash states, for Python, here or through the holder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import msgspec

from cowfs.home.requests.recordings import (
    AddMark,
    MakeDiskState,
    MakeFileState,
    StartRecording,
    StopRecording,
    Write,
)
from cowfs.home.requests.request import MAX_PIECE_BYTES, documented_by
from cowfs.home.session import Session
from cowfs.recording.recorder import Model, Recording
from cowfs.recording.tree_change import ContentChange, TreeChange

_BATCH_BYTES = MAX_PIECE_BYTES // 4


class Recordings:
    """What `cowfs.crashes` is made of: the recording of a device, and devices as a crash would have left it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @documented_by(StartRecording)
    def start(self, device: str, origin: str, *, model: Model = "ext4") -> None:
        self._session.call(StartRecording(device, origin, model))

    @documented_by(AddMark)
    def mark(self, device: str, text: str) -> None:
        self._session.call(AddMark(device, text))

    @documented_by(StopRecording)
    def stop(self, device: str, origin: str) -> Recording:
        fd = self._session.call(StopRecording(device, origin)).fd
        try:
            return Recording.read(fd)
        finally:
            os.close(fd)

    @documented_by(MakeDiskState)
    def make_disk_state(self, name: str, parent: str, writes: Iterable[Write]) -> None:
        self._session.send(MakeDiskState(name, parent), map(msgspec.msgpack.encode, _batches(writes)))

    @documented_by(MakeFileState)
    def make_file_state(self, name: str, parent: str, change: TreeChange) -> None:
        self._session.send(MakeFileState(name, parent), map(msgspec.msgpack.encode, _steps(change)))


def _batches(writes: Iterable[Write]) -> Iterable[list[Write]]:
    """Lists of writes that are each small enough for a piece."""
    batch: list[Write] = []
    batch_bytes = 0
    for write in writes:
        for part in _parts(write):
            batch.append(part)
            batch_bytes += len(part.data or b"") + 32
            if batch_bytes >= _BATCH_BYTES:
                yield batch
                batch, batch_bytes = [], 0
    if batch:
        yield batch


def _steps(change: TreeChange) -> Iterator[TreeChange]:
    """A change as several that are each small enough for a piece: names first, attributes last."""
    content: list[ContentChange] = []
    content_bytes = 0
    files, names = change.files, change.names
    for one in change.content:
        if content_bytes + len(one.data) > _BATCH_BYTES:
            yield TreeChange(files, names, content, [])
            files, names, content, content_bytes = [], [], [], 0
        content.append(one)
        content_bytes += len(one.data)
    yield TreeChange(files, names, content, change.attributes)


def _parts(write: Write) -> Iterable[Write]:
    data = write.data
    if data is None or write.length <= _BATCH_BYTES:
        yield write
        return
    for begin in range(0, write.length, _BATCH_BYTES):
        part = data[begin : begin + _BATCH_BYTES]
        yield Write(write.offset + begin, len(part), part)
