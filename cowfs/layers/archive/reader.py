"""Reading a tar archive from a stream: entry after entry, whatever wrote it, without trust.

    archive = { entry } zero-block zero-block
    entry   = { extended header } header [ stored bytes, padded to 512 ]

What is around the blocks of headers (`headers`) is done here, as the standard library's TarFile takes a damaged header
for the end of the archive, and holds in memory whatever a header says. Known: V7, ustar, GNU (long names, sparse files)
and PAX (`records`). Global PAX headers mean nothing, as to Docker.

Everything about names and attributes is bytes. The memory taken is bounded, whatever the archive says: an extended
header has at most 1 MiB, as in Go's archive/tar, and an entry at most a few of them.
"""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Final, TypeVar

from cowfs.errors import ArchiveError
from cowfs.layers.archive import records, sparse
from cowfs.layers.archive.headers import parse_header
from cowfs.layers.archive.names import show

T = TypeVar("T")

PIECE_BYTES: Final = 1 << 20
_BLOCK: Final = tarfile.BLOCKSIZE
_ZEROS: Final = bytes(_BLOCK)
_EXTENDED_IN_A_ROW_MAX: Final = 16
_TRAILER_BYTES_MAX: Final = 1 << 20  # archives are padded, by GNU tar to at most this
_MAJOR_MAX: Final = (1 << 12) - 1
_MINOR_MAX: Final = (1 << 20) - 1
_ID_MAX: Final = 0xFFFFFFFF
_SIZE_MAX: Final = (1 << 63) - 1
_NANOSECONDS: Final = 10**9
_GNU_MAGIC: Final = b"ustar  \0"
_VOLUME_HEADER: Final = b"V"

_KINDS: Final = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.CONTTYPE: stat.S_IFREG,
    tarfile.GNUTYPE_SPARSE: stat.S_IFREG,
    tarfile.LNKTYPE: 0,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}
_COMPRESSED: Final = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(slots=True)
class Entry:
    """One entry: `kind` is a file type as in a mode, 0 for a hard link to `target`."""

    name: bytes
    kind: int
    permissions: int
    uid: int
    gid: int
    mtime_ns: int
    size_bytes: int = 0  # of a regular file, holes included
    target: bytes = b""
    device: tuple[int, int] = (0, 0)  # major, minor
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    acl_texts: dict[bytes, bytes] = field(default_factory=dict)  # by keyword
    sparse: sparse.SparseMap | None = None
    is_whiteout_for: bytes = b""  # the path that is deleted, when its names are reserved
    has_true_name: bool = False  # names that start with `.wh.` are those of files


