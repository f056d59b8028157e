"""Who holds a block device: for messages that say more than "busy"."""

from __future__ import annotations

import os
from contextlib import suppress

_MOST_NAMED = 5


def describe_holders(*device_numbers: int) -> str:
    """What uses devices, as far as it is known: mounts, devices on top of them, processes that have them open."""
    looks = (_mounts, _devices_above, _processes)
    found = list(dict.fromkeys(who for look in looks for number in device_numbers for who in look(number)))
    # This process usually holds it on the way to finding out who else does.
    this = f"process {os.getpid()}"
    found = [who for who in found if who != this] or found
    if not found:
        return "what uses it is unknown"
    more = len(found) - _MOST_NAMED
    return "held by " + ", ".join(found[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _mounts(device_number: int) -> list[str]:
    wanted = f"{os.major(device_number)}:{os.minor(device_number)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        rows = [line.split() for line in file]
    return [f"the mount at {row[4]}" for row in rows if row[2] == wanted]


def _devices_above(device_number: int) -> list[str]:
    folder = f"/sys/dev/block/{os.major(device_number)}:{os.minor(device_number)}/holders"
    names = []
    with suppress(OSError):
        for name in sorted(os.listdir(folder)):
            label = name
            with suppress(OSError), open(f"/sys/block/{name}/dm/name", encoding="utf-8") as file:
                label = file.read().strip()
            names.append(f"the device '{label}'")
    return names


def _processes(device_number: int) -> list[str]:
    names = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    found = os.stat(f"/proc/{pid}/fd/{fd}")
                    # The node, or a file on it: all that shows of a mount that was detached.
                    if device_number in (found.st_rdev, found.st_dev):
                        names.append(f"process {pid}")
                        break
    return names
