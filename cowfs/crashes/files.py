"""What a crash leaves of operations on files, in any file system that does what POSIX says: the model `posix`.

An operation has effects, which persist each for itself unless something makes them durable:

    name         a directory's entry; both names of a rename persist together, as in every file system in use
    data         each block of 4096 bytes of a write, torn at sectors; where it is lost, zeros, or what was there before
    size         that a write made the file longer
    truncation   the new size, and that what was beyond it is gone
    attributes   mode, owner, times; extended attributes

fsync of a file makes its data, its size and its attributes durable, and none of its names. fsync of a directory does so
for the names in it; a rename is durable with either of its directories. fdatasync leaves out attributes. Nothing else
is promised, in no order: not that a name persists after the data of its file, nor that old names go before new ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import msgspec

from cowfs.crashes.history import NEVER, History, Item, Loss, State
from cowfs.crashes.naming import Namer
from cowfs.filetree import ROOT_INODE
from cowfs.recording.operations import FIRST_NEW, Operation
from cowfs.recording.recorder import Mark, Recording
from cowfs.recording.tree_change import AttributeChange, ContentChange, NameChange, NewFile, TreeChange
from cowfs.units import SECTOR_BYTES

_BLOCK_BYTES: Final = 4096
_RUN_BYTES: Final = 1 << 20  # of a file in one change
_MAKING: Final = ("create", "mkdir", "symlink")


class NewName(NamedTuple):
    """A name and the file that it leads to, 0 for none; `old` is the file that it led to before."""

    parent: int
    name: bytes
    file: int
    old: int


@dataclass(frozen=True, slots=True)
class Names:
    """Names of one or two directories that change together."""

    changes: tuple[NewName, ...]


@dataclass(frozen=True, slots=True)
class Data:
    file: int
    offset: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Size:
    """A new size; `cuts`: what was beyond it is gone."""

    file: int
    size: int
    cuts: bool


@dataclass(frozen=True, slots=True)
class Attributes:
    file: int
    change: AttributeChange


Effect: TypeAlias = Names | Data | Size | Attributes


class FileHistory(History):
    """The effects of the operations of a `posix` recording."""

    def __init__(self, recording: Recording, namer: Namer) -> None:
        self._namer = namer
        self._operations = recording.operations
        self.items = []
        self.flushes = []
        self.marks = []
        self.effects: list[Effect] = []
        self._of_operation: list[int] = []
        self._new: dict[int, NewFile] = {}
        self._sizes: dict[int, int] = {}  # of files that there were before
        self._place_events(recording)

    def _place_events(self, recording: Recording) -> None:
        open_items: list[int] = []
        issued: list[int] = []
        durable: dict[int, int] = {}
        marks = list(recording.marks)
        position = 0
        for number, operation in enumerate(recording.operations):
            position = self._place_marks(marks, number, position) + 1
            if operation.kind in ("fsync", "fdatasync"):
                covered = {item for item in open_items if _is_covered(self.effects[item], operation)}
                durable.update(dict.fromkeys(covered, position))
                open_items = [item for item in open_items if item not in covered]
                if covered:
                    self.flushes.append(position)
                continue
            if operation.kind in _MAKING:
                self._note_new(operation)
            if operation.kind in ("write", "truncate") and operation.file < FIRST_NEW:
                self._sizes.setdefault(operation.file, operation.old_size)
            for effect in _effects(operation):
                open_items.append(len(self.effects))
                self.effects.append(effect)
                self._of_operation.append(number)
                issued.append(position)
        self.length = self._place_marks(marks, len(recording.operations), position)
        for item, (at, effect) in enumerate(zip(issued, self.effects, strict=True)):
            self.items.append(Item(at, durable.get(item, NEVER), _sectors_of(effect)))

    def _place_marks(self, marks: list[Mark], number: int, position: int) -> int:
        while marks and marks[0].operations <= number:
            position += 1
            self.marks.append((position, marks.pop(0).text))
        return position

    def _note_new(self, made: Operation) -> None:
        target = made.content if made.kind == "symlink" else b""
        self._new[made.file] = NewFile(made.file, made.mode or 0, made.uid or 0, made.gid or 0, made.rdev, target)

    # What a state holds.

    def key(self, state: State) -> int:
        digest = hashlib.blake2b(msgspec.msgpack.encode(self.change(state)), digest_size=16)
        return int.from_bytes(digest.digest(), "big")

    def change(self, state: State) -> TreeChange:
        """What is different in a state from before the recording."""
        names, before, content, attributes = self._replay(state)
        reachable = self._reachable(names)
        changed = [
            NameChange(parent, name, file if file in reachable else 0)
            for (parent, name), file in sorted(names.items())
            if parent in reachable and file != before[parent, name]
        ]
        named = {change.file for change in changed}
        files = [self._new[file] for file in sorted(named) if file >= FIRST_NEW]
        present = {file for file in (*content, *attributes) if file < FIRST_NEW or file in named}
        return TreeChange(
            files,
            changed,
            [change for file in sorted(present & content.keys()) for change in content[file].changes()],
            [change for file in sorted(present & attributes.keys()) for change in attributes[file]],
        )

    def _replay(
        self, state: State
    ) -> tuple[
        dict[tuple[int, bytes], int],
        dict[tuple[int, bytes], int],
        dict[int, _Content],
        dict[int, list[AttributeChange]],
    ]:
        lost = {loss.item: loss for loss in state.lost}
        names: dict[tuple[int, bytes], int] = {}
        before: dict[tuple[int, bytes], int] = {}
        content: dict[int, _Content] = {}
        attributes: dict[int, list[AttributeChange]] = {}
        for item in range(self.issued_until(state.position)):
            effect, loss = self.effects[item], lost.get(item)
            is_lost = loss is not None and not loss.sectors
            if isinstance(effect, Names):
                for change in effect.changes:
                    at = (change.parent, change.name)
                    old = before.setdefault(at, change.old if change.old < FIRST_NEW else 0)
                    names[at] = names.get(at, old) if is_lost else change.file
            elif is_lost:
                continue
            elif isinstance(effect, Attributes):
                attributes.setdefault(effect.file, []).append(effect.change)
            else:
                size = self._sizes.get(effect.file, 0)
                content.setdefault(effect.file, _Content(effect.file, size)).take(effect, loss)
        return names, before, content, attributes

    @staticmethod
    def _reachable(names: dict[tuple[int, bytes], int]) -> set[int]:
        """The files among those named that a path leads to, as far as is known: what was there before, and not moved,
        is taken to be where it was.
        """
        parents = {parent for parent, _ in names}
        moved = {file for file in names.values() if file}
        reachable = {parent for parent in parents if parent < FIRST_NEW and parent not in moved} | {ROOT_INODE}
        is_growing = True
        while is_growing:
            found = {file for (parent, _), file in names.items() if file and parent in reachable}
            is_growing = not found <= reachable
            reachable |= found
        return reachable

    # Words.

    def describe(self, item: int) -> str:
        effect, number = self.effects[item], self._of_operation[item]
        operation = self._operations[number]
        if isinstance(effect, Data):
            return self._namer.data(number, effect.offset, effect.offset + len(effect.content))
        if isinstance(effect, Size) and not effect.cuts:
            return f"size of {self._namer.path(number)}, {operation.old_size} to {effect.size} bytes"
        return self._namer.operation(number)

    def subject(self, item: int) -> tuple[str, int]:
        match self.effects[item]:
            case Names(changes):
                return "name", next((change.file for change in reversed(changes) if change.file), 0)
            case Data(file):
                return "data", file
            case Size(file, _, cuts):
                return "truncation" if cuts else "size", file
            case Attributes(file):
                return "attributes", file

    def event_of(self, item: int) -> int:
        return self._of_operation[item]


class _Content:
    """The size and the bytes of one file, as far as they changed."""

    def __init__(self, file: int, size: int) -> None:
        self._file = file
        self._kept_size = size  # what was beyond it before the recording is gone
        self._size = size
        self._is_cut = False
        self._pieces: dict[int, list[tuple[int, bytes]]] = {}  # (offset, bytes), later ones last, by block

    def take(self, effect: Data | Size, loss: Loss | None) -> None:
        if isinstance(effect, Data):
            pieces = self._pieces.get(effect.offset // _BLOCK_BYTES, [])
            for offset, data in _kept(effect, loss):
                pieces = [piece for piece in pieces if not _is_within(piece, offset, offset + len(data))]
                pieces.append((offset, data))
            if pieces:
                self._pieces[effect.offset // _BLOCK_BYTES] = pieces
            return
        if effect.cuts:
            self._is_cut = True
            self._kept_size = min(self._kept_size, effect.size)
            for block in [block for block in self._pieces if (block + 1) * _BLOCK_BYTES > effect.size]:
                self._pieces[block] = list(_below(effect.size, self._pieces[block]))
        self._size = effect.size

    def changes(self) -> Iterator[ContentChange]:
        """What makes the content, of neighbours one change; what is beyond the end is cut off last."""
        if self._is_cut:
            yield ContentChange(self._file, 0, b"", self._kept_size)
        end = self._kept_size
        run: list[bytes] = []
        begin = stop = 0
        for offset, data in self._pieces_in_order():
            if offset != stop or stop - begin >= _RUN_BYTES:
                if run:
                    yield ContentChange(self._file, begin, b"".join(run))
                run, begin, stop = [], offset, offset
            run.append(data)
            stop += len(data)
            end = max(end, stop)
        if run:
            yield ContentChange(self._file, begin, b"".join(run))
        if end != self._size:
            yield ContentChange(self._file, 0, b"", self._size)

    def _pieces_in_order(self) -> Iterator[tuple[int, bytes]]:
        for block in sorted(self._pieces):
            yield from _below(self._size, self._pieces[block])


def _below(size: int, pieces: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    return ((offset, data[: size - offset]) for offset, data in pieces if offset < size)


def _is_within(piece: tuple[int, bytes], begin: int, end: int) -> bool:
    offset, data = piece
    return begin <= offset and offset + len(data) <= end


def _kept(effect: Data, loss: Loss | None) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of the runs of sectors that were not lost."""
    end = effect.offset + len(effect.content)
    if loss is None:
        yield effect.offset, effect.content
        return
    begin = None
    sectors = _sectors_of(effect)
    for sector in (*sectors, sectors.stop):
        is_kept = sector < sectors.stop and not loss.loses(sector)
        if is_kept and begin is None:
            begin = max(sector * SECTOR_BYTES, effect.offset)
        elif not is_kept and begin is not None:
            stop = min(sector * SECTOR_BYTES, end)
            yield begin, effect.content[begin - effect.offset : stop - effect.offset]
            begin = None


