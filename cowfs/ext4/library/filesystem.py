"""An ext4 volume opened by libext2fs: geometry, superblock, inodes, checksums, and writing it all down.

This is the layer that talks to the library. Above it are the allocator, the inode table, directories and data.

Marking. Before the first metadata block reaches the device, the superblock there is marked: with a journal as one whose
journal must be replayed, else as not cleanly unmounted. The mark is durable before anything else is written.
`mark_clean` takes it away again.
"""

from __future__ import annotations

import enum
import errno
import functools
import logging
import os
import struct
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from cowfs.blockdev import BlockDevice
from cowfs.errors import FilesystemError
from cowfs.ext4.format import checksums, layout
from cowfs.ext4.format.layout import Superblock
from cowfs.ext4.library import libext2fs
from cowfs.ext4.library.channel import Channel
from cowfs.ext4.library.descriptors import Descriptors
from cowfs.ext4.library.metadata_cache import MetadataCache

_log = logging.getLogger(__name__)

_NANOSECONDS = 1_000_000_000
_NOTES_MAX = 100
_FIRST_INODE_MIN = 11


class _Mark(enum.Enum):
    """What the superblock on the device says."""

    NONE = enum.auto()
    REPLAY = enum.auto()
    CHECK = enum.auto()


class Filesystem:
    """One open ext2_filsys, its cache and its geometry. Not safe for several threads.

    Args:
        name: of the volume, in what is logged about it.
        before_recovery: the volume may have a journal to replay, and is opened to find that.
        rescue: for reading only: whatever can be read, a journal that is not replayed notwithstanding.
    """

    def __init__(
        self,
        device: BlockDevice,
        *,
        read_only: bool,
        now_ns: Callable[[], int],
        name: str = "a volume",
        before_recovery: bool = False,
        rescue: bool = False,
    ) -> None:
        self.device = device
        self.name = name
        self.read_only = read_only
        self.now_ns = now_ns
        superblock = layout.read_superblock(device)
        _check_openable(superblock, device, read_only=read_only, before_recovery=before_recovery, rescue=rescue)
        self.uuid = superblock.uuid
        self.block_bytes = superblock.block_bytes
        self.library = libext2fs.load()
        self.ffi = self.library.ffi
        self.c = self.library.c
        self.cache = MetadataCache(device, self.block_bytes, self.mark_in_use)
        self.is_journaled = False
        self.has_unflushed_data = False  # which the next commit makes visible
        self.touched_inodes: set[int] = set()  # in memory, by number
        self.touched_inode_blocks: set[int] = set()  # where they lie: how much a commit will have to write
        self._mark = _Mark.NONE
        self._noted: set[str] = set()
        self.closed = False  # what the library allocated is gone then, and must not be touched
        self._channel = Channel(self.library, self.cache)
        self._freeing = ExitStack()
        self.fs = self._open(libext2fs.OPEN_IGNORE_CSUM_ERRORS if before_recovery or rescue else 0)
        self._freeing.callback(self.c.ext2fs_free, self.fs)
        if rescue:
            self.fs.flags &= ~libext2fs.OPEN_IGNORE_CSUM_ERRORS  # those of inodes count
        try:
            self._check_layout(superblock)
            self.super = self.fs.super
            self._read_geometry()
            self.descriptors = Descriptors(self)
            self._freeing.callback(self.descriptors.forget)
            if not read_only:
                self.super.s_state &= ~layout.STATE_VALID  # in memory: as it is written while mounted
                self.descriptors.check()
        except BaseException:
            self.free()
            raise

    def _open(self, flags: int) -> Any:
        flags |= libext2fs.OPEN_64BITS | libext2fs.OPEN_MASTER_SB_ONLY
        if not self.read_only:
            flags |= libext2fs.OPEN_RW
        result = self.ffi.new("ext2_filsys *")
        self.call(
            self.c.ext2fs_open2, b"cowfs", self.ffi.NULL, flags, 0, 0, self._channel.manager, result, doing="open ext4"
        )
        return result[0]

    def _check_layout(self, superblock: Superblock) -> None:
        """Compare what the library opened with what cowfs read itself, so that wrong declarations cannot do harm."""
        fs = self.fs
        fits = (
            fs.magic == libext2fs.MAGIC_FILSYS
            and fs.io == self._channel.channel
            and fs.super != self.ffi.NULL
            and fs.super.s_magic == layout.SUPERBLOCK_MAGIC
            and bytes(fs.super.s_uuid) == superblock.uuid
            and fs.super.s_feature_incompat == superblock.incompat
            and fs.blocksize == superblock.block_bytes
            and self.c.ext2fs_blocks_count(fs.super) == superblock.blocks
            and fs.cluster_ratio_bits in range(32)
        )
        if not fits:
            raise FilesystemError(
                f"libext2fs {self.library.version} has another memory layout than expected; use e2fsprogs 1.45 to 1.47",
                errno=errno.ENOSYS,
            )

    def _read_geometry(self) -> None:
        sb = self.super
        self.blocks: int = self.c.ext2fs_blocks_count(sb)
        self.cluster_bytes: int = self.block_bytes << self.fs.cluster_ratio_bits  # more than a block with bigalloc
        self.first_data_block: int = sb.s_first_data_block
        self.blocks_per_group: int = sb.s_blocks_per_group
        self.inodes_per_group: int = sb.s_inodes_per_group
        self.groups: int = self.fs.group_desc_count
        self.inodes: int = sb.s_inodes_count
        dynamic = sb.s_rev_level >= 1
        self.first_inode: int = sb.s_first_ino if dynamic else _FIRST_INODE_MIN
        self.inode_bytes: int = sb.s_inode_size if dynamic else layout.GOOD_OLD_INODE_BYTES
        self.inodes_per_block = self.block_bytes // self.inode_bytes
        if not _FIRST_INODE_MIN <= self.first_inode <= self.inodes:
            raise self.damaged(f"the first inode that is not reserved is {self.first_inode}")
        self.has_64bit = bool(sb.s_feature_incompat & layout.INCOMPAT_64BIT)
        self.has_extents = bool(sb.s_feature_incompat & layout.INCOMPAT_EXTENTS)
        self.has_file_types = bool(sb.s_feature_incompat & layout.INCOMPAT_FILETYPE)
        self.has_huge_file = bool(sb.s_feature_ro_compat & layout.RO_COMPAT_HUGE_FILE)
        self.has_dir_index = bool(sb.s_feature_compat & layout.COMPAT_DIR_INDEX)
        self.has_large_directories = bool(sb.s_feature_incompat & layout.INCOMPAT_LARGEDIR)
        self.has_dir_nlink = bool(sb.s_feature_ro_compat & layout.RO_COMPAT_DIR_NLINK)
        self.has_inline_data = bool(sb.s_feature_incompat & layout.INCOMPAT_INLINE_DATA)
        self.has_ea_inodes = bool(sb.s_feature_incompat & layout.INCOMPAT_EA_INODE)
        self.has_metadata_csum = bool(sb.s_feature_ro_compat & layout.RO_COMPAT_METADATA_CSUM)
        seeded = sb.s_feature_incompat & layout.INCOMPAT_CSUM_SEED
        self.checksum_seed: int = sb.s_checksum_seed if seeded else checksums.crc32c(0xFFFFFFFF, self.uuid)
        self.has_group_csum = self.has_metadata_csum or bool(sb.s_feature_ro_compat & layout.RO_COMPAT_GDT_CSUM)

    # Calling the library.

    def call(self, function: Callable[..., int | None], *arguments: Any, doing: str) -> None:
        """Call a function of the library; raise what one of our callbacks raised, else what its answer means."""
        if self.closed:
            raise os_error(errno.ESHUTDOWN)
        channel = self._channel
        channel.failure = None
        code = function(*arguments)
        failure = channel.failure
        if failure is not None:
            channel.failure = None
            raise failure
        if code:
            raise self.library.error(code, doing)

    def callback(self, signature: str, handler: Callable[..., Any]) -> Any:
        """A C function pointer to `handler`; its exceptions surface from `call`. The caller keeps it alive."""
        return self.ffi.callback(signature, handler, onerror=self._channel.keep_failure)

    # Inodes.

    def read_inode(self, number: int, raw: Any) -> None:
        self.call(self.c.ext2fs_read_inode_full, self.fs, number, raw, self.inode_bytes, doing=f"read inode {number}")

    def write_inode(self, number: int, raw: Any) -> None:
        self.call(self.c.ext2fs_write_inode_full, self.fs, number, raw, self.inode_bytes, doing=f"write inode {number}")

    def is_linked(self, number: int) -> bool:
        """Whether an inode has a mode and links where the inode table has it, whatever else is wrong with it."""
        group, index = divmod(number - 1, self.inodes_per_group)
        offset = self.descriptors.inode_table(group) * self.block_bytes + index * self.inode_bytes
        mode, links = struct.unpack("<H24xH", self.cache.read_bytes(offset, 28))
        return bool(mode and links)

    def damaged(self, what: str) -> FilesystemError:
        return FilesystemError(f"ext4 is damaged: {what}; run a check with repair", errno=errno.EUCLEAN)

    def note_damage(self, what: str, *, kind: str = "") -> None:
        """Log once that something is damaged that the volume can do without, and have it checked at the next mount.

        Args:
            kind: only the first of a kind is a warning, the others are information.
        """
        if what in self._noted or len(self._noted) >= _NOTES_MAX:
            return
        level = logging.INFO if kind and kind in self._noted else logging.WARNING
        self._noted |= {what, kind}
        _log.log(level, "%s: ext4 is damaged: %s", self.name, what)
        if not self.read_only:
            self.super.s_state |= layout.STATE_ERROR
            self.superblock_changed()

    # Writing down.

    def flush_superblock(self) -> None:
        """Put the superblock and the group descriptors into the cache, when they changed."""
        if not self.fs.flags & libext2fs.FS_DIRTY:
            return
        self.fs.now = self.now_ns() // _NANOSECONDS
        self.call(self.c.ext2fs_flush2, self.fs, libext2fs.FLUSH_NO_SYNC, doing="write the superblock")

    def superblock_changed(self) -> None:
        self.fs.flags |= libext2fs.FS_DIRTY

    @property
    def is_changed(self) -> bool:
        """Whether there is metadata that is not written down."""
        return bool(self.cache.dirty or self.fs.flags & libext2fs.FS_DIRTY)

    def flush_device(self) -> None:
        self.device.flush()
        self.has_unflushed_data = False

    def set_journaled(self, is_journaled: bool) -> None:
        """Whether metadata is committed to the journal from now on. A volume that does so stays valid meanwhile."""
        self.is_journaled = is_journaled
        if is_journaled:
            self.super.s_state |= layout.STATE_VALID
        else:
            self.super.s_state &= ~layout.STATE_VALID

    def distrust(self) -> None:
        """What is written from now on needs a check."""
        self.super.s_state &= ~layout.STATE_VALID
        self.superblock_changed()

    def mark_clean(self) -> None:
        """Say on the device that the volume is cleanly unmounted. Everything else must be durable before."""
        if self._mark is _Mark.NONE:
            return
        sb = self.super
        sb.s_state |= layout.STATE_VALID
        sb.s_feature_incompat &= ~layout.INCOMPAT_RECOVER
        self.superblock_changed()
        try:
            self.flush_superblock()
            self.cache.write_out()
            self.flush_device()
        finally:
            # After a failure it is unknown what the device says, and has to be said again before anything is written.
            self._mark = _Mark.NONE
            self.set_journaled(self.is_journaled)

    def mark_in_use(self) -> None:
        """Say on the device that something is being written; nothing happens when it says so."""
        mark = _Mark.REPLAY if self.is_journaled else _Mark.CHECK
        if self._mark is mark:
            return
        sb = self.super
        if self._mark is _Mark.NONE:
            sb.s_mtime = self.now_ns() // _NANOSECONDS & 0xFFFFFFFF
            sb.s_mnt_count = (sb.s_mnt_count + 1) & 0xFFFF
        # The superblock as it is on the device, with the mark: what is being written now must not slip in.
        raw = bytearray(self.device.pread(layout.SUPERBLOCK_OFFSET, layout.SUPERBLOCK_BYTES))
        on_device = self.ffi.cast("struct ext2_super_block *", self.ffi.from_buffer(raw))
        for one in (sb, on_device):
            if mark is _Mark.REPLAY:
                one.s_feature_incompat |= layout.INCOMPAT_RECOVER
            else:
                one.s_feature_incompat &= ~layout.INCOMPAT_RECOVER
                one.s_state &= ~layout.STATE_VALID
        self.superblock_changed()
        if self.has_metadata_csum:
            self.c.ext2fs_superblock_csum_set(self.fs, on_device)
        self.device.pwrite(layout.SUPERBLOCK_OFFSET, raw)
        self.flush_device()
        self._mark = mark

    def free(self) -> None:
        """Give back the library's memory. Nothing is written."""
        if not self.closed:
            self.closed = True
            self._freeing.close()
            self.fs = self.super = None


