"""Structures and numbers of the ioctls this backend uses: device mapper, loop devices, block devices.

Native byte order, natural alignment written out as pad bytes; sizes asserted. Source: the kernel's headers
linux/dm-ioctl.h (interface 4), linux/loop.h, linux/fs.h.

A device-mapper request is one buffer: a header of 312 bytes, then at `data_start` what the command takes:

    TABLE_LOAD      target specs, each followed by its parameters and a zero byte
    TARGET_MSG      a sector number, then the message and a zero byte
    DEV_RENAME      the new name or UUID and a zero byte
    others          nothing

and the answer is in the same buffer, or BUFFER_FULL is set and the request is to be repeated in a larger one.
"""

from __future__ import annotations

import enum
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

DM_CONTROL_PATH: Final = "/dev/mapper/control"
LOOP_CONTROL_PATH: Final = "/dev/loop-control"
MAX_DM_NAME_BYTES: Final = 127


class Command(enum.IntEnum):
    """Device-mapper ioctls: _IOWR(0xfd, n, struct dm_ioctl)."""

    VERSION = 0xC138FD00
    LIST_DEVICES = 0xC138FD02
    DEV_CREATE = 0xC138FD03
    DEV_REMOVE = 0xC138FD04
    DEV_RENAME = 0xC138FD05
    DEV_SUSPEND = 0xC138FD06
    DEV_STATUS = 0xC138FD07
    TABLE_LOAD = 0xC138FD09
    TABLE_CLEAR = 0xC138FD0A
    TABLE_DEPS = 0xC138FD0B
    TABLE_STATUS = 0xC138FD0C
    LIST_VERSIONS = 0xC138FD0D
    TARGET_MSG = 0xC138FD0E
    DEV_ARM_POLL = 0xC138FD10
    GET_TARGET_VERSION = 0xC138FD11


class Flag(enum.IntFlag):
    """Flags of a request and of its answer."""

    READ_ONLY = 1 << 0
    SUSPEND = 1 << 1
    STATUS_TABLE = 1 << 4
    ACTIVE_PRESENT = 1 << 5
    INACTIVE_PRESENT = 1 << 6
    BUFFER_FULL = 1 << 8
    SKIP_LOCKFS = 1 << 10
    NOFLUSH = 1 << 11
    QUERY_INACTIVE = 1 << 12
    UUID = 1 << 14  # of a rename: it gives a UUID
    DEFERRED_REMOVE = 1 << 17


NO_FLAGS: Final = Flag(0)


@dataclass(frozen=True, slots=True)
class DmHeader:
    """struct dm_ioctl.

      0  u32 x 3   version         what we speak; the kernel answers with its own
     12  u32       data_size       of the whole buffer, header included
     16  u32       data_start      offset of the data from the start of the buffer
     20  u32       target_count
     24  s32       open_count
     28  u32       flags
     32  u32       event_nr
     40  u64       dev             device number, see `unpack_device_number`
     48  128 B     name            zero-terminated
    176  129 B     uuid            zero-terminated
    """

    data_size: int
    name: str = ""
    flags: Flag = NO_FLAGS
    event_number: int = 0
    target_count: int = 0
    open_count: int = 0
    device_number: int = 0
    version: tuple[int, int, int] = (4, 0, 0)
    data_start: int = 312
    uuid: str = ""

    _STRUCT: ClassVar = struct.Struct("=3I II I i I I 4x Q 128s 129s 7x")
    SIZE: ClassVar[int] = 312

    def pack(self) -> bytes:
        return self._STRUCT.pack(
            *self.version,
            self.data_size,
            self.data_start,
            self.target_count,
            self.open_count,
            self.flags,
            self.event_number,
            self.device_number,
            os.fsencode(self.name),
            b"",
        )

    @classmethod
    def unpack(cls, buffer: bytes | bytearray) -> DmHeader:
        major, minor, patch, size, start, targets, opens, flags, event, dev, name, uuid = cls._STRUCT.unpack_from(
            buffer
        )
        return cls(
            data_size=size,
            name=os.fsdecode(name.partition(b"\0")[0]),
            flags=Flag(flags),
            event_number=event,
            target_count=targets,
            open_count=opens,
            device_number=unpack_device_number(dev),
            version=(major, minor, patch),
            data_start=start,
            uuid=os.fsdecode(uuid.partition(b"\0")[0]),
        )


assert DmHeader._STRUCT.size == DmHeader.SIZE == 312


@dataclass(frozen=True, slots=True)
class TargetLine:
    """struct dm_target_spec with the parameters (of a table) or the figures (of a status) that follow it.

     0  u64    sector_start
     8  u64    length
    16  s32    status
    20  u32    next      bytes to the next spec: from this one when loading, from `data_start` in an answer
    24  16 B   target_type
    """

    start_sectors: int
    length_sectors: int
    target: str
    parameters: str

    _STRUCT: ClassVar = struct.Struct("=QQiI16s")
    SIZE: ClassVar[int] = 40

    def pack(self) -> bytes:
        text = os.fsencode(self.parameters) + b"\0"
        text += bytes(-len(text) % 8)
        length = self.SIZE + len(text)
        head = self._STRUCT.pack(self.start_sectors, self.length_sectors, 0, length, self.target.encode())
        return head + text

    @classmethod
    def unpack_all(cls, data: bytes, count: int) -> Iterator[TargetLine]:
        """The lines of an answer, from its data area."""
        offset = 0
        for _ in range(count):
            start, length, _, following, target = cls._STRUCT.unpack_from(data, offset)
            text = data[offset + cls.SIZE :].partition(b"\0")[0]
            yield cls(start, length, target.partition(b"\0")[0].decode(), os.fsdecode(text))
            offset = following


