"""libext2fs.so.2 through cffi in ABI mode: declarations, loading, checks, and errors.

Only what the engine uses is declared. ABI mode means that nothing is compiled, and that no compiler checks the
declarations for us: so the version is checked at load, and `cowfs.ext4.library.filesystem` compares known fields after
opening a volume before anything else is trusted.

Parsing the declarations takes longer than everything else of a mount, so `libext2fs_abi.py` holds the outcome; after a
change of them run `python -m cowfs.ext4.library.libext2fs`.

Source: e2fsprogs 1.47, lib/ext2fs/ext2fs.h, ext2_fs.h, ext2_io.h, ext2_err.h. The structures below are declared
only as far as they are used; the library allocates them (but for the I/O manager and channel, declared in full).
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import struct
import sys
from typing import Any, Final

from cowfs.errors import FilesystemError, MissingRequirement

_log = logging.getLogger(__name__)

_REMEDY: Final = "apt-get install e2fsprogs"
_OLDEST_VERSION: Final = (1, 45)

OPEN_RW: Final = 0x01
OPEN_MASTER_SB_ONLY: Final = 0x200
OPEN_64BITS: Final = 0x20000
OPEN_IGNORE_CSUM_ERRORS: Final = 0x200000
FS_DIRTY: Final = 0x04
FS_INODE_BITMAP_DIRTY: Final = 0x10
FS_BLOCK_BITMAP_DIRTY: Final = 0x20
FLUSH_NO_SYNC: Final = 1
XATTR_RAW: Final = 0x1

_MESSAGE_BYTES_MAX: Final = 512

_ERROR_BASE: Final = 2133571328
MAGIC_FILSYS: Final = _ERROR_BASE + 1
MAGIC_IO_CHANNEL: Final = _ERROR_BASE + 5
MAGIC_IO_MANAGER: Final = _ERROR_BASE + 7
SHORT_READ: Final = _ERROR_BASE + 36
SHORT_WRITE: Final = _ERROR_BASE + 37
UNIMPLEMENTED: Final = _ERROR_BASE + 80

# Offsets from the error base to the kernel's errno; everything else is damage.
_ERRNO_OF_OFFSET: Final = {
    19: errno.EINVAL,  # bad magic
    21: errno.EROFS,
    41: errno.ESTALE,  # bad inode number
    67: errno.EOPNOTSUPP,  # unsupported feature
    68: errno.EROFS,  # unsupported read-only feature
    70: errno.ENOMEM,
    71: errno.EINVAL,
    72: errno.ENOSPC,  # blocks
    73: errno.ENOSPC,  # inodes
    80: errno.EOPNOTSUPP,
    82: errno.EFBIG,
    89: errno.EOPNOTSUPP,  # directory hash
    158: errno.ERANGE,  # attribute name length
    162: errno.ENODATA,
    163: errno.ENOSPC,  # attributes
    164: errno.EOPNOTSUPP,  # attribute feature missing
}

_DECLARATIONS: Final = """
typedef long errcode_t;
typedef uint32_t ext2_ino_t;
typedef uint32_t blk_t;
typedef uint64_t blk64_t;
typedef uint32_t dgrp_t;
typedef struct struct_io_manager *io_manager;
typedef struct struct_io_channel *io_channel;
typedef struct struct_ext2_filsys *ext2_filsys;
typedef struct ext2fs_struct_generic_bitmap_base *ext2fs_bitmap;

struct struct_io_channel {
    errcode_t magic;
    io_manager manager;
    char *name;
    int block_size;
    void *read_error;
    void *write_error;
    int refcount;
    int flags;
    long reserved[14];
    void *private_data;
    void *app_data;
    int align;
};

struct struct_io_manager {
    errcode_t magic;
    const char *name;
    errcode_t (*open)(const char *, int, io_channel *);
    errcode_t (*close)(io_channel);
    errcode_t (*set_blksize)(io_channel, int);
    errcode_t (*read_blk)(io_channel, unsigned long, int, void *);
    errcode_t (*write_blk)(io_channel, unsigned long, int, const void *);
    errcode_t (*flush)(io_channel);
    errcode_t (*write_byte)(io_channel, unsigned long, int, const void *);
    errcode_t (*set_option)(io_channel, const char *, const char *);
    void *get_stats;
    errcode_t (*read_blk64)(io_channel, unsigned long long, int, void *);
    errcode_t (*write_blk64)(io_channel, unsigned long long, int, const void *);
    errcode_t (*discard)(io_channel, unsigned long long, unsigned long long);
    errcode_t (*cache_readahead)(io_channel, unsigned long long, unsigned long long);
    errcode_t (*zeroout)(io_channel, unsigned long long, unsigned long long);
    long reserved[14];
};

