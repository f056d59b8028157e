"""The kernel's binary traces, as blktrace and `blkparse -d` write them and blkparse and fio read them.

A trace is one event after the other: struct blk_io_trace of 48 bytes, and `pdu_len` bytes of data.

     0  u32  magic       0x65617400, and the version 7 in its last byte; says which end of numbers comes first
     4  u32  sequence
     8  u64  time        in nanoseconds
    16  u64  sector      of 512 bytes
    24  u32  bytes
    28  u32  action      what happened, and from bit 16 on of which category it is
    32  u32  pid
    36  u32  device      major << 20 | minor
    40  u32  cpu
    44  u16  error
    46  u16  pdu_len

A request is the event Q, that it was handed to the block layer; in a trace without such, D, that it went to the driver.
blktrace writes a file for each processor, NAME.blktrace.0 and so on: they are one trace.

Source: Linux, include/uapi/linux/blktrace_api.h; kernel/trace/blktrace.c.
"""

from __future__ import annotations

import glob
import heapq
import itertools
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple

from cowfs.errors import UsageError
from cowfs.traces.requests import (
    DISCARD,
    FLUSH,
    READ,
    WRITE,
    ZERO,
    Reading,
    Trace,
    TracedRequest,
    TraceEnd,
    TraceHeader,
    bad_trace,
)
from cowfs.units import SECTOR_BYTES

_LAYOUT: Final = "IIQQIIIIIHH"
_SIZE: Final = 48
_MAGIC: Final = 0x65617400
_VERSION: Final = 7
_QUEUE, _ISSUE = 1, 7
_ACTION_MASK: Final = 0xFFFF
_READ, _WRITE, _FLUSH, _SYNC = (1 << 16 + bit for bit in range(4))
_QUEUE_CATEGORY, _PASSTHROUGH, _NOTIFY, _DISCARD, _DRIVER, _FUA = (1 << 16 + bit for bit in (4, 9, 10, 13, 14, 15))
_CATEGORIES: Final = {
    READ: _READ,
    WRITE: _WRITE,
    ZERO: _WRITE,
    DISCARD: _WRITE | _DISCARD,
    FLUSH: _WRITE | _FLUSH | _SYNC,
}
_OF_A_CPU: Final = re.compile(r"(.+\.blktrace)\.\d+")
_LOOKED_AT: Final = 1 << 16
_LARGEST_BYTES: Final = 1 << 30  # of one event, so that 32 bits have it
_FURTHEST_SECTOR: Final = 1 << 52
_DEVICE: Final = 8 << 20  # 8:0, since what was traced had no number, or not one of this machine


class _Event(NamedTuple):
    time_ns: int
    sequence: int
    sector: int
    length: int
    action: int
    device: int


def is_blktrace(begin: bytes) -> bool:
    """By the first four bytes of a file."""
    ends: tuple[Literal["little", "big"], ...] = ("little", "big")
    return len(begin) >= 4 and any(int.from_bytes(begin[:4], end) & ~0xFF == _MAGIC for end in ends)


def is_of_a_processor(path: str) -> bool:
    """Whether a file is one of several, by its name; that of an idle processor is empty."""
    return _OF_A_CPU.fullmatch(path) is not None


def open_blktrace(path: str) -> Trace:
    """The trace that a file is, or is a part of. Raises UsageError: it is none; OSError."""
    paths = _parts(path)
    asked, device = _asked_by(_all_events(paths, []))

    def read() -> Reading:
        cut: list[str] = []
        began_ns: int | None = None
        for event in _all_events(paths, cut):
            if event.action & _ACTION_MASK != asked:
                continue
            if event.device != device:
                raise UsageError(
                    f"{path} is a trace of several devices, {_number(device)} and {_number(event.device)} among them; "
                    "let blktrace record one of them (-d)"
                )
            began_ns = event.time_ns if began_ns is None else began_ns
            yield from _requests(event, max(event.time_ns - began_ns, 0))
        return TraceEnd(is_whole=not cut)

    return Trace(path, "blktrace", TraceHeader(device=_number(device) if device else ""), read)


