"""Reading from the device of a volume, and the bounded caches of what was read."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar, runtime_checkable

from cowfs.blockdev import BlockDevice
from cowfs.xfs.format.headers import HeaderKind, require
from cowfs.xfs.format.superblock import Superblock, damaged

_K = TypeVar("_K")
_V = TypeVar("_V")


@runtime_checkable
class Replayed(Protocol):
    """A device may have this: it shows parts as the log has them."""

    def is_replayed(self, offset: int, length: int) -> bool: ...


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Blocks:
    """The blocks of a volume. Addresses are fsblocks, as the superblock counts."""

    def __init__(self, device: BlockDevice, sb: Superblock) -> None:
        self.device = device
        self.sb = sb
        self._replayed = device if isinstance(device, Replayed) else None

    def is_replayed(self, offset: int, length: int) -> bool:
        return self._replayed is not None and self._replayed.is_replayed(offset, length)

    def offset(self, fsblock: int, count: int, what: str) -> int:
        """Where blocks lie on the device [bytes]. Raises FilesystemError for what `what` cannot refer to."""
        offset = self.sb.offset_of(fsblock, count)
        if offset is None:
            raise damaged(f"{what} refers to {count} blocks from {fsblock}, which are not in the file system")
        return offset

    def read(self, fsblock: int, count: int, what: str) -> bytes:
        return self.device.pread(self.offset(fsblock, count, what), count << self.sb.block_log)

    def read_checked(self, kind: HeaderKind, fsblocks: list[int], owner: int) -> tuple[bytes, int]:
        """A block of metadata, which is in one or several blocks of the file system, and where it begins [bytes]."""
        what = f"inode {owner}"
        data = b"".join(self.read(fsblock, 1, what) for fsblock in fsblocks)
        offset = self.offset(fsblocks[0], 1, what)
        replayed = any(self.is_replayed(self.offset(fsblock, 1, what), self.sb.block_bytes) for fsblock in fsblocks)
        require(self.sb, kind, data, offset, owner, is_replayed=replayed)
        return data, offset


class Cache(Generic[_K, _V]):
    """What was used last.

    Args:
        weight_max: of all values together; the one used last is kept whatever its weight.
        weight: of a value; 1 when None.
    """

    def __init__(self, weight_max: int, weight: Callable[[_V], int] | None = None) -> None:
        self._weight_max = self._limit = weight_max
        self._weight = weight or (lambda _: 1)
        self._values: OrderedDict[_K, _V] = OrderedDict()
        self._total = 0

    def get(self, key: _K) -> _V | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: _K, value: _V) -> _V:
        assert key not in self._values
        self._values[key] = value
        self._total += self._weight(value)
        self._shrink()
        return value

    def limit(self, share: float) -> None:
        """Keep this part of the weight only."""
        self._limit = int(self._weight_max * share)
        self._shrink()

    def _shrink(self) -> None:
        while self._total > self._limit and len(self._values) > 1:
            _, value = self._values.popitem(last=False)
            self._total -= self._weight(value)

    def clear(self) -> None:
        self._values.clear()
        self._total = 0


def closed() -> OSError:
    return os_error(errno.ESHUTDOWN)
