"""Block devices for tests: one that fails on request. One that records is in `cowfs.recording.journal`."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from cowfs.blockdev import BlockDevice, Buffer, MemoryDevice

ALL_OPERATIONS: Final = frozenset({"read", "write", "discard", "flush"})


class _Wrapper:
    """Passes everything on to `inner`."""

    def __init__(self, inner: BlockDevice) -> None:
        self.inner = inner

    @property
    def size_bytes(self) -> int:
        return self.inner.size_bytes

    def refresh_size(self) -> int:
        """See that the device grew, where it is one that has to look."""
        refresh = getattr(self.inner, "refresh_size", None)
        return int(refresh()) if refresh else self.inner.size_bytes

    def close(self) -> None:
        self.inner.close()


@dataclass(slots=True)
class Fault:
    """A rule of a `FaultyDevice`; `seen` and `failed` count what matched it and what it made fail.

    Args:
        operations: of `read`, `write` (zeroing and the target of a copy too), `discard`, `flush`.
        begin, end: the bytes it is about; an operation matches when it touches one of them. Flushes always match.
        after: how many matching operations pass first.
        times: how many then fail; None for all.
    """

    operations: Collection[str] = ALL_OPERATIONS
    begin: int = 0
    end: int | None = None
    after: int = 0
    times: int | None = None
    number: int = errno.EIO
    seen: int = 0
    failed: int = 0

    def hits(self, operation: str, offset: int, length: int) -> bool:
        """Count an operation; whether it must fail."""
        if operation not in self.operations:
            return False
        if operation != "flush" and (offset + length <= self.begin or (self.end is not None and offset >= self.end)):
            return False
        self.seen += 1
        if self.seen <= self.after or (self.times is not None and self.failed >= self.times):
            return False
        self.failed += 1
        return True


class FaultyDevice(_Wrapper):
    """Fails as its `faults` say. A failing operation does nothing else.

    device.fail(Fault({"write"}, after=2, times=1))     the third write fails
    device.fail(Fault({"read"}, begin=4096, end=8192))  one block cannot be read
    device.fail(Fault())                                nothing works any more
    device.heal()                                       everything does
    """

    def __init__(self, inner: BlockDevice) -> None:
        super().__init__(inner)
        self.faults: list[Fault] = []

    def fail(self, fault: Fault) -> Fault:
        self.faults.append(fault)
        return fault

    def heal(self) -> None:
        self.faults.clear()

    def _meet(self, operation: str, offset: int = 0, length: int = 0) -> None:
        for fault in self.faults:
            if fault.hits(operation, offset, length):
                raise OSError(fault.number, f"{os.strerror(fault.number)} (injected into {operation} at {offset:#x})")

    def pread(self, offset: int, length: int) -> bytes:
        self._meet("read", offset, length)
        return self.inner.pread(offset, length)

    def pwrite(self, offset: int, data: Buffer) -> None:
        self._meet("write", offset, len(data))
        self.inner.pwrite(offset, data)

    def zero(self, offset: int, length: int) -> None:
        self._meet("write", offset, length)
        self.inner.zero(offset, length)

    def discard(self, offset: int, length: int) -> None:
        self._meet("discard", offset, length)
        self.inner.discard(offset, length)

    def copy(self, source_offset: int, target_offset: int, length: int) -> None:
        self._meet("read", source_offset, length)
        self._meet("write", target_offset, length)
        self.inner.copy(source_offset, target_offset, length)

    def flush(self) -> None:
        self._meet("flush")
        self.inner.flush()


def memory_device(image: bytes | bytearray) -> MemoryDevice:
    """A device in memory that holds a copy of an image."""
    return MemoryDevice(bytearray(image))
