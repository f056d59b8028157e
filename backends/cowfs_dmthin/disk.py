"""A block device node, read and written past the page cache: errors come with the request that caused them.

Any offset and length is legal; what is not whole sectors is read first and written whole.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct

from cowfs.blockdev import Buffer
from cowfs.errors import PoolIoError
from cowfs.forking import not_inherited
from cowfs_dmthin.abi import BLKDISCARD, BLKGETSIZE64, BLKSSZGET

_BUFFER_BYTES = 1 << 20


class DirectDisk:
    """A `BlockDevice` on a descriptor opened with O_DIRECT, which it closes in the end."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.sector_bytes: int
        (self.sector_bytes,) = struct.unpack("i", fcntl.ioctl(fd, BLKSSZGET, bytes(4)))
        # Mapped memory is aligned to pages, as direct I/O wants it.
        self._memory = mmap.mmap(-1, _BUFFER_BYTES)
        self._buffer = memoryview(self._memory)
        not_inherited(self, "a device of the kernel", drop=lambda disk: os.close(disk.fd))

    @property
    def size_bytes(self) -> int:
        (size,) = struct.unpack("Q", fcntl.ioctl(self.fd, BLKGETSIZE64, bytes(8)))
        return int(size)

    def pread(self, offset: int, length: int) -> bytes:
        parts = []
        end = offset + length
        while offset < end:
            begin = self._floor(offset)
            chunk_end = min(self._ceil(end), begin + _BUFFER_BYTES)
            self._read(begin, chunk_end)
            taken_end = min(end, chunk_end)
            parts.append(bytes(self._buffer[offset - begin : taken_end - begin]))
            offset = taken_end
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pwrite(self, offset: int, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        end = offset + len(view)
        while offset < end:
            begin = self._floor(offset)
            chunk_end = min(self._ceil(end), begin + _BUFFER_BYTES)
            taken_end = min(end, chunk_end)
            if begin < offset:
                self._read(begin, begin + self.sector_bytes)
            if taken_end < chunk_end and (begin == offset or chunk_end - begin > self.sector_bytes):
                self._read(chunk_end - self.sector_bytes, chunk_end, at=chunk_end - self.sector_bytes - begin)
            self._buffer[offset - begin : taken_end - begin] = view[: taken_end - offset]
            self._write(begin, chunk_end)
            view = view[taken_end - offset :]
            offset = taken_end

    def zero(self, offset: int, length: int) -> None:
        for begin in range(offset, offset + length, _BUFFER_BYTES):
            self.pwrite(begin, bytes(min(_BUFFER_BYTES, offset + length - begin)))

    def discard(self, offset: int, length: int) -> None:
        """Both in whole sectors."""
        fcntl.ioctl(self.fd, BLKDISCARD, struct.pack("QQ", offset, length))

    def copy(self, source_offset: int, target_offset: int, length: int) -> None:
        for done in range(0, length, _BUFFER_BYTES):
            chunk = min(_BUFFER_BYTES, length - done)
            self.pwrite(target_offset + done, self.pread(source_offset + done, chunk))

    def flush(self) -> None:
        os.fsync(self.fd)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
            self._buffer.release()
            self._memory.close()

    def _read(self, begin: int, end: int, *, at: int = 0) -> None:
        done = begin
        while done < end:
            count = os.preadv(self.fd, [self._buffer[at + done - begin : at + end - begin]], done)
            if count == 0:
                raise PoolIoError(f"read of {end - begin} bytes at {begin:#x} ended after {done - begin}")
            done += count

    def _write(self, begin: int, end: int) -> None:
        done = begin
        while done < end:
            done += os.pwritev(self.fd, [self._buffer[done - begin : end - begin]], done)

    def _floor(self, offset: int) -> int:
        return offset - offset % self.sector_bytes

    def _ceil(self, offset: int) -> int:
        return offset + -offset % self.sector_bytes