assert TargetLine._STRUCT.size == TargetLine.SIZE == 40


def pack_message(text: str) -> bytes:
    """struct dm_target_msg for sector 0."""
    return struct.pack("=Q", 0) + os.fsencode(text) + b"\0"


def unpack_dependencies(data: bytes) -> list[int]:
    """struct dm_target_deps: u32 count, u32 padding, u64 device numbers."""
    if not data:  # no live table
        return []
    (count,) = struct.unpack_from("=I", data)
    return [unpack_device_number(dev) for dev in struct.unpack_from(f"={count}Q", data, 8)]


def unpack_names(data: bytes) -> dict[str, int]:
    """struct dm_name_list entries, as name -> device number: u64 dev, u32 next (0 at the last), the name."""
    names: dict[str, int] = {}
    offset = 0
    while data:
        dev, following = struct.unpack_from("=QI", data, offset)
        if dev:
            name = data[offset + 12 :].partition(b"\0")[0]
            names[os.fsdecode(name)] = unpack_device_number(dev)
        if not following:
            break
        offset += following
    return names


def unpack_versions(data: bytes) -> dict[str, tuple[int, int, int]]:
    """struct dm_target_versions entries: u32 next (0 at the last), u32 x 3 version, the target's name."""
    versions: dict[str, tuple[int, int, int]] = {}
    offset = 0
    while True:
        following, major, minor, patch = struct.unpack_from("=4I", data, offset)
        name = data[offset + 16 :].partition(b"\0")[0].decode()
        versions[name] = (major, minor, patch)
        if not following:
            return versions
        offset += following


def unpack_device_number(dev: int) -> int:
    """The kernel's 64-bit form (minor in bits 0-7 and 20-31, major in bits 8-19) as Python's `os` has it."""
    return os.makedev((dev >> 8) & 0xFFF, (dev & 0xFF) | ((dev >> 12) & 0xFFF00))


def format_device_number(device_number: int) -> str:
    """As tables have it: `254:0`."""
    return f"{os.major(device_number)}:{os.minor(device_number)}"


def parse_device_number(text: str) -> int:
    major, minor = map(int, text.split(":"))
    return os.makedev(major, minor)


# --- loop devices

LOOP_GET_STATUS64: Final = 0x4C05
LOOP_SET_CAPACITY: Final = 0x4C07
LOOP_CONFIGURE: Final = 0x4C0A
LOOP_CTL_GET_FREE: Final = 0x4C82


class LoopFlag(enum.IntFlag):
    READ_ONLY = 1
    AUTOCLEAR = 4


NO_LOOP_FLAGS: Final = LoopFlag(0)


@dataclass(frozen=True, slots=True)
class LoopInfo:
    """struct loop_info64.

      0  u64     lo_device       device number of the backing file's file system
      8  u64     lo_inode        of the backing file
     16  u64     lo_rdevice
     24  u64     lo_offset       where the device begins in the file
     32  u64     lo_sizelimit    0: to the end of the file
     40  u32     lo_number
     44  u32 x 2 (encryption, unused)
     52  u32     lo_flags
     56  64 B    lo_file_name    for show
    120  112 B   (unused)
    """

    backing_device: int = 0
    backing_inode: int = 0
    offset_bytes: int = 0
    limit_bytes: int = 0
    flags: LoopFlag = NO_LOOP_FLAGS
    file_name: bytes = b""

    _STRUCT: ClassVar = struct.Struct("=QQ8xQQ4x8xI64s112x")
    SIZE: ClassVar[int] = 232

    def pack(self) -> bytes:
        return self._STRUCT.pack(0, 0, self.offset_bytes, self.limit_bytes, self.flags, self.file_name[:63])

    @classmethod
    def unpack(cls, buffer: bytes) -> LoopInfo:
        device, inode, offset, limit, flags, name = cls._STRUCT.unpack(buffer)
        return cls(unpack_device_number(device), inode, offset, limit, LoopFlag(flags), name.partition(b"\0")[0])


assert LoopInfo._STRUCT.size == LoopInfo.SIZE == 232


def pack_loop_config(fd: int, info: LoopInfo) -> bytes:
    """struct loop_config: u32 fd, u32 block size (0: 512), struct loop_info64, 64 bytes reserved."""
    packed = struct.pack("=II", fd, 0) + info.pack() + bytes(64)
    assert len(packed) == 304
    return packed


# --- block devices

BLKDISCARD: Final = 0x1277
BLKSSZGET: Final = 0x1268
BLKGETSIZE64: Final = 0x80081272
