"""What ext4's journal (jbd2) looks like: its superblock, and the blocks of a transaction.

The journal is a file of blocks of the volume's size; all integers are big-endian. Block 0 holds its superblock, the log
begins at `first` and wraps around at the end. A transaction is

    (descriptor block, copies of the blocks that it names)*   (revoke block)*   commit block

in any order but for the commit block, which is last. Each of these but the copies begins with

    0x0  4  magic 0xC03B3998      0x4  4  kind      0x8  4  sequence, the transaction's number

    superblock: 0x0C block size   0x10 blocks   0x14 first   0x18 sequence expected next
                0x1C start of the log, 0: empty   0x20 error   0x24 compatible, 0x28 incompatible features
                0x30 UUID   0xFC checksum
    descriptor: from 0x0C tags: block number, flags, checksum; the first is followed by the UUID, 16 bytes
    revoke:     0x0C bytes used, 0x10 block numbers: copies of these in this and in earlier transactions do not count
    commit:     0x0C kind and size of checksum   0x10 checksum   0x30 seconds   0x38 nanoseconds

A copy that would begin with the magic has zeros there, and its tag says so. Features decide about the rest: `64BIT` how
wide block numbers are; `CSUM_V2`, `CSUM_V3` that every block carries a checksum; `CHECKSUM`, which is older, that the
commit block carries one of all descriptors and copies, so that with `ASYNC_COMMIT` it may be written along with them.

Sources: Linux Documentation/filesystems/ext4/journal.rst, include/linux/jbd2.h, fs/jbd2/recovery.c.
"""

from __future__ import annotations

import errno
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from cowfs.errors import FilesystemError
from cowfs.ext4.format.checksums import crc32c

MAGIC: Final = 0xC03B3998
MAGIC_BYTES: Final = MAGIC.to_bytes(4, "big")
SUPERBLOCK_BYTES: Final = 1024

DESCRIPTOR: Final = 1
COMMIT: Final = 2
SUPERBLOCK_V2: Final = 4
REVOKE: Final = 5

COMPAT_CHECKSUM: Final = 0x01
INCOMPAT_REVOKE: Final = 0x01
INCOMPAT_64BIT: Final = 0x02
INCOMPAT_ASYNC_COMMIT: Final = 0x04
INCOMPAT_CSUM_V2: Final = 0x08
INCOMPAT_CSUM_V3: Final = 0x10
INCOMPAT_FAST_COMMIT: Final = 0x20
_CSUM: Final = INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3
_KNOWN_COMPAT: Final = COMPAT_CHECKSUM
_KNOWN_INCOMPAT: Final = INCOMPAT_REVOKE | INCOMPAT_64BIT | INCOMPAT_ASYNC_COMMIT | _CSUM

_TAG_ESCAPED: Final = 1
_TAG_SAME_UUID: Final = 2
_TAG_LAST: Final = 8

_HEADER: Final = struct.Struct(">III")
_UUID_BYTES: Final = 16
_TAIL_BYTES: Final = 4
_REVOKE_BEGIN: Final = 16
_CRC32: Final = 1
# A revoke block is not covered by the commit block's checksum: so what it says fits into one sector, which a disk
# writes whole or not at all.
_REVOKE_END: Final = 512
_ONES: Final = 0xFFFFFFFF
_MIRRORED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class DamagedJournal(FilesystemError):
    """The journal cannot be replayed in process: damaged, or of a kind that cowfs does not know."""

    def __init__(self, what: str) -> None:
        super().__init__(f"ext4's journal {what}; run a check with repair", errno=errno.EUCLEAN)


class Header(NamedTuple):
    magic: int
    kind: int
    sequence: int


class Tag(NamedTuple):
    """A copy in the log: of which block, and how it was stored."""

    block: int
    is_escaped: bool
    checksum: int


