"""A queue of messages, a file for each.

Fault: the files are made durable, and the directory that their names are in is not. So a message may be gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from program import main, sync_directory, write_durably

MESSAGES = 5


def work(directory: Path, mark: Callable[[str], None], *, mended: bool) -> None:
    for number in range(1, MESSAGES + 1):
        name = f"message-{number}"
        write_durably(directory / name, name.encode() * 50)
        if mended:
            sync_directory(directory)
        mark(name)


def check(directory: Path, marks: Sequence[str]) -> None:
    for name in marks:
        path = directory / name
        assert path.exists(), f"{name} was promised, and is gone"
        assert path.read_bytes() == name.encode() * 50, f"{name} is damaged"


if __name__ == "__main__":
    main(work, check)
