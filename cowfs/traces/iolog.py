"""fio's iolog, versions 2 and 3: text, one action a line.

    version 2     NAME add|open|close            version 3     the same after a time in microseconds since the
                  NAME wait MICROSECONDS                       begin of the run, without waits
                  NAME read|write|trim OFFSET LENGTH
                  NAME sync|datasync

A write that is durable when it is answered is a write and a datasync here, a range made zeros is a write. Times are
whole microseconds; version 2 has waits of at least 100 of them, as fio passes over shorter ones.

Source: fio 3.33, HOWTO, "Trace file format v2" and "v3"; what fio writes itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import IO, Final

from cowfs.errors import UsageError
from cowfs.traces.requests import (
    DISCARD,
    FLUSH,
    FURTHEST_BYTES,
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

FIRST_LINE: Final = re.compile(rb"fio version (\d+) iolog\s*\n")
_MOST_LINE_BYTES: Final = 4096
_MOST_NAME_BYTES: Final = 255  # what fio reads of one
_LEAST_WAIT_US: Final = 100
_KINDS: Final = {"read": READ, "write": WRITE, "trim": DISCARD, "sync": FLUSH, "datasync": FLUSH}
_WORDS: Final = {READ: "read", WRITE: "write", ZERO: "write", DISCARD: "trim"}
_NOTHING_ASKED: Final = ("add", "open", "close", "sync_file_range")


def open_iolog(path: str) -> Trace:
    """Raises UsageError: it is none, or of another version; OSError."""
    with open(path, "rb") as file:
        first = FIRST_LINE.fullmatch(file.readline(_MOST_LINE_BYTES))
    version = int(first[1]) if first else 0
    if version not in (2, 3):
        what = f"an iolog of version {version}; versions 2 and 3 can be read" if first else "no iolog begins like this"
        raise bad_trace(path, "line 1", what)

    def read() -> Reading:
        with open(path, "rb") as file:
            file.readline(_MOST_LINE_BYTES)
            return (yield from _requests(path, file, version))

    return Trace(path, "iolog", TraceHeader(device=_device(path)), read)


def _device(path: str) -> str:
    """The file that is named first."""
    with open(path, "rb") as file:
        file.readline(_MOST_LINE_BYTES)
        for word in file.readline(_MOST_LINE_BYTES).decode(errors="replace").split():
            if not word.isdecimal():
                return word
    return ""


def _requests(path: str, file: IO[bytes], version: int) -> Reading:
    now_us, number, only = 0, 1, ""
    while line := file.readline(_MOST_LINE_BYTES):
        number += 1
        if not line.endswith(b"\n"):
            if len(line) == _MOST_LINE_BYTES:
                raise bad_trace(path, f"line {number}", "it is too long")
            return TraceEnd(is_whole=False)
        words = line.decode(errors="surrogateescape").split()
        if not words:
            continue
        if version == 3:
            now_us = max(now_us, _number(path, number, words[0]))
            del words[0]
        if len(words) < 2:
            raise bad_trace(path, f"line {number}", "it has no action")
        name, action, *numbers = words
        only = only or name
        if name != only:
            raise UsageError(
                f"{path} is a trace of several files, '{only}' and '{name}' among them, and a device is one; "
                "record them one by one"
            )
        values = [_number(path, number, word) for word in numbers]
        if action == "wait" and version == 2 and values:
            now_us += values[0]
            continue
        if action in _NOTHING_ASKED:
            continue
        kind = _KINDS.get(action)
        if kind is None or (kind != FLUSH and len(values) != 2):
            raise bad_trace(path, f"line {number}", f"'{action}' with {len(values)} numbers is not an action")
        offset, length = (0, 0) if kind == FLUSH else values
        yield TracedRequest(now_us * 1000, kind, offset, length)
    return TraceEnd()


def _number(path: str, line: int, word: str) -> int:
    if word.isascii() and word.isdecimal() and len(word) < 20 and (value := int(word)) <= FURTHEST_BYTES:
        return value
    raise bad_trace(path, f"line {line}", f"'{word}' is not a number that can be")


def lines(requests: Iterable[TracedRequest], version: int, name: str) -> Iterator[bytes]:
    """The lines of an iolog.

    Args:
        name: the file that the iolog names, which fio opens unless its job names another one.

    Raises:
        UsageError: fio cannot read a name like this.
    """
    word = name.encode(errors="surrogateescape")
    if not word or len(word) > _MOST_NAME_BYTES or any(byte <= 32 or byte == 127 for byte in word):
        raise UsageError(f"an iolog cannot name the file {name!r}, as fio reads names without blanks; name another one")
    yield b"fio version %d iolog\n" % version
    waited_us = last_us = 0

    def line(time_us: int, action: bytes) -> bytes:
        return (b"%d " % time_us if version == 3 else b"") + word + b" " + action + b"\n"

    yield line(0, b"add") + line(0, b"open")
    for time_ns, kind, offset, length, sync in requests:
        last_us = max(last_us, time_ns // 1000)
        if version == 2 and last_us - waited_us >= _LEAST_WAIT_US:
            yield line(0, b"wait %d 0" % (last_us - waited_us))
            waited_us = last_us
        if kind != FLUSH:
            yield line(last_us, b"%s %d %d" % (_WORDS[kind].encode(), offset, length))
        if kind == FLUSH or sync:
            yield line(last_us, b"datasync 0 0")
    yield line(last_us, b"close")
