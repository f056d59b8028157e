"""Requests about recordings, and about what a crash would leave of a recorded device."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import msgspec

from cowfs.devices.uses import require_files
from cowfs.errors import DeviceBusy, UnknownDevice, UsageError
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.requests.request import OpenFile, Request, StreamIn
from cowfs.recording.recorder import Model, Recorder
from cowfs.recording.tree_change import TreeChange, TreeChanger

_MAX_MARK_BYTES: Final = 4096


class Write(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of a disk from `offset` on; zeros where `data` is None."""

    offset: int
    length: int
    data: bytes | None = None


T = TypeVar("T")

_WRITES: Final = msgspec.msgpack.Decoder(list[Write])
_TREE_CHANGE: Final = msgspec.msgpack.Decoder(TreeChange)


class StartRecording(Request[None], frozen=True, tag="start_recording"):
    """Record what happens to a device from now on, beginning with a snapshot of it as it is.

    What programs have open in its mount stays open. Recordings are of files: a disk (`mount --raw`) has none.

    Args:
        origin: the name of the snapshot, with which every state begins that a crash may leave.
        model: `ext4` records what the file system writes to the device; `posix` what programs do to files.

    Raises:
        UnknownDevice, DeviceExists, OutOfDataSpace, OutOfMetadataSpace.
        DeviceBusy: it is recorded already, in use by more than its mount, or a file without a name is open in it.
    """

    device: str
    origin: str
    model: Model = "ext4"

    reads = ("device",)
    reopens = "device"

    def run(self, home: OpenHome) -> None:
        if self.device in home.volumes.recorders:
            raise DeviceBusy(f"device '{self.device}' is recorded already; end that recording first")
        _require_closed(home, self.device, "recorded")
        home.devices.create(self.origin, parent=self.device)
        home.volumes.recorders[self.device] = Recorder(home.path, self.device, self.model)


class AddMark(Request[None], frozen=True, tag="add_mark"):
    """Note in the recording of a device that what was done so far is promised. This makes nothing durable.

    Raises:
        UnknownDevice: it is not recorded.
        UsageError: the text is too long.
    """

    device: str
    text: str

    def run(self, home: OpenHome) -> None:
        if len(self.text.encode()) > _MAX_MARK_BYTES:
            raise UsageError(f"a mark of more than {_MAX_MARK_BYTES} bytes; take a shorter one")
        _recorder(home, self.device).mark(self.text)


class StopRecording(Request[OpenFile], frozen=True, tag="stop_recording"):
    """End the recording of a device: an open file that holds it, see `cowfs.recording.recorder`.

    At its end everything is written down, so that the last thing recorded is a device that nothing is missing of.

    Args:
        origin: the snapshot that the recording began with.

    Raises:
        UnknownDevice: it is not recorded, or the snapshot is gone.
        DeviceBusy: a file without a name is open in it, or it is in use by more than its mount; it is recorded still.
        HomeError: the recording is not complete, because it could not be written down; it is ended all the same.
    """

    device: str
    origin: str

    def check(self, home: OpenHome) -> None:
        _recorder(home, self.device)
        home.devices.record(self.origin)

    reads = ("device",)
    reopens = "device"

    def run(self, home: OpenHome) -> OpenFile:
        recorder = _recorder(home, self.device)
        _require_closed(home, self.device, "left unrecorded")
        del home.volumes.recorders[self.device]
        thin = home.devices.active.activate(self.origin, read_only=True)
        try:
            return OpenFile(recorder.finish(thin.pread))
        finally:
            home.devices.active.deactivate(self.origin)


class MakeDiskState(StreamIn[None], frozen=True, tag="make_disk_state"):
    """Make a device: a snapshot of another one, and writes to its disk, which come in pieces. All of it or nothing.

    Raises:
        UnknownDevice, DeviceExists, DeviceBusy, OutOfDataSpace, OutOfMetadataSpace.
        UsageError: a piece is not a list of writes, or reaches beyond the device.
    """

    name: str
    parent: str

    def run(self, home: OpenHome) -> Generator[bool, bytes, None]:
        with _made(home, self.name, self.parent):
            thin = home.devices.active.activate(self.name)
            try:
                while piece := (yield True):
                    for write in _decoded(_WRITES, piece):
                        _check_range(write, thin.size_bytes)
                        if write.data is None:
                            thin.zero(write.offset, write.length)
                        else:
                            thin.pwrite(write.offset, write.data)
            finally:
                home.devices.active.deactivate(self.name)


class MakeFileState(StreamIn[None], frozen=True, tag="make_file_state"):
    """Make a device: a snapshot of another one, whose files are then changed as pieces say. All of it or nothing.

    Raises:
        UnknownDevice, DeviceExists, DeviceBusy, OutOfDataSpace, OutOfMetadataSpace, FilesystemError.
        UsageError: a piece is not a `TreeChange`, or one that cannot be made.
    """

    name: str
    parent: str

    def run(self, home: OpenHome) -> Generator[bool, bytes, None]:
        with _made(home, self.name, self.parent), home.volumes.opened(self.name) as volume:
            changer = TreeChanger(volume)
            while piece := (yield True):
                changer.make(_decoded(_TREE_CHANGE, piece))


def _decoded(decoder: msgspec.msgpack.Decoder[T], piece: bytes) -> T:
    try:
        return decoder.decode(piece)
    except msgspec.MsgspecError as error:
        raise UsageError(f"a piece of a crash state cannot be read: {error}") from None


def _check_range(write: Write, size_bytes: int) -> None:
    is_inside = 0 <= write.offset <= write.offset + write.length <= size_bytes
    if not is_inside or (write.data is not None and len(write.data) != write.length):
        raise UsageError(f"a write of {write.length} bytes at {write.offset} to a disk of {size_bytes} bytes")


@contextmanager
def _made(home: OpenHome, name: str, parent: str) -> Iterator[None]:
    """A new device; removed again when the block fails."""
    home.devices.create(name, parent=parent)
    try:
        yield
    except BaseException:
        home.devices.remove(name)
        raise


def _recorder(home: OpenHome, device: str) -> Recorder:
    recorder = home.volumes.recorders.get(device)
    if recorder is None:
        raise UnknownDevice(f"device '{device}' is not recorded now; begin a recording before its marks and its end")
    return recorder


def _require_closed(home: OpenHome, device: str, purpose: str) -> None:
    home.devices.record(device)
    require_files(device, home.devices.uses.of(device), "a recording")
    if home.volumes.is_open(device) or device in home.devices.active.thins():
        raise home.devices.uses.busy(device, purpose)