struct ext2_super_block {
    uint32_t s_inodes_count, s_blocks_count, s_r_blocks_count, s_free_blocks_count;
    uint32_t s_free_inodes_count, s_first_data_block, s_log_block_size, s_log_cluster_size;
    uint32_t s_blocks_per_group, s_clusters_per_group, s_inodes_per_group, s_mtime;
    uint32_t s_wtime;
    uint16_t s_mnt_count;
    int16_t s_max_mnt_count;
    uint16_t s_magic, s_state, s_errors, s_minor_rev_level;
    uint32_t s_lastcheck, s_checkinterval, s_creator_os, s_rev_level;
    uint16_t s_def_resuid, s_def_resgid;
    uint32_t s_first_ino;
    uint16_t s_inode_size, s_block_group_nr;
    uint32_t s_feature_compat, s_feature_incompat, s_feature_ro_compat;
    uint8_t s_uuid[16];
    uint8_t unused_078[0x56];
    uint16_t s_reserved_gdt_blocks;
    uint8_t unused_0d0[0x10];
    uint32_t s_journal_inum, s_journal_dev;
    uint32_t s_last_orphan;
    uint32_t s_hash_seed[4];
    uint8_t s_def_hash_version, s_jnl_backup_type;
    uint16_t s_desc_size;
    uint8_t unused_100[0x50];
    uint32_t s_blocks_count_hi, s_r_blocks_count_hi, s_free_blocks_hi;
    uint16_t s_min_extra_isize, s_want_extra_isize;
    uint32_t s_flags;
    uint8_t unused_164[0x10C];
    uint32_t s_checksum_seed;
    uint8_t unused_274[0x188];
    uint32_t s_checksum;
};

struct ext2_inode_large {
    uint16_t i_mode, i_uid;
    uint32_t i_size, i_atime, i_ctime, i_mtime, i_dtime;
    uint16_t i_gid, i_links_count;
    uint32_t i_blocks, i_flags, i_version;
    uint32_t i_block[15];
    uint32_t i_generation, i_file_acl, i_size_high, i_faddr;
    uint16_t i_blocks_hi, i_file_acl_high, i_uid_high, i_gid_high, i_checksum_lo, i_reserved;
    uint16_t i_extra_isize, i_checksum_hi;
    uint32_t i_ctime_extra, i_mtime_extra, i_atime_extra, i_crtime, i_crtime_extra, i_version_hi, i_projid;
};

struct struct_ext2_filsys {
    errcode_t magic;
    io_channel io;
    int flags;
    char *device_name;
    struct ext2_super_block *super;
    unsigned int blocksize;
    int fragsize;
    dgrp_t group_desc_count;
    unsigned long desc_blocks;
    void *group_desc;
    unsigned int inode_blocks_per_group;
    ext2fs_bitmap inode_map;
    ext2fs_bitmap block_map;
    void *callbacks[5];
    void *badblocks;
    void *dblist;
    uint32_t stride;
    struct ext2_super_block *orig_super;
    void *image_header;
    uint32_t umask;
    int64_t now;
    int cluster_ratio_bits;
};

int ext2fs_get_library_version(const char **version, const char **date);
void initialize_ext2_error_table(void);
const char *error_message(long code);
void *set_com_err_hook(void (*)(const char *, long, const char *, void *));
int vsnprintf(char *, size_t, const char *, void *);

errcode_t ext2fs_open2(const char *, const char *, int, int, unsigned int, io_manager, ext2_filsys *);
errcode_t ext2fs_flush2(ext2_filsys, int);
void ext2fs_free(ext2_filsys);
errcode_t ext2fs_superblock_csum_set(ext2_filsys, struct ext2_super_block *);
uint64_t ext2fs_blocks_count(struct ext2_super_block *);
uint64_t ext2fs_r_blocks_count(struct ext2_super_block *);
uint64_t ext2fs_free_blocks_count(struct ext2_super_block *);