def _sectors_of(effect: Effect) -> range:
    if not isinstance(effect, Data):
        return range(0)
    end = effect.offset + len(effect.content)
    return range(effect.offset // SECTOR_BYTES, -(-end // SECTOR_BYTES))


def _effects(operation: Operation) -> Sequence[Effect]:
    file, parent, name = operation.file, operation.parent, operation.name
    match operation.kind:
        case "create" | "mkdir" | "symlink" | "link":
            return [Names((NewName(parent, name, file, 0),))]
        case "unlink" | "rmdir":
            return [Names((NewName(parent, name, 0, file),))]
        case "rename" | "exchange":
            left = operation.replaced if operation.kind == "exchange" else 0
            gone = NewName(parent, name, left, file)
            return [Names((gone, NewName(operation.new_parent, operation.new_name, file, operation.replaced)))]
        case "write":
            end = operation.offset + operation.length
            longer = [Size(file, end, cuts=False)] if end > operation.old_size else []
            return [*longer, *_blocks(file, operation.offset, operation.content)]
        case "truncate":
            cut = Size(file, operation.offset, cuts=operation.offset < operation.old_size)
            mode = [] if operation.mode is None else [Attributes(file, AttributeChange(file, operation.mode))]
            return [cut, *mode]
        case "attributes":
            change = AttributeChange(file, operation.mode, operation.uid, operation.gid, operation.mtime_ns)
            return [Attributes(file, change)]
        case "set_xattr" | "remove_xattr":
            value = operation.content if operation.kind == "set_xattr" else None
            return [Attributes(file, AttributeChange(file, xattr=name, value=value))]
    return []


def _blocks(file: int, offset: int, content: bytes) -> Iterator[Data]:
    end = offset + len(content)
    while offset < end:
        stop = min(end, (offset // _BLOCK_BYTES + 1) * _BLOCK_BYTES)
        yield Data(file, offset, content[len(content) - (end - offset) : len(content) - (end - stop)])
        offset = stop


def _is_covered(effect: Effect, sync: Operation) -> bool:
    """Whether an fsync makes an effect durable."""
    if isinstance(effect, Names):
        return any(change.parent == sync.file for change in effect.changes)
    if isinstance(effect, Attributes) and sync.kind == "fdatasync":
        return False
    return effect.file == sync.file
