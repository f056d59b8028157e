"""Sending the requests of a trace to another disk, one after the other.

    disk = TargetDisk(path)
    replayed = replay(trace, disk, pace="fast", seed=1)
    replayed.kinds["write"].seconds                       how long each took

What is written is the same for the same seed, whatever the disk: so disks can be compared afterwards.
"""

from __future__ import annotations

import fcntl
import os
import random
import struct
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from cowfs.blockdev import Buffer, FileDevice
from cowfs.errors import UsageError
from cowfs.traces.requests import DISCARD, FLUSH, KIND_NAMES, READ, WRITE, Trace, TracedRequest
from cowfs.units import SECTOR_BYTES, format_size

Pace: TypeAlias = Literal["own", "fast"]
_BLKDISCARD: Final = 0x1277
_CONTENT_BYTES: Final = 4 << 20
_STEP_BYTES: Final = 4096 * 257  # from one write's content to the next one's


class TargetDisk(FileDevice):
    """A disk that requests are sent to: a file, or a block device's node. Flushes, and discards of nodes, are sent."""

    def write_through(self, offset: int, data: Buffer) -> None:
        """A write that is durable when this returns."""
        view = memoryview(data).cast("B")
        while view:
            written = os.pwritev(self.fd, [view], offset, os.RWF_DSYNC)
            view, offset = view[written:], offset + written

    def discard(self, offset: int, length: int) -> None:
        if not self.is_block_node:
            super().discard(offset, length)
            return
        begin = -(-offset // SECTOR_BYTES) * SECTOR_BYTES
        end = (offset + length) // SECTOR_BYTES * SECTOR_BYTES
        if begin < end:
            fcntl.ioctl(self.fd, _BLKDISCARD, struct.pack("QQ", begin, end - begin))

    def flush(self) -> None:
        os.fdatasync(self.fd)


class Content:
    """What is written: random bytes that depend on the seed and on which request it is, and on nothing else."""

    def __init__(self, seed: int) -> None:
        self._bytes = random.Random(seed).randbytes(_CONTENT_BYTES)  # noqa: S311

    def of(self, number: int, length: int) -> memoryview:
        """The bytes of request `number`."""
        if length > _CONTENT_BYTES // 2:
            self._bytes *= -(-2 * length // len(self._bytes))
        begin = number * _STEP_BYTES % (_CONTENT_BYTES // 2)
        return memoryview(self._bytes)[begin : begin + length]


@dataclass
class KindReplayed:
    """The requests of one kind that were sent, and how long each took."""

    size_bytes: int = 0
    seconds: array[float] = field(default_factory=lambda: array("d"))


@dataclass(frozen=True)
class Replayed:
    """A trace that was replayed.

    Attributes:
        kinds: by name, those that the trace has.
        seconds: from the first request's begin to the last one's end.
        traced_seconds: from the begin of the trace to its last request.
        most_late_seconds: how much later than in the trace a request began, at its own pace.
    """

    requests: int
    kinds: dict[str, KindReplayed]
    seconds: float
    traced_seconds: float
    most_late_seconds: float


def check_size(trace: Trace, size_bytes: int, what: str) -> int:
    """Read a whole trace; how many requests it has.

    Args:
        what: names the disk that is so large.

    Raises:
        UsageError: a request reaches beyond it, or the trace cannot be read.
    """
    count = 0
    for count, request in enumerate(trace.requests(), 1):
        end = request.offset + request.length
        if end > size_bytes:
            raise UsageError(
                f"{trace.path} cannot be replayed on {what}: its {KIND_NAMES[request.kind]} number {count} ends at "
                f"{format_size(end)}, byte {end}, and the disk has {format_size(size_bytes)}, {size_bytes} bytes; take "
                "a larger one"
            )
    return count


def replay(
    trace: Trace,
    disk: TargetDisk,
    *,
    pace: Pace = "fast",
    seed: int = 0,
    clock: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[float], object] = time.sleep,
) -> Replayed:
    """Send a trace's requests to a disk, each when the one before is answered.

    Args:
        pace: `fast`, or no sooner than each was made in its trace: `own`.
        clock: in nanoseconds.

    Raises:
        UsageError: it is not a trace, or reaches beyond the disk's end; nothing was done then.
        OSError: a request failed.
    """
    total = check_size(trace, disk.size_bytes, disk.path)
    content = Content(seed)
    kinds = [KindReplayed() for _ in KIND_NAMES]
    began_ns, late_ns, last_ns = clock(), 0, 0
    end_ns = began_ns
    for number, request in enumerate(trace.requests()):
        begin_ns = clock()
        last_ns = request.time_ns
        if pace == "own":
            while (ahead := began_ns + last_ns - begin_ns) > 0:
                sleep(ahead / 1e9)
                begin_ns = clock()
            late_ns = max(late_ns, -ahead)
        _send(disk, request, content, number)
        end_ns = clock()
        kind = kinds[request.kind]
        kind.seconds.append((end_ns - begin_ns) / 1e9)
        kind.size_bytes += request.length
    return Replayed(
        requests=total,
        kinds={name: one for name, one in zip(KIND_NAMES, kinds, strict=True) if one.seconds},
        seconds=(end_ns - began_ns) / 1e9,
        traced_seconds=last_ns / 1e9,
        most_late_seconds=late_ns / 1e9,
    )


def _send(disk: TargetDisk, request: TracedRequest, content: Content, number: int) -> None:
    kind, offset, length = request.kind, request.offset, request.length
    if kind == READ:
        disk.pread(offset, length)
    elif kind == WRITE:
        data = content.of(number, length)
        if request.sync:
            disk.write_through(offset, data)
        else:
            disk.pwrite(offset, data)
    elif kind == FLUSH:
        disk.flush()
    elif kind == DISCARD:
        disk.discard(offset, length)
    else:
        disk.zero(offset, length)
