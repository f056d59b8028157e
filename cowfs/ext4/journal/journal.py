"""Writing ext4's journal: all metadata changes between two commits reach the device together, or not at all.

    running     blocks changed since the last commit: `MetadataCache.dirty`
    committed   in the log, durable, and not in their places yet: `MetadataCache.committed`

A commit writes a transaction at the end of the log and flushes once. The commit block has a checksum of all the rest,
so that it needs no flush of its own before it; but for file data that the transaction makes visible (ordered mode), and
where a failed commit may have left another transaction of the same number. Blocks come to their places when the log is
used up, or much has gathered; then it starts again from its beginning. So the log takes little space of a thin device,
and what it took can be discarded in the end. Space that a log did not have yet is written to ahead, with zeros, the
more the longer the log is: else every few commits a thin pool would have to commit too, for one more block.

The order of things, each durable before the next:

    mark that there is a journal to replay, in the superblock
    (file data), transaction
    blocks in their places
    the log's new beginning, in the journal's superblock
    the next transaction there; or the end of the mark

Blocks that become free with a transaction may hold something else once it is durable. So what the log has of them is
revoked in it, and they are written no more. A transaction that does not fit into the log, which no ordinary operation
makes, is the caller's to write without.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from cowfs.ext4.journal import journal_format
from cowfs.ext4.journal.journal_file import JournalFile
from cowfs.ext4.journal.journal_format import JournalFormat, crc32
from cowfs.ext4.library.block_runs import Run, blocks_within
from cowfs.ext4.library.filesystem import Filesystem

_LOG_BYTES: Final = 4 << 20
_TRANSACTION_BYTES: Final = 8 << 20
_AHEAD_BYTES: Final = 512 << 10
_AHEAD_UNIT_BYTES: Final = 64 << 10  # as blocks of a thin pool are
_SEQUENCES: Final = 1 << 32
_COMPAT: Final = journal_format.COMPAT_CHECKSUM
_INCOMPAT: Final = journal_format.INCOMPAT_REVOKE | journal_format.INCOMPAT_ASYNC_COMMIT


class _OnDevice(enum.Enum):
    """What the journal's superblock on the device says."""

    EMPTY = enum.auto()
    STARTED = enum.auto()  # where this log begins
    UNKNOWN = enum.auto()  # a write of it failed; all that was committed is in its place


