"""Processor time and memory of processes (proc(5)), bytes written to devices, and the space that files take.

What a process has written (`write_bytes`) is not used: it counts the pages that became dirty, and with large folios a
write of 4 KiB makes many of them dirty at once.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_RESET_PEAK: Final = b"5"


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time so far: of this process, of its children that have ended, and of these processes."""
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in own) + sum(map(_cpu_of, pids))


def _cpu_of(pid: int) -> float:
    with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
        return sum(int(field) for field in fields[11:15]) / _TICKS  # utime stime cutime cstime
    return 0.0


def forget_peaks(pids: Iterable[int]) -> None:
    """Have the peak of the memory of these processes begin anew."""
    for pid in pids:
        with suppress(OSError), open(f"/proc/{pid}/clear_refs", "wb") as file:
            file.write(_RESET_PEAK)


def peak_memory_bytes(pids: Iterable[int]) -> int | None:
    """The sum of the peaks of the resident memory; None without processes."""
    return _memory_bytes(pids, b"VmHWM:")


def memory_bytes(pids: Iterable[int]) -> int | None:
    """The sum of the resident memory now; None without processes."""
    return _memory_bytes(pids, b"VmRSS:")


def _memory_bytes(pids: Iterable[int], field: bytes) -> int | None:
    found = [_field_of(pid, "status", field) for pid in pids]
    known = [value << 10 for value in found if value is not None]
    return sum(known) if known else None


def _field_of(pid: int, file_name: str, key: bytes) -> int | None:
    with suppress(OSError), open(f"/proc/{pid}/{file_name}", "rb") as file:
        for line in file:
            if line.startswith(key):
                return int(line.split()[1])
    return None


def device_written_bytes(node: str) -> int | None:
    """What has been written to a block device since the machine started (Documentation/block/stat.rst)."""
    with suppress(OSError), open(f"/sys/class/block/{os.path.basename(os.path.realpath(node))}/stat", "rb") as file:
        return int(file.read().split()[6]) * 512
    return None


def allocated_bytes(directory: str) -> int:
    """What the files below a directory occupy on its own file system; mounts below it are left out."""
    device = os.stat(directory).st_dev
    total = 0
    pending = [directory]
    while pending:
        with suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    if found.st_dev != device:
                        continue
                    total += found.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
    return total
