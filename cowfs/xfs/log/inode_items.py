"""Inodes in the log: a description of 56 bytes, or 52 on 32 bits, the inode's first part in the machine's byte order,
and, where they changed, the forks.

    offset  size                                           offset  size
         0     2  type                                         16     8  inode
         2     2  count of regions                             24     4  device
         4     4  which parts follow                           40     8  first sector of its block
         8     2  size of the attribute fork's region          48     4  count of sectors
        10     2  size of the data fork's region               52     4  offset in the block

The first part is that of `cowfs.xfs.format.inode`, up to the forks, with another byte order and without what chains
inodes together.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cowfs.xfs.format.inode import CORE_BYTES, CORE_BYTES_3
from cowfs.xfs.format.superblock import Superblock, damaged
from cowfs.xfs.log.records import Lsn
from cowfs.xfs.log.transactions import Item

_ITEM: Final = struct.Struct("<HHIHHIQI12xqii")
_ITEM_32: Final = struct.Struct("<HHIHHQI12xqii")

_DATA_LOCAL: Final = 0x2
_DATA_EXTENTS: Final = 0x4
_DATA_TREE: Final = 0x8
_DEVICE: Final = 0x10
_ATTRIBUTES_LOCAL: Final = 0x40
_ATTRIBUTES_EXTENTS: Final = 0x80
_ATTRIBUTES_TREE: Final = 0x100
_DATA: Final = _DATA_LOCAL | _DATA_EXTENTS | _DATA_TREE
_ATTRIBUTES: Final = _ATTRIBUTES_LOCAL | _ATTRIBUTES_EXTENTS | _ATTRIBUTES_TREE

# The sizes of the fields from offset 0 on; times are two numbers of 4 bytes, or one of 8.
_BEFORE_TIMES: Final = "2sHBBHIIIHH6sH"
_AFTER_TIMES: Final = "QQIIHBbIHHI"
_CORE_2_BYTES: Final = 96
_UNUSED_3: Final = slice(96, 104)  # the chain and the checksum
_PART_3: Final = "QQQI12s"
_FLUSH_COUNT: Final = struct.Struct(">H")
_FLUSH_COUNT_AT: Final = 30
_FLUSH_COUNT_MAX: Final = 0xFFFF
_LSN_AT: Final = 112
_MORE_FLAGS_AT: Final = 120
_LARGE_TIMES: Final = 0x8
_LARGE_COUNTS: Final = 0x10
_NO_CHAIN: Final = b"\xff\xff\xff\xff"

_NEW: Final = struct.Struct("<HH")
_NEW_PLACE: Final = struct.Struct(">IIIIII")


@dataclass(frozen=True, slots=True)
class InodeItem:
    """A change of an inode."""

    parts: int
    number: int
    device: int
    sector: int
    sectors: int
    offset: int
    core: bytes
    data: bytes | None
    attributes: bytes | None

    @classmethod
    def of(cls, item: Item) -> InodeItem:
        raw, regions = item.regions[0], item.regions
        if len(raw) >= _ITEM.size:
            _, _, parts, _, _, _, number, device, sector, sectors, offset = _ITEM.unpack_from(raw)
        elif len(raw) >= _ITEM_32.size:
            _, _, parts, _, _, number, device, sector, sectors, offset = _ITEM_32.unpack_from(raw)
        else:
            raise damaged("the log has a change of an inode that is cut")
        has_data, has_attributes = bool(parts & _DATA), bool(parts & _ATTRIBUTES)
        if len(regions) < 2 + has_data + has_attributes:
            raise damaged(f"the log has a change of inode {number} that lacks a part")
        return cls(
            parts,
            number,
            device,
            sector,
            sectors,
            offset,
            regions[1],
            regions[2] if has_data else None,
            regions[2 + has_data] if has_attributes else None,
        )


def replayed_inode(sb: Superblock, item: InodeItem, raw: bytes, lsn: int) -> bytes | None:
    """An inode on the disk with a change of it; None where it is newer than the change.

    Raises:
        FilesystemError (EUCLEAN)
    """
    is_3 = sb.has_checksums
    if raw[:2] != b"IN" or len(item.core) < (CORE_BYTES_3 if is_3 else _CORE_2_BYTES):
        raise damaged(f"the log has a change of inode {item.number}, which is not there")
    if is_3:
        found = int.from_bytes(raw[_LSN_AT : _LSN_AT + 8], "big")
        if found not in (0, (1 << 64) - 1) and Lsn.of(found) > Lsn.of(lsn):
            return None
    elif _is_flushed_later(raw, item.core):
        return None
    inode = bytearray(raw)
    core = _core(item.core, is_3=is_3)
    if core[:2] != b"IN":
        raise damaged(f"the log has a change of inode {item.number} that is none")
    inode[:_CORE_2_BYTES] = core[:_CORE_2_BYTES]
    if is_3:
        inode[_UNUSED_3.stop : CORE_BYTES_3] = core[_UNUSED_3.stop : CORE_BYTES_3]
        inode[_LSN_AT : _LSN_AT + 8] = lsn.to_bytes(8, "big")
    else:
        _FLUSH_COUNT.pack_into(inode, _FLUSH_COUNT_AT, 0)
    begin = CORE_BYTES_3 if is_3 else CORE_BYTES
    split = begin + inode[82] * 8 if inode[82] else len(inode)
    if split > len(inode):
        raise damaged(f"the log has a change of inode {item.number} with forks that cannot be")
    if item.parts & _DEVICE:
        inode[begin : begin + 4] = item.device.to_bytes(4, "big")
    for region, tree, first, end in (
        (item.data, _DATA_TREE, begin, split),
        (item.attributes, _ATTRIBUTES_TREE, split, len(inode)),
    ):
        if region is not None:
            fork = _root(sb, item, region, end - first) if item.parts & tree else region[: end - first]
            inode[first : first + len(fork)] = fork
    return bytes(inode)


def _is_flushed_later(raw: bytes, core: bytes) -> bool:
    """In version 4 inodes count how often they were written; the count begins again at its end."""
    (here,) = _FLUSH_COUNT.unpack_from(raw, _FLUSH_COUNT_AT)
    there = int.from_bytes(core[_FLUSH_COUNT_AT : _FLUSH_COUNT_AT + 2], "little")
    has_begun_again = here == _FLUSH_COUNT_MAX and there < _FLUSH_COUNT_MAX >> 1
    return there < here and not has_begun_again


def _core(logged: bytes, *, is_3: bool) -> bytes:
    """The first part of an inode as it is on the disk."""
    more = int.from_bytes(logged[_MORE_FLAGS_AT : _MORE_FLAGS_AT + 8], "little") if is_3 else 0
    time = "Q" if more & _LARGE_TIMES else "iI"
    before = _BEFORE_TIMES
    if more & _LARGE_COUNTS:
        before = before.replace("6sH", "Q")
    layout = before + 3 * time + _AFTER_TIMES
    if is_3:
        layout += "II" + _PART_3 + time + "Q16s"
    fields = list(struct.unpack_from("<" + layout, logged))
    fields[0] = fields[0][::-1]
    return struct.pack(">" + layout, *fields)


def _root(sb: Superblock, item: InodeItem, region: bytes, room: int) -> bytes:
    """The root of a tree as it is on the disk: logged as a block, with a larger header."""
    header = 72 if sb.has_checksums else 24
    count = int.from_bytes(region[6:8], "big")
    slots, slots_in_fork = (len(region) - header) // 16, (room - 4) // 16
    if len(region) < header or not 0 < count <= min(slots, slots_in_fork):
        raise damaged(f"the log has a root of a tree of inode {item.number} that cannot be")
    root = bytearray(room)
    root[:4] = region[4:8]
    root[4 : 4 + 8 * count] = region[header : header + 8 * count]
    pointers, pointers_in_fork = header + 8 * slots, 4 + 8 * slots_in_fork
    root[pointers_in_fork : pointers_in_fork + 8 * count] = region[pointers : pointers + 8 * count]
    return bytes(root)


def new_inodes(sb: Superblock, item: Item) -> tuple[int, bytes]:
    """(offset on the device, content) of inodes that were made, none of them in use yet."""
    raw = item.regions[0]
    if len(raw) < _NEW.size + _NEW_PLACE.size:
        raise damaged("the log has new inodes that are cut")
    group, block, count, inode_bytes, length, generation = _NEW_PLACE.unpack_from(raw, _NEW.size)
    fsblock = group << sb.ag_block_log | block
    offset = sb.offset_of(fsblock, length) if block < sb.ag_blocks else None
    if offset is None or inode_bytes != sb.inode_bytes or count * inode_bytes != length << sb.block_log:
        raise damaged(f"the log has {count} new inodes in block {block} of allocation group {group}, where none can be")
    first = fsblock << sb.inodes_per_block_log
    return offset, b"".join(_new_inode(sb, first + index, generation) for index in range(count))


def _new_inode(sb: Superblock, number: int, generation: int) -> bytes:
    inode = bytearray(sb.inode_bytes)
    inode[:2] = b"IN"
    inode[4] = 3 if sb.has_checksums else 2
    inode[92:96] = generation.to_bytes(4, "big")
    inode[96:100] = _NO_CHAIN
    if sb.has_checksums:
        inode[152:160] = number.to_bytes(8, "big")
        inode[160:176] = sb.meta_uuid
    return bytes(inode)
