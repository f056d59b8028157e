"""Extended attributes, kept by libext2fs: in the inode, in a separate block, or in inodes for large values.

The library works on the inode table, so an inode is flushed before and read again after. What an inode has is read
once and remembered; most have nothing, which shows in the inode itself.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cowfs.ext4.files import acl
from cowfs.ext4.files.inodes import Inode, InodeTable
from cowfs.ext4.format import layout
from cowfs.ext4.library import libext2fs
from cowfs.ext4.library.filesystem import Filesystem, os_error

XATTR_CREATE = 1
XATTR_REPLACE = 2

_PREFIXES = (b"user.", b"trusted.", b"security.", b"gnu.")
_INLINE = b"system.data"
_NAME_MAX = 255
_VALUE_MAX = 65536
_MAGIC = 0xEA020000
_BLOCK_HEADER_BYTES = 32
_ENTRY = struct.Struct("<BBHIII")  # name length, name space, value offset, value inode, value size, hash


class ExtendedAttributes:
    """The extended attributes of one volume's inodes. Names are whole: `user.comment`."""

    def __init__(self, fs: Filesystem, inodes: InodeTable) -> None:
        self._fs = fs
        self._inodes = inodes

    def get(self, inode: Inode, name: bytes) -> bytes:
        """Raises OSError: ENODATA, EOPNOTSUPP for a foreign name space."""
        _check_name(name)
        value = self._all(inode).get(name)
        if value is None:
            raise os_error(errno.ENODATA)
        return acl.pack(acl.from_disk(value)) if name in (acl.ACCESS, acl.DEFAULT) else value

    def names(self, inode: Inode) -> list[bytes]:
        """Those that `get` answers for. The others are a file system's own, of fs-verity or Lustre, and are kept."""
        return [name for name in self._all(inode) if name in (acl.ACCESS, acl.DEFAULT) or name.startswith(_PREFIXES)]

    def set(self, inode: Inode, name: bytes, value: bytes, flags: int = 0) -> None:
        """As setxattr(2). Raises OSError: EEXIST, ENODATA, ENOSPC, E2BIG, ERANGE, EOPNOTSUPP."""
        _check_name(name)
        present = name in self._all(inode)
        if flags & XATTR_CREATE and present:
            raise os_error(errno.EEXIST)
        if flags & XATTR_REPLACE and not present:
            raise os_error(errno.ENODATA)
        if len(value) > _VALUE_MAX:
            raise os_error(errno.E2BIG)
        if name in (acl.ACCESS, acl.DEFAULT):
            self._set_acl(inode, name, acl.parse(value))
        else:
            self._store(inode, name, value)
        inode.set_times(ctime_ns=self._fs.now_ns())

    def remove(self, inode: Inode, name: bytes) -> None:
        """Raises OSError (ENODATA)."""
        _check_name(name)
        if name not in self._all(inode):
            raise os_error(errno.ENODATA)
        self._store(inode, name, None)
        inode.set_times(ctime_ns=self._fs.now_ns())

    def release(self, inode: Inode) -> None:
        """Free what the attributes of an inode take, before the inode itself is freed."""
        if self._fs.has_ea_inodes:
            for name in list(self._all(inode)):
                self._store(inode, name, None)
        if not inode.raw.i_file_acl and not inode.raw.i_file_acl_high:
            return
        self._inodes.flush(inode)
        self._fs.call(
            self._fs.c.ext2fs_free_ext_attr, self._fs.fs, inode.number, inode.raw, doing="free extended attributes"
        )
        inode.xattrs = {}
        inode.touch()

    # The part of inline data that does not fit into the block pointers, see `cowfs.ext4.files.inline`.

    def inline(self, inode: Inode) -> bytes:
        return self._all(inode).get(_INLINE, b"")

    def set_inline(self, inode: Inode, value: bytes) -> None:
        """Give it another value of the same length."""
        if _INLINE in self._all(inode):
            self._store(inode, _INLINE, value)

    def remove_inline(self, inode: Inode) -> None:
        if _INLINE in self._all(inode):
            self._store(inode, _INLINE, None)

    # Access control lists.

    def default_acl(self, directory: Inode) -> list[acl.AclEntry] | None:
        """What new entries of a directory inherit."""
        value = self._all(directory).get(acl.DEFAULT)
        return acl.from_disk(value) if value is not None else None

    def inherit(self, inode: Inode, default: list[acl.AclEntry]) -> None:
        """Give a new inode the lists that its directory's default list means for it."""
        entries, inode.mode = acl.inherited(default, inode.mode)
        if not acl.mode_of(entries, inode.mode)[1]:
            self._store(inode, acl.ACCESS, acl.to_disk(entries))
        if inode.is_directory:
            self._store(inode, acl.DEFAULT, acl.to_disk(default))

    def follow_mode(self, inode: Inode) -> None:
        """Let the access list follow a changed mode, as chmod(2) does."""
        value = self._all(inode).get(acl.ACCESS)
        if value is not None:
            self._store(inode, acl.ACCESS, acl.to_disk(acl.with_mode(acl.from_disk(value), inode.mode)))

    def _set_acl(self, inode: Inode, name: bytes, entries: list[acl.AclEntry]) -> None:
        if name == acl.DEFAULT:
            if not inode.is_directory:
                raise os_error(errno.EACCES)
            self._store(inode, name, acl.to_disk(entries) if entries else None)
            return
        if not entries:
            self._store(inode, name, None)
            return
        mode, redundant = acl.mode_of(entries, inode.mode)
        self._store(inode, name, None if redundant else acl.to_disk(entries))
        inode.mode = mode

    # Through the library.

    def _all(self, inode: Inode) -> dict[bytes, bytes]:
        """All attributes as they are stored."""
        if inode.xattrs is None:
            inode.xattrs = self._read(inode) if self._has_any(inode) else {}
        return inode.xattrs

    def _has_any(self, inode: Inode) -> bool:
        raw = inode.raw
        if raw.i_file_acl or raw.i_file_acl_high:
            return True
        begin = layout.GOOD_OLD_INODE_BYTES + raw.i_extra_isize
        if begin + 4 > self._fs.inode_bytes:
            return False
        (magic,) = struct.unpack_from("<I", self._fs.ffi.buffer(raw, self._fs.inode_bytes), begin)
        return bool(magic == _MAGIC)

    def _read(self, inode: Inode) -> dict[bytes, bytes]:
        fs, found = self._fs, dict[bytes, bytes]()

        def collect(name: Any, value: Any, length: int, _data: Any) -> int:
            found[fs.ffi.string(name)] = bytes(fs.ffi.buffer(value, length)) if length else b""
            return 0

        callback = fs.callback("int(char *, char *, size_t, void *)", collect)
        with self._handle(inode) as handle:
            fs.call(fs.c.ext2fs_xattrs_iterate, handle, callback, fs.ffi.NULL, doing="list extended attributes")
        return found

    def _store(self, inode: Inode, name: bytes, value: bytes | None) -> None:
        """Set an attribute as it is to be stored, or remove it with None."""
        known = self._all(inode)
        if known.get(name) == value:
            return
        fs = self._fs
        before = self._value_inodes(inode)
        self._inodes.prepare_values(before)
        try:
            with self._handle(inode) as handle:
                if value is None:
                    fs.call(fs.c.ext2fs_xattr_remove, handle, name, doing="remove an extended attribute")
                else:
                    fs.call(fs.c.ext2fs_xattr_set, handle, name, value, len(value), doing="set an extended attribute")
        finally:
            inode.load()
            inode.xattrs = None
        after = self._value_inodes(inode)
        self._inodes.note_use(before.keys() ^ after.keys())
        charge = self._blocks_of(after) - self._blocks_of(before)
        if charge:
            inode.add_blocks(charge)

    def _value_inodes(self, inode: Inode) -> dict[int, int]:
        """The inodes that hold large values, and the sizes of these."""
        if not self._fs.has_ea_inodes:
            return {}
        return {
            value_inode: value_bytes
            for table in self._entry_tables(inode)
            for value_inode, value_bytes in _large_values(table)
            if value_inode
        }

    def _blocks_of(self, values: dict[int, int]) -> int:
        """They count for the owner too, and the library forgets that."""
        return sum(-(-value_bytes // self._fs.block_bytes) for value_bytes in values.values())

    def _entry_tables(self, inode: Inode) -> Iterator[bytes]:
        """The entries in the inode, and those in its attribute block."""
        raw = inode.raw
        content = bytes(self._fs.ffi.buffer(raw, self._fs.inode_bytes))
        begin = layout.GOOD_OLD_INODE_BYTES + raw.i_extra_isize
        if content[begin : begin + 4] == struct.pack("<I", _MAGIC):
            yield content[begin + 4 :]
        block = raw.i_file_acl | raw.i_file_acl_high << 32
        if block:
            yield self._fs.cache.read(block)[_BLOCK_HEADER_BYTES:]

    @contextmanager
    def _handle(self, inode: Inode) -> Iterator[Any]:
        fs = self._fs
        if inode.dirty or inode.map_changed:
            self._inodes.flush(inode)
        handle = fs.ffi.new("struct ext2_xattr_handle **")
        fs.call(fs.c.ext2fs_xattrs_open, fs.fs, inode.number, handle, doing="open extended attributes")
        try:
            flags = fs.ffi.new("unsigned int *", libext2fs.XATTR_RAW)
            fs.call(fs.c.ext2fs_xattrs_flags, handle[0], flags, fs.ffi.NULL, doing="open extended attributes")
            fs.call(fs.c.ext2fs_xattrs_read, handle[0], doing=f"read the extended attributes of inode {inode.number}")
            yield handle[0]
        finally:
            fs.c.ext2fs_xattrs_close(handle)


def _large_values(table: bytes) -> Iterator[tuple[int, int]]:
    """(value inode, value size) of the entries, which end with four zero bytes; libext2fs has checked them."""
    offset = 0
    while offset + _ENTRY.size <= len(table) and table[offset : offset + 4] != bytes(4):
        name_length, _space, _offset, value_inode, value_bytes, _hash = _ENTRY.unpack_from(table, offset)
        yield value_inode, value_bytes
        offset += (_ENTRY.size + name_length + 3) & ~3


def _check_name(name: bytes) -> None:
    if name in (acl.ACCESS, acl.DEFAULT):
        return
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            if len(name) == len(prefix):
                raise os_error(errno.EINVAL)
            if len(name) > _NAME_MAX or b"\0" in name:
                raise os_error(errno.ERANGE)
            return
    raise os_error(errno.EOPNOTSUPP)
