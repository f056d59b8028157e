"""A file tree by inode number: what an open ext4 and a mount of the kernel's offer to views and to the layer driver.

The root is inode 2. Names are bytes without `/`. Times are nanoseconds since 1970. Every
method raises OSError with the errno a kernel file system would give, and then has changed nothing, so that it may be
tried again (when a full pool has space again). Nothing awaits; one thread at a time.

Lifetime of inodes. `open_inode` pins an inode that has lost its last name until as many `release_inode` calls; its
space is freed at the last release, or at the next mount when the process died before (orphan list).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import msgspec

from cowfs.blockdev import Buffer

ROOT_INODE: Final = 2

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4


class Attributes(msgspec.Struct, frozen=True, gc=False):  # made for most requests: a tenth of a dataclass' time
    """An inode as stat(2) shows it; `blocks` counts 512-byte sectors, `rdev` is as os.makedev packs it."""

    inode: int
    generation: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size_bytes: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    crtime_ns: int


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One name of a directory; `cookie` continues a listing after this entry; `mode` holds only the file type bits."""

    name: bytes
    inode: int
    mode: int
    cookie: int


@dataclass(frozen=True, slots=True)
class TreeStatistics:
    """Figures for statvfs(3), in file system blocks of `block_bytes`."""

    block_bytes: int
    blocks: int
    blocks_free: int
    blocks_available: int
    inodes: int
    inodes_free: int
    name_max: int


class FileTree(Protocol):
    """Files and directories. `read_only` trees answer EROFS to everything that changes something."""

    @property
    def read_only(self) -> bool: ...

    def lookup(self, parent: int, name: bytes) -> Attributes:
        """Raises ENOENT, ENOTDIR, ENAMETOOLONG. `.` and `..` work too."""
        ...

    def attributes(self, inode: int) -> Attributes: ...

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
    ) -> Attributes:
        """Change what is not None; `ctime_ns` None means now. Changing the size truncates or extends with a hole."""
        ...

    def make_node(self, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> Attributes:
        """A regular file, fifo, socket, or character or block device, by the type bits of `mode`.

        A parent with the setgid bit hands down its group, here and for links, and the bit itself to directories.
        """
        ...

    def make_directory(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Attributes: ...

    def make_symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Attributes: ...

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
    ) -> int:
        """A node of any kind, exactly as given, as from an archive: nothing is inherited from the parent.

        Args:
            target: of a symbolic link.
            content: of a regular file.
            mtime_ns: None means now.
            atime_ns: None means `mtime_ns`.

        Returns:
            Its inode number.
        """
        ...

    def read_symlink(self, inode: int) -> bytes: ...

    def link(self, inode: int, parent: int, name: bytes) -> Attributes: ...

    def unlink(self, parent: int, name: bytes) -> None: ...

    def remove_directory(self, parent: int, name: bytes) -> None: ...

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0, uid: int = 0, gid: int = 0
    ) -> None:
        """renameat2(2) with its flags.

        Args:
            uid, gid: of the whiteout that RENAME_WHITEOUT leaves under the old name, a character device 0:0.

        Raises:
            OSError (EINVAL): flags that do not go together, or that the tree does not have.
        """
        ...

    def list_directory(self, inode: int, cookie: int = 0) -> Iterator[DirectoryEntry]:
        """Entries after `cookie` (0: from the start), `.` and `..` included; safe while entries come and go."""
        ...

    def read(self, inode: int, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file. Holes read as zeros."""
        ...

    def find_data(self, inode: int, offset: int) -> tuple[int, int] | None:
        """The first range at or after `offset` that is not a hole, as (begin, end), as SEEK_DATA and SEEK_HOLE find it.

        None when there is only a hole up to the end of the file.
        """
        ...

    def write(self, inode: int, offset: int, data: bytes) -> int:
        """Write all of `data`, or raise (ENOSPC, EFBIG, EIO) with nothing beyond the old size made visible."""
        ...

    def get_xattr(self, inode: int, name: bytes) -> bytes:
        """Raises ENODATA when there is none."""
        ...

    def set_xattr(self, inode: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """`flags` as setxattr(2): XATTR_CREATE 1, XATTR_REPLACE 2."""
        ...

    def list_xattrs(self, inode: int) -> list[bytes]: ...

    def remove_xattr(self, inode: int, name: bytes) -> None: ...

    def statistics(self) -> TreeStatistics: ...

    def sync(self) -> None:
        """Write everything down and flush the device."""
        ...

    def close(self) -> None:
        """Release what is still open, sync, and mark the volume cleanly unmounted. The device stays open."""
        ...


@runtime_checkable
class ServedTree(FileTree, Protocol):
    """A tree that a mount serves: applications hold inodes open, and its device is snapshotted meanwhile."""

    def find_name(self, parent: int, name: bytes) -> Attributes | None:
        """As `lookup`; None for a missing name, the answer to most lookups of a mount."""
        ...

    def open_inode(self, inode: int) -> None: ...

    def release_inode(self, inode: int) -> None: ...

    def sync_inode(self, inode: int, *, data_only: bool) -> None:
        """Make durable at least one inode, as fsync(2) does, or fdatasync(2) with `data_only`."""
        ...

    def quiesce(self) -> None:
        """Sync, and leave the device as after a clean unmount until the next change: for a snapshot taken now."""
        ...

    def has_orphans(self) -> bool:
        """Whether something without a name is still open, which closing the volume would free."""
        ...

    def distrust(self) -> None:
        """Something failed halfway: never mark the volume as cleanly unmounted again, so that it is checked next."""
        ...
