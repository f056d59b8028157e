"""What every tree has that is only read: EROFS to all that changes something, and nothing to write down."""

# ruff: noqa: ARG002 - the parameters are those of a file tree

from __future__ import annotations

import errno
import os
from typing import Final, Never

from cowfs.blockdev import Buffer


class ReadOnlyTree:
    """The part of a `cowfs.filetree.ServedTree` that changes something, or keeps what was changed."""

    read_only: Final = True
    has_changes: Final = False

    # Serving. Nothing changes, so nothing is to be kept.

    def release_inode(self, inode: int) -> None: ...

    def has_orphans(self) -> bool:
        return False

    def quiesce(self) -> None: ...

    def distrust(self) -> None: ...

    def sync(self) -> None: ...

    def sync_inode(self, inode: int, *, data_only: bool) -> None: ...

    # Changing.

    def set_attributes(
        self,
        inode: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size_bytes: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
    ) -> Never:
        _refuse()

    def make_node(self, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> Never:
        _refuse()

    def make_directory(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Never:
        _refuse()

    def make_symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Never:
        _refuse()

    def restore(
        self,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        *,
        rdev: int = 0,
        target: bytes = b"",
        content: Buffer = b"",
        mtime_ns: int | None = None,
        atime_ns: int | None = None,
    ) -> Never:
        _refuse()

    def link(self, inode: int, parent: int, name: bytes) -> Never:
        _refuse()

    def unlink(self, parent: int, name: bytes) -> Never:
        _refuse()

    def remove_directory(self, parent: int, name: bytes) -> Never:
        _refuse()

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0, uid: int = 0, gid: int = 0
    ) -> Never:
        _refuse()

    def write(self, inode: int, offset: int, data: bytes) -> Never:
        _refuse()

    def set_xattr(self, inode: int, name: bytes, value: bytes, flags: int = 0) -> Never:
        _refuse()

    def remove_xattr(self, inode: int, name: bytes) -> Never:
        _refuse()


def _refuse() -> Never:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))
