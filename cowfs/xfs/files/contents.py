"""Contents of regular files, and targets of symbolic links."""

from __future__ import annotations

import errno
from typing import Final

from cowfs.errors import FilesystemError
from cowfs.xfs.files.blocks import Blocks, os_error
from cowfs.xfs.files.maps import Maps
from cowfs.xfs.format import headers
from cowfs.xfs.format.inode import FORM_LOCAL, Inode
from cowfs.xfs.format.superblock import damaged

_TARGET_BYTES_MAX: Final = 1024


class Contents:
    """What is in files, by the blocks of `maps`."""

    def __init__(self, blocks: Blocks, maps: Maps) -> None:
        self._blocks = blocks
        self._maps = maps

    def read(self, inode: Inode, offset: int, length: int) -> bytes:
        """As `cowfs.filetree.FileTree.read`. Holes and what was reserved and never written are zeros."""
        self._require_here(inode)
        if offset < 0 or length < 0:
            raise os_error(errno.EINVAL)
        end = min(offset + length, inode.size)
        if offset >= end:
            return b""
        log, pieces, at = self._blocks.sb.block_log, list[bytes](), offset
        for extent in self._maps.data(inode).from_block(offset >> log):
            begin, stop = max(extent.logical << log, at), min(extent.logical + extent.length << log, end)
            if begin >= end:
                break
            pieces.append(bytes(begin - at))
            if extent.is_unwritten:
                pieces.append(bytes(stop - begin))
            else:
                where = self._blocks.offset(extent.fsblock, extent.length, f"inode {inode.number}")
                pieces.append(self._blocks.device.pread(where + begin - (extent.logical << log), stop - begin))
            at = stop
        pieces.append(bytes(end - at))
        return b"".join(pieces)

    def find_data(self, inode: Inode, offset: int) -> tuple[int, int] | None:
        """As `cowfs.filetree.FileTree.find_data`."""
        self._require_here(inode)
        if offset < 0:
            raise os_error(errno.EINVAL)
        log, found = self._blocks.sb.block_log, None
        for extent in self._maps.data(inode).from_block(offset >> log):
            begin, end = extent.logical << log, extent.logical + extent.length << log
            if found is not None and (extent.is_unwritten or begin > found[1]):
                break
            if not extent.is_unwritten:
                found = (found[0] if found else max(begin, offset), end)
        if found is None or found[0] >= inode.size:
            return None
        return found[0], min(found[1], inode.size)

    def _require_here(self, inode: Inode) -> None:
        if inode.is_realtime:
            raise FilesystemError(
                f"inode {inode.number}: its content is on a realtime device of xfs, which is not read",
                errno=errno.EOPNOTSUPP,
            )

    def target(self, inode: Inode) -> bytes:
        """The target of a symbolic link."""
        if not 0 < inode.size <= _TARGET_BYTES_MAX:
            raise damaged(f"symbolic link {inode.number} has a target of {inode.size} bytes")
        if inode.form == FORM_LOCAL:
            target = inode.fork[: inode.size]
        else:
            target = self.in_blocks(inode, headers.TARGET, 0, inode.size, of_attribute=False)
        if len(target) != inode.size or b"\0" in target:
            raise damaged(f"symbolic link {inode.number} has no target")
        return target

    def in_blocks(
        self, inode: Inode, kind: headers.HeaderKind, logical: int, length: int, *, of_attribute: bool
    ) -> bytes:
        """Bytes from a block of a fork on, at most 64 KiB.

        In version 5 there is a header before what each block holds of an attribute's value, and before what each run
        of blocks holds of a link's target.
        """
        sb = self._blocks.sb
        extents = self._maps.attributes(inode) if of_attribute else self._maps.data(inode)
        header = headers.OWNED_HEADER_BYTES if sb.has_checksums else 0
        found, missing = list[bytes](), length
        while missing > 0:
            run = extents.run(logical)
            if run is None:
                raise damaged(f"inode {inode.number}: {kind.name} ends {missing} bytes before its end")
            fsblock = run[0]
            count = 1 if of_attribute else min(run[1], (missing + header + sb.block_bytes - 1) >> sb.block_log)
            if sb.has_checksums:
                block = self._blocks.read_checked(kind, list(range(fsblock, fsblock + count)), inode.number)[0]
            else:
                block = self._blocks.read(fsblock, count, f"inode {inode.number}")
            found.append(block[header : header + missing])
            missing -= len(found[-1])
            logical += count
        return b"".join(found)
