"""A log of amounts, one line of 100 bytes after the other.

Fault: whatever is in the log is taken for written. So after a crash that left the new size and not the bytes, there are
lines of zeros. The twin has a checksum in each line and ends at the first line that is not sound.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from program import main, sync_directory, write_durably

LINES = 5
LINE_BYTES = 100


def line(number: int) -> bytes:
    return f"amount {number}".encode().ljust(LINE_BYTES - 9)


def checked_line(number: int) -> bytes:
    return line(number) + f"{zlib.crc32(line(number)):08x}\n".encode()


def work(directory: Path, mark: Callable[[str], None], *, mended: bool) -> None:
    path = directory / ("checked-log" if mended else "log")
    path.touch()
    sync_directory(directory)
    for number in range(1, LINES + 1):
        write_durably(path, checked_line(number) if mended else line(number) + b"        \n")
        mark(str(number))


def check(directory: Path, marks: Sequence[str]) -> None:
    promised = int(marks[-1]) if marks else 0
    is_checked = (directory / "checked-log").exists()
    path = directory / ("checked-log" if is_checked else "log")
    content = path.read_bytes() if path.exists() else b""
    read = 0
    for begin in range(0, len(content) - LINE_BYTES + 1, LINE_BYTES):
        one = content[begin : begin + LINE_BYTES]
        if is_checked and one != checked_line(read + 1):
            break
        assert one.startswith(b"amount "), f"line {read + 1} is no amount: {one[:10]!r}"
        read += 1
    assert read >= promised, f"{promised} lines were promised, and {read} are there"


if __name__ == "__main__":
    main(work, check)
