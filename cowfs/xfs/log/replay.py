"""What a volume shows once its log is replayed.

Within a transaction new inodes and blocks come first, then inodes. A block that was given back later (a cancelled one)
is not replayed: it may hold a file's data by now. In version 5 blocks and inodes keep the LSN of their last change,
and what is older in the log is not replayed.
"""

from __future__ import annotations

import errno
import struct
from collections import Counter
from typing import Final

from cowfs.blockdev import BlockDevice
from cowfs.errors import FilesystemError
from cowfs.xfs.format.superblock import SECTOR_BYTES, Superblock, damaged
from cowfs.xfs.log.inode_items import InodeItem, new_inodes, replayed_inode
from cowfs.xfs.log.overlay import ReplayedDevice
from cowfs.xfs.log.records import Log, Lsn
from cowfs.xfs.log.transactions import Item, Transaction, committed

_INODE: Final = 0x123B
_BLOCK: Final = 0x123C
_NEW_INODES: Final = 0x123F
# Of space to be given back, quotas, indexes of owners and of sharing, also on a realtime device.
_LEFT: Final = {0x1236, 0x1237, 0x1238, 0x123D, 0x123E, 0x1240, 0x1241, 0x1242, 0x1243, *range(0x124A, 0x1250)}
# Intents that change what files show, and what ends them.
_INTENTS: Final = {0x1244: "extents", 0x1246: "attributes", 0x1248: "contents"}
_DONE: Final = {0x1245, 0x1247, 0x1249}

_BLOCK_ITEM: Final = struct.Struct("<HHHHqI")
_CHUNK_BYTES: Final = 128
_FLAG_INODES: Final = 0x1
_FLAG_CANCEL: Final = 0x2
_FLAG_QUOTA: Final = 0x4 | 0x8 | 0x10
_NO_LSN: Final = (0, (1 << 64) - 1)

# Magic number at 0 -> where the LSN and the uuid are.
_LSN_OF_4: Final = {
    **dict.fromkeys((b"AB3B", b"AB3C", b"RMB3", b"R3FC", b"FIB3", b"IAB3"), (24, 32)),
    b"BMA3": (32, 40),
    b"XAGF": (208, 64),
    b"XAFL": (24, 8),
    b"XAGI": (320, 296),
    b"XSLM": (48, 16),
    **dict.fromkeys((b"XDB3", b"XDD3", b"XDF3"), (16, 24)),
}
_SUPERBLOCK_LSN: Final = 240
# Magic number at 8.
_LSN_OF_2: Final = dict.fromkeys((b"\x3b\xee", b"\x3e\xbe", b"\x3d\xf1", b"\x3d\xff"), (24, 32))


def replayed(device: BlockDevice, sb: Superblock) -> ReplayedDevice | None:
    """The device as it is after a replay; None where there is nothing to replay.

    Raises:
        FilesystemError: the log is damaged (EUCLEAN), elsewhere, or holds what is not known here (EOPNOTSUPP).
    """
    if not sb.log_start:
        raise FilesystemError("it is on another device", errno=errno.EOPNOTSUPP)
    log = Log(device, sb)
    records = log.records()
    if not records:
        return None
    replay = _Replay(ReplayedDevice(device), sb)
    transactions = list(committed(log, records))
    for transaction in transactions:
        replay.look_at(transaction)
    replay.require_no_intents()
    for transaction in transactions:
        replay.take(transaction)
    return replay.device


