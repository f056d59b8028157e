"""The extended headers of PAX archives: lines of `LENGTH KEYWORD=VALUE`, and the keywords that matter here.

LENGTH is decimal and counts the whole line, its own digits and the newline too. Values are raw bytes: an attribute may
hold anything. A `%` or `=` in an attribute's name is written as GNU tar does, `%25` and `%3D`.
"""

from __future__ import annotations

import re
from typing import Final

EXTENDED_BYTES_MAX: Final = 1 << 20  # of all records of an entry; what Go's archive/tar takes

XATTR: Final = b"SCHILY.xattr."
ACL_ACCESS: Final = b"SCHILY.acl.access"
ACL_DEFAULT: Final = b"SCHILY.acl.default"
SPARSE: Final = b"GNU.sparse."

# Of cowfs: true paths, where the header has a substitute for names that start with `.wh.`.
TRUE_PATH: Final = b"COWFS.path"
TRUE_TARGET: Final = b"COWFS.linkpath"
DELETED: Final = b"COWFS.deleted"  # beside the whiteout of a substitute

_LINE = re.compile(rb"([0-9]{1,7}) ")
_TIME = re.compile(rb"(-?)([0-9]{1,18})(?:\.([0-9]*))?")
_NUMBER = re.compile(rb"[0-9]{1,19}")
_NANOSECONDS: Final = 10**9


def parse(data: bytes) -> list[tuple[bytes, bytes]]:
    """(keyword, value) in order, as there may be several of one. Raises ValueError with what is wrong."""
    records = []
    position = 0
    while position < len(data):
        found = _LINE.match(data, position)
        end = position + int(found[1]) if found else 0
        if found is None or not found.end() < end <= len(data) or data[end - 1] != 0x0A:
            raise ValueError(f"no record at byte {position} of its extended header")
        keyword, equals, value = data[found.end() : end - 1].partition(b"=")
        if not equals or not keyword:
            raise ValueError(f"no keyword at byte {position} of its extended header")
        records.append((keyword, value))
        position = end
    return records


def build(records: dict[bytes, bytes]) -> bytes:
    return b"".join(_line(keyword, value) for keyword, value in records.items())


def _line(keyword: bytes, value: bytes) -> bytes:
    rest = len(keyword) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %b=%b\n" % (length, keyword, value)


def number(value: bytes) -> int:
    """Raises ValueError."""
    if not _NUMBER.fullmatch(value):
        raise ValueError(f"'{value[:40].decode(errors='backslashreplace')}' where a number belongs")
    return int(value)


def parse_time(value: bytes) -> int:
    """Nanoseconds of a decimal number of seconds; what is finer is cut off. Raises ValueError."""
    found = _TIME.fullmatch(value)
    if not found:
        raise ValueError(f"'{value[:40].decode(errors='backslashreplace')}' where a time belongs")
    time_ns = int(found[2]) * _NANOSECONDS + int((found[3] or b"")[:9].ljust(9, b"0"))
    return -time_ns if found[1] else time_ns


def format_time(time_ns: int) -> bytes:
    seconds, nanoseconds = divmod(abs(time_ns), _NANOSECONDS)
    text = f"{'-' if time_ns < 0 else ''}{seconds}.{nanoseconds:09}"
    return text.rstrip("0").rstrip(".").encode()


def xattr_keyword(name: bytes) -> bytes:
    return XATTR + name.replace(b"%", b"%25").replace(b"=", b"%3D")


def xattr_name(keyword: bytes) -> bytes:
    return keyword[len(XATTR) :].replace(b"%3D", b"=").replace(b"%25", b"%")
