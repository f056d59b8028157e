"""What a crash leaves of what a file system wrote to its disk: the model `ext4`.

Items are the writes. What was written before the last flush is there; of the rest each sector may be there or not,
since a disk with a volatile cache writes in its own order. A sector is old or new as a whole, and so is ext4's
superblock of two sectors: ext4, the kernel's too, has it written at once, and is damaged where half of it is.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterator, Sequence
from typing import Final

from cowfs.blockdev import Buffer
from cowfs.crashes.history import NEVER, History, Item, Loss, State
from cowfs.crashes.naming import Namer
from cowfs.home.requests.recordings import Write
from cowfs.recording.journal import Entry
from cowfs.recording.recorder import Recording
from cowfs.units import SECTOR_BYTES

_SUPERBLOCK_SECTORS: Final = range(2, 4)
_KEY_MASK: Final = (1 << 128) - 1


class DiskHistory(History):
    """The writes of an `ext4` recording."""

    def __init__(self, recording: Recording, namer: Namer) -> None:
        self._namer = namer
        self._operations = recording.operations
        self.entries: list[Entry] = []  # of the items
        self._numbers: list[int] = []  # of the items' entries in the recording
        self.items = []
        self.flushes = []
        self.marks = []
        self._mark_operations = [mark.operations for mark in recording.marks]
        self._place_events(recording)
        self._sectors = _Sectors(recording, self.entries, [item.issued for item in self.items])

    def _place_events(self, recording: Recording) -> None:
        marks = iter(recording.marks)
        mark = next(marks, None)
        position = 0
        issued: list[int] = []
        flushes: list[int] = []
        for number, entry in enumerate([*recording.entries, None]):
            while mark is not None and mark.entries <= number:
                position += 1
                self.marks.append((position, mark.text))
                mark = next(marks, None)
            if entry is None:
                break
            position += 1
            if entry.operation == "flush":
                flushes.append(position)
            elif entry.length:
                self.entries.append(entry)
                self._numbers.append(number)
                issued.append(position)
        self.length = position
        self.flushes = flushes
        for entry, at in zip(self.entries, issued, strict=True):
            following = bisect.bisect_left(flushes, at)
            durable = flushes[following] if following < len(flushes) else NEVER
            self.items.append(Item(at, durable, _sectors_of(entry)))

    def key(self, state: State) -> int:
        return self._sectors.key(state, self)

    def unwritten(self, position: int) -> str:
        marked = bisect.bisect_right([at for at, _ in self.marks], position)
        if not marked:
            return ""
        pending: list[int] = []
        for number in range(self._mark_operations[marked - 1] - 1, -1, -1):
            if self._operations[number].kind in ("fsync", "fdatasync"):
                break
            pending.append(number)
        if not pending:
            return ""
        more = f", the last of {len(pending)} operations since the last fsync," if len(pending) > 1 else ""
        return f"{self._namer.operation(pending[0])}{more}"

    def torn(self, item: int, sectors: Sequence[int]) -> Loss | None:
        lost = set(sectors)
        if lost.intersection(_SUPERBLOCK_SECTORS):
            lost.update(_SUPERBLOCK_SECTORS)
        return super().torn(item, sorted(lost.intersection(self.items[item].sectors)))

    def durable_items(self, position: int) -> int:
        """How many items, from the first on, cannot be lost at a position."""
        following = bisect.bisect_right(self.flushes, position)
        return self.issued_until(self.flushes[following - 1]) if following else 0

    def writes(self, begin: int, end: int, lost: Sequence[Loss] = ()) -> Iterator[Write]:
        """The items from `begin` to before `end`, without what is lost."""
        losses = {loss.item: loss for loss in lost}
        for item in range(begin, end):
            entry, loss = self.entries[item], losses.get(item)
            if loss is None:
                yield _write(entry, entry.offset, entry.offset + entry.length)
            elif loss.sectors:
                yield from self._torn(item, loss)

    def _torn(self, item: int, loss: Loss) -> Iterator[Write]:
        entry, sectors = self.entries[item], self.items[item].sectors
        begin = None
        for sector in (*sectors, sectors.stop):
            is_kept = sector < sectors.stop and not loss.loses(sector)
            if is_kept and begin is None:
                begin = sector
            elif not is_kept and begin is not None:
                start = max(begin * SECTOR_BYTES, entry.offset)
                yield _write(entry, start, min(sector * SECTOR_BYTES, entry.offset + entry.length))
                begin = None

    def describe(self, item: int) -> str:
        entry = self.entries[item]
        operation = self._operation(item)
        if operation is None:
            return f"what the file system wrote in between at {entry.offset}, {entry.length} bytes"
        if self._operations[operation].kind == "write":
            return self._namer.data(operation)
        part, parts = self._part(item)
        return f"part {part} of {parts} of the {self._namer.operation(operation)}"

    def subject(self, item: int) -> tuple[str, int]:
        operation = self._operation(item)
        if operation is None or self._operations[operation].kind != "write":
            return "journal", 0
        return "data", self._operations[operation].file

    def event_of(self, item: int) -> int:
        operation = self._operation(item)
        return -1 - item if operation is None else operation

    def _operation(self, item: int) -> int | None:
        """The operation on a file during which an item was written."""
        number = self._numbers[item]
        index = bisect.bisect_right(self._operations, number, key=lambda operation: operation.begin) - 1
        while index >= 0 and self._operations[index].begin <= number:
            if self._operations[index].end > number:
                return index
            if self._operations[index].end > self._operations[index].begin:
                break
            index -= 1
        return None

    def _part(self, item: int) -> tuple[int, int]:
        operation = self._operation(item)
        assert operation is not None
        begin, end = self._operations[operation].begin, self._operations[operation].end
        first = bisect.bisect_left(self._numbers, begin)
        return item - first + 1, bisect.bisect_left(self._numbers, end) - first


def _sectors_of(entry: Entry) -> range:
    return range(entry.offset // SECTOR_BYTES, -(-(entry.offset + entry.length) // SECTOR_BYTES))


def _write(entry: Entry, begin: int, end: int) -> Write:
    data = None if entry.data is None else bytes(entry.data[begin - entry.offset : end - entry.offset])
    return Write(begin, end - begin, data)


class _Sectors:
    """What each sector held after each item, and keys made of that: a sum over the sectors that differ from before."""

    def __init__(self, recording: Recording, entries: Sequence[Entry], issued: Sequence[int]) -> None:
        self._entries = entries
        self._before: dict[int, bytes] = {}
        for offset, content in recording.before:
            for begin in range(0, len(content), SECTOR_BYTES):
                self._before[(offset + begin) // SECTOR_BYTES] = bytes(content[begin : begin + SECTOR_BYTES])
        self._versions: dict[int, tuple[list[int], list[bytes]]] = {
            sector: ([-1], [content]) for sector, content in self._before.items()
        }
        self._hashes: dict[tuple[int, bytes], int] = {}
        self._prefix_keys = [0]
        key = 0
        for item, entry in enumerate(entries):
            for sector in _sectors_of(entry):
                items, contents = self._versions[sector]
                changed = _applied(entry, sector, contents[-1])
                if changed != contents[-1]:
                    key += self._hash(sector, changed) - self._hash(sector, contents[-1])
                items.append(item)
                contents.append(changed)
            self._prefix_keys.append(key & _KEY_MASK)
        self._issued = issued

    def _hash(self, sector: int, content: bytes) -> int:
        """0 for what was there before."""
        if content == self._before[sector]:
            return 0
        known = self._hashes.get((sector, content))
        if known is None:
            digest = hashlib.blake2b(content, digest_size=16, salt=sector.to_bytes(16, "big"))
            known = self._hashes[sector, content] = int.from_bytes(digest.digest(), "big")
        return known

    def key(self, state: State, history: DiskHistory) -> int:
        end = history.issued_until(state.position)
        key = self._prefix_keys[end]
        if not state.lost:
            return key
        begin = history.durable_items(state.position)
        lost = {loss.item: loss for loss in state.lost}
        for sector in {sector for item in lost for sector in history.items[item].sectors if lost[item].loses(sector)}:
            items, contents = self._versions[sector]
            before = bisect.bisect_left(items, begin)
            content = contents[before - 1]
            for index in range(before, bisect.bisect_left(items, end)):
                loss = lost.get(items[index])
                if loss is None or not loss.loses(sector):
                    content = _applied(self._entries[items[index]], sector, content)
            whole = contents[bisect.bisect_left(items, end) - 1]
            key += self._hash(sector, content) - self._hash(sector, whole)
        return key & _KEY_MASK


def _applied(entry: Entry, sector: int, content: bytes) -> bytes:
    """A sector with a write to it, or to a part of it."""
    begin = sector * SECTOR_BYTES - entry.offset
    data: Buffer
    if entry.data is None:
        data = bytes(min(SECTOR_BYTES, entry.length - begin) - max(-begin, 0))
    else:
        data = entry.data[max(begin, 0) : begin + SECTOR_BYTES]
    if len(data) == SECTOR_BYTES:
        return bytes(data)
    start = max(-begin, 0)
    return content[:start] + bytes(data) + content[start + len(data) :]
