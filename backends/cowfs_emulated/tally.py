"""Counting what an emulated pool does: see `cowfs.pool.counters` for what each figure means."""

from __future__ import annotations

from typing import Final

from cowfs.blockdev import BlockDevice, Buffer, writer_through
from cowfs.pool import ThinCounters

_FIELDS: Final = ThinCounters.__struct_fields__


class Tally:
    """The counters of one thin, which its data path adds to."""

    __slots__ = _FIELDS

    def __init__(self) -> None:
        self.reads = 0
        self.read_bytes = 0
        self.writes = 0
        self.written_bytes = 0
        self.discards = 0
        self.discarded_bytes = 0
        self.flushes = 0
        self.provisioned_blocks = 0
        self.copied_blocks = 0
        self.copied_bytes = 0
        self.zeroed_bytes = 0
        self.unmapped_blocks = 0

    def report(self) -> ThinCounters:
        return ThinCounters(*(getattr(self, field) for field in _FIELDS))


class MeteredDevice:
    """The metadata device of a pool, counting what is written to it.

    Args:
        durable: False has flushes do nothing.
    """

    def __init__(self, inner: BlockDevice, *, durable: bool) -> None:
        self._inner = inner
        self._durable = durable
        self.written_bytes = 0
        self._write_through = writer_through(inner) if durable else inner.pwrite
        self.pread = inner.pread
        self.zero = inner.zero
        self.discard = inner.discard
        self.copy = inner.copy

    @property
    def size_bytes(self) -> int:
        return self._inner.size_bytes

    def pwrite(self, offset: int, data: Buffer) -> None:
        self._inner.pwrite(offset, data)
        self.written_bytes += len(data)

    def pwrite_and_flush(self, offset: int, data: Buffer) -> None:
        self._write_through(offset, data)
        self.written_bytes += len(data)

    def flush(self) -> None:
        if self._durable:
            self._inner.flush()

    def close(self) -> None:
        self._inner.close()
