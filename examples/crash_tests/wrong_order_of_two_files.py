"""Values in one file, and an index in another one that says where they are.

Fault: the index is written, and made durable, before the value that it leads to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from program import main, sync_directory, write_durably

VALUES = 4
VALUE_BYTES = 600
ENTRY_BYTES = 8


def value(number: int) -> bytes:
    return f"{number:03}".encode() * (VALUE_BYTES // 3)


def work(directory: Path, mark: Callable[[str], None], *, mended: bool) -> None:
    index, values = directory / "index", directory / "values"
    index.touch()
    values.touch()
    sync_directory(directory)
    for number in range(VALUES):
        entry = (number * VALUE_BYTES).to_bytes(ENTRY_BYTES, "big")
        writes = [(index, entry, number * ENTRY_BYTES), (values, value(number), number * VALUE_BYTES)]
        for path, data, offset in reversed(writes) if mended else writes:
            write_durably(path, data, offset=offset)
        mark(str(number))


def check(directory: Path, marks: Sequence[str]) -> None:
    index, values = directory / "index", directory / "values"
    entries = index.read_bytes() if index.exists() else b""
    content = values.read_bytes() if values.exists() else b""
    count = len(entries) // ENTRY_BYTES
    for number in range(count):
        entry = entries[number * ENTRY_BYTES : (number + 1) * ENTRY_BYTES]
        if number and not any(entry):
            count = number  # an entry that was never written: the end
            break
        begin = int.from_bytes(entry, "big")
        assert content[begin : begin + VALUE_BYTES] == value(number), f"entry {number} leads to no value"
    assert count >= len(marks), f"{len(marks)} values were promised, and {count} are there"


if __name__ == "__main__":
    main(work, check)
