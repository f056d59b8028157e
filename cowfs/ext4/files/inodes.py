"""Inodes in memory: their fields, the cache of them, and writing them back.

An inode is the raw bytes of the inode table, in C memory so that libext2fs can be handed them, and what the engine
knows about it besides: the block map once it was needed, the parsed index of a directory, the attributes once read.
Changes stay in memory until the inode is flushed, at a sync or when the cache is full.
"""

from __future__ import annotations

import errno
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from cowfs.ext4.format import checksums, layout
from cowfs.ext4.library.filesystem import Filesystem, os_error
from cowfs.ext4.space import extents
from cowfs.ext4.space.allocator import Allocator
from cowfs.ext4.space.block_map import BlockMap
from cowfs.filetree import ROOT_INODE, Attributes

if TYPE_CHECKING:
    from cowfs.ext4.format.htree import Index

_CACHED_INODES_MAX = 16384
_CACHED_INODES_MIN = 512
_SECTOR_BYTES = 512
_SIZE_END = 1 << 63
_SECTORS_END = 1 << 48
_KINDS = frozenset((stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK))
_BLOCK_POINTER_BYTES = 60

# Where the extra time fields end, counted from byte 128: they exist as far as i_extra_isize reaches.
_CTIME_EXTRA_END = 8
_MTIME_EXTRA_END = 12
_ATIME_EXTRA_END = 16
_CRTIME_EXTRA_END = 24


