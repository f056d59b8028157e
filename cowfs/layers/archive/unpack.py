"""Unpacking a layer archive into a layer, in process; where entries go is decided in `target`.

Order. An entry replaces what has its name, a symbolic link too, but a directory that meets a directory keeps what is
in it. Times of directories are set at the end. Whiteouts hide what is of the layers below, never what this archive has
brought, in whatever order (OCI's layer.md; moby lets a later whiteout hide it).

Zeros. Whole blocks of zeros, of 4 KiB at least, are not written: they stay holes, and take no space of the pool. So a
file with holes that was packed as zeros has its holes again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Final

from cowfs.errors import ArchiveError, FilesystemError, PoolError
from cowfs.ext4.files import acl
from cowfs.layers.archive import records
from cowfs.layers.archive.ids import IdShift, UnmappedId
from cowfs.layers.archive.names import (
    LINK_SOURCES,
    NOTE_PREFIX,
    OPAQUE,
    hidden_by,
    is_reserved,
    show,
    split,
)
from cowfs.layers.archive.reader import ArchiveReader, Entry
from cowfs.layers.archive.target import Target
from cowfs.layers.interface import IdMaps, LayerRoot
from cowfs.steps import Steps
from cowfs.units import format_size

_LINK_PERMISSIONS: Final = 0o777
_ZEROS_BYTES_MIN: Final = 4096
_STEP_BYTES: Final = 256 << 10
_ENTRY_BYTES: Final = 32 << 10  # take as long to write as an entry beside its content
_NO_MAPS: Final = IdMaps()
_ACL_NAMES: Final = {records.ACL_ACCESS: acl.ACCESS, records.ACL_DEFAULT: acl.DEFAULT}


@dataclass(frozen=True, slots=True)
class Applied:
    """What was unpacked.

    `size_bytes` sums the sizes of regular files as their headers have them, whiteouts too: what `archive_size` says.
    `skipped_xattrs` counts attributes that ext4 has no place for, and access control lists of names without numbers.
    """

    size_bytes: int
    entries: int
    skipped_devices: int
    skipped_xattrs: int


def apply_archive(
    layer: LayerRoot,
    archive: IO[bytes],
    *,
    maps: IdMaps = _NO_MAPS,
    make_devices: bool = True,
    end_required: bool = True,
    true_names: bool = True,
) -> Steps[Applied]:
    """Unpack an uncompressed tar archive of a layer's changes. A step is a few small entries, or a MiB of one.

    Args:
        archive: read from where it is to its end; `read` may return fewer bytes than requested.
        maps: from the archive's ids to the host's.
        make_devices: else device nodes and fifos are passed over, and counted.
        end_required, true_names: as `ArchiveReader` has them.

    Raises:
        ArchiveError, BreakoutError: the archive is damaged, or has something that a layer cannot have.
        FilesystemError: the layer cannot take it (ENOSPC, EFBIG, ...).
        PoolError: what the pool says.

    After any error the layer holds a part of the archive: it must be thrown away, or the device put back.
    """
    assert layer.inode
    reader = ArchiveReader(archive, end_required=end_required, true_names=true_names)
    return _Unpacker(layer, reader, maps, make_devices=make_devices).run()


class _BadAttribute(OSError):
    """An attribute that its inode cannot take; what is asked of the layer as a whole may fit."""


class _Unpacker:
    def __init__(self, layer: LayerRoot, reader: ArchiveReader, maps: IdMaps, *, make_devices: bool) -> None:
        self._target = Target(layer, maps.root)
        self._tree = layer.tree
        self._reader = reader
        self._ids = IdShift(maps, inward=False)
        self._make_devices = make_devices
        self._zeros = bytes(max(layer.tree.statistics().block_bytes, _ZEROS_BYTES_MIN))
        self._not_made: set[bytes] = set()  # paths of devices that were passed over
        self._has_link_sources = False
        self._entries = self._size_bytes = self._skipped_devices = self._skipped_xattrs = 0

    def run(self) -> Steps[Applied]:
        since_step = 0
        while (entry := self._reader.next()) is not None:
            self._entries += 1
            self._size_bytes += entry.size_bytes
            try:
                yield from self._unpack(entry, split(entry.name, entry.name))
            except UnmappedId as error:
                raise ArchiveError(str(error), entry=show(entry.name)) from None
            except (ArchiveError, PoolError):
                raise
            except OSError as error:
                is_full = error.errno == errno.ENOSPC and not isinstance(error, _BadAttribute)
                raise FilesystemError(
                    f"cannot unpack '{show(entry.name)}' of the layer archive: "
                    f"{self._no_room() if is_full else error.strerror}",
                    errno=error.errno,
                ) from error
            yield from self._reader.pass_over()
            since_step += _ENTRY_BYTES + entry.size_bytes
            if since_step >= _STEP_BYTES:
                since_step = 0
                yield
        self._reader.finish()
        yield from self._remove_link_sources()
        yield from self._target.set_times()
        return Applied(self._size_bytes, self._entries, self._skipped_devices, self._skipped_xattrs)

    def _no_room(self) -> str:
        figures = self._tree.statistics()
        if not figures.inodes_free:
            return f"the layer has no inode left of its {figures.inodes}; make it larger"
        free, whole = (format_size(count * figures.block_bytes) for count in (figures.blocks_available, figures.blocks))
        return f"{os.strerror(errno.ENOSPC)}: {free} of the layer's {whole} are left; make it larger"

    def _unpack(self, entry: Entry, parts: list[bytes]) -> Steps[None]:
        if not parts:
            if not stat.S_ISDIR(entry.kind):
                raise ArchiveError("the layer's root can only be a directory", entry=show(entry.name))
            self._apply_metadata(self._target.root, entry)
        elif entry.is_whiteout_for:
            hidden = split(entry.is_whiteout_for, entry.name)
            if not hidden:
                raise ArchiveError("a whiteout of the layer's root", entry=show(entry.name))
            yield from self._hide(hidden[:-1], hidden[-1])
        elif entry.has_true_name:
            yield from self._make(entry, parts)
        elif parts[0].startswith(NOTE_PREFIX) and parts != [OPAQUE]:
            if parts[0] == LINK_SOURCES and len(parts) > 1 and stat.S_ISREG(entry.kind):
                self._has_link_sources = True
                yield from self._make(entry, parts)
        elif parts[-1] == OPAQUE:
            yield from self._hide_all(parts[:-1])
        elif is_reserved(parts[-1]):
            yield from self._hide(parts[:-1], hidden_by(parts[-1], entry.name))
        elif any(map(is_reserved, parts)):
            raise ArchiveError("names that start with '.wh.' mark deletions", entry=show(entry.name))
        else:
            yield from self._make(entry, parts)

    def _hide(self, above: list[bytes], name: bytes) -> Steps[None]:
        """What a whiteout says; where no directory is yet, it has nothing to hide."""
        directory = yield from self._target.directory(above)
        if directory is not None:
            yield from self._target.hide(directory, name)

    def _hide_all(self, parts: list[bytes]) -> Steps[None]:
        """What a directory that is opaque says."""
        directory = yield from self._target.directory(parts)
        if directory is not None and not (yield from self._is_link(parts)):
            yield from self._target.hide_all(directory)

    def _is_link(self, parts: list[bytes]) -> Steps[bool]:
        """Whether a path to a directory ends in a symbolic link: what an entry of that name is going to replace."""
        above = (yield from self._target.directory(parts[:-1])) if parts else None
        found = self._target.find(above, parts[-1]) if above else None
        return found is not None and stat.S_ISLNK(found.mode)

    def _remove_link_sources(self) -> Steps[None]:
        """Those of this archive; a layer may hold a file of that name."""
        found = self._target.find(self._target.root, LINK_SOURCES)
        if found is not None and self._has_link_sources:
            yield from self._target.remove(self._target.root, LINK_SOURCES, found.inode, found.mode)

    def _make(self, entry: Entry, parts: list[bytes]) -> Steps[None]:
        target, kind = self._target, entry.kind
        source = (yield from self._find_link_source(entry)) if not kind else 0
        parent, name = (yield from target.parent(parts[:-1], entry.name)), parts[-1]
        existing = target.find(parent, name)
        if existing is not None and stat.S_ISDIR(kind) and stat.S_ISDIR(existing.mode):
            target.bring(parent, name)
            self._apply_metadata(existing.inode, entry)
            return
        if existing is not None and source != existing.inode:
            yield from target.remove(parent, name, existing.inode, existing.mode)
        target.bring(parent, name)
        if self._passes_over(entry, parts, source):
            self._skipped_devices += 1
            self._not_made.add(b"/".join(parts))
        elif stat.S_ISREG(kind):
            yield from self._make_file(entry, parent, name)
        elif kind:
            inode = self._restore(entry, parent, name)
            if stat.S_ISDIR(kind):
                target.has_made(inode)
                target.set_time_last(inode, entry.mtime_ns)
        elif existing is None or source != existing.inode:
            self._tree.link(source, parent, name)

    def _passes_over(self, entry: Entry, parts: list[bytes], source: int) -> bool:
        """Whether it is a device that is not to be made, or another name of one."""
        self._not_made.discard(b"/".join(parts))
        if not entry.kind:
            return not source
        return not self._make_devices and entry.kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO)

    def _find_link_source(self, entry: Entry) -> Steps[int]:
        """The inode that a hard link is to; 0 for a device that was passed over."""
        parts = split(entry.target, entry.name)
        if b"/".join(parts) in self._not_made:
            return 0
        found = None
        if parts:
            directory = yield from self._target.directory(parts[:-1])
            found = self._target.find(directory, parts[-1]) if directory else None
        if found is None or stat.S_ISDIR(found.mode):
            what = "is not there" if parts and found is None else "is a directory"
            raise ArchiveError(f"the target '{show(entry.target)}' of the hard link {what}", entry=show(entry.name))
        return found.inode

    def _restore(self, entry: Entry, parent: int, name: bytes, content: bytes = b"") -> int:
        """A new node with all that the entry says of it."""
        # Linux gives every symbolic link these permissions, whatever an archive says.
        permissions = _LINK_PERMISSIONS if entry.kind == stat.S_IFLNK else entry.permissions
        inode = self._tree.restore(
            parent,
            name,
            entry.kind | permissions,
            self._ids.uid(entry.uid),
            self._ids.gid(entry.gid),
            rdev=os.makedev(*entry.device) if any(entry.device) else 0,
            target=entry.target if entry.kind == stat.S_IFLNK else b"",
            content=content,
            mtime_ns=entry.mtime_ns,
        )
        if entry.xattrs or entry.acl_texts:
            self._set_xattrs(inode, entry)
        return inode

    # Contents.

    def _make_file(self, entry: Entry, parent: int, name: bytes) -> Steps[None]:
        pieces = self._reader.content(entry)
        offset, data = next(pieces, (0, b""))
        if len(data) == entry.size_bytes and not self._zero_blocks(offset, data):
            self._restore(entry, parent, name, data)
            return
        inode = self._restore(entry, parent, name)
        while data:
            for begin, end in self._runs(offset, data):
                self._tree.write(inode, offset + begin, data[begin:end])
            yield
            offset, data = next(pieces, (0, b""))
        self._tree.set_attributes(inode, size_bytes=entry.size_bytes, atime_ns=entry.mtime_ns, mtime_ns=entry.mtime_ns)

    def _zero_blocks(self, offset: int, data: bytes) -> list[int]:
        """Where in a piece of a file its whole blocks of zeros are."""
        zeros = self._zeros
        size = len(zeros)
        return [
            place
            for place in range(-offset % size, len(data) - size + 1, size)
            if not data[place] and data[place : place + size] == zeros
        ]

    def _runs(self, offset: int, data: bytes) -> Iterator[tuple[int, int]]:
        """The parts of a piece that are not whole blocks of zeros, as (begin, end)."""
        begin = 0
        for place in [*self._zero_blocks(offset, data), len(data)]:
            if begin < place:
                yield begin, place
            begin = place + len(self._zeros)

    # Attributes.

    def _apply_metadata(self, inode: int, entry: Entry) -> None:
        """Give an existing directory what the entry says, and remove attributes that it does not have."""
        keep = {*entry.xattrs, *(_ACL_NAMES[keyword] for keyword in entry.acl_texts)}
        for name in self._tree.list_xattrs(inode):
            if name not in keep:
                self._tree.remove_xattr(inode, name)
        uid, gid = self._ids.uid(entry.uid), self._ids.gid(entry.gid)
        self._tree.set_attributes(inode, mode=entry.permissions, uid=uid, gid=gid)
        self._set_xattrs(inode, entry)
        self._target.set_time_last(inode, entry.mtime_ns)

    def _set_xattrs(self, inode: int, entry: Entry) -> None:
        values = {**self._lists_from_text(entry), **entry.xattrs}
        for name, value in values.items():
            try:
                self._tree.set_xattr(inode, name, self._ids.xattr(name, value))
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                    text = f"attribute '{show(name)}' of {len(value)} bytes: {error.strerror}"
                    raise _BadAttribute(error.errno, text) from error
                self._skipped_xattrs += 1
        if acl.ACCESS in values:
            self._tree.set_attributes(inode, mode=entry.permissions)  # the list's mode gives way to the header's

    def _lists_from_text(self, entry: Entry) -> dict[bytes, bytes]:
        """Access control lists that the entry has as text only."""
        found = {}
        for keyword, text in entry.acl_texts.items():
            name = _ACL_NAMES[keyword]
            if name in entry.xattrs:
                continue
            try:
                found[name] = acl.pack(acl.from_text(text.decode(errors="replace")))
            except OSError:
                self._skipped_xattrs += 1
        return found
