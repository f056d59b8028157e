"""An open xfs, for reading: a `cowfs.filetree.ServedTree` over a block device, in process, without root.

    XfsVolume
    ├── Directories     names
    ├── Contents        of regular files and symbolic links
    ├── Attributes      extended attributes, access control lists
    ├── Maps            which blocks hold what
    ├── Inodes
    └── Blocks          the device

The tree's root is inode 2, as every `FileTree`'s: xfs has its superblock where an inode 2 would be. All other numbers
are those of xfs. Everything that would change something raises OSError (EROFS).
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from cowfs.blockdev import BlockDevice
from cowfs.errors import FilesystemError
from cowfs.filetree import ROOT_INODE, Attributes, DirectoryEntry, ServedTree, TreeStatistics
from cowfs.forking import not_inherited
from cowfs.xfs.files.attributes import Attributes as ExtendedAttributes
from cowfs.xfs.files.blocks import Blocks, os_error
from cowfs.xfs.files.contents import Contents
from cowfs.xfs.files.counts import Counts, count
from cowfs.xfs.files.directories import Directories
from cowfs.xfs.files.inodes import Inodes
from cowfs.xfs.files.maps import Maps
from cowfs.xfs.format.inode import Inode
from cowfs.xfs.format.names import Name
from cowfs.xfs.format.superblock import Superblock, damaged, read_superblock
from cowfs.xfs.log.replay import replayed
from cowfs.xfs.read_only import ReadOnlyTree

_NAME_MAX: Final = 255


class XfsVolume(ReadOnlyTree):
    """An open volume. Not safe for use from several threads. The device stays the caller's, and is only read.

    `problems`: why a volume that is open to rescue what can be read may show something old or damaged.
    """

    def __init__(
        self, device: BlockDevice, sb: Superblock, problems: Sequence[str], *, is_replayed: bool, name: str
    ) -> None:
        self.problems = problems
        self._is_replayed = is_replayed
        self._sb = sb
        self._blocks = Blocks(device, sb)
        self._inodes = Inodes(self._blocks)
        self._maps = Maps(self._blocks)
        self._contents = Contents(self._blocks, self._maps)
        self._directories = Directories(self._blocks, self._maps, self._inodes)
        self._xattrs = ExtendedAttributes(self._blocks, self._maps, self._contents)
        self._is_closed = False
        not_inherited(self, f"the file system of {name}")

    @classmethod
    def open(cls, device: BlockDevice, *, rescue: bool = False, name: str = "a volume") -> XfsVolume:
        """Open the xfs on a device. One that was not unmounted is shown as its log says; nothing is written.

        Args:
            rescue: open what is damaged too, to read what can be read, also without what is in a log that cannot be
                replayed; `problems` says what is wrong.
            name: of the volume, in messages.

        Raises:
            FilesystemError: no xfs (EINVAL), features that are not supported (EOPNOTSUPP), damage, or a log that cannot
                be replayed (EUCLEAN).
        """
        sb = read_superblock(device)
        problems: list[str] = []
        if sb.needs_repair:
            _note(damaged("it is marked as in need of xfs_repair"), problems, rescue=rescue)
        shown = None
        try:
            shown = replayed(device, sb)
        except FilesystemError as error:
            reason = error.message.removeprefix("xfs is damaged: ")
            what = f"xfs was not unmounted, and its log cannot be replayed: {reason}"
            _note(FilesystemError(what, errno=errno.EUCLEAN), problems, rescue=rescue)
        if shown is not None:
            device, sb = shown, read_superblock(shown, is_replayed=True)
        volume = cls(device, sb, problems, is_replayed=shown is not None, name=name)
        if not volume._inode(ROOT_INODE).is_directory:
            raise damaged(f"the root, inode {sb.root_inode}, is not a directory")
        return volume

    # Memory.

    @property
    def uses(self) -> int:
        """A count that grows whenever the volume is used."""
        return self._inodes.uses

    def limit_memory(self, share: float) -> None:
        """Cache only this part of what a volume caches that is open alone."""
        for cached in (self._inodes, self._maps, self._directories):
            cached.limit(share)

    # Numbers.

    def _inode(self, number: int) -> Inode:
        if self._is_closed:
            raise os_error(errno.ESHUTDOWN)
        return self._inodes.get(self._sb.root_inode if number == ROOT_INODE else number)

    def _shown(self, number: int) -> int:
        return ROOT_INODE if number == self._sb.root_inode else number

    def _attributes(self, inode: Inode) -> Attributes:
        found = inode.attributes
        return replace(found, inode=ROOT_INODE) if found.inode == self._sb.root_inode else found

    # Looking.

    def lookup(self, parent: int, name: bytes) -> Attributes:
        found = self.find_name(parent, name)
        if found is None:
            raise os_error(errno.ENOENT)
        return found

    def find_name(self, parent: int, name: bytes) -> Attributes | None:
        directory = self._inode(parent)
        if len(name) > _NAME_MAX:
            raise os_error(errno.ENAMETOOLONG)
        found = self._directories.load(directory).by_name.get(name)
        if found is None:
            return None
        if name not in (b".", b".."):
            self._require_place(found, directory)
        return self._attributes(self._existing(found, directory))

    def _existing(self, name: Name, directory: Inode) -> Inode:
        """The inode that a name leads to. Raises FilesystemError where there is none, or another kind of file."""
        try:
            found = self._inodes.get(name.inode)
        except FilesystemError:
            raise
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            raise damaged(f"a name in directory {directory.number} leads to inode {name.inode}, not in use") from error
        if name.kind and stat.S_IFMT(found.attributes.mode) != name.kind:
            raise damaged(f"a name in directory {directory.number} leads to inode {name.inode}, of another kind")
        return found

    def _require_place(self, name: Name, directory: Inode) -> None:
        if name.kind in (0, stat.S_IFDIR):
            self._existing(name, directory)
            self._directories.require_place(name.inode, directory.number)

    def attributes(self, inode: int) -> Attributes:
        return self._attributes(self._inode(inode))

    def list_directory(self, inode: int, cookie: int = 0) -> Iterator[DirectoryEntry]:
        """All entries that can be read, then the first error."""
        directory = self._inode(inode)
        names = self._directories.load(directory).names
        errors: list[OSError] = []
        for number in range(max(cookie, 0), len(names)):
            name = names[number]
            try:
                if number > 1:
                    self._require_place(name, directory)
                kind = name.kind or stat.S_IFMT(self._inodes.get(name.inode).attributes.mode)
            except FilesystemError as error:
                errors.append(error)
                continue
            yield DirectoryEntry(name.name, self._shown(name.inode), kind, number + 1)
        if errors:
            raise errors[0]

    def read_symlink(self, inode: int) -> bytes:
        link = self._inode(inode)
        if not link.is_symlink:
            raise os_error(errno.EINVAL)
        return self._contents.target(link)

    def read(self, inode: int, offset: int, length: int) -> bytes:
        return self._contents.read(self._regular(inode), offset, length)

    def find_data(self, inode: int, offset: int) -> tuple[int, int] | None:
        return self._contents.find_data(self._regular(inode), offset)

    def _regular(self, number: int) -> Inode:
        inode = self._inode(number)
        if not inode.is_regular:
            raise os_error(errno.EISDIR if inode.is_directory else errno.EINVAL)
        return inode

    def get_xattr(self, inode: int, name: bytes) -> bytes:
        return self._xattrs.get(self._inode(inode), name)

    def list_xattrs(self, inode: int) -> list[bytes]:
        return self._xattrs.names(self._inode(inode))

    def statistics(self) -> TreeStatistics:
        """As the kernel counts: inodes are made where there is space, up to a part of it."""
        sb = self._sb
        counts = count(self._blocks) if self._is_replayed else Counts.of(sb)
        free = min(counts.blocks_free, sb.blocks)
        possible = counts.inodes + (free << sb.inodes_per_block_log)
        if sb.inodes_percent_max:
            possible = min(possible, sb.blocks * sb.inodes_percent_max // 100 << sb.inodes_per_block_log)
        inodes = max(possible, counts.inodes)
        return TreeStatistics(
            block_bytes=sb.block_bytes,
            blocks=sb.blocks - (sb.log_blocks if sb.log_start else 0),
            blocks_free=free,
            blocks_available=free,
            inodes=inodes,
            inodes_free=inodes - counts.inodes + min(counts.inodes_free, counts.inodes),
            name_max=_NAME_MAX,
        )

    # Serving.

    def open_inode(self, inode: int) -> None:
        self._inode(inode)

    def close(self) -> None:
        """Forget what was read. A second close does nothing."""
        self._is_closed = True
        for cached in (self._inodes, self._maps, self._directories):
            cached.clear()


def _note(error: FilesystemError, problems: list[str], *, rescue: bool) -> None:
    """Raise an error, unless what can be read is to be rescued: then it is a problem."""
    if not rescue:
        raise error
    problems.append(error.message)


if TYPE_CHECKING:
    _: type[ServedTree] = XfsVolume
