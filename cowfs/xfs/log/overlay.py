"""A device of which some sectors are shown as the log has them."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final, Never

from cowfs.blockdev import BlockDevice, Buffer

if TYPE_CHECKING:
    from cowfs.xfs.files.blocks import Replayed

_SECTOR_BYTES: Final = 512


class ReplayedDevice:
    """Reads from another device, which stays its owner's, and is not written to."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._sectors: dict[int, bytes] = {}

    @property
    def size_bytes(self) -> int:
        return self._device.size_bytes

    def pread(self, offset: int, length: int) -> bytes:
        data = self._device.pread(offset, length)
        changed = self._changed(offset, length)
        if not changed:
            return data
        shown = bytearray(data)
        for sector in changed:
            begin = sector * _SECTOR_BYTES - offset
            skipped = max(-begin, 0)
            end = min(begin + _SECTOR_BYTES, length)
            shown[begin + skipped : end] = self._sectors[sector][skipped : end - begin]
        return bytes(shown)

    def show(self, offset: int, data: bytes) -> None:
        """Have these bytes read from now on. Raises OSError (EINVAL) for a range that is not on the device."""
        if offset < 0 or offset + len(data) > self.size_bytes:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        begin = offset // _SECTOR_BYTES * _SECTOR_BYTES
        end = min(-(-(offset + len(data)) // _SECTOR_BYTES) * _SECTOR_BYTES, self.size_bytes)
        whole = bytearray(self.pread(begin, end - begin))
        whole[offset - begin : offset - begin + len(data)] = data
        for at in range(0, len(whole), _SECTOR_BYTES):
            self._sectors[(begin + at) // _SECTOR_BYTES] = bytes(whole[at : at + _SECTOR_BYTES])

    def is_replayed(self, offset: int, length: int) -> bool:
        return bool(self._changed(offset, length))

    def _changed(self, offset: int, length: int) -> list[int]:
        """The sectors of a range that are shown otherwise, in order."""
        first, end = offset // _SECTOR_BYTES, -(-(offset + length) // _SECTOR_BYTES)
        if end - first > len(self._sectors):
            return sorted(sector for sector in self._sectors if first <= sector < end)
        return [sector for sector in range(first, end) if sector in self._sectors]

    def pwrite(self, offset: int, data: Buffer) -> Never:  # noqa: ARG002
        _refuse()

    def zero(self, offset: int, length: int) -> Never:  # noqa: ARG002
        _refuse()

    def discard(self, offset: int, length: int) -> Never:  # noqa: ARG002
        _refuse()

    def copy(self, source_offset: int, target_offset: int, length: int) -> Never:  # noqa: ARG002
        _refuse()

    def flush(self) -> None: ...

    def close(self) -> None: ...


def _refuse() -> Never:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


if TYPE_CHECKING:
    _: tuple[type[BlockDevice], type[Replayed]] = (ReplayedDevice, ReplayedDevice)
