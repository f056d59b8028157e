"""What the janitor of a run does (`cowfs.janitor`): servers, mounts and the directory of a run that was killed go.

A run that ends in any other way has taken everything down itself. Volume groups and thins are not removed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

_LEASES_SECONDS: Final = 5.0  # in which the mounts of cowfs end by themselves
_PAUSE_SECONDS: Final = 0.05
_UNMOUNTERS: Final = (("umount", "--recursive"), ("umount", "--lazy"), ("fusermount3", "-u", "-z"))


def remove_left(place: Path) -> None:
    directory = os.fspath(place)
    deadline = time.monotonic() + _LEASES_SECONDS
    while _servers(directory) and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
    for unmounter in _UNMOUNTERS:
        for target in reversed(_mounts(directory)):
            with suppress(OSError):
                subprocess.run([*unmounter, target], stdin=subprocess.DEVNULL, check=False)
    for pid in _servers(directory):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(directory, ignore_errors=True)


def _mounts(directory: str) -> list[str]:
    """Mount points below a directory. One that has to be escaped in the table cannot be: the directory is made here."""
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
        targets = [line.split(" ")[1] for line in file]
    return [target for target in targets if target.startswith(f"{directory}/")]


def _servers(directory: str) -> list[int]:
    """Processes whose command line names something below the directory, which has a name that nothing else has."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                if f"{directory}/".encode() in file.read():
                    found.append(int(name))
    return found
