"""Traces of any format: read by what is in the file, written by its name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, Final, Literal, TypeAlias

from cowfs.errors import UsageError
from cowfs.traces import blktrace, file, iolog
from cowfs.traces.requests import Trace, TracedRequest

FormatName: TypeAlias = Literal["trace", "iolog", "iolog3", "blktrace"]
FORMATS: Final[tuple[FormatName, ...]] = ("trace", "iolog", "iolog3", "blktrace")
_LOOKED_AT_BYTES: Final = 64


def open_trace(path: str) -> Trace:
    """A trace of any format. Raises UsageError: the file is none; OSError."""
    with open(path, "rb") as opened:
        begin = opened.read(_LOOKED_AT_BYTES)
    if begin.startswith(file.MAGIC):
        return file.open_trace(path)
    if iolog.FIRST_LINE.match(begin):
        return iolog.open_iolog(path)
    if blktrace.is_blktrace(begin) or (not begin and blktrace.is_of_a_processor(path)):
        return blktrace.open_blktrace(path)
    raise UsageError(
        f"{path} is not a trace that is known: it begins neither as one of cowfs, nor as an iolog of fio (version 2 "
        "or 3), nor as a binary trace of blktrace"
    )


def named_format(path: str) -> FormatName | None:
    """The format that the name of a file says; None where it says none."""
    if path.endswith(".trace"):
        return "trace"
    if path.endswith((".iolog", ".log")):
        return "iolog"
    if path.rstrip("0123456789").removesuffix(".").endswith(".blktrace"):
        return "blktrace"
    return None


def format_of(path: str) -> FormatName:
    """What a new file is to be, by its name. Raises UsageError: its name does not say."""
    if (found := named_format(path)) is not None:
        return found
    raise UsageError(
        f"the name of {path} does not show the format; use the suffix .trace, .iolog or .blktrace.0, or give --format"
    )


def write_trace(trace: Trace, out: IO[bytes], kind: FormatName, *, file_name: str = "") -> None:
    """Write a trace in a format; one that is not whole is not whole afterwards, where the format can tell.

    Args:
        file_name: what an iolog names as the file; the name of the trace's device when empty.

    Raises:
        UsageError: the trace cannot be read to its end, or an iolog cannot have the name.
    """
    if kind == "trace":
        out.write(file.encode_header(trace.header))
        out.writelines(map(file.encode_block, _blocks(trace.requests())))
        if trace.end.is_whole:
            out.write(file.encode_end(trace.end.lost))
    elif kind == "blktrace":
        out.writelines(blktrace.events(trace.requests()))
    else:
        version = 2 if kind == "iolog" else 3
        out.writelines(iolog.lines(trace.requests(), version, file_name or trace.header.device))


def _blocks(requests: Iterable[TracedRequest]) -> Iterator[list[TracedRequest]]:
    supply = iter(requests)
    while block := list(islice(supply, file.BLOCK_REQUESTS)):
        yield block
