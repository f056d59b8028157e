"""Inline data: small files, directories and symbolic links that are kept in their inode, on volumes with inline_data.

    block pointers   60 bytes: the beginning of the content
    system.data      the rest: the value of an attribute in the inode, of the name space 7

A directory's first 4 bytes are the inode number of `..`; records of entries fill what is left of the first 60 bytes,
and again the value. It has neither `.` nor a separate checksum. Its size is that of the two parts together.

Content is changed in the inode where it does not grow; what grows moves to a block, as it does in the kernel when it
has outgrown the inode. New files and directories are not made inline.

Source: Linux fs/ext4/inline.c, Documentation/filesystems/ext4/inlinedata.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from cowfs.ext4.files.file_map import FileMaps
from cowfs.ext4.files.inodes import Inode
from cowfs.ext4.files.xattrs import ExtendedAttributes
from cowfs.ext4.format import layout
from cowfs.ext4.format.directory_block import HEADER, DamagedBlock, DirectoryBlock, Entry, records
from cowfs.ext4.library.filesystem import Filesystem
from cowfs.ext4.space import extents
from cowfs.ext4.space.allocator import Allocator
from cowfs.ext4.space.block_map import BlockMap, Segment

_POINTER_BYTES: Final = 60
_PARENT: Final = struct.Struct("<I")
_TYPE_OFFSET: Final = 7  # of an entry's record
_DIRECTORY: Final = 2


class InlineData:
    """The inline content of one volume's inodes."""

    def __init__(self, fs: Filesystem, allocator: Allocator, maps: FileMaps, xattrs: ExtendedAttributes) -> None:
        self._fs = fs
        self._allocator = allocator
        self._maps = maps
        self._xattrs = xattrs

    def content(self, inode: Inode) -> bytes:
        """All of it, of a file or a symbolic link. Raises FilesystemError (EUCLEAN)."""
        parts = self._parts(inode)
        if inode.size > len(parts):
            raise self._fs.damaged(f"inode {inode.number} has {inode.size} bytes, and {len(parts)} in the inode")
        return bytes(parts[: inode.size])

    def shrink(self, inode: Inode, size: int) -> None:
        """Cut off the end; what was there becomes zeros."""
        parts = self._parts(inode)
        parts[size:] = bytes(max(len(parts) - size, 0))
        self._store(inode, parts)
        inode.size = size

    def move_out(self, inode: Inode) -> None:
        """Move the content of a file or directory to a block.

        Raises:
            OSError (ENOSPC): nothing was changed.
        """
        content = self.directory_block(inode) if inode.is_directory else self.content(inode)
        runs = self._allocator.allocate(1) if content else []
        try:
            if runs:
                self._write(inode, runs[0].physical, content)
            self._xattrs.remove_inline(inode)
        except BaseException:
            self._allocator.undo(runs)
            raise
        inode.flags &= ~layout.INODE_FLAG_INLINE_DATA
        inode.pointers = bytes(_POINTER_BYTES)
        if self._fs.has_extents:
            inode.flags |= layout.INODE_FLAG_EXTENTS
            inode.pointers = extents.EMPTY_ROOT
        inode.map, inode.nodes = BlockMap(), []
        self._maps.add(inode, [Segment(0, 1, run.physical, True) for run in runs])
        if inode.is_directory:
            inode.size = self._fs.block_bytes

    def _write(self, inode: Inode, block: int, content: bytes) -> None:
        size = self._fs.block_bytes
        if inode.is_directory:
            self._fs.cache.write(block, content)
        else:
            self._fs.device.pwrite(block * size, content.ljust(size, b"\0"))
            self._fs.has_unflushed_data = True

    # Directories.

    def directory_block(self, inode: Inode) -> bytes:
        """The block that the directory would be. Raises FilesystemError (EUCLEAN)."""
        parts = self._parts(inode)
        kind = _DIRECTORY if self._fs.has_file_types else 0
        entries = [Entry(b".", inode.number, kind), Entry(b"..", _PARENT.unpack_from(parts)[0], kind)]
        entries += [entry for _offset, entry in self._entries(inode, parts)]
        if sum(HEADER.size + len(entry.name) + 3 & ~3 for entry in entries) > self._fs.block_bytes - HEADER.size * 2:
            raise self._fs.damaged(f"directory {inode.number} has more entries in its inode than fit into a block")
        block = DirectoryBlock.packed(entries, self._fs.block_bytes, has_tail=self._fs.has_metadata_csum)
        return block.checksummed(inode.checksum_seed)

    def set_parent(self, inode: Inode, parent: int) -> None:
        parts = self._parts(inode)
        _PARENT.pack_into(parts, 0, parent)
        self._store(inode, parts)

    def set_entry(self, inode: Inode, name: bytes, target: int, file_type: int = 0) -> None:
        """Let an existing name lead to another inode, or with 0 to none: so it is removed."""
        parts = self._parts(inode)
        offset = next(offset for offset, entry in self._entries(inode, parts) if entry.name == name)
        struct.pack_into("<I", parts, offset, target)
        parts[offset + _TYPE_OFFSET] = file_type
        self._store(inode, parts)

    def _entries(self, inode: Inode, parts: bytearray) -> Iterator[tuple[int, Entry]]:
        """(offset, entry) of what is in use."""
        for begin, end in ((_PARENT.size, _POINTER_BYTES), (_POINTER_BYTES, len(parts))):
            region = bytes(parts[begin:end])
            try:
                for offset, number, name_end, file_type in records(region, len(region)):
                    if number:
                        yield begin + offset, Entry(region[offset + HEADER.size : name_end], number, file_type)
            except DamagedBlock as error:
                raise self._fs.damaged(f"directory {inode.number}, in its inode: {error}") from None

    # Both parts as one.

    def _parts(self, inode: Inode) -> bytearray:
        return bytearray(inode.pointers + self._xattrs.inline(inode))

    def _store(self, inode: Inode, parts: bytearray) -> None:
        self._xattrs.set_inline(inode, bytes(parts[_POINTER_BYTES:]))
        inode.pointers = bytes(parts[:_POINTER_BYTES])
