"""What the five programs share: their command line, marks, and fsync of a directory."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol


class Work(Protocol):
    def __call__(self, directory: Path, mark: Callable[[str], None], *, mended: bool) -> None: ...


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes, *, offset: int | None = None) -> None:
    """Write at an offset, or at the end, and make the content durable; the name is not made so."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if offset is None else 0)
    fd = os.open(path, flags, 0o666)
    try:
        if offset is None:
            os.write(fd, data)
        else:
            os.pwrite(fd, data, offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def set_mark(text: str) -> None:
    """Tell the crash test that this is promised; without a crash test, do nothing."""
    path = os.environ.get("COWFS_CRASH_MARKS")
    if not path:
        return
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(text.encode() + b"\n")
        answer = connection.makefile().readline()
    if answer != "ok\n":
        raise RuntimeError(answer)


def main(work: Work, check: Callable[..., None]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["work", "check"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("marks", nargs="*")
    parser.add_argument("--mended", action="store_true")
    arguments = parser.parse_args()
    if arguments.what == "work":
        work(arguments.directory, set_mark, mended=arguments.mended)
        return
    marks: Sequence[str] = arguments.marks
    try:
        check(arguments.directory, marks)
    except AssertionError as error:
        sys.exit(f"not sound: {error}")