def _parts(path: str) -> list[str]:
    match = _OF_A_CPU.fullmatch(path)
    if match is None:
        return [path]
    return sorted(filter(is_of_a_processor, glob.glob(f"{glob.escape(match[1])}.*")))


def _asked_by(events: Iterator[_Event]) -> tuple[int, int]:
    """The action that says what was asked in this trace, and the number of the device, 0 where there is none."""
    issued = 0
    for event in itertools.islice(events, _LOOKED_AT):
        action = event.action & _ACTION_MASK
        if action == _QUEUE:
            return _QUEUE, event.device
        if action == _ISSUE:
            issued = issued or event.device
    return _ISSUE if issued else _QUEUE, issued


def _all_events(paths: list[str], cut: list[str]) -> Iterator[_Event]:
    """The events of block devices, in the order of their times. Files that end in an event are added to `cut`."""
    return heapq.merge(*(_events(path, cut) for path in paths))


def _events(path: str, cut: list[str]) -> Iterator[_Event]:
    with open(path, "rb") as file:
        order = "<"
        place = 0
        while head := file.read(_SIZE):
            if len(head) < _SIZE:
                cut.append(path)
                return
            if place == 0 and not is_blktrace(head):
                raise bad_trace(path, "byte 0", "no trace of blktrace begins like this")
            if place == 0:
                order = "<" if int.from_bytes(head[:4], "little") & ~0xFF == _MAGIC else ">"
            magic, sequence, time, sector, length, action, _pid, device, _cpu, _error, more = struct.unpack(
                order + _LAYOUT, head
            )
            if magic & ~0xFF != _MAGIC:
                raise bad_trace(path, f"byte {place}", "no event is there")
            if magic & 0xFF != _VERSION:
                raise bad_trace(path, f"byte {place}", f"an event of version {magic & 0xFF}, not {_VERSION}")
            if len(file.read(more)) < more:
                cut.append(path)
                return
            place += _SIZE + more
            if action & (_NOTIFY | _PASSTHROUGH | _DRIVER):
                continue
            if sector > _FURTHEST_SECTOR:
                raise bad_trace(path, f"byte {place}", f"a request at sector {sector}")
            yield _Event(time, sequence, sector, length, action, device)


def _requests(event: _Event, time_ns: int) -> Iterator[TracedRequest]:
    """What an event asks: a write may flush first."""
    action, offset = event.action, event.sector * SECTOR_BYTES
    if action & _FLUSH:
        yield TracedRequest(time_ns, FLUSH, 0, 0)
    if not event.length:
        return
    if action & _DISCARD:
        yield TracedRequest(time_ns, DISCARD, offset, event.length)
    elif action & _WRITE:
        yield TracedRequest(time_ns, WRITE, offset, event.length, bool(action & _FUA))
    elif action & _READ:
        yield TracedRequest(time_ns, READ, offset, event.length)


def _number(device: int) -> str:
    return f"{device >> 20}:{device & 0xFFFFF}"


def events(requests: Iterable[TracedRequest]) -> Iterator[bytes]:
    """The requests of a trace as events Q of device 8:0, in whole sectors."""
    sequence = 0
    for time_ns, kind, offset, length, sync in requests:
        begin = offset // SECTOR_BYTES * SECTOR_BYTES
        end = -(-(offset + length) // SECTOR_BYTES) * SECTOR_BYTES
        action = _CATEGORIES[kind] | _QUEUE_CATEGORY | _QUEUE
        if kind == WRITE and sync:
            action |= _FUA | _SYNC
        if kind == FLUSH:
            begin = end = 0
        elif begin == end:
            continue
        while True:
            size = min(end - begin, _LARGEST_BYTES)
            sequence += 1
            yield struct.pack(
                "<" + _LAYOUT,
                *(_MAGIC | _VERSION, sequence & 0xFFFFFFFF, time_ns, begin // SECTOR_BYTES, size, action),
                *(0, _DEVICE, 0, 0, 0),
            )
            begin += size
            if begin >= end:
                break
