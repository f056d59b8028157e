"""Backing devices of a pool: regular files through loop devices, block devices as they are.

A loop device is made to clear itself: it lasts while it is open, first in this process, then the pool's table,
and is gone with the last of them, also after a crash. An existing loop device of the same file, known by the file's
device and inode numbers, is used instead of a second one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct
from contextlib import ExitStack

from cowfs.blockdev import BlockDevice, FileDevice, may_be_link
from cowfs.errors import InvalidRequest
from cowfs.forking import not_inherited
from cowfs_dmthin import nodes
from cowfs_dmthin.abi import (
    BLKGETSIZE64,
    LOOP_CONFIGURE,
    LOOP_CONTROL_PATH,
    LOOP_CTL_GET_FREE,
    LOOP_GET_STATUS64,
    LOOP_SET_CAPACITY,
    NO_LOOP_FLAGS,
    LoopFlag,
    LoopInfo,
    format_device_number,
    pack_loop_config,
)
from cowfs_dmthin.disk import DirectDisk
from cowfs_dmthin.statistics import Statistics

_MAX_ATTEMPTS = 64


class Backing:
    """A block device under a pool or thin, open until `close`.

    Attributes:
        path: as the caller gave it.
        device_number: of the block device.
        file_fd: the regular file behind a loop device, else -1.
    """

    def __init__(self, path: str, device_number: int, fd: int, file_fd: int = -1) -> None:
        self.path = path
        self.device_number = device_number
        self.file_fd = file_fd
        self._fd = fd
        self._lock_fd = -1
        not_inherited(self, path, drop=Backing.close)

    @property
    def table_name(self) -> str:
        """As table lines have it."""
        return format_device_number(self.device_number)

    def refresh_size(self) -> int:
        """Size in bytes, after a loop device has looked at its file again."""
        if self.file_fd >= 0:
            fcntl.ioctl(self._fd, LOOP_SET_CAPACITY, 0)
        (size,) = struct.unpack("Q", fcntl.ioctl(self._fd, BLKGETSIZE64, bytes(8)))
        return int(size)

    def statistics(self) -> Statistics:
        return Statistics.of(self.device_number)

    def writes_completed(self) -> int:
        """How many writes the device has finished since the machine started."""
        return self.statistics().writes

    def open_for_reading(self) -> BlockDevice:
        """What is on the device now, past any cache of its node."""
        if self.file_fd >= 0:
            return FileDevice(self.path, read_only=True)
        return DirectDisk(nodes.open_block(self.device_number, os.O_RDONLY | os.O_DIRECT))

    def lock_shared(self) -> None:
        """Keep pools of other backends off, for as long as a loop device shows the file.

        A lock belongs to an open file, and a loop device keeps the one it was made with: the lock outlives this process
        when the pool's table does.

        Raises:
            InvalidRequest (EBUSY): another process has an exclusive lock.
        """
        self._lock(self.file_fd if self.file_fd >= 0 else self._fd, fcntl.LOCK_SH)

    def lock_exclusive(self) -> None:
        """Keep other processes off, for as long as this one lives: through an open file that no loop device has.

        Raises:
            InvalidRequest (EBUSY): another process has a lock.
        """
        fd = self.file_fd if self.file_fd >= 0 else self._fd
        self._lock_fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        self._lock(self._lock_fd, fcntl.LOCK_EX)

    def _lock(self, fd: int, kind: int) -> None:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidRequest(
                f"{self.path} is in use by another pool, here or in another process", errno=errno.EBUSY
            ) from None

    def close(self) -> None:
        open_fds = [fd for fd in (self._fd, self.file_fd, self._lock_fd) if fd >= 0]
        self._fd = self.file_fd = self._lock_fd = -1
        for fd in open_fds:
            os.close(fd)


def open_backing(path: str, role: str, *, read_only: bool = False) -> Backing:
    """The block device of a path, with a loop device for a regular file.

    Args:
        role: for messages: metadata, data, external origin.

    Raises:
        InvalidRequest: the path cannot be opened (its errno), or is neither a regular file nor a block device.
    """
    access = os.O_RDONLY if read_only else os.O_RDWR
    nofollow = 0 if may_be_link(path) else os.O_NOFOLLOW
    try:
        fd = os.open(path, access | nofollow | os.O_CLOEXEC)
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO).lower()
        if error.errno == errno.ELOOP:
            reason = "it is a symbolic link, which is not followed here"
        raise InvalidRequest(f"{role} device {path} cannot be opened: {reason}", errno=error.errno) from error
    with ExitStack() as undo:
        undo.callback(os.close, fd)
        found = os.fstat(fd)
        if stat.S_ISBLK(found.st_mode):
            backing = Backing(path, found.st_rdev, fd)
        elif stat.S_ISREG(found.st_mode):
            loop_fd = _find_loop(found, access) or _attach(fd, path, access, read_only)
            backing = Backing(path, os.fstat(loop_fd).st_rdev, loop_fd, fd)
        else:
            raise InvalidRequest(
                f"{role} device {path} is neither a regular file nor a block device", errno=errno.ENOTBLK
            )
        undo.pop_all()
    return backing


def loop_devices_of(found: os.stat_result) -> list[int]:
    """Device numbers of the loop devices that show a whole file, given by its stat."""
    numbers = []
    for name in os.listdir("/sys/block"):
        match = re.fullmatch(r"loop(\d+)", name)
        # Only attached ones have the directory; its file name is the kernel's view and no proof.
        if match and os.path.exists(f"/sys/block/{name}/loop"):
            number = _loop_number(int(match[1]))
            if _shows(number, found):
                numbers.append(number)
    return numbers


def _shows(device_number: int, found: os.stat_result) -> bool:
    try:
        fd = nodes.open_block(device_number, os.O_RDONLY)
    except OSError:
        return False
    try:
        info = _loop_info(fd)
    except OSError:  # detached meanwhile
        return False
    finally:
        os.close(fd)
    same = (info.backing_device, info.backing_inode) == (found.st_dev, found.st_ino)
    return same and not info.offset_bytes and not info.limit_bytes


def _find_loop(found: os.stat_result, access: int) -> int | None:
    """A descriptor of a loop device of this file that allows the access."""
    for number in loop_devices_of(found):
        fd = nodes.open_block(number, access)
        try:
            info = _loop_info(fd)
        except OSError:  # it cleared itself before it was opened
            os.close(fd)
            continue
        if access == os.O_RDONLY or LoopFlag.READ_ONLY not in info.flags:
            return fd
        os.close(fd)
    return None


def _attach(file_fd: int, path: str, access: int, read_only: bool) -> int:
    flags = LoopFlag.AUTOCLEAR | (LoopFlag.READ_ONLY if read_only else NO_LOOP_FLAGS)
    config = pack_loop_config(file_fd, LoopInfo(flags=flags, file_name=os.fsencode(path)))
    control = nodes.open_misc(LOOP_CONTROL_PATH, "loop-control", os.O_RDWR)
    try:
        for _ in range(_MAX_ATTEMPTS):
            fd = nodes.open_block(_loop_number(fcntl.ioctl(control, LOOP_CTL_GET_FREE)), access)
            try:
                fcntl.ioctl(fd, LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:  # EBUSY: another process took this one
                    reason = os.strerror(error.errno or errno.EIO).lower()
                    raise InvalidRequest(f"no loop device for {path}: {reason}", errno=error.errno) from error
            else:
                return fd
    finally:
        os.close(control)
    raise InvalidRequest(f"no loop device for {path}: others took {_MAX_ATTEMPTS} in a row", errno=errno.EBUSY)


def _loop_number(index: int) -> int:
    """Loop devices have one minor number each, unless the module is set to make partitions (not supported)."""
    with open(f"/sys/block/loop{index}/dev", encoding="ascii") as file:
        major, minor = map(int, file.read().split(":"))
    return os.makedev(major, minor)


def _loop_info(fd: int) -> LoopInfo:
    return LoopInfo.unpack(fcntl.ioctl(fd, LOOP_GET_STATUS64, bytes(LoopInfo.SIZE)))