@dataclass(frozen=True, slots=True)
class JournalSuperblock:
    """The fields that say where the log is and how its blocks look. `raw` are the 1024 bytes as they are."""

    block_bytes: int
    blocks: int
    first: int
    sequence: int
    start: int
    error: int
    compat: int
    incompat: int
    uuid: bytes
    raw: bytes

    @classmethod
    def unpack(cls, raw: bytes) -> JournalSuperblock:
        """Raises DamagedJournal."""
        header = read_header(raw)
        if header.magic != MAGIC or header.kind != SUPERBLOCK_V2:
            raise DamagedJournal(f"has no superblock of version 2: magic {header.magic:#x}, kind {header.kind}")
        block_bytes, blocks, first, sequence, start, error = struct.unpack_from(">IIIIII", raw, 0x0C)
        compat, incompat = struct.unpack_from(">II", raw, 0x24)
        unknown = incompat & ~_KNOWN_INCOMPAT or compat & ~_KNOWN_COMPAT
        if unknown:
            raise DamagedJournal(f"uses features that cowfs does not replay ({unknown:#x})")
        found = cls(block_bytes, blocks, first, sequence, start, error, compat, incompat, raw[0x30:0x40], raw)
        has_both = incompat & _CSUM == _CSUM or (incompat & _CSUM and compat & COMPAT_CHECKSUM)
        if has_both or (incompat & _CSUM and struct.unpack_from(">I", raw, 0xFC)[0] != _superblock_checksum(raw)):
            raise DamagedJournal("has a superblock with a wrong checksum")
        if not 1 <= first < blocks or (start and not first <= start < blocks):
            raise DamagedJournal(f"has {blocks} blocks, a log from {first} and a start at {start}")
        return found

    def pack(self, *, start: int, sequence: int, compat: int, incompat: int) -> bytes:
        """The 1024 bytes, with other fields, and no error."""
        raw = bytearray(self.raw)
        struct.pack_into(">III", raw, 0x18, sequence, start, 0)
        struct.pack_into(">II", raw, 0x24, compat, incompat)
        if incompat & _CSUM:
            struct.pack_into(">I", raw, 0xFC, _superblock_checksum(bytes(raw)))
        return bytes(raw)

    def packed_empty(self, sequence: int) -> bytes:
        """The 1024 bytes of the journal with nothing in it."""
        return self.pack(start=0, sequence=sequence, compat=self.compat, incompat=self.incompat)

    def format(self) -> JournalFormat:
        return JournalFormat(self.block_bytes, self.uuid, self.compat, self.incompat)


def read_header(block: bytes) -> Header:
    return Header(*_HEADER.unpack_from(block))


def _superblock_checksum(raw: bytes) -> int:
    return crc32c(_ONES, raw[:0xFC] + bytes(4) + raw[0x100:SUPERBLOCK_BYTES])


def crc32(seed: int, data: bytes) -> int:
    """CRC-32 with the highest bit first, not inverted, as the checksum of whole transactions is."""
    mirrored = zlib.crc32(data.translate(_MIRRORED), _mirror(seed) ^ _ONES) ^ _ONES
    return _mirror(mirrored)


def _mirror(word: int) -> int:
    return int.from_bytes(word.to_bytes(4, "little").translate(_MIRRORED), "big")


