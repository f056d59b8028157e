"""Committed transactions of the log.

The data of records are operations: a header of 12 bytes (transaction 4, length 4, client 1, flags 1, 2 unused, big
endian) and a region of bytes. A transaction is a start, a header (`TRAN`), items of one or several regions each, and a
commit; operations of several transactions may be interleaved. A region that did not fit into a record goes on
in the next one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from cowfs.xfs.format.superblock import damaged
from cowfs.xfs.log.records import Log, Record

_OPERATION: Final = struct.Struct(">IIBBxx")
_CLIENTS: Final = (0x69, 0x02, 0xAA)
_START: Final = 0x01
_COMMIT: Final = 0x02
_CONTINUES: Final = 0x04
_WAS_CONTINUED: Final = 0x08
_END: Final = 0x10
_UNMOUNT: Final = 0x20
_HEADER_BYTES: Final = 16
_ITEM: Final = struct.Struct("<HH")


@dataclass(slots=True)
class Item:
    """A logged change; its first region says what it is. `kind`: its type by number."""

    kind: int
    count: int
    regions: list[bytes]


@dataclass(slots=True)
class Transaction:
    """`lsn`: of the record that it begins in."""

    lsn: int
    header: bytes = b""
    items: list[Item] = field(default_factory=list)

    def add(self, region: bytes) -> None:
        if not region:
            return
        if len(self.header) < _HEADER_BYTES:
            self.header += region
            return
        if not self.items or len(self.items[-1].regions) == self.items[-1].count:
            if len(region) < _ITEM.size or not _ITEM.unpack_from(region)[1]:
                raise damaged("an item in the log has no length")
            kind, count = _ITEM.unpack_from(region)
            self.items.append(Item(kind, count, []))
        self.items[-1].regions.append(region)

    def add_to_last(self, region: bytes) -> None:
        if len(self.header) < _HEADER_BYTES or not self.items:
            self.header += region
        else:
            self.items[-1].regions[-1] += region


def committed(log: Log, records: Sequence[Record]) -> Iterator[Transaction]:
    """In the order of their commits. Raises FilesystemError (EUCLEAN)."""
    under_way: dict[int, Transaction] = {}
    for record in records:
        for number, all_flags, region in _operations(log, record):
            flags = all_flags & ~(_END | _CONTINUES if all_flags & _WAS_CONTINUED else _END)
            transaction = under_way.get(number)
            if transaction is None:
                if flags & _START:
                    under_way[number] = Transaction(record.lsn)
            elif flags in (0, _CONTINUES):
                transaction.add(region)
            elif flags == _WAS_CONTINUED:
                transaction.add_to_last(region)
            elif flags == _COMMIT:
                yield under_way.pop(number)
            elif flags == _UNMOUNT:
                del under_way[number]
            else:
                raise damaged(f"the record of the log at sector {record.place.sector} has an operation 0x{flags:x}")


def _operations(log: Log, record: Record) -> Iterator[tuple[int, int, bytes]]:
    """(transaction, flags, region)"""
    data, at = log.data(record), 0
    for _ in range(record.operations):
        begin = at + _OPERATION.size
        number, length, client, flags = _OPERATION.unpack_from(data, at) if begin <= len(data) else (0, 0, 0, 0)
        at = begin + length
        if client not in _CLIENTS or at > len(data):
            raise damaged(f"the record of the log at sector {record.place.sector} has an operation that cannot be")
        yield number, flags, data[begin:at]
