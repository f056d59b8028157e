"""Whether the order of an ext4's writes and flushes is safe, whatever a crash leaves of those between two flushes.

A disk that loses power has what was written before its last flush, and any part of the rest. So it is enough to know
of each write that it cannot do harm alone, together with any others of its window. `R` is the volume that a replay
makes of what was durable when the window began:

    into the log              not where the transactions are that R is made of
    metadata of R             only what R has there
    content of R's files      anything, but no discards
    free in R                 anything, but not where a replay would write
    the journal's superblock  alone with the log it begins; otherwise all that the log has must be in its place
    the volume's superblock   with no log to replay; until then it says that there is one
    content that is visible   durable before the transaction that makes it so

This is a check of a whole recording, which needs one look at the volume for each flush, while crash states are samples.
"""

from __future__ import annotations

import mmap
import stat
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from cowfs.ext4.format import layout
from cowfs.ext4.journal.journal_file import JournalFile
from cowfs.ext4.journal.journal_format import JournalSuperblock
from cowfs.ext4.journal.journal_replay import _Log
from cowfs.ext4.journal.recovery import RecoveredDevice
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE
from cowfs.ranges import RangeSet
from cowfs.recording.journal import Entry
from cowfs.recording.recorder import Recording

_INCOMPAT_OFFSET = 0x60  # in the superblock


class _Image:
    """A device that is only read, over bytes that others change."""

    def __init__(self, image: bytearray | mmap.mmap) -> None:
        self._image = image
        self.size_bytes = len(image)

    def pread(self, offset: int, length: int) -> bytes:
        return bytes(self._image[offset : offset + length])

    def _refuse(self, *_arguments: object) -> None:
        raise AssertionError("it is only read")

    pwrite = zero = discard = copy = _refuse

    def flush(self) -> None:
        """Nothing is written."""

    def close(self) -> None:
        """Nothing to give back."""


@dataclass
class _Layout:
    """Where what is in R. Blocks of the volume; `log` by the journal's own numbers."""

    block_bytes: int
    metadata: RangeSet = field(default_factory=RangeSet)
    content: RangeSet = field(default_factory=RangeSet)
    journal: RangeSet = field(default_factory=RangeSet)
    superblock_of_journal: int = -1
    live: RangeSet = field(default_factory=RangeSet)  # of the log
    copies: dict[int, bytes] = field(default_factory=dict)
    log_begins: bool = False
    needs_recovery: bool = False


def order_problems(disk: bytearray | mmap.mmap, entries: Sequence[Entry]) -> Iterator[str]:
    """What a crash may damage, in words.

    Args:
        disk: as it was before the entries; it becomes what it is after them.
    """
    window: list[tuple[int, Entry]] = []
    device = _Image(disk)
    for number, entry in enumerate([*entries, Entry("", "flush")]):
        if entry.operation != "flush":
            window.append((number, entry))
            continue
        if window:
            yield from _Window(device, disk, window).problems()
        window = []


class _Window:
    """The writes between two flushes. `problems` writes them down."""

    def __init__(self, device: _Image, disk: bytearray | mmap.mmap, window: list[tuple[int, Entry]]) -> None:
        self._device = device
        self._disk = disk
        self._window = window
        self._fresh = RangeSet()  # free blocks that were written
        self._has_log = self._has_start = self._has_mark = False

    def problems(self) -> Iterator[str]:
        with closing(Volume.open(self._device, read_only=True)) as volume:
            self._volume = volume
            self._layout = layout_of(volume)
            for number, entry in self._window:
                for block, begin, data in _pieces(entry, self._layout.block_bytes):
                    problem = self._problem(block, begin, data, is_discard=entry.operation == "discard")
                    if problem:
                        yield f"entry {number}, {entry.operation} of {len(data)} bytes at {begin}, {problem}"
            before = self._layout
        begin = self._window[0][0]
        if self._has_start or self._has_mark:
            yield from (f"window from entry {begin}: {problem}" for problem in self._problems_of_superblocks())
        for _, entry in self._window:
            data = bytes(entry.length) if entry.data is None else bytes(entry.data)
            self._disk[entry.offset : entry.offset + entry.length] = data
        if self._has_log and self._fresh:
            with closing(Volume.open(self._device, read_only=True)) as volume:
                after = layout_of(volume)
            for known in self._fresh:
                for shown in after.content.within(known.begin, known.end):
                    if any(before.content.gaps(shown.begin, shown.end)):
                        yield f"window from entry {begin}: blocks {shown} are visible before their content is durable"

    def _problem(self, block: int, begin: int, data: bytes, *, is_discard: bool) -> str:
        where = self._layout
        if block in where.journal:
            if block == where.superblock_of_journal:
                self._has_start = True
                return ""
            self._has_log |= not is_discard
            return "where the log is that would be replayed" if block in where.live else ""
        if block in where.metadata:
            if self._shown(block, begin, len(data)) == data:
                return self._problem_of_mark(begin, data)
            if _is_superblock(block, where.block_bytes) and not is_discard:
                self._has_mark = True
                return ""
            return "changes metadata that is not in the log"
        if block in where.content:
            return "discards the content of a file" if is_discard else ""
        if not is_discard:
            self._fresh.add(block, block + 1)
            if block in where.copies:
                return "where a replay would write"
        return ""

    def _problem_of_mark(self, begin: int, data: bytes) -> str:
        """Of what comes to its place: the volume's superblock must say until then that there is a log to replay."""
        skip = layout.SUPERBLOCK_OFFSET + _INCOMPAT_OFFSET - begin
        if not self._layout.live or not 0 <= skip < len(data):
            return ""
        is_marked = struct.unpack_from("<I", data, skip)[0] & layout.INCOMPAT_RECOVER
        return "" if is_marked else "says that there is nothing to replay"

    def _shown(self, block: int, begin: int, length: int) -> bytes:
        """What R has there; of the volume's superblock, what is written by the replay."""
        copy = self._layout.copies.get(block)
        if copy is None:
            return self._device.pread(begin, length)
        skip = begin - block * self._layout.block_bytes
        return copy[skip : skip + length]

    def _problems_of_superblocks(self) -> Iterator[str]:
        where = self._layout
        if self._has_mark and where.live:
            yield "the volume's superblock changes while there is a log to replay"
        if self._has_mark and self._has_start:
            yield "both superblocks change"
        if self._has_start and where.live:
            if self._has_log:
                yield "the log begins anew together with its transactions"
            for block, content in where.copies.items():
                if self._device.pread(block * where.block_bytes, where.block_bytes) != content:
                    yield f"the log begins anew, and block {block} is not in its place"


