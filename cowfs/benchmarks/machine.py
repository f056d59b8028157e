"""What this machine is like, and how loaded it is: processors that others use, and the price of a switch."""

from __future__ import annotations

import os
import platform
import time
from typing import Final

import msgspec

from cowfs.mounts.mountinfo import mounts

QUIET_PROCESSORS: Final = 0.25
_SWITCHES: Final = 2000


class Machine(msgspec.Struct, frozen=True):
    """Where a result comes from. Contenders are compared only within one run, and so on one machine."""

    system: str
    kernel: str
    processor: str
    processors: int
    memory_bytes: int
    python: str
    directory_filesystem: str
    directory_options: str


def describe_machine(directory: str) -> Machine:
    filesystem, options = filesystem_of(directory)
    return Machine(
        system=_system(),
        kernel=platform.release(),
        processor=_processor(),
        processors=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        python=platform.python_version(),
        directory_filesystem=filesystem,
        directory_options=options,
    )


def busy_processors(seconds: float) -> float:
    """How many processors are busy, on average, while this program sleeps."""
    before = _busy_seconds()
    time.sleep(seconds)
    return (_busy_seconds() - before) / seconds


def _busy_seconds() -> float:
    """Processor time that this machine has spent on anything (proc(5): user nice system idle iowait irq ...)."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(number) for number in file.readline().split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def switch_seconds() -> float:
    """Half of the time in which a byte is at another process and back, through two pipes."""
    there, sender = os.pipe()
    receiver, back = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(sender)
            while os.read(there, 1):
                os.write(back, b"x")
        finally:
            os._exit(0)
    try:
        begin = time.perf_counter()
        for _ in range(_SWITCHES):
            os.write(sender, b"x")
            os.read(receiver, 1)
        return (time.perf_counter() - begin) / _SWITCHES / 2
    finally:
        for fd in (there, sender, receiver, back):
            os.close(fd)
        os.waitpid(child, 0)


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return platform.system()


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.machine()


def filesystem_of(directory: str) -> tuple[str, str]:
    """Kind and options of the file system that a directory is on; the kind is `unknown` where no mount has it."""
    number = os.stat(directory).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    for mount in reversed(mounts()):
        if mount.device == device:
            return mount.fstype, ",".join(sorted(mount.options | mount.super_options))
    return "unknown", ""
