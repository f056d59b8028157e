"""Reading a journal's log: which blocks of the volume have newer content in it.

The log ends where no complete transaction follows. A complete transaction, with its commit block, and does not fit
its checksums was cut short by a crash if it is the last one, and is damage otherwise, or where the commit block was
written only after the rest. Whatever the bytes are, the outcome is a list of blocks or `DamagedJournal`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cowfs.ext4.journal import journal_format
from cowfs.ext4.journal.journal_format import MAGIC, MAGIC_BYTES, DamagedJournal, JournalSuperblock, crc32

_SEED: Final = 0xFFFFFFFF
_SEQUENCES: Final = 1 << 32


class Copy(NamedTuple):
    """Where in the journal a block's content is."""

    journal_block: int
    is_escaped: bool

    def restored(self, data: bytes) -> bytes:
        """The content, from what the journal has."""
        return MAGIC_BYTES + data[4:] if self.is_escaped else data


@dataclass(slots=True)
class Replay:
    """What a log says.

    `copies` are by number of the block in the volume; `sequence` is one that no transaction in the log has.
    """

    copies: dict[int, Copy]
    sequence: int
    transactions: int


@dataclass(slots=True)
class _Transaction:
    copies: list[tuple[int, Copy]] = field(default_factory=list)
    revoked: list[int] = field(default_factory=list)
    is_whole: bool = True


class _Log:
    def __init__(self, superblock: JournalSuperblock, read: Callable[[int], bytes]) -> None:
        self._superblock = superblock
        self._format = superblock.format()
        self._read = read
        self._position = superblock.start
        self._passed = 0

    def transactions(self) -> list[_Transaction]:
        found = []
        sequence = self._superblock.sequence
        while (transaction := self._next(sequence)) is not None:
            sequence = (sequence + 1) % _SEQUENCES
            if not transaction.is_whole:
                if self._passed < self._superblock.blocks and self._is_of(self._read(self._position), sequence):
                    raise DamagedJournal(f"has a damaged transaction before transaction {sequence}")
                break
            found.append(transaction)
        return found

    def _next(self, sequence: int) -> _Transaction | None:
        """The transaction that begins here; None when there is none with its commit block."""
        transaction = _Transaction()
        checksum = _SEED
        while self._passed < self._superblock.blocks:
            block = self._read(self._position)
            if not self._is_of(block, sequence):
                return None
            self._advance()
            kind = journal_format.read_header(block).kind
            if kind == journal_format.DESCRIPTOR:
                checksum = self._take_copies(transaction, sequence, block, checksum)
            elif kind == journal_format.REVOKE:
                revoked = self._format.revoked(block)
                transaction.is_whole &= revoked is not None and self._format.has_right_tail(block)
                transaction.revoked += revoked or []
            elif kind == journal_format.COMMIT:
                self._judge(transaction, sequence, self._format.is_committed(block, checksum))
                return transaction
            else:
                return None
        return None

    def _judge(self, transaction: _Transaction, sequence: int, is_committed: bool) -> None:
        if is_committed and not transaction.is_whole and not self._format.is_async:
            raise DamagedJournal(f"has wrong checksums in transaction {sequence}")
        transaction.is_whole &= is_committed

    def _take_copies(self, transaction: _Transaction, sequence: int, block: bytes, checksum: int) -> int:
        transaction.is_whole &= self._format.has_right_tail(block)
        has_checksums = self._format.has_block_checksums or self._format.has_commit_checksum
        pieces = [block]
        for tag in self._format.tags(block):
            transaction.copies.append((tag.block, Copy(self._position, tag.is_escaped)))
            if has_checksums:
                pieces.append(self._read(self._position))
                transaction.is_whole &= self._format.has_right_copy(tag, sequence, pieces[-1])
            self._advance()
            if self._passed >= self._superblock.blocks:
                break
        return crc32(checksum, b"".join(pieces)) if self._format.has_commit_checksum else checksum

    @staticmethod
    def _is_of(block: bytes, sequence: int) -> bool:
        header = journal_format.read_header(block)
        return header.magic == MAGIC and header.sequence == sequence

    def _advance(self) -> None:
        self._position += 1
        if self._position >= self._superblock.blocks:
            self._position = self._superblock.first
        self._passed += 1


def read_log(superblock: JournalSuperblock, read: Callable[[int], bytes]) -> Replay:
    """Go through a log.

    Args:
        read: a block of the journal by its number in it.

    Raises:
        DamagedJournal: the log cannot be read.
        OSError: what `read` raises.
    """
    transactions = _Log(superblock, read).transactions() if superblock.start else []
    revoked_in: dict[int, int] = {}
    for index, transaction in enumerate(transactions):
        revoked_in.update(dict.fromkeys(transaction.revoked, index))
    copies = {
        block: copy
        for index, transaction in enumerate(transactions)
        for block, copy in transaction.copies
        if revoked_in.get(block, -1) < index
    }
    # One more than the next: of that there may be a part.
    sequence = (superblock.sequence + len(transactions) + 1) % _SEQUENCES
    return Replay(copies, sequence or 1, len(transactions))
