"""Which processes have something open in a mount: a file, a working directory or root, a mapping.

From /proc, as far as this user may look: the links are read and not followed, so nothing here waits for the mount.
Reading a process's mappings may wait for that process, which may wait for the mount: never in a server's own thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

_PROC: Final = "/proc"
_NAMED: Final = 8


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.pid})"


def processes_at(path: str) -> list[Process]:
    """The processes, but this one, that have something open at or below a path, in order of their ids."""
    pids = sorted(int(name) for name in os.listdir(_PROC) if name.isdecimal())
    below = f"{path.rstrip('/')}/"
    users = (pid for pid in pids if pid != os.getpid() and _uses(f"{_PROC}/{pid}", path, below))
    return [Process(pid, _name_of(pid)) for pid in users]


def listed(processes: list[Process]) -> str:
    """Processes as a message names them."""
    named = ", ".join(map(str, processes[:_NAMED]))
    more = len(processes) - _NAMED
    return f"{named} and {more} more" if more > 0 else named


def _uses(process: str, path: str, below: str) -> bool:
    return any(found == path or found.startswith(below) for found in _paths_of(process))


def _paths_of(process: str) -> Iterator[str]:
    for link in ("cwd", "root"):
        with suppress(OSError):
            yield os.readlink(f"{process}/{link}")
    with suppress(OSError):
        for number in os.listdir(f"{process}/fd"):
            with suppress(OSError):
                yield os.readlink(f"{process}/fd/{number}")
    with suppress(OSError), open(f"{process}/maps", "rb") as file:
        for line in file:
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith(b"/"):
                yield os.fsdecode(fields[5].rstrip(b"\n"))


def _name_of(pid: int) -> str:
    try:
        with open(f"{_PROC}/{pid}/comm", errors="replace") as file:
            name = file.read().rstrip("\n")
    except OSError:
        return "?"
    return "".join(character if character.isprintable() else "?" for character in name)