class ArchiveReader:
    """The entries of one archive, in order. What is not read of one is passed over.

    Args:
        end_required: an archive without a block of zeros at its end was cut off, as far as one can know; False is for
            a source that says by other means where it ends.
        true_names: give entries the names that cowfs' records have, not the substitutes that Docker reads.
        watch: called with each piece of the archive when it has been read, in order.

    Every method raises ArchiveError for what is not as it must be, or cannot be read.
    """

    def __init__(
        self,
        archive: IO[bytes],
        *,
        end_required: bool = True,
        true_names: bool = True,
        watch: Callable[[bytes], object] | None = None,
    ) -> None:
        self._input = _Input(archive, watch)
        self._end_required = end_required
        self._true_names = true_names
        self._entry = b""  # for messages
        self._left_bytes = 0
        self._padding_bytes = 0
        self._at_start = True

    def next(self) -> Entry | None:
        """The next entry, when the content of the last one has been passed over; None at the end."""
        assert not self._left_bytes
        self._take(self._padding_bytes, "the padding of a file")
        self._padding_bytes = 0
        found: list[tuple[bytes, bytes]] = []
        long_name = long_target = None
        for _ in range(_EXTENDED_IN_A_ROW_MAX):
            header = self._next_header()
            if header is None and (found or long_name is not None or long_target is not None):
                raise ArchiveError("it ends after an extended header", entry=show(self._entry))
            if header is None:
                return None
            block, info = header
            if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                found = self._check(records.parse, self._extended(info))
            elif info.type == tarfile.GNUTYPE_LONGNAME:
                long_name = self._extended(info).partition(b"\0")[0]
            elif info.type == tarfile.GNUTYPE_LONGLINK:
                long_target = self._extended(info).partition(b"\0")[0]
            elif info.type == tarfile.XGLTYPE:
                self._extended(info)
            elif info.type != _VOLUME_HEADER:
                return self._make_entry(block, info, found, long_name, long_target)
        raise ArchiveError(f"more than {_EXTENDED_IN_A_ROW_MAX} extended headers in a row", entry=show(self._entry))

    def content(self, entry: Entry) -> Iterator[tuple[int, bytes]]:
        """(offset in the file, bytes) of what is stored of the entry that came last; pieces of at most PIECE_BYTES."""
        for offset, length in entry.sparse or ((0, entry.size_bytes),):
            end = offset + length
            for begin in range(offset, end, PIECE_BYTES):
                yield begin, self._take_stored(min(PIECE_BYTES, end - begin))

    def pass_over(self) -> Iterator[None]:
        """Read what is left of the last entry, a piece a step."""
        while self._left_bytes:
            self._take_stored(min(PIECE_BYTES, self._left_bytes))
            yield

    def finish(self) -> None:
        """Read what pads the archive, so that a writer into a pipe comes to its end.

        Zeros alone are an archive of no files. With data behind them it is something else, such as a disk image.
        """
        if self._input.take(_TRAILER_BYTES_MAX).strip(b"\0") and self._at_start:
            raise ArchiveError("it is not a tar archive: it begins with zeros, and data follows; is it a disk image?")

    # Headers.

    def _next_header(self) -> tuple[bytes, tarfile.TarInfo] | None:
        block = self._input.take(_BLOCK)
        if not block and self._end_required:
            raise self._no_end()
        if not block:
            return None
        if block == _ZEROS:
            second = self._input.take(_BLOCK)
            if second in (b"", _ZEROS):  # Docker and GNU tar take a single one at the end, too
                return None
            if len(second) < _BLOCK:
                raise ArchiveError("it ends in the middle of the blocks of zeros that end an archive")
            raise ArchiveError(f"a block of zeros where a header belongs, after '{show(self._entry)}'")
        try:
            info = parse_header(block)
        except tarfile.HeaderError as error:
            raise self._no_header(block, str(error)) from None
        name = _bytes(info.name)
        if block[257:265] == _GNU_MAGIC and info.type not in tarfile.GNU_TYPES:
            name = block[:100].partition(b"\0")[0]  # no prefix is behind it, but times
            info.name = name.decode("latin-1")
        self._entry = name
        self._at_start = False
        if not 0 <= info.size <= _SIZE_MAX:
            raise ArchiveError(f"a size of {info.size} bytes", entry=show(name))
        return block, info

    def _no_end(self) -> ArchiveError:
        if self._at_start:
            return ArchiveError("it is empty, not even an archive of no files; see what should have written it")
        return ArchiveError(
            f"it ends after '{show(self._entry)}' without the blocks of zeros that end an archive, so it was cut off; "
            "if it is known to be whole, append 1024 zero bytes"
        )

    def _no_header(self, block: bytes, reason: str) -> ArchiveError:
        if not self._at_start:
            return ArchiveError(f"no header follows '{show(self._entry)}': {reason}")
        for magic, name in _COMPRESSED.items():
            if block.startswith(magic):
                return ArchiveError(f"it is compressed with {name}; decompress it first")
        return ArchiveError(f"it is not a tar archive: {reason}")

    def _extended(self, info: tarfile.TarInfo) -> bytes:
        """What an extended header holds."""
        if info.size > records.EXTENDED_BYTES_MAX:
            raise ArchiveError(f"an extended header of {info.size} bytes", entry=show(self._entry))
        return self._take(info.size + -info.size % _BLOCK, "an extended header")[: info.size]

    def _make_entry(
        self,
        block: bytes,
        info: tarfile.TarInfo,
        found: list[tuple[bytes, bytes]],
        long_name: bytes | None,
        long_target: bytes | None,
    ) -> Entry:
        name = _bytes(info.name) if long_name is None else long_name
        target = _bytes(info.linkname) if long_target is None else long_target
        entry = Entry(
            name, 0, info.mode & 0o7777, info.uid, info.gid, int(info.mtime) * _NANOSECONDS, info.size, target
        )
        if found:
            self._check(_apply_records, entry, found)
            if self._true_names:
                _apply_true_names(entry, dict(found))
            self._entry = entry.name
        if info.type not in _KINDS:
            raise ArchiveError(
                f"its type '{show(info.type)}' is not a type that a layer can have", entry=show(entry.name)
            )
        entry.kind = _KINDS[info.type]
        if info.type == tarfile.AREGTYPE and entry.name.endswith(b"/"):
            entry.kind = stat.S_IFDIR  # V7 had no type for directories
        if not (0 <= entry.uid <= _ID_MAX and 0 <= entry.gid <= _ID_MAX):
            raise ArchiveError(f"an owner of {entry.uid}:{entry.gid}", entry=show(entry.name))
        if not stat.S_ISREG(entry.kind):
            entry.size_bytes = 0  # nothing is stored, whatever the header says
            if entry.kind in (stat.S_IFCHR, stat.S_IFBLK):
                entry.device = info.devmajor, info.devminor
                if not (0 <= info.devmajor <= _MAJOR_MAX and 0 <= info.devminor <= _MINOR_MAX):
                    raise ArchiveError(f"a device {info.devmajor}:{info.devminor}", entry=show(entry.name))
            return entry
        self._left_bytes = entry.size_bytes
        self._padding_bytes = -entry.size_bytes % _BLOCK
        if info.type == tarfile.GNUTYPE_SPARSE:
            entry.sparse = self._check(sparse.from_old_header, block, self._next_map_block)
        elif found:
            entry.sparse = self._check(sparse.from_records, found, self._next_stored_block)
        if entry.sparse is not None:
            entry.size_bytes = entry.sparse.size_bytes
            if entry.sparse.stored_bytes != self._left_bytes:
                raise ArchiveError(
                    f"{self._left_bytes} bytes are stored where its sparse map has {entry.sparse.stored_bytes}",
                    entry=show(entry.name),
                )
        return entry

    def _check(self, function: Callable[..., T], *arguments: object) -> T:
        """Call what raises ValueError."""
        try:
            return function(*arguments)
        except ValueError as error:
            raise ArchiveError(str(error), entry=show(self._entry)) from None

    # Bytes.

    def _next_map_block(self) -> bytes:
        return self._take(_BLOCK, "a sparse map")

    def _next_stored_block(self) -> bytes:
        if self._left_bytes < _BLOCK:
            raise ValueError("a sparse map that does not end")
        return self._take_stored(_BLOCK)

    def _take_stored(self, count: int) -> bytes:
        data = self._take(count, "a file")
        self._left_bytes -= count
        return data

    def _take(self, count: int, what: str) -> bytes:
        data = self._input.take(count)
        if len(data) < count:
            raise ArchiveError(f"it ends in the middle of {what}", entry=show(self._entry))
        return data


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")


