"""Crash states of a disk without a home and without a mount: a thousand in the time of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cowfs.blockdev import Buffer, copy_by_reading
from cowfs.crashes.disk import DiskHistory
from cowfs.crashes.history import State
from cowfs.home.requests.recordings import Write

_PAGE_BYTES = 4096


class PatchedDevice:
    """A device in memory that leaves its base as it is.

    Args:
        base: must not change as long as the device is in use.
    """

    def __init__(self, base: bytearray) -> None:
        self._base = base
        self._pages: dict[int, bytearray] = {}

    @property
    def size_bytes(self) -> int:
        return len(self._base)

    def pread(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(self._base)
        first, end = offset // _PAGE_BYTES, -(-(offset + length) // _PAGE_BYTES)
        if not any(page in self._pages for page in range(first, end)):
            return bytes(self._base[offset : offset + length])
        pieces = [self._page(page) for page in range(first, end)]
        begin = offset - first * _PAGE_BYTES
        return b"".join(pieces)[begin : begin + length]

    def _page(self, page: int) -> Buffer:
        return self._pages.get(page) or self._base[page * _PAGE_BYTES : (page + 1) * _PAGE_BYTES]

    def pwrite(self, offset: int, data: Buffer) -> None:
        assert 0 <= offset <= offset + len(data) <= len(self._base)
        view = memoryview(data)
        while view:
            page, skip = divmod(offset, _PAGE_BYTES)
            piece = view[: _PAGE_BYTES - skip]
            self._pages.setdefault(page, bytearray(self._page(page)))[skip : skip + len(piece)] = piece
            offset += len(piece)
            view = view[len(piece) :]

    def zero(self, offset: int, length: int) -> None:
        self.pwrite(offset, bytes(length))

    discard = zero

    def copy(self, source_offset: int, target_offset: int, length: int) -> None:
        copy_by_reading(self, source_offset, target_offset, length)

    def flush(self) -> None:
        """Nothing is lost here."""

    def close(self) -> None:
        """Nothing to give back."""


def states_in_process(
    history: DiskHistory, before: bytearray, planned: Iterable[State]
) -> Iterator[tuple[State, PatchedDevice]]:
    """Each state as a device of its own, in the order of positions.

    Args:
        before: the disk as it was before the recording; it is changed.
    """
    items = 0
    for state in planned:
        durable = history.durable_items(state.position)
        for write in history.writes(items, durable):
            data = bytes(write.length) if write.data is None else write.data
            before[write.offset : write.offset + write.length] = data
        items = durable
        device = PatchedDevice(before)
        for write in history.writes(durable, history.issued_until(state.position), state.lost):
            _apply(device, write)
        yield state, device


def _apply(device: PatchedDevice, write: Write) -> None:
    device.pwrite(write.offset, bytes(write.length) if write.data is None else write.data)
