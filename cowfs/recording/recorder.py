"""A recording of one device: while it is made, and when it is read.

    recorder = Recorder(directory, "ext4")
    RecordingDevice(disk, recorder, "web")    what happens to the disk
    recording_tree(volume, recorder)          what is done to the files
    recorder.mark("k=1")
    fd = recorder.finish(read_before)
    recording = Recording.read(fd)

The file of a recording is the bytes that were written, one after the other, and at its end an index and the index's
length. It has no name, and is private to those who are given it.

Models. An `ext4` recording has the entries of the disk, and the operations without what they wrote: they say which
file an entry is of. A `posix` recording has only operations, with all that they wrote.

A recorder never disturbs what it records: what it cannot write down any more, because the disk is full, is
said when it is finished.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from cowfs.blockdev import BlockDevice, Buffer
from cowfs.errors import HomeError, UsageError
from cowfs.recording.journal import Entry
from cowfs.recording.operations import FIRST_NEW, Operation

Model: TypeAlias = Literal["ext4", "posix"]
_FOOTER: Final = struct.Struct("<Q")
_SECTOR: Final = 512


class Mark(NamedTuple):
    """What the program promised: how many entries, and how many operations, came before."""

    text: str
    entries: int
    operations: int


class _Index(msgspec.Struct):
    model: Model
    device: str
    entries: list[tuple[str, int, int, int]]  # operation, offset, length, where its bytes are; -1 for zeros
    operations: list[Operation]
    marks: list[Mark]
    before: list[tuple[int, int, int]]  # offset, length, where its bytes are


class Recorder:
    """A recording while it is made: the `Record` of a device, and the `OperationLog` of its tree.

    Args:
        directory: on whose file system the recording is kept.
    """

    def __init__(self, directory: str | os.PathLike[str], device: str, model: Model) -> None:
        self.device = device
        self.model = model
        self.numbers: dict[int, int] = {}
        self.keeps_content = model == "posix"
        self._made = 0
        self._entries: list[tuple[str, int, int, int]] = []
        self._operations: list[Operation] = []
        self._marks: list[Mark] = []
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
        self._length = 0
        self._failure: OSError | None = None

    def _keep(self, data: bytes | bytearray | memoryview) -> int:
        """Where in the file these bytes are now."""
        place = self._length
        if self._failure is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._failure = error
        self._length += len(data)
        return place

    # As a `Record`.

    def begin(self, name: str, device: BlockDevice) -> None:
        """The device is opened, perhaps not for the first time."""

    def note(self, entry: Entry) -> None:
        place = -1 if entry.data is None else self._keep(entry.data)
        self._entries.append((entry.operation, entry.offset, entry.length, place))

    # As an `OperationLog`.

    def position(self) -> int:
        return len(self._entries)

    def done(self, operation: Operation) -> None:
        self._operations.append(operation)

    def new_number(self, inode: int) -> int:
        number = self.numbers[inode] = FIRST_NEW + self._made
        self._made += 1
        return number

    # For its owner.

    def mark(self, text: str) -> None:
        """What was done so far was promised."""
        self._marks.append(Mark(text, len(self._entries), len(self._operations)))

    def finish(self, read_before: Callable[[int, int], bytes]) -> int:
        """A descriptor of the complete recording, which the caller closes.

        Args:
            read_before: reads (offset, length) of the device as it was before the recording.

        Raises:
            HomeError: not everything could be recorded.
        """
        with self._file:
            before = [
                (begin, end - begin, self._keep(read_before(begin, end - begin))) for begin, end in self._touched()
            ]
            index = _Index(self.model, self.device, self._entries, self._operations, self._marks, before)
            packed = msgspec.msgpack.encode(index)
            self._keep(packed)
            self._keep(_FOOTER.pack(len(packed)))
            try:
                self._file.flush()
            except OSError as error:
                self._failure = self._failure or error
            if self._failure is not None:
                raise HomeError(
                    f"the recording of device '{self.device}' is not complete, because it could not be written: "
                    f"{self._failure.strerror}; free space on the disk of the home, then record again",
                    errno=self._failure.errno,
                )
            return os.open(f"/proc/self/fd/{self._file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)

    def _touched(self) -> list[tuple[int, int]]:
        """The ranges of the device that were changed, in whole sectors, each once, in order."""
        ranges: list[tuple[int, int]] = []
        for begin, end in sorted(
            (offset // _SECTOR * _SECTOR, -(-(offset + length) // _SECTOR) * _SECTOR)
            for _, offset, length, _ in self._entries
            if length
        ):
            if ranges and begin <= ranges[-1][1]:
                ranges[-1] = ranges[-1][0], max(end, ranges[-1][1])
            else:
                ranges.append((begin, end))
        return ranges

    def close(self) -> None:
        """Give up a recording that is not finished."""
        self._file.close()


@dataclass(frozen=True, slots=True)
class Recording:
    """A complete recording.

    Attributes:
        before: the ranges of the device that were changed, as (offset, what they held).
        file: all of it as it is read.
    """

    model: Model
    device: str
    entries: list[Entry]
    operations: list[Operation]
    marks: list[Mark]
    before: list[tuple[int, memoryview]]
    file: Buffer = b""

    @classmethod
    def read(cls, fd: int) -> Recording:
        """Read a recording; the descriptor stays its owner's and is not needed afterwards.

        Raises:
            UsageError: it is none.
        """
        data = memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ))
        try:
            end = len(data) - _FOOTER.size
            (length,) = _FOOTER.unpack(data[end:])
            index = msgspec.msgpack.decode(data[end - length : end], type=_Index)
        except (ValueError, struct.error, msgspec.MsgspecError) as error:
            raise UsageError(f"the file is not a recording: {error}") from error
        entries = [
            Entry(index.device, operation, offset, size, None if place < 0 else data[place : place + size])
            for operation, offset, size, place in index.entries
        ]
        before = [(offset, data[place : place + size]) for offset, size, place in index.before]
        return cls(index.model, index.device, entries, index.operations, index.marks, before, data)