class Journal:
    """The journal of an open volume. Empty, and not marked, until the first commit and after `finish`.

    Raises:
        DamagedJournal: the volume's journal cannot be used.
    """

    def __init__(self, fs: Filesystem, file: JournalFile) -> None:
        self._fs = fs
        self._file = file
        self._superblock = self._file.superblock
        self._is_foreign = bool(self._superblock.start)
        wide = journal_format.INCOMPAT_64BIT if fs.blocks >= 1 << 32 else 0
        self._incompat = _INCOMPAT | wide
        self._format = JournalFormat(fs.block_bytes, self._superblock.uuid, _COMPAT, self._incompat)
        self._first = self._superblock.first
        self._sequence = self._superblock.sequence
        self._head = self._first
        # When it is time to commit: one operation more fits, but for very large ones.
        self.transaction_blocks_max = min(self._capacity // 2, _TRANSACTION_BYTES // fs.block_bytes)
        self._logged: set[int] = set()  # of what the log has copies
        self._on_device = _OnDevice.EMPTY
        self._may_be_there = False  # a commit failed: some of it may be on the device
        self._used_end = self._first

    def prepare(self) -> None:
        """Before the volume is marked: make sure that nothing is in the journal which a replay would take."""
        if not self._is_foreign:
            return
        # Another writer left it, and said that it need not be replayed. None of its transactions has this number.
        self._sequence = (self._sequence + self._superblock.blocks) % _SEQUENCES or 1
        self._file.write_superblock(self._superblock.packed_empty(self._sequence))
        self._fs.flush_device()
        self._is_foreign = False

    @property
    def _capacity(self) -> int:
        return self._superblock.blocks - self._first

    def commit(self, freed: Sequence[Run]) -> bool:
        """Make durable what changed, as one transaction.

        Args:
            freed: blocks that are free with it, and in use before.

        Returns:
            False when it does not fit into the log; nothing was written then.

        Raises:
            OSError: what the device says. Everything is as before, and it may be tried again.
        """
        fs, cache = self._fs, self._fs.cache
        blocks = sorted(cache.dirty.items())
        # As if all of them were to be revoked: which are is known when it is known where the log begins.
        needed = self._format.transaction_blocks(len(blocks), len(self._logged))
        if needed > self._capacity:
            return False
        if self._on_device is _OnDevice.UNKNOWN or self._head + needed > self._end(needed):
            self._restart()
        if fs.has_unflushed_data:
            fs.flush_device()
        revoked = sorted(blocks_within(self._logged, freed))
        transaction = self._format.pack_copies(self._sequence, blocks)
        checksum = crc32(0xFFFFFFFF, b"".join(transaction))
        transaction += self._format.pack_revokes(self._sequence, revoked)
        was_there, self._may_be_there = self._may_be_there, True
        end = self._head + len(transaction) + 1
        is_longer = end > self._used_end
        self._used_end = max(self._used_end, end)
        commit = self._format.pack_commit(self._sequence, checksum, fs.now_ns())
        if was_there:
            self._file.write(self._head, b"".join(transaction))
            fs.flush_device()
            self._file.write(self._head + len(transaction), commit)
        else:
            self._file.write(self._head, b"".join((*transaction, commit)))
        if is_longer:
            self._write_ahead(end)
        if self._on_device is _OnDevice.EMPTY:
            self._write_start()
        fs.flush_device()
        self._may_be_there = False
        self._on_device = _OnDevice.STARTED
        self._head = end
        self._sequence = self._following(self._sequence)
        self._logged.update(block for block, _ in blocks)
        self._logged.difference_update(revoked)
        cache.note_commit(freed)
        return True

    def _write_ahead(self, end: int) -> None:
        """Write zeros where the log will go on: as much again as it has, if the device has space for that.

        Args:
            end: of the log now.
        """
        block_bytes = self._fs.block_bytes
        unit = max(_AHEAD_UNIT_BYTES // block_bytes, 1)
        used = end - self._first
        ahead_end = end + min(used, _AHEAD_BYTES // block_bytes)
        ahead_end = min(-(-ahead_end // unit) * unit, self._end(used))
        self._used_end = max(end, ahead_end)
        if ahead_end > end:
            with suppress(OSError):
                self._file.write(end, bytes((ahead_end - end) * block_bytes))

    def _end(self, needed: int) -> int:
        usable = max(_LOG_BYTES // self._fs.block_bytes, needed)
        return self._first + min(self._capacity, usable)

    def _restart(self) -> None:
        """Bring everything to its place, and begin the log anew."""
        self._checkpoint()
        self._write_start()
        self._fs.flush_device()
        self._on_device = _OnDevice.STARTED

    def _checkpoint(self) -> None:
        """Bring everything to its place, so that nothing of the log is needed any more."""
        self._fs.cache.write_committed()
        self._fs.flush_device()
        self._on_device = _OnDevice.UNKNOWN
        self._head = self._first
        self._logged.clear()

    def _write_start(self) -> None:
        self._file.write_superblock(
            self._superblock.pack(start=self._first, sequence=self._sequence, compat=_COMPAT, incompat=self._incompat)
        )

    def finish(self) -> None:
        """Bring everything to its place, and leave the journal empty, as it was found. Committed before, all of it."""
        if self._on_device is _OnDevice.EMPTY and not self._may_be_there:
            return
        self._checkpoint()
        # A commit that failed may have left a part of the next transaction.
        self._sequence = self._following(self._sequence)
        self._file.write_superblock(self._superblock.packed_empty(self._sequence))
        self._fs.flush_device()
        self._on_device = _OnDevice.EMPTY
        self._may_be_there = False

    def take_used(self) -> list[Run]:
        """Where the log was since the last time; of no use after `finish`."""
        end, self._used_end = self._used_end, self._first
        return list(self._file.places(self._first, end))

    @staticmethod
    def _following(sequence: int) -> int:
        return (sequence + 1) % _SEQUENCES or 1
