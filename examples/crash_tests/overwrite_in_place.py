"""A record of 8 KiB that is changed again and again.

Fault: it is overwritten where it is, so that a crash leaves half of the new one and half of the old one. The twin
writes to two places in turn, each with a number and a checksum, and takes the newest that is sound.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from program import main, sync_directory, write_durably

CHANGES = 4
RECORD_BYTES = 8192


def record(number: int) -> bytes:
    body = bytes([number]) * (RECORD_BYTES - 4)
    return zlib.crc32(body).to_bytes(4, "big") + body


def work(directory: Path, mark: Callable[[str], None], *, mended: bool) -> None:
    path = directory / ("two-records" if mended else "record")
    path.touch()
    sync_directory(directory)
    for number in range(1, CHANGES + 1):
        offset = number % 2 * RECORD_BYTES if mended else 0
        write_durably(path, record(number), offset=offset)
        mark(str(number))


def check(directory: Path, marks: Sequence[str]) -> None:
    promised = int(marks[-1]) if marks else 0
    if (directory / "two-records").exists():
        content = (directory / "two-records").read_bytes()
        places = [content[:RECORD_BYTES], content[RECORD_BYTES:]]
        found = max((number for number in range(CHANGES + 1) if record(number) in places), default=0)
    else:
        path = directory / "record"
        content = path.read_bytes() if path.exists() else b""
        found = next((number for number in range(CHANGES + 1) if record(number) == content), -1 if content else 0)
        assert found >= 0, f"the record is neither old nor new: it begins with {content[4]} and ends with {content[-1]}"
    assert found >= promised, f"record {promised} was promised, and record {found} is there"


if __name__ == "__main__":
    main(work, check)