def _apply_records(entry: Entry, found: list[tuple[bytes, bytes]]) -> None:
    """Apply the records of an extended header; an empty value changes nothing. Raises ValueError."""
    fields = {keyword: value for keyword, value in found if value}
    for keyword, value in found:
        if keyword.startswith(records.XATTR):
            entry.xattrs[records.xattr_name(keyword)] = value
    for keyword in (records.ACL_ACCESS, records.ACL_DEFAULT):
        if keyword in fields:
            entry.acl_texts[keyword] = fields[keyword]
    entry.name = fields.get(b"GNU.sparse.name") or fields.get(b"path", entry.name)
    entry.target = fields.get(b"linkpath", entry.target)
    if b"mtime" in fields:
        entry.mtime_ns = records.parse_time(fields[b"mtime"])
    if b"size" in fields:
        entry.size_bytes = records.number(fields[b"size"])
    if b"uid" in fields:
        entry.uid = records.number(fields[b"uid"])
    if b"gid" in fields:
        entry.gid = records.number(fields[b"gid"])


def _apply_true_names(entry: Entry, fields: dict[bytes, bytes]) -> None:
    """Names that start with `.wh.`, for which the header has substitutes."""
    entry.is_whiteout_for = fields.get(records.DELETED, b"")
    entry.target = fields.get(records.TRUE_TARGET) or entry.target
    if true_path := fields.get(records.TRUE_PATH):
        entry.name, entry.has_true_name = true_path, True


class _Input:
    """A stream that may return fewer bytes than requested, read in large pieces."""

    def __init__(self, archive: IO[bytes], watch: Callable[[bytes], object] | None) -> None:
        self._archive = archive
        self._watch = watch
        self._data = b""
        self._position = 0

    def take(self, count: int) -> bytes:
        """`count` bytes; fewer only at the end."""
        end = self._position + count
        if end > len(self._data):
            self._fill(count)
            end = count
        data = self._data[self._position : end]
        self._position = end
        if self._watch is not None:
            self._watch(data)
        return data

    def _fill(self, count: int) -> None:
        """Have `count` bytes in memory, or all that are left."""
        parts = [self._data[self._position :]]
        have = len(parts[0])
        while have < count:
            try:
                part = self._archive.read(PIECE_BYTES)
            except OSError as error:
                raise ArchiveError(f"it cannot be read: {error.strerror or error}", errno=error.errno) from error
            if not part:
                break
            parts.append(part)
            have += len(part)
        self._data = b"".join(parts)
        self._position = 0
