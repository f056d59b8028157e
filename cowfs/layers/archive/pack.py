"""Writing a layer's changes as a tar archive: PAX, in the order of paths, whiteouts for what was deleted.

Nothing of the machine or the moment gets into it: the same tree gives the same bytes.

Holes. They are written as zeros, and cost no more than the zeros: nothing is read for them. The OCI's layer.md advises
against sparse entries, and Docker's layer store cannot put an archive with such entries together again, so that a
push would fail. For tar programs alone there is `sparse`: entries of GNU tar's PAX format 1.0, which Go's archive/tar
and `apply_archive` read too.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

from cowfs.errors import FilesystemError, PoolError, UsageError
from cowfs.ext4.files import acl
from cowfs.filetree import Attributes, DirectoryEntry, FileTree
from cowfs.layers.archive import records
from cowfs.layers.archive.ids import IdShift, UnmappedId
from cowfs.layers.archive.names import WHITEOUT_PREFIX, show, substitute
from cowfs.layers.archive.reader import PIECE_BYTES
from cowfs.layers.archive.sparse import build as build_sparse_map
from cowfs.layers.interface import Change, ChangeKind, IdMaps, LayerRoot
from cowfs.steps import Steps

_BLOCK: Final = tarfile.BLOCKSIZE
_END: Final = bytes(2 * _BLOCK)
_ZEROS: Final = bytes(PIECE_BYTES)
_GATHERED_BYTES: Final = 128 << 10
_NAME_BYTES_MAX: Final = 100
_ID_MAX: Final = 0o7777777
_SIZE_MAX: Final = 0o77777777777
_NANOSECONDS: Final = 10**9
_NO_MAPS: Final = IdMaps()
_ITEMS_PER_STEP: Final = 64
_ACL_KEYWORDS: Final = {acl.ACCESS: records.ACL_ACCESS, acl.DEFAULT: records.ACL_DEFAULT}

_TYPES: Final = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


@dataclass(frozen=True, slots=True)
class Written:
    """What a whole archive holds; `skipped_sockets` have no place in one, `substitutes` stand for reserved names."""

    entries: int
    skipped_sockets: int
    substitutes: int


class _Item(NamedTuple):
    """A path of the archive, relative and without a slash at its end; no attributes: it was deleted."""

    path: bytes
    attributes: Attributes | None


def write_archive(
    layer: LayerRoot, changes: Sequence[Change] | None, *, maps: IdMaps = _NO_MAPS, sparse: bool = False
) -> Generator[bytes, None, Written]:
    """The changes as an uncompressed tar archive, in pieces of at most a MiB.

    Args:
        changes: what the archive is to hold; None: the whole tree, its root too.
        maps: from the host's ids to those in the archive.
        sparse: write files with holes as sparse entries.

    Raises:
        FilesystemError: something cannot be read, or is not there any more; the message names it.
        PoolError: what the pool says.
        UsageError: no archive can hold it: an id that is not in the maps, or a path and attributes of more than a MiB.
    """
    return _Packer(layer, maps, sparse=sparse).run(changes)


def archive_size(layer: LayerRoot, changes: Sequence[Change] | None) -> Steps[int]:
    """Bytes of the regular files that an archive of these changes would hold, hard-linked ones once.

    As moby's DiffSize, but that symbolic links do not count: so it equals what unpacking the archive reports.

    Raises: like `write_archive`.
    """
    size = 0
    seen: set[int] = set()
    for number, (_, attributes) in enumerate(_items(layer, changes)):
        if attributes is not None and stat.S_ISREG(attributes.mode) and attributes.inode not in seen:
            if attributes.nlink > 1:
                seen.add(attributes.inode)
            size += attributes.size_bytes
        if number % _ITEMS_PER_STEP == 0:
            yield
    return size


# What an archive holds.


def _items(layer: LayerRoot, changes: Sequence[Change] | None) -> Iterator[_Item]:
    """In order: a directory comes before what is in it."""
    if changes is not None:
        return _changed_items(layer, changes)
    return _all_items(layer) if layer.inode else iter(())


def _all_items(layer: LayerRoot) -> Iterator[_Item]:
    tree = layer.tree
    yield _Item(b"", tree.attributes(layer.inode))
    trail = [(b"", _sorted_entries(tree, layer.inode))]
    while trail:
        directory, entries = trail[-1]
        entry = next(entries, None)
        if entry is None:
            trail.pop()
            continue
        path = directory + entry.name
        with _naming(path):
            attributes = tree.attributes(entry.inode)
        yield _Item(path, attributes)
        if stat.S_ISDIR(attributes.mode):
            with _naming(path):
                trail.append((path + b"/", _sorted_entries(tree, entry.inode)))


def _sorted_entries(tree: FileTree, directory: int) -> Iterator[DirectoryEntry]:
    entries = [entry for entry in tree.list_directory(directory) if entry.name not in (b".", b"..")]
    return iter(sorted(entries, key=lambda entry: entry.name))


def _changed_items(layer: LayerRoot, changes: Sequence[Change]) -> Iterator[_Item]:
    tree = layer.tree
    trail = [(b"", layer.inode)]  # the directories of the last path, from the root down
    for change in sorted(changes, key=lambda change: change.path.replace(b"/", b"\0")):
        path = change.path.lstrip(b"/")
        *directories, name = path.split(b"/")
        if change.kind is ChangeKind.DELETE:
            yield _Item(path, None)
            continue
        with _naming(path):
            common = _common_length([part for part, _ in trail[1:]], directories)
            del trail[common + 1 :]
            for part in directories[common:]:
                trail.append((part, tree.lookup(trail[-1][1], part).inode))
            attributes = tree.lookup(trail[-1][1], name)
        yield _Item(path, attributes)


def _common_length(one: list[bytes], other: list[bytes]) -> int:
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return length


@contextmanager
def _naming(path: bytes) -> Iterator[None]:
    """Errors of the tree, and of the maps, with the name of what could not be read."""
    try:
        yield
    except UnmappedId as error:
        raise UsageError(f"a layer archive cannot hold '{show(path)}': {error}") from None
    except PoolError:
        raise
    except OSError as error:
        raise FilesystemError(
            f"cannot read '{show(path)}' of the layer for an archive: {error.strerror}", errno=error.errno
        ) from error


# Writing it.


class _Packer:
    def __init__(self, layer: LayerRoot, maps: IdMaps, *, sparse: bool) -> None:
        self._layer = layer
        self._tree = layer.tree
        self._ids = IdShift(maps, inward=True)
        self._sparse = sparse
        self._seen: dict[int, bytes] = {}  # the first path of files with several names
        self._entries = self._skipped_sockets = self._substitutes = 0

    def run(self, changes: Sequence[Change] | None) -> Generator[bytes, None, Written]:
        gathered = bytearray()
        for part in self._parts(changes):
            is_small = len(part) < _GATHERED_BYTES
            if is_small:
                gathered += part
            if len(gathered) >= _GATHERED_BYTES or (gathered and not is_small):
                yield bytes(gathered)
                gathered.clear()
            if not is_small:
                yield part
        yield bytes(gathered + _END)
        return Written(self._entries, self._skipped_sockets, self._substitutes)

    def _parts(self, changes: Sequence[Change] | None) -> Iterator[bytes]:
        for path, attributes in _items(self._layer, changes):
            if attributes is not None and stat.S_ISSOCK(attributes.mode):
                self._skipped_sockets += 1
                continue
            self._entries += 1
            shown = substitute(path)
            self._substitutes += shown != path
            if attributes is None:
                directory, slash, name = shown.rpartition(b"/")
                extended = {records.DELETED: path} if shown != path else {}
                yield _header(directory + slash + WHITEOUT_PREFIX + name, tarfile.TarInfo(), extended)
                continue
            with _naming(path):
                info, extended = self._describe(attributes)
            if shown != path:
                extended[records.TRUE_PATH] = path
            yield from self._entry(path, shown, attributes, info, extended)

    def _describe(self, attributes: Attributes) -> tuple[tarfile.TarInfo, dict[bytes, bytes]]:
        """Owner, mode, times and attributes, as much as fits into a header, the rest as extended records."""
        info = tarfile.TarInfo()
        extended: dict[bytes, bytes] = {}
        info.type = _TYPES[stat.S_IFMT(attributes.mode)]
        info.mode = stat.S_IMODE(attributes.mode)
        info.uid = _fitting(self._ids.uid(attributes.uid), _ID_MAX, b"uid", extended)
        info.gid = _fitting(self._ids.gid(attributes.gid), _ID_MAX, b"gid", extended)
        seconds, nanoseconds = divmod(attributes.mtime_ns, _NANOSECONDS)
        fits = 0 <= seconds <= _SIZE_MAX
        if nanoseconds or not fits:
            extended[b"mtime"] = records.format_time(attributes.mtime_ns)
        info.mtime = seconds if fits else 0
        if info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
            info.devmajor, info.devminor = os.major(attributes.rdev), os.minor(attributes.rdev)
        for name in self._tree.list_xattrs(attributes.inode):
            value = self._ids.xattr(name, self._tree.get_xattr(attributes.inode, name))
            extended[records.xattr_keyword(name)] = value
            if name in _ACL_KEYWORDS:
                extended[_ACL_KEYWORDS[name]] = acl.to_text(acl.parse(value)).encode()
        return info, extended

    def _entry(
        self, path: bytes, shown: bytes, attributes: Attributes, info: tarfile.TarInfo, extended: dict[bytes, bytes]
    ) -> Iterator[bytes]:
        """`shown`: the path, or its substitute."""
        if stat.S_ISDIR(attributes.mode):
            yield _header((shown or b".") + b"/", info, extended)
            return
        if attributes.nlink > 1:
            first = self._seen.setdefault(attributes.inode, path)
            if first != path:
                info.type = tarfile.LNKTYPE
                target = substitute(first)
                if target != first:
                    extended[records.TRUE_TARGET] = first
                yield _header(shown, info, extended, target=target)
                return
        if stat.S_ISREG(attributes.mode):
            yield from self._file(path, shown, attributes, info, extended)
        elif stat.S_ISLNK(attributes.mode):
            with _naming(path):
                target = self._tree.read_symlink(attributes.inode)
            yield _header(shown, info, extended, target=target)
        else:
            yield _header(shown, info, extended)

    def _file(
        self, path: bytes, shown: bytes, attributes: Attributes, info: tarfile.TarInfo, extended: dict[bytes, bytes]
    ) -> Iterator[bytes]:
        size = attributes.size_bytes
        ranges = [(0, size)]
        name, map_ = shown, b""
        if self._sparse:
            with _naming(path):
                ranges = self._data_ranges(attributes.inode, size)
            if sum(length for _, length in ranges) < size:
                directory, slash, last = shown.rpartition(b"/")
                name = directory + slash + b"GNUSparseFile.0/" + last
                map_ = build_sparse_map(ranges)
                extended |= {
                    b"GNU.sparse.major": b"1",
                    b"GNU.sparse.minor": b"0",
                    b"GNU.sparse.name": shown,
                    b"GNU.sparse.realsize": b"%d" % size,
                }
        stored = len(map_) + sum(length for _, length in ranges)
        info.size = _fitting(stored, _SIZE_MAX, b"size", extended)
        yield _header(name, info, extended)
        yield map_
        for offset, length in ranges:
            yield from self._content(path, attributes.inode, offset, offset + length)
        yield bytes(-stored % _BLOCK)

    def _data_ranges(self, inode: int, size: int) -> list[tuple[int, int]]:
        """(offset, length) of the data; an empty range at the end when the file ends in a hole, as GNU tar has it."""
        ranges = []
        end = 0
        while end < size and (found := self._tree.find_data(inode, end)) is not None:
            begin, end = found[0], min(found[1], size)
            ranges.append((begin, end - begin))
        if end < size:
            ranges.append((size, 0))
        return ranges

    def _content(self, path: bytes, inode: int, begin: int, end: int) -> Iterator[bytes]:
        """A range of a file, zeros for its holes."""
        while begin < end:
            with _naming(path):
                data_begin, data_end = self._tree.find_data(inode, begin) or (end, end)
            for place in range(begin, min(data_begin, end), PIECE_BYTES):
                yield _ZEROS[: min(data_begin, end) - place]
            for place in range(data_begin, min(data_end, end), PIECE_BYTES):
                length = min(PIECE_BYTES, min(data_end, end) - place)
                with _naming(path):
                    piece = self._tree.read(inode, place, length)
                if len(piece) < length:
                    raise FilesystemError(
                        f"'{show(path)}' of the layer was cut off while it was archived; archive the layer again",
                        errno=errno.ESTALE,
                    )
                yield piece
            begin = data_end


def _fitting(value: int, largest: int, keyword: bytes, extended: dict[bytes, bytes]) -> int:
    """A number as the header can hold it: 0 when it is too large; an extended record then has it."""
    if value <= largest:
        return value
    extended[keyword] = b"%d" % value
    return 0


def _header(path: bytes, info: tarfile.TarInfo, extended: dict[bytes, bytes], *, target: bytes = b"") -> bytes:
    """The header of an entry, after an extended one when there is something to put into it."""
    if len(path) > _NAME_BYTES_MAX or not path.isascii():
        extended[b"path"] = path
    if len(target) > _NAME_BYTES_MAX or not target.isascii():
        extended[b"linkpath"] = target
    info.name = _cut(path)
    info.linkname = _cut(target)
    block = info.tobuf(tarfile.USTAR_FORMAT, "latin-1", "strict")
    if not extended:
        return block
    content = records.build(extended)
    if len(content) > records.EXTENDED_BYTES_MAX:
        raise UsageError(
            f"a layer archive cannot hold '{show(path)}': its path and attributes take {len(content)} bytes, and the "
            f"header of a file can hold {records.EXTENDED_BYTES_MAX}"
        )
    about = tarfile.TarInfo("././@PaxHeader")
    about.type = tarfile.XHDTYPE
    about.size = len(content)
    return about.tobuf(tarfile.USTAR_FORMAT, "latin-1", "strict") + content + bytes(-len(content) % _BLOCK) + block


def _cut(name: bytes) -> str:
    """What a header can hold of a name; one of a directory keeps room for its slash."""
    return name[: _NAME_BYTES_MAX - (len(name) > _NAME_BYTES_MAX)].decode("latin-1")
