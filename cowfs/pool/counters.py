"""What a pool and its thins have done since the pool was opened. The on-disk format keeps none of it.

A figure that a backend cannot tell is None, and left out of JSON; it is never 0. Blocks are data blocks.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec

from cowfs.pool.interface import Pool


class ThinCounters(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was asked of a thin, or of several, and what that took.

    `provisioned_blocks` were given to virtual blocks that had none, `copied_blocks` to such as were shared (break
    sharing); `unmapped_blocks` were taken by discards. Where a write did not cover such a block whole, its rest was
    copied, `copied_bytes`, or made zeros, `zeroed_bytes`; both count the whole block. A sparse file has zeros without
    their being written.
    """

    reads: int | None = None
    read_bytes: int | None = None
    writes: int | None = None
    written_bytes: int | None = None
    discards: int | None = None
    discarded_bytes: int | None = None
    flushes: int | None = None
    provisioned_blocks: int | None = None
    copied_blocks: int | None = None
    copied_bytes: int | None = None
    zeroed_bytes: int | None = None
    unmapped_blocks: int | None = None

    @classmethod
    def total(cls, parts: list[ThinCounters]) -> ThinCounters:
        """The sum; a figure that one of the parts cannot tell is one that the sum cannot."""
        if not parts:
            return cls()
        columns = zip(*map(msgspec.structs.astuple, parts), strict=True)
        return cls(*(None if None in column else sum(column) for column in columns))


class WriteAmplification(msgspec.Struct, frozen=True, omit_defaults=True):
    """Bytes written for each byte that was asked to be: in all, and in excess by cause. The causes add up: zeros that a
    sparse file has without their being written are in none.
    """

    total: float | None = None
    copied: float | None = None
    zeroed: float | None = None
    metadata: float | None = None


class PoolCounters(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a pool has done.

    `requests` is the sum over its thins, those that were deleted too. `freed_blocks` lost their last owner.
    `data_written_bytes` and `metadata_written_bytes` were written to the two devices, and `data_flushes` were flushes
    of the first. `metadata_written_blocks` are of 4 KiB.
    """

    requests: ThinCounters = ThinCounters()
    freed_blocks: int | None = None
    commits: int | None = None
    data_written_bytes: int | None = None
    data_flushes: int | None = None
    metadata_written_blocks: int | None = None
    metadata_written_bytes: int | None = None

    def write_amplification(self, for_bytes: int | None = None) -> WriteAmplification:
        """For each byte asked of the pool, or each of `for_bytes` that led to that. Empty without any."""
        asked = self.requests.written_bytes
        base = asked if for_bytes is None else for_bytes
        if not base:
            return WriteAmplification()

        def share(part: int | None) -> float | None:
            return None if part is None else part / base

        total = None
        if self.data_written_bytes is not None and self.metadata_written_bytes is not None:
            total = self.data_written_bytes + self.metadata_written_bytes
        copied, zeroed = self.requests.copied_bytes, None
        if copied is not None and asked is not None and self.data_written_bytes is not None:
            zeroed = max(self.data_written_bytes - asked - copied, 0)
        return WriteAmplification(share(total), share(copied), share(zeroed), share(self.metadata_written_bytes))


class Counters(msgspec.Struct, frozen=True):
    """Of a pool, and of each of its thins that was in use since it was opened and is still there."""

    pool: PoolCounters
    thins: dict[int, ThinCounters]


@runtime_checkable
class CountingPool(Pool, Protocol):
    """A pool that counts what it does."""

    def counters(self) -> Counters: ...