class Inode:
    """One inode. Fields are read from `raw`; change them through the setters, or call `touch`."""

    __slots__ = (
        "_attributes",
        "_fs",
        "_memory",
        "_seed",
        "damage",
        "dirty",
        "index",
        "is_index_damaged",
        "map",
        "map_changed",
        "nodes",
        "number",
        "raw",
        "xattrs",
    )

    def __init__(self, fs: Filesystem, number: int) -> None:
        self._fs = fs
        # At least as large as the declared structure, so that the extra fields can be read whatever the inode size.
        self._memory = fs.ffi.new("char[]", max(fs.inode_bytes, 160))
        self.raw: Any = fs.ffi.cast("struct ext2_inode_large *", self._memory)
        self.number = number
        self.dirty = False
        self.map: BlockMap | None = None
        self.nodes: list[int] = []  # blocks of the extent tree, or indirect blocks; known while `map` is
        self.map_changed = False
        self.index: Index | None = None  # of a hash-indexed directory
        self.is_index_damaged = False
        self.damage = ""  # of a directory's blocks, as far as they were read
        self.xattrs: dict[bytes, bytes] | None = None
        self._attributes: Attributes | None = None
        self._seed: int | None = None

    def load(self) -> None:
        """Read the inode as it is in the inode table, forgetting what is derived from it."""
        self._fs.read_inode(self.number, self.raw)
        self._attributes = None
        self._seed = None
        self.dirty = False

    def find_damage(self) -> str | None:
        """What the kernel does not accept in an inode, as far as it shows in the inode itself."""
        fs, flags = self._fs, self.flags
        if stat.S_IFMT(self.mode) not in _KINDS:
            return f"has mode {self.mode:#o}"
        if self._extra_bytes & 3 or layout.GOOD_OLD_INODE_BYTES + self._extra_bytes > fs.inode_bytes:
            return f"claims {self._extra_bytes} bytes beyond the first {layout.GOOD_OLD_INODE_BYTES}"
        if self.size >= _SIZE_END:
            return f"has a size of {self.size} bytes"
        block = self.xattr_block
        if block and not (fs.first_data_block < block < fs.blocks and not fs.descriptors.is_system_block(block)):
            return f"has its attributes in block {block}"
        if flags & layout.INODE_FLAG_EA_INODE:
            return "holds an attribute, and has a name"
        if stat.S_ISLNK(self.mode) and flags & (layout.INODE_FLAG_IMMUTABLE | layout.INODE_FLAG_APPEND):
            return "is a symbolic link that cannot be changed"
        return None

    def touch(self) -> None:
        if not self.dirty:
            self.dirty = True
            self._fs.touched_inodes.add(self.number)
            self._fs.touched_inode_blocks.add(self.number // self._fs.inodes_per_block)
        self._attributes = None

    @property
    def mode(self) -> int:
        mode: int = self.raw.i_mode
        return mode

    @mode.setter
    def mode(self, mode: int) -> None:
        self.raw.i_mode = mode
        self.touch()

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.raw.i_mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.raw.i_mode)

    @property
    def is_inline(self) -> bool:
        """Whether the content is in the inode itself, see `cowfs.ext4.files.inline`."""
        return bool(self.raw.i_flags & layout.INODE_FLAG_INLINE_DATA)

    @property
    def has_map(self) -> bool:
        """Whether the block pointers are block pointers, and not content, a short symlink or a device number."""
        if self.is_inline:
            return False
        kind = stat.S_IFMT(self.raw.i_mode)
        if kind == stat.S_IFLNK:
            return not self.is_fast_symlink
        return kind in (stat.S_IFREG, stat.S_IFDIR)

    @property
    def is_fast_symlink(self) -> bool:
        if self._fs.has_ea_inodes:
            return self.size < layout.FAST_SYMLINK_BYTES
        has_block = self.raw.i_file_acl or self.raw.i_file_acl_high
        return self.sectors == (self._fs.cluster_bytes // _SECTOR_BYTES if has_block else 0)

    @property
    def flags(self) -> int:
        flags: int = self.raw.i_flags
        return flags

    @flags.setter
    def flags(self, flags: int) -> None:
        self.raw.i_flags = flags
        self.touch()

    @property
    def links(self) -> int:
        links: int = self.raw.i_links_count
        return links

    @links.setter
    def links(self, links: int) -> None:
        self.raw.i_links_count = links
        self.touch()

    @property
    def uid(self) -> int:
        uid: int = self.raw.i_uid | self.raw.i_uid_high << 16
        return uid

    @uid.setter
    def uid(self, uid: int) -> None:
        self.raw.i_uid, self.raw.i_uid_high = uid & 0xFFFF, uid >> 16 & 0xFFFF
        self.touch()

    @property
    def gid(self) -> int:
        gid: int = self.raw.i_gid | self.raw.i_gid_high << 16
        return gid

    @gid.setter
    def gid(self, gid: int) -> None:
        self.raw.i_gid, self.raw.i_gid_high = gid & 0xFFFF, gid >> 16 & 0xFFFF
        self.touch()

    @property
    def size(self) -> int:
        raw = self.raw
        size: int = raw.i_size
        if raw.i_size_high and (self.is_regular or self._fs.has_large_directories):
            size |= raw.i_size_high << 32
        return size

    @size.setter
    def size(self, size: int) -> None:
        raw = self.raw
        raw.i_size, raw.i_size_high = size & 0xFFFFFFFF, size >> 32
        sb = self._fs.super
        if size >= 2**31 and not sb.s_feature_ro_compat & layout.RO_COMPAT_LARGE_FILE:
            sb.s_feature_ro_compat |= layout.RO_COMPAT_LARGE_FILE
            self._fs.superblock_changed()
        self.touch()

    @property
    def sectors(self) -> int:
        """Space it takes, in units of 512 bytes, tree and attribute blocks included."""
        raw = self.raw
        count: int = raw.i_blocks
        if self._fs.has_huge_file:
            count |= raw.i_blocks_hi << 32
            if raw.i_flags & layout.INODE_FLAG_HUGE_FILE:
                count *= self._fs.block_bytes // _SECTOR_BYTES
        return count

    def add_blocks(self, blocks: int) -> None:
        """Account for blocks gained, or lost when negative."""
        raw = self.raw
        per_block = self._fs.block_bytes // _SECTOR_BYTES
        count = max(self.sectors + blocks * per_block, 0)
        raw.i_flags &= ~layout.INODE_FLAG_HUGE_FILE
        if count >= _SECTORS_END:
            raw.i_flags |= layout.INODE_FLAG_HUGE_FILE
            count //= per_block
        count = min(count, _SECTORS_END - 1)  # more than any device has: the inode is damaged
        raw.i_blocks, raw.i_blocks_hi = count & 0xFFFFFFFF, count >> 32
        self.touch()

    @property
    def xattr_block(self) -> int:
        """The block of its extended attributes; 0 without one."""
        block: int = self.raw.i_file_acl
        if self._fs.has_64bit:
            block |= self.raw.i_file_acl_high << 32
        return block

    @property
    def pointers(self) -> bytes:
        """The 60 bytes of block pointers, extent root, short symlink or device number."""
        return bytes(self._fs.ffi.buffer(self.raw.i_block))

    @pointers.setter
    def pointers(self, data: bytes) -> None:
        assert len(data) == _BLOCK_POINTER_BYTES
        self._fs.ffi.memmove(self.raw.i_block, data, _BLOCK_POINTER_BYTES)
        self.touch()

    def set_device(self, rdev: int) -> None:
        """Make it lead to a device. Raises OSError (EINVAL) for a number that does not fit."""
        self.raw.i_block[0], self.raw.i_block[1] = layout.encode_device(rdev)
        self.touch()

    @property
    def checksum_seed(self) -> int:
        if self._seed is None:
            self._seed = checksums.inode_seed(self._fs.checksum_seed, self.number, self.raw.i_generation)
        return self._seed

    @property
    def _extra_bytes(self) -> int:
        """How far the fields beyond the first 128 bytes reach."""
        if self._fs.inode_bytes <= layout.GOOD_OLD_INODE_BYTES:
            return 0
        extra: int = self.raw.i_extra_isize
        return extra

    def set_times(
        self, *, atime_ns: int | None = None, mtime_ns: int | None = None, ctime_ns: int | None = None
    ) -> None:
        raw, reach = self.raw, self._extra_bytes
        if ctime_ns is not None:
            raw.i_ctime, extra = layout.encode_time(ctime_ns, extended=reach >= _CTIME_EXTRA_END)
            if reach >= _CTIME_EXTRA_END:
                raw.i_ctime_extra = extra
        if mtime_ns is not None:
            raw.i_mtime, extra = layout.encode_time(mtime_ns, extended=reach >= _MTIME_EXTRA_END)
            if reach >= _MTIME_EXTRA_END:
                raw.i_mtime_extra = extra
        if atime_ns is not None:
            raw.i_atime, extra = layout.encode_time(atime_ns, extended=reach >= _ATIME_EXTRA_END)
            if reach >= _ATIME_EXTRA_END:
                raw.i_atime_extra = extra
        self.touch()

    def set_creation_time(self, time_ns: int) -> None:
        if self._extra_bytes >= _CRTIME_EXTRA_END:
            self.raw.i_crtime, self.raw.i_crtime_extra = layout.encode_time(time_ns, extended=True)
            self.touch()

    def changed(self) -> None:
        """The content changed now."""
        now = self._fs.now_ns()
        self.set_times(mtime_ns=now, ctime_ns=now)

    @property
    def attributes(self) -> Attributes:
        if self._attributes is None:
            self._attributes = self._read_attributes()
        return self._attributes

    def _read_attributes(self) -> Attributes:
        raw, reach = self.raw, self._extra_bytes
        rdev = 0
        if stat.S_ISCHR(raw.i_mode) or stat.S_ISBLK(raw.i_mode):
            rdev = layout.decode_device(raw.i_block[0], raw.i_block[1])
        return Attributes(
            inode=self.number,
            generation=raw.i_generation,
            mode=raw.i_mode,
            nlink=raw.i_links_count,
            uid=self.uid,
            gid=self.gid,
            rdev=rdev,
            size_bytes=self.size,
            blocks=self.sectors,
            atime_ns=layout.decode_time(raw.i_atime, raw.i_atime_extra if reach >= _ATIME_EXTRA_END else 0),
            mtime_ns=layout.decode_time(raw.i_mtime, raw.i_mtime_extra if reach >= _MTIME_EXTRA_END else 0),
            ctime_ns=layout.decode_time(raw.i_ctime, raw.i_ctime_extra if reach >= _CTIME_EXTRA_END else 0),
            crtime_ns=layout.decode_time(raw.i_crtime, raw.i_crtime_extra) if reach >= _CRTIME_EXTRA_END else 0,
        )


class InodeTable:
    """The cache of inodes, bounded but for those that are open and have no name, and the count of who has one open.

    Args:
        store_map: writes the block map of an inode into its pointers and tree blocks.
    """

    def __init__(self, fs: Filesystem, allocator: Allocator, store_map: Callable[[Inode], None]) -> None:
        self._fs = fs
        self._allocator = allocator
        self._store_map = store_map
        self._cache: OrderedDict[int, Inode] = OrderedDict()
        self._pins: dict[int, int] = {}
        self._max = _CACHED_INODES_MAX
        self.uses = 0
        self._generation = fs.now_ns() & 0xFFFFFFFF

    def get(self, number: int) -> Inode:
        """An inode in use.

        Raises:
            OSError: ESTALE for a number that is not in use, EUCLEAN for one of ext4's own files and a damaged inode.
        """
        self.uses += 1
        inode = self._cache.get(number)
        if inode is not None:
            self._cache.move_to_end(number)
            return inode
        fs = self._fs
        if not 1 <= number <= fs.inodes:
            raise os_error(errno.ESTALE)
        if number < fs.first_inode and number != ROOT_INODE:
            raise fs.damaged(f"something refers to the reserved inode {number}")
        inode = self.load(number)
        if inode.links == 0:
            raise os_error(errno.ESTALE)
        damage = inode.find_damage()
        if damage:
            raise fs.damaged(f"inode {number} {damage}")
        if inode.is_inline and not fs.has_inline_data:
            raise fs.damaged(f"inode {number} has its data in it, a feature that the volume does not have")
        self.keep(inode)
        return inode

    def load(self, number: int) -> Inode:
        """An inode as it is in the table, whatever its state, not in the cache."""
        inode = Inode(self._fs, number)
        inode.load()
        return inode

    def keep(self, inode: Inode) -> None:
        """Take an inode into the cache."""
        if len(self._cache) >= self._max:
            self._shrink()
        self._cache[inode.number] = inode

    def create(self, parent: Inode, mode: int, uid: int, gid: int) -> Inode:
        """A new inode in memory, without a name. Raises OSError (ENOSPC)."""
        if len(self._cache) >= self._max:
            self._shrink()  # before anything is taken: it may fail
        number = self._allocator.allocate_inode(parent.number, is_directory=stat.S_ISDIR(mode))
        inode = self._make(number, mode)
        inode.uid, inode.gid = uid, gid
        inode.raw.i_flags |= _inherited_flags(parent.flags, mode)
        return inode

    def make_reserved(self, number: int, mode: int) -> Inode:
        """One of ext4's own inodes, which needs no name, as a new one in memory."""
        inode = self._make(number, mode)
        inode.links = 1
        return inode

    def discard_reserved(self, inode: Inode) -> None:
        """Have nothing in an inode of ext4's own that has no blocks any more."""
        self._cache.pop(inode.number, None)
        empty = Inode(self._fs, inode.number)
        self._fs.write_inode(empty.number, empty.raw)

    def _make(self, number: int, mode: int) -> Inode:
        fs = self._fs
        inode = Inode(fs, number)
        raw = inode.raw
        if fs.inode_bytes > layout.GOOD_OLD_INODE_BYTES:
            wanted = max(fs.super.s_want_extra_isize, fs.super.s_min_extra_isize) or 32
            raw.i_extra_isize = min(wanted, fs.inode_bytes - layout.GOOD_OLD_INODE_BYTES)
        raw.i_mode = mode
        self._generation = (self._generation + 1) & 0xFFFFFFFF
        raw.i_generation = self._generation
        if stat.S_IFMT(mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            inode.map = BlockMap()
            if fs.has_extents:
                raw.i_flags |= layout.INODE_FLAG_EXTENTS
                inode.pointers = extents.EMPTY_ROOT
        now = fs.now_ns()
        inode.set_times(atime_ns=now, mtime_ns=now, ctime_ns=now)
        inode.set_creation_time(now)
        inode.xattrs = {}
        self._cache[number] = inode
        return inode

    def discard(self, inode: Inode) -> None:
        """Free the number of an inode that has neither names nor blocks any more."""
        inode.links = 0
        inode.raw.i_dtime = max(self._fs.now_ns() // 1_000_000_000 & 0xFFFFFFFF, 1)
        inode.map_changed = False
        self._fs.write_inode(inode.number, inode.raw)
        self._allocator.free_inode(inode.number, is_directory=inode.is_directory)
        self._cache.pop(inode.number, None)

    def prepare_values(self, numbers: Iterable[int]) -> None:
        """The library is about to free these inodes, or to take others, to keep large attributes in them.

        Raises:
            FilesystemError (EUCLEAN): it must not, since the inode bitmap is bad.
        """
        if not self._fs.has_ea_inodes:
            return
        for number in numbers:
            if not 1 <= number <= self._fs.inodes or not self._allocator.is_allocated(number):
                raise self._fs.damaged(f"inode {number}, which holds an attribute, cannot be freed")
        self._allocator.show_free_inode()

    def note_use(self, numbers: Iterable[int]) -> None:
        """The library has taken or freed inodes."""
        self._allocator.note_inodes(numbers)

    def pin(self, number: int) -> None:
        self._pins[number] = self._pins.get(number, 0) + 1

    def unpin(self, number: int) -> bool:
        """Whether that was the last pin."""
        left = self._pins[number] - 1
        if left:
            self._pins[number] = left
        else:
            del self._pins[number]
        return not left

    def is_pinned(self, inode: Inode) -> bool:
        return inode.number in self._pins

    def flush(self, inode: Inode) -> None:
        """Write one inode into the inode table, as far as the cache."""
        if inode.map_changed:
            self._store_map(inode)
            inode.map_changed = False
        if inode.dirty:
            self._fs.write_inode(inode.number, inode.raw)
            inode.dirty = False

    def flush_all(self) -> None:
        """In order of number, so that the library reads every block of the table once."""
        for number in sorted(self._fs.touched_inodes):
            inode = self._cache.get(number)
            if inode is not None and inode.dirty:
                self.flush(inode)
        self._fs.touched_inodes.clear()
        self._fs.touched_inode_blocks.clear()

    def limit(self, share: float) -> None:
        """Keep no more than this part of what a volume may keep that is open alone. Between two operations only."""
        self._max = max(int(_CACHED_INODES_MAX * share), _CACHED_INODES_MIN)
        for number in list(self._cache)[: max(len(self._cache) - self._max, 0)]:
            inode = self._cache[number]
            if inode.links and not inode.dirty and not inode.map_changed:
                del self._cache[number]

    def forget_all(self) -> None:
        self._cache.clear()

    def _shrink(self) -> None:
        """Drop the longer unused half of the cache, but for orphans. An operation under way holds newer ones."""
        for number in list(self._cache)[: len(self._cache) // 2]:
            inode = self._cache[number]
            if inode.links:
                self.flush(inode)
                del self._cache[number]


def _inherited_flags(parent_flags: int, mode: int) -> int:
    if stat.S_ISDIR(mode):
        return parent_flags & layout.INODE_FLAGS_INHERITED
    if stat.S_ISREG(mode):
        return parent_flags & layout.INODE_FLAGS_FOR_FILES
    return parent_flags & layout.INODE_FLAGS_FOR_OTHERS
