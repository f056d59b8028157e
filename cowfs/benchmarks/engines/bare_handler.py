"""The least that a pyfuse3 server can do: one file, every request one os.pread or os.pwrite.

Mounted with the options of the raw view; the main loop is pyfuse3's own, on plain trio.

python -m cowfs.benchmarks.engines.bare_handler FILE MNT      serves MNT/disk until it is unmounted
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

from cowfs.fuse.server import MountOptions
from cowfs.fuse.translate import MAX_TASKS

FILE_INODE = 2
READ_AHEAD_KIB = 1024  # as the mounts of cowfs have it
LONG_SECONDS = 86400.0


class BareHandler(pyfuse3.Operations):
    enable_writeback_cache = False

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return os.pread(self.fd, size, off)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return os.pwrite(self.fd, buf, off)

    async def fsync(self, fh: int, datasync: bool) -> None:
        os.fdatasync(self.fd)

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(inode)
        entry.entry_timeout = entry.attr_timeout = LONG_SECONDS
        entry.st_uid, entry.st_gid = os.geteuid(), os.getegid()
        if inode == FILE_INODE:
            entry.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o600)
            entry.st_size = os.fstat(self.fd).st_size
        else:
            entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o755)
            entry.st_nlink = 2
        return entry

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if name != b"disk":
            raise FUSEError(errno.ENOENT)
        return await self.getattr(FILE_INODE, ctx)

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=pyfuse3.FileHandleT(inode), keep_cache=True)

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        raise FUSEError(errno.ENOSYS)


async def serve(target: str) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_ahead_like_cowfs, target)
        await pyfuse3.main(max_tasks=MAX_TASKS)


async def read_ahead_like_cowfs(target: str) -> None:
    device = (await trio.to_thread.run_sync(os.stat, target)).st_dev
    path = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    if os.access(path, os.W_OK):
        path.write_text(str(READ_AHEAD_KIB))


def main() -> None:
    _, path, target = sys.argv
    pyfuse3.init(BareHandler(os.open(path, os.O_RDWR)), target, MountOptions("bare").for_fuse())
    try:
        trio.run(serve, target)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
