"""The journal's blocks: a file of the volume, and where its blocks are on the device."""

from __future__ import annotations

from collections.abc import Iterator

from cowfs.blockdev import Buffer
from cowfs.ext4.files.inodes import Inode
from cowfs.ext4.format import layout
from cowfs.ext4.journal import journal_format
from cowfs.ext4.journal.journal_format import DamagedJournal, JournalSuperblock
from cowfs.ext4.library.block_runs import Run
from cowfs.ext4.library.filesystem import Filesystem
from cowfs.ext4.space import extents, indirect
from cowfs.ranges import RangeMap


class JournalFile:
    """The journal of one volume, by its own block numbers; straight on the device.

    Raises:
        DamagedJournal: its file or its superblock is not as it must be, or of another kind than we know.
    """

    def __init__(self, fs: Filesystem) -> None:
        self._device = fs.device
        self._block_bytes = fs.block_bytes
        self._places = _places(fs)
        self._blocks = sum(held.length for held, _ in self._places)
        self.superblock = JournalSuperblock.unpack(self._superblock_bytes())
        if self.superblock.block_bytes != fs.block_bytes:
            raise DamagedJournal(f"has blocks of {self.superblock.block_bytes} bytes")
        if self.superblock.blocks > self._blocks:
            raise DamagedJournal(f"has {self.superblock.blocks} blocks, and its file {self._blocks}")

    @staticmethod
    def is_in(fs: Filesystem) -> bool:
        """Whether a volume has a journal, in itself."""
        sb = fs.super
        return bool(sb.s_feature_compat & layout.COMPAT_HAS_JOURNAL and sb.s_journal_inum and not sb.s_journal_dev)

    def _superblock_bytes(self) -> bytes:
        return self._device.pread(self._place(0)[0] * self._block_bytes, journal_format.SUPERBLOCK_BYTES)

    def read(self, block: int) -> bytes:
        return self._device.pread(self._place(block)[0] * self._block_bytes, self._block_bytes)

    def write(self, block: int, data: Buffer) -> None:
        """Whole blocks, one after the other."""
        view = memoryview(data)
        while view:
            physical, room = self._place(block)
            piece = view[: room * self._block_bytes]
            self._device.pwrite(physical * self._block_bytes, piece)
            block += room
            view = view[len(piece) :]

    def write_superblock(self, raw: bytes) -> None:
        self._device.pwrite(self._place(0)[0] * self._block_bytes, raw)

    def places(self, begin: int, end: int) -> Iterator[Run]:
        """Where the blocks from `begin` up to `end` are."""
        while begin < end:
            physical, room = self._place(begin)
            yield Run(physical, min(room, end - begin))
            begin += room

    @property
    def runs(self) -> list[Run]:
        """Where all of it is."""
        return [Run(begin, held.length) for held, begin in self._places]

    def holds(self, physical: int) -> bool:
        """Whether a block of the volume is one of the journal's."""
        return any(begin <= physical < begin + held.length for held, begin in self._places)

    def _place(self, block: int) -> tuple[int, int]:
        """(block of the volume, how many follow it on the device, itself included)."""
        place = self._places.at(block)
        if place is None:
            raise DamagedJournal(f"has no block {block}")
        held, physical = place
        return physical + block - held.begin, held.end - block


def _places(fs: Filesystem) -> RangeMap[int]:
    """Where the journal's pieces begin on the volume, by the journal's blocks; together they are without a hole."""
    inode = Inode(fs, fs.super.s_journal_inum)
    inode.load()
    if not inode.is_regular or not inode.links:
        raise DamagedJournal(f"should be inode {inode.number}, which is not a file")
    if inode.flags & layout.INODE_FLAG_EXTENTS:
        map_, _ = extents.load(fs, inode.number, inode.checksum_seed, inode.pointers)
    else:
        map_, _ = indirect.load(fs, inode.number, inode.pointers)
    places = RangeMap[int]()
    end = 0
    for segment in map_:
        if not segment.written or segment.logical != end:
            break
        end += segment.length
        places.insert(segment.logical, end, segment.physical)
    if not places or end != map_.end:
        raise DamagedJournal(f"has holes in its file, inode {inode.number}")
    return places