void ext2fs_inode_alloc_stats2(ext2_filsys, ext2_ino_t, int, int);
void ext2fs_block_alloc_stats_range(ext2_filsys, blk64_t, blk_t, int);
void ext2fs_set_block_alloc_stats_callback(ext2_filsys, void (*)(ext2_filsys, blk64_t, int), void *);
void ext2fs_set_alloc_block_callback(ext2_filsys, errcode_t (*)(ext2_filsys, blk64_t, blk64_t *), void *);
errcode_t ext2fs_find_first_zero_generic_bmap(ext2fs_bitmap, uint64_t, uint64_t, uint64_t *);
errcode_t ext2fs_find_first_set_generic_bmap(ext2fs_bitmap, uint64_t, uint64_t, uint64_t *);

errcode_t ext2fs_allocate_block_bitmap(ext2_filsys, const char *, ext2fs_bitmap *);
errcode_t ext2fs_allocate_inode_bitmap(ext2_filsys, const char *, ext2fs_bitmap *);
void ext2fs_mark_block_bitmap_range2(ext2fs_bitmap, blk64_t, unsigned int);
errcode_t ext2fs_set_block_bitmap_range2(ext2fs_bitmap, blk64_t, size_t, void *);
errcode_t ext2fs_set_inode_bitmap_range2(ext2fs_bitmap, uint64_t, size_t, void *);
errcode_t ext2fs_get_block_bitmap_range2(ext2fs_bitmap, blk64_t, size_t, void *);
errcode_t ext2fs_get_inode_bitmap_range2(ext2fs_bitmap, uint64_t, size_t, void *);
errcode_t ext2fs_block_bitmap_csum_set(ext2_filsys, dgrp_t, char *, int);
errcode_t ext2fs_inode_bitmap_csum_set(ext2_filsys, dgrp_t, char *, int);
int ext2fs_block_bitmap_csum_verify(ext2_filsys, dgrp_t, char *, int);
int ext2fs_inode_bitmap_csum_verify(ext2_filsys, dgrp_t, char *, int);
void ext2fs_group_desc_csum_set(ext2_filsys, dgrp_t);
int ext2fs_group_desc_csum_verify(ext2_filsys, dgrp_t);
errcode_t ext2fs_super_and_bgd_loc2(ext2_filsys, dgrp_t, blk64_t *, blk64_t *, blk64_t *, blk_t *);
blk64_t ext2fs_block_bitmap_loc(ext2_filsys, dgrp_t);
blk64_t ext2fs_inode_bitmap_loc(ext2_filsys, dgrp_t);
blk64_t ext2fs_inode_table_loc(ext2_filsys, dgrp_t);
int ext2fs_bg_has_super(ext2_filsys, dgrp_t);
void ext2fs_bg_flags_clear(ext2_filsys, dgrp_t, uint16_t);

errcode_t ext2fs_read_inode_full(ext2_filsys, ext2_ino_t, struct ext2_inode_large *, int);
errcode_t ext2fs_write_inode_full(ext2_filsys, ext2_ino_t, struct ext2_inode_large *, int);

errcode_t ext2fs_dirhash(int, const char *, int, const uint32_t *, uint32_t *, uint32_t *);

