"""What differs between two devices, for Python and for the command line: paths, texts and ranges of blocks."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal

import msgspec

from cowfs.errors import UsageError, command_line
from cowfs.home.own_session import OwnSession
from cowfs.home.requests.comparing import ChangedFile, ChangedFiles, ChangeRow, Version
from cowfs.home.requests.devices import Inspect
from cowfs.home.session import Session
from cowfs.thinmeta.delta import DeltaKind, DeltaRange, allocated_ranges, changed_ranges
from cowfs.thinmeta.format import Superblock
from cowfs.units import METADATA_BLOCK_BYTES, SECTOR_BYTES

TEXT_BYTES_MAX: Final = 1 << 20
_BINARY_BYTES: Final = 8192
_CONTEXT_LINES: Final = 3
_NO_NEWLINE: Final = "\\ No newline at end of file\n"
_DEVICES: Final = (stat.S_IFCHR, stat.S_IFBLK)


class FileChange(msgspec.Struct, frozen=True):
    """A path that differs: absolute, within the device or layer.

    `kind` is A (added), M (modified), D (deleted) or R (renamed: the same inode, under a path that the other device
    does not have). `old_path` is the path in the other device where that is another one: what was renamed, and what is
    in a directory that was. `modified`: true for M, and for R where more than the path differs.

    A deleted directory is one change, and so is a renamed one; what is in an added one is added. Bytes of names that
    are not UTF-8 are surrogates, as `os.fsdecode` makes them.
    """

    path: str
    kind: Literal["A", "M", "D", "R"]
    old_path: str | None
    modified: bool

    @classmethod
    def of(cls, row: ChangeRow) -> FileChange:
        old_path = None if row.old_path is None else os.fsdecode(row.old_path)
        return cls(os.fsdecode(row.path), row.kind, old_path, row.kind == "M" or row.is_modified)  # type: ignore[arg-type]


class FileDifference(msgspec.Struct, frozen=True):
    """How a path differs: `lines` are those of `diff -u`, none where no texts differ; `notes` say what else does."""

    change: FileChange
    lines: list[str]
    notes: list[str]


class BlockRange(msgspec.Struct, frozen=True):
    """A range of a device, in bytes. `hole`: nothing is mapped there now, and zeros are read."""

    byte_offset: int
    size_bytes: int
    hole: bool


def parent_of(session: Session, device: str) -> str:
    """Raises UsageError where it is not known."""
    parent = session.call(Inspect(device)).parent
    if parent is None:
        raise UsageError(
            f"what '{device}' is a snapshot of is not known, or was removed; name what to compare it with, as in: "
            f"{command_line('cowfs', 'changes', device, 'OTHER')}"
        )
    return parent


def diff(session: Session, old: str, new: str, path: str, out: Callable[[FileDifference], object]) -> None:
    """Have `out` called with each difference, by path."""

    def take(piece: bytes) -> None:
        found = msgspec.msgpack.decode(piece, type=ChangedFile)
        out(_difference(found, old, new))

    session.receive(ChangedFiles(new, old, os.fsencode(path), TEXT_BYTES_MAX), take)


def _difference(found: ChangedFile, old_device: str, new_device: str) -> FileDifference:
    change = FileChange.of(found.change)
    old_name = f"{old_device}:{change.old_path or change.path}"
    new_name = f"{new_device}:{change.path}"
    notes = [f"renamed {old_name} to {new_name}"] if change.kind == "R" else []
    old, new = found.old, found.new
    if old is None or new is None:
        only = new or old
        assert only is not None
        if not stat.S_ISREG(only.mode):
            where = new_name if old is None else old_name
            return FileDifference(change, [], [f"only in {where}: {_describe(only)}"])
    elif stat.S_IFMT(old.mode) != stat.S_IFMT(new.mode):
        notes.append(f"{old_name} is {_describe(old)} and {new_name} is {_describe(new)}")
        return FileDifference(change, [], notes)
    else:
        notes += _attribute_notes(old, new, new_name)
        if stat.S_ISLNK(new.mode) and old.content != new.content:
            notes.append(f"{old_name} is {_describe(old)} and {new_name} is {_describe(new)}")
        if not stat.S_ISREG(new.mode):
            return FileDifference(change, [], notes)
    before, after = _content(old), _content(new)
    lines: list[str] = []
    if before is None or after is None:
        if old is None or new is None:
            notes.append(f"only in {new_name if new else old_name}: a file of more than {TEXT_BYTES_MAX} bytes")
        else:
            notes.append(f"{old_name} and {new_name} differ (more than {TEXT_BYTES_MAX} bytes)")
    elif before != after or (old is None) != (new is None):
        if (old is None or new is None) and _is_binary(before or after):
            notes.append(f"only in {new_name if new else old_name}: a binary file")
        elif _is_binary(before) or _is_binary(after):
            notes.append(f"binary files {old_name} and {new_name} differ")
        else:
            lines = _unified(before, after, old_name if old else "/dev/null", new_name if new else "/dev/null")
            if not lines:
                notes.append(f"only in {new_name if new else old_name}: an empty file")
    return FileDifference(change, lines, notes)


def _content(version: Version | None) -> bytes | None:
    return b"" if version is None else version.content


def _is_binary(content: bytes) -> bool:
    """As diff judges: by a zero byte near the start."""
    return b"\0" in content[:_BINARY_BYTES]


def _unified(before: bytes, after: bytes, old_name: str, new_name: str) -> list[str]:
    old, new = _lines(before), _lines(after)
    return [
        line if line.endswith("\n") else f"{line}\n{_NO_NEWLINE}"
        for line in difflib.unified_diff(old, new, old_name, new_name, n=_CONTEXT_LINES)
    ]


def _lines(content: bytes) -> list[str]:
    """As diff has them: only a newline ends one."""
    text = content.decode(errors="surrogateescape")
    return [line + "\n" for line in text.split("\n")[:-1]] + [line for line in [text.rpartition("\n")[2]] if line]


def _attribute_notes(old: Version, new: Version, name: str) -> list[str]:
    pairs = [
        ("mode", f"{stat.S_IMODE(old.mode):04o}", f"{stat.S_IMODE(new.mode):04o}"),
        ("owner", f"{old.uid}:{old.gid}", f"{new.uid}:{new.gid}"),
        ("device", _number(old), _number(new)),
    ]
    notes = [f"{name}: {what} {before} -> {after}" for what, before, after in pairs if before != after]
    if old.xattrs != new.xattrs:
        differing = sorted(key for key in old.xattrs.keys() | new.xattrs if old.xattrs.get(key) != new.xattrs.get(key))
        names = ", ".join(os.fsdecode(key) for key in differing)
        notes.append(f"{name}: extended attributes differ: {names}")
    return notes


def _describe(version: Version) -> str:
    kind = stat.S_IFMT(version.mode)
    if kind == stat.S_IFLNK:
        return f"a symbolic link to '{os.fsdecode(version.content or b'')}'"
    if kind in _DEVICES:
        return f"a device node {_number(version)}"
    return {
        stat.S_IFDIR: "a directory",
        stat.S_IFREG: "a regular file",
        stat.S_IFIFO: "a fifo",
        stat.S_IFSOCK: "a socket",
    }.get(kind, "a file")


def _number(version: Version) -> str:
    if stat.S_IFMT(version.mode) not in _DEVICES:
        return ""
    return f"{os.major(version.device)},{os.minor(version.device)}"


def block_ranges(
    session: OwnSession, device: str, base: str | None, *, starting_offset_bytes: int, max_results: int
) -> Iterator[BlockRange]:
    """The ranges of a device that differ from `base`, or, without one, that are mapped; see `Home.block_ranges`."""
    if starting_offset_bytes < 0 or max_results < 0:
        raise UsageError(f"{starting_offset_bytes} bytes and {max_results} results: neither can be less than 0")
    report = session.call(Inspect(device))
    base_id = None if base is None else session.call(Inspect(base)).id
    with session.metadata() as metadata:
        block_bytes = Superblock.unpack(metadata.pread(0, METADATA_BLOCK_BYTES)).data_block_sectors * SECTOR_BYTES
        begin = starting_offset_bytes // block_bytes
        if base_id is None:
            found = allocated_ranges(metadata, report.id, begin=begin)
        else:
            found = changed_ranges(metadata, report.id, base_id, begin=begin)
        count = 0
        for first, length, is_hole in _joined(found):
            offset = first * block_bytes
            size = min(length * block_bytes, report.size_bytes - offset)
            if size > 0:
                yield BlockRange(offset, size, is_hole)
                count += 1
            if count and count == max_results:
                return


def _joined(ranges: Iterable[DeltaRange]) -> Iterator[tuple[int, int, bool]]:
    """(first block, length, whether nothing is mapped there now), as long as each can be, wherever the data is."""
    first = length = 0
    is_hole = False
    for found in ranges:
        hole = found.kind is DeltaKind.RIGHT_ONLY
        if length and (found.vblock != first + length or hole != is_hole):
            yield first, length, is_hole
            length = 0
        if not length:
            first, is_hole = found.vblock, hole
        length += found.length
    if length:
        yield first, length, is_hole