def layout_of(volume: Volume) -> _Layout:
    """Of an open volume: which blocks are metadata and which content, its orphans included, and the log."""
    fs = volume._fs
    where = _Layout(fs.block_bytes)
    for run in fs.descriptors.system_blocks:
        where.metadata.add(run.physical, run.physical + run.length)
    where.metadata.add(layout.SUPERBLOCK_OFFSET // fs.block_bytes, layout.SUPERBLOCK_OFFSET // fs.block_bytes + 1)
    file = JournalFile(fs)
    for run in file.runs:
        where.journal.add(run.physical, run.physical + run.length)
    where.superblock_of_journal = file._place(0)[0]
    _add_log(where, fs.device, file)
    for number in _inodes_in_use(volume):
        inode = volume._inodes.load(number)
        if inode.mode:
            if inode.xattr_block:
                where.metadata.add(inode.xattr_block, inode.xattr_block + 1)
            if inode.has_map:
                map_ = volume._maps.load(inode)
                is_content = stat.S_ISREG(inode.mode)
                for begin, length in map_.runs:
                    (where.content if is_content else where.metadata).add(begin, begin + length)
                for block in inode.nodes:
                    where.metadata.add(block, block + 1)
    return where


def _inodes_in_use(volume: Volume) -> Iterator[int]:
    fs, tables = volume._fs, volume.inode_tables()
    for group in range(fs.groups):
        first = group * fs.inodes_per_group + 1
        for number in range(first, first + fs.descriptors.initialized_inodes(group)):
            if (number >= fs.first_inode or number == ROOT_INODE) and tables.is_used(number):
                yield number


def _add_log(where: _Layout, shown: object, file: JournalFile) -> None:
    superblock: JournalSuperblock = file.superblock
    if isinstance(shown, RecoveredDevice):
        where.needs_recovery = True
        where.copies = {block: shown._found.content(block) for block in shown._found.replay.copies}
    if not superblock.start or not where.needs_recovery:
        return
    log = _Log(superblock, file.read)
    sequence, end = superblock.sequence, superblock.start
    while (transaction := log._next(sequence)) is not None and transaction.is_whole:
        end = log._position
        sequence += 1
    for run in file.places(superblock.start, end):
        where.live.add(run.physical, run.physical + run.length)


def _is_superblock(block: int, block_bytes: int) -> bool:
    return block == layout.SUPERBLOCK_OFFSET // block_bytes


def _pieces(entry: Entry, block_bytes: int) -> Iterator[tuple[int, int, bytes]]:
    """(block, where it begins on the disk, what is written) of each block that an entry changes."""
    data = bytes(entry.length) if entry.data is None else bytes(entry.data)
    position = entry.offset
    end = entry.offset + entry.length
    while position < end:
        block = position // block_bytes
        stop = min((block + 1) * block_bytes, end)
        yield block, position, data[position - entry.offset : stop - entry.offset]
        position = stop


def main(path: str) -> int:
    """Judge a recording that `tests.crashes.real_programs --keep` wrote; prints what is wrong."""
    with open(path, "rb") as file, open(f"{path}.before", "rb") as before:
        recording = Recording.read(file.fileno())
        disk = mmap.mmap(before.fileno(), 0, access=mmap.ACCESS_COPY)
    problems = list(order_problems(disk, recording.entries))
    for problem in problems:
        print(problem)
    print(f"{len(recording.entries)} writes, discards and flushes: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