struct ext2_xattr_handle;
errcode_t ext2fs_xattrs_open(ext2_filsys, ext2_ino_t, struct ext2_xattr_handle **);
errcode_t ext2fs_xattrs_close(struct ext2_xattr_handle **);
errcode_t ext2fs_xattrs_flags(struct ext2_xattr_handle *, unsigned int *, unsigned int *);
errcode_t ext2fs_xattrs_read(struct ext2_xattr_handle *);
errcode_t ext2fs_xattrs_iterate(struct ext2_xattr_handle *, int (*)(char *, char *, size_t, void *), void *);
errcode_t ext2fs_xattr_set(struct ext2_xattr_handle *, const char *, const void *, size_t);
errcode_t ext2fs_xattr_remove(struct ext2_xattr_handle *, const char *);
errcode_t ext2fs_free_ext_attr(ext2_filsys, ext2_ino_t, struct ext2_inode_large *);
"""


class Library:
    """The loaded library: `c` holds its functions, `ffi` its types."""

    def __init__(self, ffi: Any, c: Any, version: str, message_hook: Any) -> None:
        self.ffi = ffi
        self.c = c
        self.version = version
        self._message_hook = message_hook

    def error(self, code: int, doing: str) -> OSError:
        """The exception for an error code of the library."""
        number = code if 0 < code < 4096 else _ERRNO_OF_OFFSET.get(code - _ERROR_BASE, errno.EUCLEAN)
        if number == errno.ENOSPC:
            return OSError(number, os.strerror(number))
        text = self.ffi.string(self.c.error_message(code)).decode("ascii", "replace")
        return FilesystemError(f"{doing}: {text}", errno=number)


@functools.cache
def load() -> Library:
    """The library, loaded once per process.

    Raises:
        MissingRequirement: absent, too old, or of another architecture than the declarations.
    """
    if sys.byteorder != "little" or struct.calcsize("P") != 8:
        raise MissingRequirement("mounting ext4 needs a 64-bit little-endian machine", errno=errno.EOPNOTSUPP)
    try:
        from cowfs.ext4.library import libext2fs_abi  # noqa: PLC0415
    except ImportError as error:
        raise MissingRequirement(f"mounting ext4 needs cffi ({error})", remedy="pip install cffi") from None
    ffi: Any = libext2fs_abi.ffi
    sizes = {"struct ext2_super_block": 1024, "struct ext2_inode_large": 160}
    for name, size in sizes.items():
        assert ffi.sizeof(name) == size, name
    try:
        c = ffi.dlopen("libext2fs.so.2")
    except OSError as error:
        raise MissingRequirement(f"mounting ext4 needs libext2fs.so.2 ({error})", remedy=_REMEDY) from None
    version = _version(ffi, c)
    _check_functions(c, version)
    c.initialize_ext2_error_table()
    return Library(ffi, c, version, _silence(ffi, c))


def _silence(ffi: Any, c: Any) -> Any:
    """Have what the library would print on standard error go to the log; returns what must live as long as it.

    A `va_list` is an array, or passed by reference, on all 64-bit little-endian machines: for cffi a pointer.
    """

    def keep(_who: Any, code: int, form: Any, arguments: Any) -> None:
        text = ffi.new("char[]", _MESSAGE_BYTES_MAX)
        c.vsnprintf(text, _MESSAGE_BYTES_MAX, form, arguments)
        reason = ffi.string(c.error_message(code)).decode("ascii", "replace") if code else ""
        _log.debug("libext2fs: %s %s", reason, ffi.string(text).decode("utf-8", "replace"))

    hook = ffi.callback("void(char *, long, char *, void *)", keep)
    c.set_com_err_hook(hook)
    return hook


def _version(ffi: Any, c: Any) -> str:
    text = ffi.new("const char **")
    c.ext2fs_get_library_version(text, ffi.NULL)
    version: str = ffi.string(text[0]).decode("ascii", "replace")
    if _parse_version(version) < _OLDEST_VERSION:
        oldest = ".".join(map(str, _OLDEST_VERSION))
        raise MissingRequirement(f"libext2fs {version} is too old, {oldest} or newer is needed", remedy=_REMEDY)
    return version


def _parse_version(version: str) -> tuple[int, ...]:
    """(1, 47) of `1.47.0` or `1.47-WIP-20220101`."""
    numbers = []
    for part in version.replace("-", ".").split(".")[:2]:
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _check_functions(c: Any, version: str) -> None:
    for line in _DECLARATIONS.splitlines():
        name = line.partition("(")[0].rpartition(" ")[2].lstrip("*")
        if "(" in line and name.startswith("ext2fs_") and not hasattr(c, name):
            raise MissingRequirement(f"libext2fs {version} lacks the function {name}", remedy=_REMEDY)


def write_parsed_declarations(path: str) -> None:
    """Write what `libext2fs_abi.py` must be, for the present declarations."""
    import cffi  # noqa: PLC0415

    ffi = cffi.FFI()
    ffi.cdef(_DECLARATIONS)
    ffi.set_source("cowfs.ext4.library.libext2fs_abi", None)
    ffi.emit_python_code(path)


if __name__ == "__main__":
    write_parsed_declarations(os.path.join(os.path.dirname(os.path.abspath(__file__)), "libext2fs_abi.py"))
