"""What a request is, and what a trace says about itself."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Final, NamedTuple, TypeAlias

import msgspec

from cowfs.errors import UsageError

READ, WRITE, FLUSH, DISCARD, ZERO = range(5)
KIND_NAMES: Final = ("read", "write", "flush", "discard", "zero")
FURTHEST_BYTES: Final = 1 << 62  # no request reaches beyond this


class TracedRequest(NamedTuple):
    """One request.

    Attributes:
        time_ns: when it was made, since the trace began.
        kind: READ, WRITE, FLUSH, DISCARD or ZERO (make a range read as zeros).
        offset, length: in bytes; 0 for a flush.
        sync: a write that is durable when it is answered (forced unit access).
    """

    time_ns: int
    kind: int
    offset: int
    length: int
    sync: bool = False


class TraceHeader(msgspec.Struct, frozen=True):
    """What a trace says about itself.

    Attributes:
        device: the device that received the requests, as the recording program names it.
        size_bytes: how large that device was; None where the format does not say.
        began: seconds since 1970; None where the format does not say.
    """

    device: str = ""
    size_bytes: int | None = None
    began: float | None = None


class TraceEnd(msgspec.Struct, frozen=True):
    """How a trace ends.

    Attributes:
        is_whole: nothing is cut off at its end, as far as the format can tell.
        lost: how many requests could not be recorded, since what took them was too slow.
    """

    is_whole: bool = True
    lost: int = 0


Reading: TypeAlias = Generator[TracedRequest, None, TraceEnd]


class Trace:
    """A trace that can be read, several times; it is never in memory as a whole.

    Args:
        read: begins to read at the first request.

    Attributes:
        end: how it ends, once the requests have been read.
    """

    def __init__(self, path: str, kind: str, header: TraceHeader, read: Callable[[], Reading]) -> None:
        self.path = path
        self.kind = kind
        self.header = header
        self.end = TraceEnd()
        self._read = read

    def requests(self) -> Iterator[TracedRequest]:
        """In the order of their times. Raises UsageError: what follows is not of this format."""
        self.end = yield from self._read()


def bad_trace(path: str, where: str, what: str) -> UsageError:
    """The error for a file that is not a trace of its format."""
    return UsageError(f"{path} cannot be read as a trace: {where}: {what}")
