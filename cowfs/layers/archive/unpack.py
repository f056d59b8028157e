"""Unpacking a layer archive into a layer, in process, without following anybody out of it.

Paths are resolved here, by inode numbers from the layer's root: a `..` at the root stays there, a symbolic link in the
middle of a path leads on from the root when it is absolute, and `rootfs` is all there is. So an entry goes where it
would go in a chroot of the layer, as with Docker, while nothing outside can be reached. A symbolic link at the end of
a path is replaced.

Order. An entry replaces what has its name, but a directory that meets a directory keeps what is in it. Times of
directories are set at the end. Whiteouts hide what is of the layers below, never what this archive has brought.

Zeros. Whole blocks of zeros are not written: they stay holes, and take no space of the pool.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Final

from cowfs.errors import ArchiveError, FilesystemError, PoolError
from cowfs.ext4 import acl
from cowfs.ext4.interface import Attributes
from cowfs.layers.archive import records
from cowfs.layers.archive.ids import IdShift, UnmappedId
from cowfs.layers.archive.names import (
    LINK_SOURCES,
    NOTE_PREFIX,
    OPAQUE,
    check_symlink,
    hidden_by,
    is_reserved,
    show,
    split,
)
from cowfs.layers.archive.reader import ArchiveReader, Entry
from cowfs.layers.interface import IdMaps, LayerRoot, Steps

_SYMLINKS_MAX: Final = 40  # in one path, as in the kernel
_PARENT_MODE: Final = 0o755
_REMOVALS_PER_STEP: Final = 64
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
    layer: LayerRoot, archive: IO[bytes], *, maps: IdMaps = _NO_MAPS, make_devices: bool = True
) -> Steps[Applied]:
    """Unpack an uncompressed tar archive of a layer's changes. A step is an entry, or a MiB of one.

    Args:
        archive: read from where it is to its end; `read` may return less than it is asked for.
        maps: from the archive's ids to the host's.
        make_devices: else device nodes and fifos are passed over, and counted.

    Raises:
        ArchiveError, BreakoutError: the archive is damaged, or has something that a layer cannot have.
        FilesystemError: the layer cannot take it (ENOSPC, EFBIG, ...).
        PoolError: what the pool says.

    After any error the layer holds a part of the archive: it must be thrown away, or the device put back.
    """
    assert layer.inode
    return _Unpacker(layer, ArchiveReader(archive), maps, make_devices=make_devices).run()


class _Unpacker:
    def __init__(self, layer: LayerRoot, reader: ArchiveReader, maps: IdMaps, *, make_devices: bool) -> None:
        self._tree = layer.tree
        self._root = layer.inode
        self._reader = reader
        self._ids = IdShift(maps, inward=False)
        self._root_owner = maps.root
        self._make_devices = make_devices
        self._block_bytes = layer.tree.statistics().block_bytes
        self._zeros = bytes(self._block_bytes)
        self._directories: dict[bytes, int] = {}  # by path: where resolving it led
        self._unpacked: dict[int, set[bytes]] = {}  # names that the archive has brought, by directory
        self._fresh: set[int] = set()  # directories made here: what they hold is in `_unpacked`
        self._times: dict[int, int] = {}  # of directories, to be set at the end
        self._not_made: set[bytes] = set()  # paths of devices that were passed over
        self._entries = self._size_bytes = self._skipped_devices = self._skipped_xattrs = 0

    def run(self) -> Steps[Applied]:
        has_link_sources = False
        while (entry := self._reader.next()) is not None:
            self._entries += 1
            self._size_bytes += entry.size_bytes
            parts = split(entry.name, entry.name)
            has_link_sources = has_link_sources or parts[:1] == [LINK_SOURCES]
            try:
                yield from self._unpack(entry, parts)
            except UnmappedId as error:
                raise ArchiveError(str(error), entry=show(entry.name)) from None
            except (ArchiveError, PoolError):
                raise
            except OSError as error:
                raise FilesystemError(
                    f"cannot unpack '{show(entry.name)}' of the layer archive: {error.strerror}", errno=error.errno
                ) from error
            yield from self._reader.pass_over()
            yield
        self._reader.finish()
        if has_link_sources:
            yield from self._remove_if_there(self._root, LINK_SOURCES)
        for directory, mtime_ns in self._times.items():
            self._tree.set_attributes(directory, atime_ns=mtime_ns, mtime_ns=mtime_ns)
            yield
        return Applied(self._size_bytes, self._entries, self._skipped_devices, self._skipped_xattrs)

    def _unpack(self, entry: Entry, parts: list[bytes]) -> Steps[None]:
        if not parts:
            if not stat.S_ISDIR(entry.kind):
                raise ArchiveError("the layer's root can only be a directory", entry=show(entry.name))
            self._dress_directory(self._root, entry)
        elif parts[0].startswith(NOTE_PREFIX) and parts != [OPAQUE]:
            if parts[0] == LINK_SOURCES and len(parts) > 1 and stat.S_ISREG(entry.kind):
                yield from self._make(entry, parts)
        elif is_reserved(parts[-1]):
            yield from self._hide(parts, entry)
        elif any(map(is_reserved, parts)):
            raise ArchiveError("names that start with '.wh.' mark deletions", entry=show(entry.name))
        else:
            yield from self._make(entry, parts)

    # Making.

    def _make(self, entry: Entry, parts: list[bytes]) -> Steps[None]:
        kind = entry.kind
        if kind == stat.S_IFLNK:
            check_symlink(parts, entry.target)
        source = self._find_link_source(entry) if not kind else 0
        parent, name = self._parent_of(parts, entry), parts[-1]
        existing = self._find(parent, name)
        self._unpacked.setdefault(parent, set()).add(name)
        if existing is not None:
            if stat.S_ISDIR(kind) and stat.S_ISDIR(existing.mode):
                self._dress_directory(existing.inode, entry)
                return
            if source == existing.inode:
                return
            yield from self._remove(parent, name, existing.inode, existing.mode)
            self._unpacked.setdefault(parent, set()).add(name)
        if self._passes_over(entry, parts, source):
            self._skipped_devices += 1
            self._not_made.add(b"/".join(parts))
        elif not kind:
            self._tree.link(source, parent, name)
        elif stat.S_ISREG(kind):
            yield from self._make_file(entry, parent, name)
        else:
            inode = self._restore(entry, parent, name)
            if stat.S_ISDIR(kind):
                self._fresh.add(inode)
                self._times[inode] = entry.mtime_ns

    def _passes_over(self, entry: Entry, parts: list[bytes], source: int) -> bool:
        """Whether it is a device that is not to be made, or another name of one."""
        self._not_made.discard(b"/".join(parts))
        if not entry.kind:
            return not source
        return not self._make_devices and entry.kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO)

    def _restore(self, entry: Entry, parent: int, name: bytes, content: bytes = b"") -> int:
        """A new node with all that the entry says of it."""
        inode = self._tree.restore(
            parent,
            name,
            entry.kind | entry.permissions,
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

    def _make_file(self, entry: Entry, parent: int, name: bytes) -> Steps[None]:
        pieces = self._reader.content(entry)
        first = next(pieces, (0, b""))
        if len(first[1]) == entry.size_bytes and not self._has_zeros(*first):
            self._restore(entry, parent, name, first[1])
            return
        inode = self._restore(entry, parent, name)
        offset, data = first
        while data:
            for begin, end in self._runs(offset, data):
                self._tree.write(inode, offset + begin, data[begin:end])
            yield
            offset, data = next(pieces, (0, b""))
        times = {"atime_ns": entry.mtime_ns, "mtime_ns": entry.mtime_ns}
        self._tree.set_attributes(inode, size_bytes=entry.size_bytes, **times)

    def _has_zeros(self, offset: int, data: bytes) -> bool:
        """Whether a whole block of the file is zeros."""
        size, zeros = self._block_bytes, self._zeros
        first = -offset % size
        return any(
            not data[begin] and data[begin : begin + size] == zeros
            for begin in range(first, len(data) - size + 1, size)
        )

    def _runs(self, offset: int, data: bytes) -> Iterator[tuple[int, int]]:
        """The parts of a piece that are not whole blocks of zeros, as (begin, end)."""
        size, zeros = self._block_bytes, self._zeros
        begin = 0
        for place in range(-offset % size, len(data) - size + 1, size):
            if not data[place] and data[place : place + size] == zeros:
                if begin < place:
                    yield begin, place
                begin = place + size
        if begin < len(data):
            yield begin, len(data)

    def _dress_directory(self, inode: int, entry: Entry) -> None:
        """Give a directory that is there what the entry says, attributes that it does not have taken away."""
        tree = self._tree
        keep = {*entry.xattrs, *(_ACL_NAMES[keyword] for keyword in entry.acl_texts)}
        for name in tree.list_xattrs(inode):
            if name not in keep:
                tree.remove_xattr(inode, name)
        uid, gid = self._ids.uid(entry.uid), self._ids.gid(entry.gid)
        tree.set_attributes(inode, mode=entry.permissions, uid=uid, gid=gid)
        self._set_xattrs(inode, entry)
        self._times[inode] = entry.mtime_ns

    def _set_xattrs(self, inode: int, entry: Entry) -> None:
        values = dict(entry.xattrs)
        for keyword, text in entry.acl_texts.items():
            if _ACL_NAMES[keyword] not in values:
                try:
                    values[_ACL_NAMES[keyword]] = acl.pack(acl.from_text(text.decode(errors="replace")))
                except OSError:
                    self._skipped_xattrs += 1
        for name, value in values.items():
            try:
                self._tree.set_xattr(inode, name, self._ids.xattr(name, value))
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                    raise
                self._skipped_xattrs += 1
        if acl.ACCESS in values:
            self._tree.set_attributes(inode, mode=entry.permissions)  # the list's mode gives way to the header's

    # Finding.

    def _find(self, directory: int, name: bytes) -> Attributes | None:
        if directory in self._fresh and name not in self._unpacked.get(directory, ()):
            return None
        try:
            return self._tree.lookup(directory, name)
        except FileNotFoundError:
            return None

    def _parent_of(self, parts: list[bytes], entry: Entry) -> int:
        """The directory that an entry goes into, made when it is not there."""
        directory = self._directory(parts[:-1], entry, make=True)
        assert directory is not None
        return directory

    def _directory(self, parts: list[bytes], entry: Entry, *, make: bool) -> int | None:
        """The directory at a path, links in it followed within the layer; None when it is not there and not made.

        Raises:
            ArchiveError: something in the way is no directory, or links go in circles or nowhere.
        """
        if not parts:
            return self._root
        path = b"/".join(parts)
        found = self._directories.get(path)
        if found is None:
            found = self._resolve(parts, entry, make=make)
            if found is not None and make:
                self._directories[path] = found
        return found

    def _resolve(self, parts: list[bytes], entry: Entry, *, make: bool) -> int | None:
        trail = [self._root]
        pending = parts[::-1]
        own = len(pending)  # this many of `pending` are of the path, those after them of links in it
        links = 0
        while pending:
            is_own = len(pending) <= own
            part = pending.pop()
            own = min(own, len(pending))
            if part in (b"", b"."):
                continue
            if part == b"..":
                del trail[max(len(trail) - 1, 1) :]
                continue
            found = self._find(trail[-1], part)
            if found is None and not (make and is_own):
                if make:
                    raise ArchiveError("a symbolic link in its path leads nowhere", entry=show(entry.name))
                return None
            if make:
                self._unpacked.setdefault(trail[-1], set()).add(part)
            if found is None:
                trail.append(self._make_parent(trail[-1], part))
            elif stat.S_ISDIR(found.mode):
                trail.append(found.inode)
            elif stat.S_ISLNK(found.mode):
                links += 1
                if links > _SYMLINKS_MAX:
                    raise ArchiveError("too many symbolic links in its path", entry=show(entry.name))
                target = self._tree.read_symlink(found.inode)
                if target.startswith(b"/"):
                    del trail[1:]
                pending += target.split(b"/")[::-1]
            else:
                raise ArchiveError(f"'{show(part)}' in its path is no directory", entry=show(entry.name))
        return trail[-1]

    def _make_parent(self, parent: int, name: bytes) -> int:
        inode = self._tree.restore(parent, name, stat.S_IFDIR | _PARENT_MODE, *self._root_owner)
        self._fresh.add(inode)
        return inode

    def _find_link_source(self, entry: Entry) -> int:
        """The inode that a hard link is to; 0 for a device that was passed over."""
        parts = split(entry.target, entry.name)
        if b"/".join(parts) in self._not_made:
            return 0
        found = None
        if parts:
            directory = self._directory(parts[:-1], entry, make=False)
            found = self._find(directory, parts[-1]) if directory else None
        if found is None or stat.S_ISDIR(found.mode):
            what = "is not there" if parts and found is None else "is a directory"
            raise ArchiveError(f"the target '{show(entry.target)}' of the hard link {what}", entry=show(entry.name))
        return found.inode

    # Removing.

    def _hide(self, parts: list[bytes], entry: Entry) -> Steps[None]:
        """What a whiteout says."""
        directory = self._directory(parts[:-1], entry, make=False)
        if parts[-1] == OPAQUE:
            if directory is not None:
                yield from self._hide_all(directory)
            return
        name = hidden_by(parts[-1], entry.name)
        if directory is None:
            return
        found = self._find(directory, name)
        if found is None:
            return
        if name not in self._unpacked.get(directory, ()):
            yield from self._remove(directory, name, found.inode, found.mode)
        elif stat.S_ISDIR(found.mode):
            yield from self._hide_all(found.inode)

    def _hide_all(self, directory: int) -> Steps[None]:
        """Remove everything below a directory that the archive has not brought."""
        pending = [directory]
        while pending:
            inode = pending.pop()
            brought = self._unpacked.get(inode, set())
            for entry in self._tree.list_directory(inode):
                if entry.name in (b".", b".."):
                    continue
                if entry.name not in brought:
                    yield from self._remove(inode, entry.name, entry.inode, entry.mode)
                elif stat.S_ISDIR(entry.mode):
                    pending.append(entry.inode)

    def _remove_if_there(self, parent: int, name: bytes) -> Steps[None]:
        found = self._find(parent, name)
        if found is not None:
            yield from self._remove(parent, name, found.inode, found.mode)

    def _remove(self, parent: int, name: bytes, inode: int, mode: int) -> Steps[None]:
        """Remove a name, and everything below it when it is a directory."""
        self._unpacked.get(parent, set()).discard(name)
        if stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            self._directories.clear()
        if not stat.S_ISDIR(mode):
            self._tree.unlink(parent, name)
            return
        pending = [(parent, name, inode, False)]
        count = 0
        while pending:
            parent, name, inode, is_emptied = pending.pop()
            if is_emptied:
                self._tree.remove_directory(parent, name)
                self._forget_directory(inode)
                continue
            pending.append((parent, name, inode, True))
            for entry in self._tree.list_directory(inode):
                if entry.name in (b".", b".."):
                    continue
                if stat.S_ISDIR(entry.mode):
                    pending.append((inode, entry.name, entry.inode, False))
                else:
                    self._tree.unlink(inode, entry.name)
                count += 1
                if count % _REMOVALS_PER_STEP == 0:
                    yield

    def _forget_directory(self, inode: int) -> None:
        """Its number may be given to something else."""
        self._unpacked.pop(inode, None)
        self._times.pop(inode, None)
        self._fresh.discard(inode)