def _check_openable(
    superblock: Superblock, device: BlockDevice, *, read_only: bool, before_recovery: bool, rescue: bool
) -> None:
    unknown = superblock.incompat & ~layout.INCOMPAT_SUPPORTED & ~layout.INCOMPAT_RECOVER
    if unknown:
        names = layout.feature_names(unknown, layout.INCOMPAT_NAMES)
        raise FilesystemError(f"ext4 uses features that cowfs does not support: {names}", errno=errno.EOPNOTSUPP)
    if rescue:
        return
    if superblock.incompat & layout.INCOMPAT_RECOVER and not before_recovery:
        raise FilesystemError("ext4's journal must be replayed first; run a check", errno=errno.EUCLEAN)
    if superblock.blocks * superblock.block_bytes > device.size_bytes:
        raise FilesystemError(
            f"ext4 has {superblock.blocks} blocks of {superblock.block_bytes} bytes, "
            f"more than the device's {device.size_bytes} bytes",
            errno=errno.EUCLEAN,
        )
    if read_only:
        return
    unwritable = superblock.ro_compat & ~layout.RO_COMPAT_WRITABLE
    if unwritable:
        names = layout.feature_names(unwritable, layout.RO_COMPAT_NAMES)
        raise FilesystemError(
            f"ext4 uses features that cowfs cannot write: {names}; open it read-only", errno=errno.EROFS
        )
    if not superblock.state & layout.STATE_VALID or superblock.state & layout.STATE_ERROR:
        raise FilesystemError("ext4 was not cleanly unmounted; run a check first", errno=errno.EUCLEAN)


def os_error(number: int, name: bytes | str | None = None) -> OSError:
    """OSError of an errno, with the name it is about."""
    if name is None:
        return OSError(number, _message(number))
    return OSError(number, _message(number), name)


_message = functools.cache(os.strerror)  # which looks for a translation each time