class JournalFormat:
    """How blocks of a journal look, by its features."""

    def __init__(self, block_bytes: int, uuid: bytes, compat: int, incompat: int) -> None:
        self.block_bytes = block_bytes
        self.has_block_checksums = bool(incompat & _CSUM)
        self.has_commit_checksum = bool(compat & COMPAT_CHECKSUM)
        self.is_async = bool(incompat & INCOMPAT_ASYNC_COMMIT)
        self._uuid = uuid
        self._seed = crc32c(_ONES, uuid)
        self._is_v3 = bool(incompat & INCOMPAT_CSUM_V3)
        self._number = struct.Struct(">Q" if incompat & INCOMPAT_64BIT else ">I")
        self._is_64bit = bool(incompat & INCOMPAT_64BIT)
        if self._is_v3:
            self._tag_bytes = 16
        else:
            self._tag_bytes = 8 + 4 * self._is_64bit + 2 * bool(incompat & INCOMPAT_CSUM_V2)
        self._end = block_bytes - _TAIL_BYTES * self.has_block_checksums
        self.tags_per_block = (self._end - _HEADER.size - _UUID_BYTES) // self._tag_bytes
        self.revokes_per_block = (_REVOKE_END - _REVOKE_BEGIN) // self._number.size

    # Reading. What is read may be anything; it is decoded, and nothing else is done with it.

    def tags(self, block: bytes) -> Iterator[Tag]:
        """What a descriptor block names."""
        offset = _HEADER.size
        while offset + self._tag_bytes <= self._end:
            if self._is_v3:
                low, flags, high, checksum = struct.unpack_from(">IIII", block, offset)
            else:
                low, checksum, flags = struct.unpack_from(">IHH", block, offset)
                high = struct.unpack_from(">I", block, offset + 8)[0] if self._is_64bit else 0
            yield Tag(low | high << 32 if self._is_64bit else low, bool(flags & _TAG_ESCAPED), checksum)
            if flags & _TAG_LAST:
                return
            offset += self._tag_bytes + (0 if flags & _TAG_SAME_UUID else _UUID_BYTES)

    def revoked(self, block: bytes) -> list[int] | None:
        """What a revoke block names; None when it cannot be right."""
        (used,) = struct.unpack_from(">I", block, _HEADER.size)
        if not _REVOKE_BEGIN <= used <= self._end:
            return None
        used -= (used - _REVOKE_BEGIN) % self._number.size
        return [number for (number,) in self._number.iter_unpack(block[_REVOKE_BEGIN:used])]

    def has_right_tail(self, block: bytes) -> bool:
        """Whether the checksum of a descriptor or revoke block fits; also where there is none."""
        if not self.has_block_checksums:
            return True
        (stored,) = struct.unpack_from(">I", block, self._end)
        return bool(stored == crc32c(self._seed, block[: self._end] + bytes(4)))

    def has_right_copy(self, tag: Tag, sequence: int, copy: bytes) -> bool:
        """Whether a copy is what its tag says; also where there are no checksums."""
        if not self.has_block_checksums:
            return True
        found = crc32c(crc32c(self._seed, sequence.to_bytes(4, "big")), copy)
        return tag.checksum == (found if self._is_v3 else found & 0xFFFF)

    def is_committed(self, block: bytes, checksum: int) -> bool:
        """Whether a commit block ends a transaction whose descriptors and copies have a checksum."""
        kind, size, stored = struct.unpack_from(">BBxxI", block, _HEADER.size)
        if self.has_block_checksums:
            return bool(stored == crc32c(self._seed, block[:0x10] + bytes(4) + block[0x14:]))
        if not self.has_commit_checksum or (kind, size, stored) == (0, 0, 0):
            return True
        return (kind, size, stored) == (_CRC32, 4, checksum)

    # Writing, for a journal without checksums of blocks.

    def transaction_blocks(self, copies: int, revokes: int) -> int:
        """How long a transaction gets."""
        return -(-copies // self.tags_per_block) + copies + -(-revokes // self.revokes_per_block) + 1

    def pack_copies(self, sequence: int, blocks: Sequence[tuple[int, bytes]]) -> list[bytes]:
        """Descriptor blocks, each followed by the copies that it names."""
        assert not self.has_block_checksums
        packed = []
        for begin in range(0, len(blocks), self.tags_per_block):
            part = blocks[begin : begin + self.tags_per_block]
            descriptor = bytearray(_HEADER.pack(MAGIC, DESCRIPTOR, sequence))
            copies = []
            for index, (number, data) in enumerate(part):
                is_escaped = data[:4] == MAGIC_BYTES
                flags = _TAG_ESCAPED if is_escaped else 0
                flags |= _TAG_SAME_UUID if index else 0
                flags |= _TAG_LAST if index == len(part) - 1 else 0
                copies.append(bytes(4) + data[4:] if is_escaped else data)
                descriptor += struct.pack(">IHH", number & _ONES, 0, flags)
                if self._is_64bit:
                    descriptor += struct.pack(">I", number >> 32)
                if not index:
                    descriptor += self._uuid
            packed.append(bytes(descriptor.ljust(self.block_bytes, b"\0")))
            packed += copies
        return packed

    def pack_revokes(self, sequence: int, numbers: Sequence[int]) -> list[bytes]:
        packed = []
        for begin in range(0, len(numbers), self.revokes_per_block):
            records = b"".join(map(self._number.pack, numbers[begin : begin + self.revokes_per_block]))
            header = _HEADER.pack(MAGIC, REVOKE, sequence) + struct.pack(">I", _REVOKE_BEGIN + len(records))
            packed.append((header + records).ljust(self.block_bytes, b"\0"))
        return packed

    def pack_commit(self, sequence: int, checksum: int, now_ns: int) -> bytes:
        seconds, nanoseconds = divmod(now_ns, 1_000_000_000)
        fields = struct.pack(">BBxxI28xQI", _CRC32, 4, checksum, seconds, nanoseconds)
        return (_HEADER.pack(MAGIC, COMMIT, sequence) + fields).ljust(self.block_bytes, b"\0")