class _Replay:
    def __init__(self, device: ReplayedDevice, sb: Superblock) -> None:
        self.device = device
        self._sb = sb
        self._cancelled: Counter[tuple[int, int]] = Counter()  # by (sector, count of sectors)
        self._intents: dict[bytes, str] = {}

    # First: what was cancelled, and what is under way.

    def look_at(self, transaction: Transaction) -> None:
        for item in transaction.items:
            if item.kind == _BLOCK:
                _, _, flags, sectors, sector, _ = _block_item(item)
                if flags & _FLAG_CANCEL:
                    self._cancelled[sector, sectors] += 1
            elif item.kind in _INTENTS:
                self._intents[item.regions[0][8:16]] = _INTENTS[item.kind]
            elif item.kind in _DONE:
                self._intents.pop(item.regions[0][8:16], None)
            elif item.kind not in (_INODE, _NEW_INODES) and item.kind not in _LEFT:
                raise FilesystemError(
                    f"it has an item of an unknown type, 0x{item.kind:x}",
                    errno=errno.EOPNOTSUPP,
                )

    def require_no_intents(self) -> None:
        for what in self._intents.values():
            raise FilesystemError(
                f"it has an unfinished change of {what} of files, which the kernel completes when it mounts it",
                errno=errno.EOPNOTSUPP,
            )

    # Then: the changes.

    def take(self, transaction: Transaction) -> None:
        for item in sorted(transaction.items, key=_rank):
            if item.kind == _BLOCK:
                self._take_block(item, transaction.lsn)
            elif item.kind == _INODE:
                self._take_inode(item, transaction.lsn)
            elif item.kind == _NEW_INODES:
                self._take_new_inodes(item)

    def _take_block(self, item: Item, lsn: int) -> None:
        _, _, flags, sectors, sector, words = _block_item(item)
        key = (sector, sectors)
        if self._cancelled[key]:
            if flags & _FLAG_CANCEL:
                self._cancelled[key] -= 1
            return
        if flags & (_FLAG_CANCEL | _FLAG_INODES | _FLAG_QUOTA):
            return
        offset = self._place(sector, sectors)
        if self._sb.has_checksums and self._is_newer(self.device.pread(offset, sectors * SECTOR_BYTES), lsn):
            return
        bits = int.from_bytes(item.regions[0][_BLOCK_ITEM.size : _BLOCK_ITEM.size + 4 * words], "little")
        bit, size = 0, sectors * SECTOR_BYTES
        for region in item.regions[1:]:
            while bit < 32 * words and not bits >> bit & 1:
                bit += 1
            length = bit * _CHUNK_BYTES + len(region)
            if len(region) % _CHUNK_BYTES or length > size or bit == 32 * words:
                raise damaged(f"the log has a change of the block at sector {sector} that is not in the block")
            self.device.show(offset + bit * _CHUNK_BYTES, region)
            bit += len(region) // _CHUNK_BYTES

    def _is_newer(self, block: bytes, lsn: int) -> bool:
        """Whether a block was changed at an LSN or after it."""
        if block[:4] == b"XFSB":
            at, uuid_at = _SUPERBLOCK_LSN, -1
        else:
            at, uuid_at = _LSN_OF_4.get(block[:4]) or _LSN_OF_2.get(block[8:10]) or (0, 0)
        if not at or (uuid_at > 0 and block[uuid_at : uuid_at + 16] != self._sb.meta_uuid):
            return False
        found = int.from_bytes(block[at : at + 8], "big")
        return found not in _NO_LSN and Lsn.of(found) >= Lsn.of(lsn)

    def _take_inode(self, item: Item, lsn: int) -> None:
        found = InodeItem.of(item)
        if self._cancelled[found.sector, found.sectors]:
            return
        offset = self._place(found.sector, found.sectors) + found.offset
        if found.offset < 0 or found.offset + self._sb.inode_bytes > found.sectors * SECTOR_BYTES:
            raise damaged(f"the log has a change of inode {found.number} outside its block")
        raw = replayed_inode(self._sb, found, self.device.pread(offset, self._sb.inode_bytes), lsn)
        if raw is not None:
            self.device.show(offset, raw)

    def _take_new_inodes(self, item: Item) -> None:
        offset, raw = new_inodes(self._sb, item)
        first, end = offset // SECTOR_BYTES, (offset + len(raw)) // SECTOR_BYTES
        for (sector, sectors), count in self._cancelled.items():
            if count and sector < end and first < sector + sectors:
                return
        self.device.show(offset, raw)

    def _place(self, sector: int, sectors: int) -> int:
        offset = sector * SECTOR_BYTES
        if sector < 0 or not sectors or offset + sectors * SECTOR_BYTES > self.device.size_bytes:
            raise damaged(f"the log has a change of {sectors} sectors at {sector}, which are not on the device")
        return offset


def _rank(item: Item) -> int:
    if item.kind == _NEW_INODES:
        return 0
    if item.kind != _BLOCK:
        return 1
    flags = _block_item(item)[2]
    return 3 if flags & _FLAG_CANCEL else 2 if flags & _FLAG_INODES else 0


def _block_item(item: Item) -> tuple[int, int, int, int, int, int]:
    """(type, regions, flags, count of sectors, first sector, words of the map)"""
    raw = item.regions[0]
    if len(raw) < _BLOCK_ITEM.size or len(raw) < _BLOCK_ITEM.size + 4 * _BLOCK_ITEM.unpack_from(raw)[5]:
        raise damaged("the log has a change of a block that is cut")
    return _BLOCK_ITEM.unpack_from(raw)
