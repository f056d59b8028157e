"""What the janitor of a run does (`cowfs.janitor`): it removes what a run that was killed has left.

Servers, mounts, LVM's devices, its thins in a pool of the user's, and its directory. A run that ends in any other way
has taken everything down itself.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

THINS_FILE: Final = "thins"  # below the directory of a contender: the name of a pool, and ids of thins, line by line
_LEASES_SECONDS: Final = 5.0  # in which the mounts of cowfs end by themselves
_PAUSE_SECONDS: Final = 0.05
_PATH: Final = f"{os.defpath}:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin"
_BLOCK_DEVICES: Final = Path("/sys/block")
_GROUP: Final = re.compile(r"cowfs--bench--\d+")  # as the device mapper spells the name of a volume group
_UNMOUNTERS: Final = (("umount", "--recursive"), ("umount", "--lazy"), ("fusermount3", "-u", "-z"))


def remove_left(place: Path) -> None:
    directory = os.fspath(place)
    deadline = time.monotonic() + _LEASES_SECONDS
    while _servers(directory) and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
    for unmounter in _UNMOUNTERS:
        for target in reversed(_mounts(directory)):
            _run(*unmounter, target)
    for pid in _servers(directory):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for record in place.glob(f"*/{THINS_FILE}"):
        pool, *thin_ids = record.read_text().split("\n")
        for thin_id in thin_ids:
            _delete_thin(pool, thin_id)
    for loop in _loops(directory):
        for target in dict.fromkeys(_targets_above(loop)):
            _run("dmsetup", "remove", "--retry", target)
            if group := _GROUP.match(target):  # LVM made the names of its volumes itself, without udev
                shutil.rmtree(f"/dev/{group[0].replace('--', '-')}", ignore_errors=True)
        _run("losetup", "--detach", f"/dev/{loop}")
    shutil.rmtree(directory, ignore_errors=True)


def _delete_thin(pool: str, thin_id: str) -> None:
    """The kernel may still be about the removal of its node."""
    deadline = time.monotonic() + _LEASES_SECONDS
    while not _run("dmsetup", "message", pool, "0", f"delete {thin_id}") and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)


def _run(*words: str) -> bool:
    """Whether the program is there, and ended well."""
    program = shutil.which(words[0], path=_PATH)
    if program is None:
        return False
    return subprocess.run([program, *words[1:]], stdin=subprocess.DEVNULL, check=False).returncode == 0


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


def _loops(directory: str) -> list[str]:
    """Loop devices on files below the directory."""
    found = []
    for backing in _BLOCK_DEVICES.glob("loop*/loop/backing_file"):
        with suppress(OSError):
            if backing.read_text().startswith(f"{directory}/"):
                found.append(backing.parts[-3])
    return found


def _targets_above(device: str) -> Iterator[str]:
    """Targets of the device mapper that use a block device, each after those that use it."""
    for holder in (_BLOCK_DEVICES / device / "holders").iterdir():
        yield from _targets_above(holder.name)
        with suppress(OSError):
            yield (_BLOCK_DEVICES / holder.name / "dm" / "name").read_text().strip()
