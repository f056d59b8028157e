"""The layer that an archive is unpacked into: finding places in it, and making room.

Paths are resolved here, by inode numbers from the layer's root: a `..` at the root stays there, a symbolic link in the
middle of a path leads on from the root when it is absolute, and the layer's root is all there is. So an entry goes
where it would go in a chroot of the layer, as with Docker, while nothing outside can be reached.

What the archive has brought is kept in mind by directory and name, for whiteouts hide only what is of layers below.
Nothing recurses: an archive can make trees of any depth.
"""

from __future__ import annotations

import stat
from typing import Final

from cowfs.errors import ArchiveError
from cowfs.filetree import Attributes
from cowfs.layers.archive.names import show
from cowfs.layers.interface import LayerRoot
from cowfs.steps import Steps

_SYMLINKS_MAX: Final = 40  # in one path, as in the kernel
_PARENT_MODE: Final = 0o755
_PARTS_PER_STEP: Final = 256
_REMOVALS_PER_STEP: Final = 64
_RESOLVED_BYTES_MAX: Final = 8 << 20


class Target:
    """A layer, and what was unpacked into it.

    Args:
        owner: uid and gid of directories that have no entry.
    """

    def __init__(self, layer: LayerRoot, owner: tuple[int, int]) -> None:
        self.tree = layer.tree
        self.root = layer.inode
        self._owner = owner
        self._brought: dict[int, set[bytes]] = {}  # names, by directory
        self._fresh: set[int] = set()  # directories that were made here: all that is in them was brought
        self._resolved: dict[bytes, int] = {}  # directories, by path
        self._resolved_bytes = 0
        self._times: dict[int, int] = {}

    # Finding.

    def find(self, directory: int, name: bytes) -> Attributes | None:
        """What has a name; a symbolic link is not followed."""
        if directory in self._fresh and not self.was_brought(directory, name):
            return None
        try:
            return self.tree.lookup(directory, name)
        except FileNotFoundError:
            return None

    def directory(self, parts: list[bytes]) -> Steps[int | None]:
        """The directory at a path; None if there is none."""
        return self._resolved.get(b"/".join(parts)) or (yield from self._resolve(parts))

    def parent(self, parts: list[bytes], entry: bytes) -> Steps[int]:
        """The directory at a path, made when it is not there, and kept from now on.

        Args:
            entry: whose path this is, for messages.

        Raises:
            ArchiveError: something on the path is not a directory, a symbolic link to nowhere, or links go in circles.
        """
        path = b"/".join(parts)
        found = self._resolved.get(path)
        if found is None:
            found = yield from self._resolve(parts, making_for=entry)
            assert found is not None
            self._keep_resolved(path, found)
        return found

    def _keep_resolved(self, path: bytes, directory: int) -> None:
        self._resolved_bytes += len(path)
        if self._resolved_bytes > _RESOLVED_BYTES_MAX:
            self._forget_resolved()
        self._resolved[path] = directory

    def _forget_resolved(self) -> None:
        self._resolved.clear()
        self._resolved_bytes = 0

    def _resolve(self, parts: list[bytes], *, making_for: bytes | None = None) -> Steps[int | None]:
        """Follow a path from the root. What is missing of it is made for the entry `making_for`, if there is one."""
        above = self._resolved.get(b"/".join(parts[:-1]))
        directory = above or self.root
        pending = parts[:-2:-1] if above else parts[::-1]
        own = len(pending)  # this many of `pending` are of the path, those after them of links in it
        links = count = 0
        while pending:
            count += 1
            if count % _PARTS_PER_STEP == 0:
                yield
            is_own = len(pending) <= own
            part = pending.pop()
            own = min(own, len(pending))
            if part in (b"", b"."):
                continue
            if part == b"..":
                directory = self.root if directory == self.root else self.tree.lookup(directory, b"..").inode
                continue
            found = self.find(directory, part)
            if found is not None and stat.S_ISDIR(found.mode):
                if making_for is not None:
                    self.bring(directory, part)
                directory = found.inode
            elif found is not None and stat.S_ISLNK(found.mode) and links < _SYMLINKS_MAX:
                links += 1
                target = self.tree.read_symlink(found.inode)
                if target.startswith(b"/"):
                    directory = self.root
                pending += target.split(b"/")[::-1]
            elif making_for is None:
                return None
            elif found is None and is_own:
                self.bring(directory, part)
                directory = self._make_parent(directory, part)
            else:
                raise ArchiveError(_why_no_parent(found, part), entry=show(making_for))
        return directory

    def _make_parent(self, parent: int, name: bytes) -> int:
        inode = self.tree.restore(parent, name, stat.S_IFDIR | _PARENT_MODE, *self._owner)
        self._fresh.add(inode)
        return inode

    # What the archive brings.

    def bring(self, directory: int, name: bytes) -> None:
        """The archive has this name: whiteouts spare it."""
        self._brought.setdefault(directory, set()).add(name)

    def was_brought(self, directory: int, name: bytes) -> bool:
        return name in self._brought.get(directory, ())

    def has_made(self, directory: int) -> None:
        """A directory was made here."""
        self._fresh.add(directory)

    def set_time_last(self, directory: int, mtime_ns: int) -> None:
        """Let a directory have a time when all is unpacked."""
        self._times[directory] = mtime_ns

    def set_times(self) -> Steps[None]:
        for directory, mtime_ns in self._times.items():
            self.tree.set_attributes(directory, atime_ns=mtime_ns, mtime_ns=mtime_ns)
            yield

    # Removing.

    def hide(self, directory: int, name: bytes) -> Steps[None]:
        """Remove what layers below have under a name."""
        found = self.find(directory, name)
        if found is None:
            return
        if not self.was_brought(directory, name):
            yield from self.remove(directory, name, found.inode, found.mode)
        elif stat.S_ISDIR(found.mode):
            yield from self.hide_all(found.inode)

    def hide_all(self, directory: int) -> Steps[None]:
        """Remove what layers below have in a directory."""
        pending = [directory]
        while pending:
            inode = pending.pop()
            brought = self._brought.get(inode, set())
            for entry in self.tree.list_directory(inode):
                if entry.name in (b".", b".."):
                    continue
                if entry.name not in brought:
                    yield from self.remove(inode, entry.name, entry.inode, entry.mode)
                elif stat.S_ISDIR(entry.mode):
                    pending.append(entry.inode)

    def remove(self, parent: int, name: bytes, inode: int, mode: int) -> Steps[None]:
        """Remove an existing name, and everything below it when it is a directory."""
        if stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            self._forget_resolved()
        if not stat.S_ISDIR(mode):
            self.tree.unlink(parent, name)
            return
        pending = [(parent, name, inode, False)]
        count = 0
        while pending:
            parent, name, inode, is_emptied = pending.pop()
            if is_emptied:
                self.tree.remove_directory(parent, name)
                self._forget(inode)
                continue
            pending.append((parent, name, inode, True))
            for entry in self.tree.list_directory(inode):
                if entry.name in (b".", b".."):
                    continue
                if stat.S_ISDIR(entry.mode):
                    pending.append((inode, entry.name, entry.inode, False))
                else:
                    self.tree.unlink(inode, entry.name)
                count += 1
                if count % _REMOVALS_PER_STEP == 0:
                    yield

    def _forget(self, directory: int) -> None:
        """Its number may be given to something else."""
        self._brought.pop(directory, None)
        self._times.pop(directory, None)
        self._fresh.discard(directory)


def _why_no_parent(found: Attributes | None, part: bytes) -> str:
    if found is None:
        return "a symbolic link in its path leads nowhere"
    if stat.S_ISLNK(found.mode):
        return "too many symbolic links in its path"
    return f"'{show(part)}' in its path is not a directory"
