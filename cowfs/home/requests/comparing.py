"""What can be asked about the differences of two devices, or two layers.

Paths are bytes, in JSON as base64, and absolute: within the device, or the layer.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Sequence
from typing import Final

import msgspec

from cowfs.copying.paths import resolve
from cowfs.errors import FilesystemError
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.requests.request import Listing, StreamOut
from cowfs.layers.changes import find_path_changes
from cowfs.layers.driver import Pair
from cowfs.layers.interface import LayerRoot, PathChange
from cowfs.steps import Pieces

_CHANGES_PER_STEP: Final = 256


class ChangeRow(msgspec.Struct, frozen=True):
    """A `cowfs.layers.interface.PathChange`."""

    path: bytes
    kind: str
    old_path: bytes | None
    is_modified: bool


class Version(msgspec.Struct, frozen=True, array_like=True):
    """A file on one side of a comparison. `content` is a regular file's or a symbolic link's; None: it is too long."""

    mode: int
    uid: int
    gid: int
    device: int
    size_bytes: int
    xattrs: dict[bytes, bytes]
    content: bytes | None


class ChangedFile(msgspec.Struct, frozen=True, array_like=True):
    """A change, with what the path has in the device (`new`) and in the other one (`old`)."""

    change: ChangeRow
    old: Version | None
    new: Version | None


class Changes(Listing[ChangeRow], frozen=True, tag="changes"):
    """See `cowfs.Home.changes`."""

    device: str
    other: str

    reads = ("other", "device")

    def run(self, home: OpenHome) -> Pieces[ChangeRow]:
        with home.driver.comparing(self.device, self.other) as pair:
            changes = yield from find_path_changes(*pair)
        for count, change in enumerate(changes, 1):
            yield ChangeRow(*change)
            if count % _CHANGES_PER_STEP == 0:
                yield None


class ChangedFiles(StreamOut[None], frozen=True, tag="changed_files"):
    """As `Changes`, with the files themselves: each piece is a `ChangedFile` as msgpack.

    Args:
        path: only this one, and those below it.
        content_bytes_max: longer files come without their content.

    Raises:
        FilesystemError (ENOENT): neither device has `path`.
    """

    device: str
    other: str
    path: bytes = b"/"
    content_bytes_max: int = 1 << 20

    reads = ("other", "device")

    def run(self, home: OpenHome) -> Generator[bytes | None, None, None]:
        with home.driver.comparing(self.device, self.other) as pair:
            self._require_path(pair)
            changes = yield from find_path_changes(*pair)
            for change in self._chosen(changes):
                new = None if change.kind == "D" else self._version(pair.root, change.path)
                old = None if change.kind == "A" else self._version(pair.other, change.old_path or change.path)
                yield msgspec.msgpack.encode(ChangedFile(ChangeRow(*change), old, new))

    def _require_path(self, pair: Pair) -> None:
        if not any(self._is_in(root) for root in (pair.root, pair.other)):
            path = self.path.decode(errors="backslashreplace")
            raise FilesystemError(
                f"there is no '{path}' in '{self.device}', nor in '{self.other}'; name a path that one of them has",
                errno=errno.ENOENT,
            )

    def _is_in(self, root: LayerRoot) -> bool:
        try:
            return resolve(root.tree, root.inode, self._top, follow=False).found is not None
        except (FileNotFoundError, NotADirectoryError):
            return False

    @property
    def _top(self) -> bytes:
        """The path without slashes around it, and without dots."""
        return os.path.normpath(b"/" + self.path).strip(b"/")

    def _chosen(self, changes: Sequence[PathChange]) -> list[PathChange]:
        if not (top := self._top):
            return list(changes)
        return [
            change
            for change in changes
            if any((path + b"/").startswith(b"/" + top + b"/") for path in (change.path, change.old_path or b""))
        ]

    def _version(self, root: LayerRoot, path: bytes) -> Version:
        tree = root.tree
        found = resolve(tree, root.inode, path, follow=False).found
        if found is None:
            raise FilesystemError(
                f"'{path.decode(errors='backslashreplace')}' was removed while it was compared; run this again",
                errno=errno.ESTALE,
            )
        content: bytes | None = b""
        if stat.S_ISLNK(found.mode):
            content = tree.read_symlink(found.inode)
        elif stat.S_ISREG(found.mode):
            limit = self.content_bytes_max
            content = tree.read(found.inode, 0, found.size_bytes) if found.size_bytes <= limit else None
        xattrs = {name: tree.get_xattr(found.inode, name) for name in tree.list_xattrs(found.inode)}
        return Version(found.mode, found.uid, found.gid, found.rdev, found.size_bytes, xattrs, content)
