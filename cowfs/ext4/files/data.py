"""File contents: reading, writing and cutting off, straight between the caller's buffers and the device.

File data does not pass through libext2fs. A request is cut where the block map is cut, and each physical run is one
`pread` or `pwrite` of the device. The order of a write that needs new blocks keeps a failure harmless: blocks are
allocated, data is written into them, and only then does the file refer to them. The filesystem learns of data that a
commit makes visible, which must be durable before it.

Bytes after the end of a file, in its last block, are zeros: so that a file can grow without looking back.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from cowfs.blockdev import Buffer, FlushAhead
from cowfs.ext4.files.file_map import FileMaps
from cowfs.ext4.files.inline import InlineData
from cowfs.ext4.files.inodes import Inode
from cowfs.ext4.library.block_runs import Run
from cowfs.ext4.library.filesystem import Filesystem, os_error
from cowfs.ext4.space.allocator import Allocator
from cowfs.ext4.space.block_map import Segment


class FileData:
    """The data of one volume's files."""

    def __init__(self, fs: Filesystem, allocator: Allocator, maps: FileMaps, inline: InlineData) -> None:
        self._fs = fs
        self._device = fs.device
        self._wrote = FlushAhead(fs.device).wrote
        self._allocator = allocator
        self._maps = maps
        self._inline = inline

    def read(self, inode: Inode, offset: int, length: int) -> bytes:
        """Up to `length` bytes, fewer only at the end of the file."""
        length = min(length, inode.size - offset)
        if length <= 0:
            return b""
        if inode.is_inline:
            return self._inline.content(inode)[offset : offset + length]
        size = self._fs.block_bytes
        map_ = self._maps.load(inode)
        first = offset // size
        count = (offset + length - 1) // size + 1 - first
        physical = map_.run(first, count)
        if physical >= 0:
            return self._device.pread(physical * size + offset % size, length)
        pieces = []
        position, end = offset, offset + length
        for segment in _contiguous(map_.segments(first, count)):
            stop = min((segment.logical + segment.length) * size, end)
            if segment.written:
                start = segment.physical * size + position - segment.logical * size
                pieces.append(self._device.pread(start, stop - position))
            else:
                pieces.append(bytes(stop - position))
            position = stop
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def find(self, inode: Inode, offset: int) -> tuple[int, int] | None:
        """The first byte range at or after `offset` that is not a hole, as (begin, end); None when there is none."""
        if inode.is_inline:
            return (offset, inode.size) if offset < inode.size else None
        size = self._fs.block_bytes
        run = self._maps.load(inode).next_written(offset // size)
        if run is None:
            return None
        begin, end = max(run[0] * size, offset), min(run[1] * size, inode.size)
        return (begin, end) if begin < end else None

    def write(self, inode: Inode, offset: int, data: Buffer) -> None:
        """Write all of `data`; the file grows as needed.

        Raises:
            OSError: EFBIG, ENOSPC, or what the device says. The size, and what was beyond it, are as before.
        """
        if inode.is_inline:
            self._inline.move_out(inode)
        view = memoryview(data).cast("B")
        end = offset + len(view)
        size = self._fs.block_bytes
        if end > self._maps.max_blocks(inode) * size:
            raise os_error(errno.EFBIG)
        old_size = inode.size
        if offset > old_size:
            self._zero_tail(inode)
        map_ = self._maps.load(inode)
        first = offset // size
        count = (end - 1) // size + 1 - first
        physical = map_.run(first, count)
        if physical >= 0:
            self._device.pwrite(physical * size + offset % size, view)
        else:
            segments = map_.segments(first, count)
            if all(segment.written for segment in segments):
                self._put(segments, offset, view)
            else:
                self._write_fresh(inode, segments, offset, view)
        if end > old_size:
            inode.size = end
            self._fs.has_unflushed_data = True
        inode.changed()
        self._wrote(len(view))

    def fill(self, inode: Inode, data: Buffer) -> None:
        """Write all that a new, empty file is to hold. Raises like `write`."""
        view = memoryview(data).cast("B")
        size = self._fs.block_bytes
        count = -(-len(view) // size)
        if count > self._maps.max_blocks(inode):
            raise os_error(errno.EFBIG)
        segments = []
        logical = 0
        for run in self._allocator.allocate(count):
            segments.append(Segment(logical, run.length, run.physical, True))
            logical += run.length
        self._fs.has_unflushed_data = True
        try:
            for segment in segments:
                piece: Buffer = view[segment.logical * size : (segment.logical + segment.length) * size]
                tail = segment.length * size - len(piece)
                self._device.pwrite(segment.physical * size, b"".join((piece, bytes(tail))) if tail else piece)
            self._maps.add(inode, segments)
        except BaseException:
            self._allocator.undo([Run(segment.physical, segment.length) for segment in segments])
            raise
        inode.size = len(view)
        self._wrote(len(view))

    def resize(self, inode: Inode, size: int) -> None:
        """Cut off, or grow by a hole.

        Raises:
            OSError: EFBIG, or what the device says. The size, and the content but for the last block, are as before.
        """
        if inode.is_inline:
            if size <= inode.size:
                self._inline.shrink(inode, size)
                inode.changed()
                return
            self._inline.move_out(inode)
        if size > self._maps.max_blocks(inode) * self._fs.block_bytes:
            raise os_error(errno.EFBIG)
        if size > inode.size:
            self._zero_tail(inode)
            inode.size = size
        elif size < inode.size or self._maps.load(inode).end * self._fs.block_bytes > size:
            blocks = -(-size // self._fs.block_bytes)
            self._maps.prepare_to_truncate(inode, blocks)  # so that only the device's write can fail below
            inode.size, old = size, inode.size
            try:
                self._zero_tail(inode)
            except BaseException:
                inode.size = old
                raise
            self._maps.truncate(inode, blocks)
        inode.changed()

    def _zero_tail(self, inode: Inode) -> None:
        """Make the bytes after the end of the file zeros, in its last block."""
        size = self._fs.block_bytes
        used = inode.size % size
        if used:
            physical = self._maps.load(inode).block(inode.size // size)
            if physical >= 0:
                self._device.pwrite(physical * size + used, bytes(size - used))
                self._fs.has_unflushed_data = True

    def _write_fresh(self, inode: Inode, segments: list[Segment], offset: int, view: memoryview) -> None:
        """A write of which some blocks are holes or unwritten."""
        targets, taken = self._allocate(inode, segments)
        fresh = [target._replace(written=True) for target, was in zip(targets, taken, strict=True) if was]
        unwritten = [segment for segment in segments if segment.physical >= 0 and not segment.written]
        added = False
        self._fs.has_unflushed_data = True
        try:
            self._put(targets, offset, view)
            if fresh:
                self._maps.add(inode, fresh)
                added = True
            if unwritten:
                self._maps.set_written(inode, unwritten)
        except BaseException:
            if added:
                self._maps.remove(inode, fresh)
            self._allocator.undo([Run(segment.physical, segment.length) for segment in fresh])
            raise

    def _allocate(self, inode: Inode, segments: list[Segment]) -> tuple[list[Segment], list[bool]]:
        """The segments with blocks in place of the holes, and which of them were taken for that."""
        targets: list[Segment] = []
        taken: list[bool] = []
        goal = self._maps.load(inode).before(segments[0].logical)
        try:
            for segment in segments:
                logical = segment.logical
                runs = [Run(segment.physical, segment.length)]
                if segment.physical < 0:
                    runs = self._allocator.allocate(segment.length, goal)
                for run in runs:
                    targets.append(Segment(logical, run.length, run.physical, segment.written))
                    taken.append(segment.physical < 0)
                    logical += run.length
                    goal = run.physical + run.length
        except BaseException:
            self._allocator.undo(
                [Run(target.physical, target.length) for target, was in zip(targets, taken, strict=True) if was]
            )
            raise
        return targets, taken

    def _put(self, targets: list[Segment], offset: int, view: memoryview) -> None:
        """Write data into blocks. What the outer blocks hold beside it stays, or is zeroed if it was not written."""
        size = self._fs.block_bytes
        end = offset + len(view)
        for begin, stop in _runs_of(targets):
            first, last = targets[begin], targets[stop - 1]
            start = max(first.logical * size, offset)
            until = min((last.logical + last.length) * size, end)
            before = start % size if not first.written else 0
            after = -until % size if not last.written else 0
            data: Buffer = view[start - offset : until - offset]
            if before or after:
                data = b"".join((bytes(before), data, bytes(after)))
            self._device.pwrite(first.physical * size + start - before - first.logical * size, data)


def _runs_of(targets: list[Segment]) -> Iterator[tuple[int, int]]:
    """Index ranges of targets that follow each other on the device."""
    begin = 0
    for index in range(1, len(targets) + 1):
        if index < len(targets) and targets[index - 1].physical + targets[index - 1].length == targets[index].physical:
            continue
        yield begin, index
        begin = index


def _contiguous(segments: list[Segment]) -> list[Segment]:
    """Segments with neighbours joined that one read can serve: next to each other on the device, or both zeros."""
    joined = [segments[0]]
    for segment in segments[1:]:
        last = joined[-1]
        if last.written == segment.written and (not segment.written or last.physical + last.length == segment.physical):
            joined[-1] = last._replace(length=last.length + segment.length)
        else:
            joined.append(segment)
    return joined
