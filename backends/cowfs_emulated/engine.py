"""The heart of an emulated pool: its mode, its transaction, its free space.

    EmulatedPool (messages, status, tables)      EmulatedThin (reads, writes, discards)
                    └──────────────┬─────────────────────┘
                                Engine
                  ┌────────────────┴────────────────┐
        Metadata (mappings, counts)          data device (bytes)

A mode only gets worse while the pool runs, except for the two ways back that the kernel has too: free blocks end
OUT_OF_DATA_SPACE at the next commit, and a resume with a new table asks for the table's mode again.

    WRITE ──no free data block──► OUT_OF_DATA_SPACE ──free blocks, new table──► WRITE
      ├──reserve of metadata reached──► OUT_OF_METADATA_SPACE ──metadata grown, new table──► WRITE
      ├──metadata operation failed: abort, needs_check──► READ_ONLY ──repair and reopen──► WRITE
      └──the abort failed──► FAIL ──reopen──► WRITE

Commit order: flush the data device, commit the metadata, then punch what this commit freed out of the data device: as
much as does not delay other requests, and the rest later (`reclaiming`). A crash in between leaves old bytes in a free
block; they never show, because a block is zeroed when the write that provisions it does not cover it.

Near the end of the metadata each change is a separate transaction. One that does not fit is rolled back and fails;
the pool is then OUT_OF_METADATA_SPACE and has lost nothing that it acknowledged.

Source of the rules: Linux 6.1, drivers/md/dm-thin.c, observed. Different on purpose: a write whose data I/O fails
gives its block back; every fresh block reads as zeros, also with skip_block_zeroing; a write that finds no block
commits for what was freed before it (the kernel commits only where it counts no free block, and it counts those).
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from cowfs.blockdev import BlockDevice, StartsFlush
from cowfs.errors import (
    MetadataCorrupt,
    OutOfDataSpace,
    OutOfMetadataSpace,
    PoolError,
    PoolIoError,
    PoolModeError,
)
from cowfs.pool import NoSpacePolicy, PoolMode, PoolTable, refusal_by_mode
from cowfs.thinmeta import Metadata, ThinMapping
from cowfs.thinmeta.format import ENTRIES_PER_BITMAP
from cowfs.units import SECTOR_BYTES
from cowfs_emulated.reclaiming import Reclaiming

COMMIT_PERIOD_SECONDS: Final = 1.0
NO_SPACE_TIMEOUT_SECONDS: Final = 60.0
RECLAIM_BYTES: Final = 64 << 20  # punched at a time: 0.05 s

_MAX_RESERVE_BLOCKS: Final = 4096
_MAX_LOW_WATER_BLOCKS: Final = 1024
# Blocks mapped by one insertion: bounded so that it cannot eat the hidden reserve of metadata blocks; when less than
# _SPARE_METADATA_BLOCKS are left above the reserve, block by block, as the kernel does it.
_RUN_BLOCKS: Final = 1024
_SPARE_METADATA_BLOCKS: Final = 128
# When no more than this is left above the reserve, every change is a separate transaction: paths to shadow in the
# trees, and new homes for as many data bitmaps as one leaf's mappings can be spread over.
_TIGHT_METADATA_BLOCKS: Final = 16
_MAX_BITMAPS_PER_CHANGE: Final = 252


class Follower(Protocol):
    """Called by the engine on the thin devices that are active on it."""

    def note_abort(self) -> None:
        """The transaction is about to be thrown away."""
        ...

    def note_mode(self) -> None:
        """The mode changed."""
        ...


class Engine:
    """One pool's transaction and mode, shared by the pool object and its active thin devices.

    Invariants:
        1. Between two calls no data block is allocated that nothing maps.
        2. `mode` is WRITE only when the metadata does not need a check.
        3. In modes from OUT_OF_METADATA_SPACE on, the metadata has no uncommitted change but the needs_check flag.
        4. `_acknowledged`: the transaction holds changes whose requests have succeeded.
    """

    def __init__(
        self,
        name: str,
        metadata: Metadata,
        data: BlockDevice,
        table: PoolTable,
        *,
        clock: Callable[[], float],
        durable: bool,
        discards_reach_data: bool,
        no_space_timeout_seconds: float,
    ) -> None:
        self.name = name
        self.metadata = metadata
        self.data = data
        self.table = table
        self.block_bytes = table.block_sectors * SECTOR_BYTES
        self.clock = clock
        self.durable = durable
        self.discards_reach_data = discards_reach_data
        self._to_reclaim = Reclaiming()
        self.no_space_timeout_seconds = no_space_timeout_seconds
        self.mode = PoolMode.WRITE
        self.no_space = NoSpacePolicy.QUEUE
        self.event_counter = 0
        self.commits = 0
        self.freed_blocks = 0
        self.data_flushes = 0
        self.followers: list[Follower] = []
        self._queue_deadline = math.inf
        self._low_water_sent = False
        self._acknowledged = False
        self._last_commit = clock()
        self._last_metadata_free = metadata.metadata_free_blocks
        self.bind(table)

    # ------------------------------------------------------------------------------------------ figures

    @property
    def metadata_reserve_blocks(self) -> int:
        """Metadata blocks that the status hides, kept for finishing what was begun."""
        return min(_MAX_RESERVE_BLOCKS, self.metadata.metadata_blocks // 10)

    @property
    def metadata_low_water_blocks(self) -> int:
        return min(_MAX_LOW_WATER_BLOCKS, self.metadata.metadata_blocks // 4)

    def usable_metadata_blocks(self) -> int:
        return max(0, self.metadata.metadata_free_blocks - self.metadata_reserve_blocks)

    @property
    def passes_discards_down(self) -> bool:
        table = self.table
        return self.discards_reach_data and not table.no_discard_passdown and not table.ignore_discard

    # ------------------------------------------------------------------------------------------ mode

    def bind(self, table: PoolTable, *, keep_mode: bool = False) -> None:
        """Put a table in force, as a resume does; a resume without a new table keeps the mode."""
        self.table = table
        self._low_water_sent = False
        self._restore_no_space_policy()
        if not keep_mode:
            self.set_mode(PoolMode.READ_ONLY if table.read_only else PoolMode.WRITE)
        elif self.mode is PoolMode.OUT_OF_DATA_SPACE:
            self._start_queueing()

    def set_mode(self, mode: PoolMode) -> None:
        """Go to a mode, or as near to it as the pool may; a change raises an event."""
        old = self.mode
        if old is PoolMode.FAIL:
            return
        if mode is PoolMode.WRITE and self.metadata.needs_check:
            mode = max(old, PoolMode.READ_ONLY)
        if mode is PoolMode.WRITE:
            self._restore_no_space_policy()
        elif mode is PoolMode.OUT_OF_DATA_SPACE and old is not mode:
            self._start_queueing()
        if mode is not old:
            self.mode = mode
            self.event_counter += 1
            for follower in self.followers:
                follower.note_mode()

    def degrade(self, mode: PoolMode, *, needs_check: bool) -> None:
        """See `cowfs.pool.BreakablePool`. The mode is the one asked for, or a worse one where the pool is in that."""
        self.commit()
        if needs_check and self.mode is not PoolMode.FAIL:
            self.metadata.set_needs_check()
            self.write_needs_check()
        self.set_mode(max(mode, self.mode))

    def set_no_space_timeout(self, seconds: float) -> None:
        self.no_space_timeout_seconds = seconds
        if self.mode is PoolMode.OUT_OF_DATA_SPACE:
            self._start_queueing()

    def _start_queueing(self) -> None:
        self._queue_deadline = self.clock() + (self.no_space_timeout_seconds or math.inf)

    def _restore_no_space_policy(self) -> None:
        self.no_space = NoSpacePolicy.ERROR if self.table.error_if_no_space else NoSpacePolicy.QUEUE
        self._queue_deadline = math.inf

    def queue_seconds_left(self) -> float:
        """How long a write without space may still wait: 0 when it must fail now, infinity when for ever."""
        if self.mode is not PoolMode.OUT_OF_DATA_SPACE or self.no_space is NoSpacePolicy.ERROR:
            return 0.0
        left = self._queue_deadline - self.clock()
        if left > 0:
            return left
        self.no_space = NoSpacePolicy.ERROR
        self.event_counter += 1
        return 0.0

    # ------------------------------------------------------------------------------------------ transaction

    def commit(self) -> None:
        """Make everything so far durable, then check whether the pool ran out of space or has space again.

        Raises:
            PoolIoError (EIO): it failed. The transaction is lost, and the pool is read-only or failed.
            PoolModeError (EIO): it did not fit the metadata, and held nothing that was acknowledged.
        """
        if self.mode >= PoolMode.OUT_OF_METADATA_SPACE:
            return
        if self.metadata.changed:
            try:
                self.flush_data()
                freed = self.metadata.commit()
            except OSError as error:
                raise self.operation_failed("commit", error) from error
            self.commits += 1
            self.freed_blocks += sum(length for _, length in freed)
            self._to_reclaim.add(freed)
            self.reclaim()
        self._acknowledged = False
        self._last_commit = self.clock()
        self._last_metadata_free = self.metadata.metadata_free_blocks
        if not self.usable_metadata_blocks():
            self.set_mode(PoolMode.OUT_OF_METADATA_SPACE)
        elif self.mode is PoolMode.OUT_OF_DATA_SPACE and self.metadata.data_free_blocks:
            self.set_mode(PoolMode.WRITE)

    def flush_data(self) -> None:
        if self.durable:
            self.data.flush()
            self.data_flushes += 1

    def start_flush_data(self) -> None:
        if self.durable and isinstance(self.data, StartsFlush):
            self.data.start_flush()

    def commit_when_due(self) -> None:
        """The periodic commit: something changed, and the last commit is more than a second ago."""
        if self.metadata.changed and self.clock() - self._last_commit > COMMIT_PERIOD_SECONDS:
            self.commit()

    def before_change(self) -> None:
        """Near the end of the metadata, make sure that a change which does not fit takes nothing else with it."""
        if self._acknowledged and self._is_tight():
            self.commit()

    def commit_change(self) -> None:
        """As `changed`, of a change that is committed at once."""
        self._note_metadata_low_water()
        self._acknowledged |= not self._is_tight()
        self.commit()

    def _note_metadata_low_water(self) -> None:
        free = self.metadata.metadata_free_blocks
        if free <= self.metadata_low_water_blocks < self._last_metadata_free:
            self.event_counter += 1
        self._last_metadata_free = free

    def changed(self) -> None:
        """Look after space and time once a change is complete, just before it is acknowledged."""
        self._note_metadata_low_water()
        if self._is_tight() or self.clock() - self._last_commit > COMMIT_PERIOD_SECONDS:
            self.commit()
        else:
            self._acknowledged = True

    def _is_tight(self) -> bool:
        metadata = self.metadata
        bitmaps = min(metadata.data_blocks // ENTRIES_PER_BITMAP, _MAX_BITMAPS_PER_CHANGE)
        return metadata.metadata_free_blocks - self.metadata_reserve_blocks <= _TIGHT_METADATA_BLOCKS + bitmaps

    def operation_failed(self, operation: str, cause: OSError) -> PoolError:
        """Abort to the last commit and degrade the pool; returns the error to raise."""
        if isinstance(cause, OutOfMetadataSpace) and not self._acknowledged and self.roll_back():
            self.set_mode(PoolMode.OUT_OF_METADATA_SPACE)
            return self.mode_error(operation, errno.EIO)
        if self.mode < PoolMode.READ_ONLY:
            if self.roll_back():
                self.metadata.set_needs_check()
                self.write_needs_check()
            self.set_mode(PoolMode.READ_ONLY)
        state = "failed; close it" if self.mode is PoolMode.FAIL else "read-only until it is checked and repaired"
        return PoolIoError(
            f"pool '{self.name}': {operation} failed ({cause.strerror or cause}); changes since the last commit are "
            f"lost and the pool is {state}"
        )

    def roll_back(self) -> bool:
        """Throw the transaction away; False when that failed too, and with it the pool."""
        for follower in self.followers:
            follower.note_abort()
        try:
            self.metadata.abort()
        except OSError:
            self.set_mode(PoolMode.FAIL)
            return False
        self._acknowledged = False
        self._last_metadata_free = self.metadata.metadata_free_blocks
        return True

    def write_needs_check(self) -> None:
        """Try to get the needs_check flag onto the disk; `close` tries again, since the fault may pass."""
        if self.mode is PoolMode.FAIL or not (self.metadata.needs_check and self.metadata.changed):
            return
        try:
            self.metadata.commit()
        except OSError:
            if self.roll_back():
                self.metadata.set_needs_check()

    def reclaim(self, *, everything: bool = False) -> None:
        """Give freed data blocks back to the data device, some or all; a refusal only costs space."""
        if self.mode >= PoolMode.READ_ONLY:
            return
        block_bytes = self.block_bytes
        most_blocks = self.metadata.data_blocks if everything else RECLAIM_BYTES // block_bytes + 1
        for dblock, length in self._to_reclaim.take(most_blocks):
            if self.passes_discards_down:
                with suppress(OSError):
                    self.data.discard(dblock * block_bytes, length * block_bytes)

    # ------------------------------------------------------------------------------------------ data blocks

    def allocate(self, count: int, *, following: int = 0) -> tuple[int, int]:
        """A run of free data blocks as (first, length), at most `count` long.

        The caller writes the data and then calls `insert`, or `release`.

        Args:
            following: blocks that the same request asks for after these. The kernel takes all of them before it inserts
                the first, and the low water mark is looked at as if it were so here.

        Raises:
            OutOfDataSpace (ENOSPC): none left, also after a commit.
            PoolModeError (EIO): the pool's mode allows no provisioning.
            PoolIoError (EIO): the metadata failed.
        """
        metadata = self.metadata
        if self.mode is not PoolMode.WRITE:
            self._require_space()
        self.before_change()
        if not self.usable_metadata_blocks():
            # Left by the last user: a pool opens rw whatever its metadata has left, and the commit sees what it is.
            self.commit()
            self._require_space()
        self._note_low_water(metadata.data_free_blocks - count - following + 1)
        try:
            dblock, length = self._take(count)
        except OutOfDataSpace:
            # What this transaction freed is available after its commit.
            self.commit()
            self._require_space()
            try:
                dblock, length = self._take(count)
            except OutOfDataSpace:
                if free := metadata.data_free_blocks:  # else each commit would let the writes that wait try again
                    damage = MetadataCorrupt(f"{free} data blocks are counted as free, and none is", block=-1)
                    raise self.operation_failed("allocating a data block", damage) from damage
                self.set_mode(PoolMode.OUT_OF_DATA_SPACE)
                raise self._no_space_error() from None
        return dblock, length

    def _take(self, count: int) -> tuple[int, int]:
        """Raises OutOfDataSpace: nothing is free in this transaction."""
        try:
            dblock, length = self.metadata.allocate_data(min(count, self._run_limit()))
        except OutOfDataSpace:
            raise
        except OSError as error:
            raise self.operation_failed("allocating a data block", error) from error
        if self._to_reclaim:
            self._to_reclaim.withdraw(dblock, length)
        return dblock, length

    def _run_limit(self) -> int:
        free = self.metadata.metadata_free_blocks - self.metadata_reserve_blocks
        return _RUN_BLOCKS if free > _SPARE_METADATA_BLOCKS else 1

    def release(self, dblock: int, length: int) -> None:
        """Give back an allocation whose data could not be written."""
        try:
            self.metadata.release_data(dblock, length)
        except OSError as error:
            raise self.operation_failed("releasing a data block", error) from error

    def insert(self, mapping: ThinMapping, vblock: int, dblock: int, length: int) -> None:
        """Map an allocated run whose data is in place."""
        try:
            mapping.insert(vblock, dblock, length)
        except OSError as error:
            raise self.operation_failed(f"mapping a block of thin {mapping.thin_id}", error) from error
        self.changed()

    def remove(self, mapping: ThinMapping, begin: int, end: int) -> int:
        """Unmap virtual blocks, and return how many were mapped.

        A pool that cannot change its metadata lets it pass, as the kernel does.
        """
        if self.mode >= PoolMode.OUT_OF_METADATA_SPACE:
            return 0
        self.before_change()
        try:
            removed = mapping.remove(begin, end)
        except OSError as error:
            raise self.operation_failed(f"unmapping blocks of thin {mapping.thin_id}", error) from error
        if removed:
            self.changed()
        return removed

    def lookup(self, mapping: ThinMapping, vblock: int, count: int) -> list[tuple[int, int, int]]:
        """`mapping.lookup` for the data path: metadata that cannot be read or are damaged are EIO, as is a mapping past
        the end of the data.
        """
        try:
            runs = mapping.lookup(vblock, count)
        except OSError as error:
            reason = error.strerror or str(error)
            raise PoolIoError(f"pool '{self.name}', thin {mapping.thin_id}, block {vblock}: {reason}") from error
        end = self.metadata.data_blocks
        for length, dblock, _ in runs:
            if dblock + length > end and dblock >= 0:
                raise PoolIoError(
                    f"pool '{self.name}', thin {mapping.thin_id}: mapped to data block {dblock + length - 1} of {end}"
                )
        return runs

    def _require_space(self) -> None:
        """Raise unless the pool can provision; blocks freed since the last commit are harvested first."""
        if self.mode is PoolMode.OUT_OF_DATA_SPACE and self.metadata.changed:
            self.commit()
        if self.mode is PoolMode.OUT_OF_DATA_SPACE:
            raise self._no_space_error()
        if self.mode is not PoolMode.WRITE:
            raise self.mode_error("a write to a new block", errno.EIO)

    def _no_space_error(self) -> OutOfDataSpace:
        total = self.metadata.data_blocks
        return OutOfDataSpace(
            f"pool '{self.name}' is out of data space: none of its {total} data blocks is free; "
            "grow it, or delete or discard something",
            may_queue=self.queue_seconds_left() > 0,
        )

    def mode_error(self, request: str, number: int) -> PoolModeError:
        needs_check = self.metadata.needs_check
        return refusal_by_mode(request, self.name, self.mode, needs_check=needs_check, errno=number)

    def _note_low_water(self, free: int) -> None:
        if free <= self.table.low_water_blocks and not self._low_water_sent:
            self._low_water_sent = True
            self.event_counter += 1
