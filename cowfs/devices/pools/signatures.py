"""What is on a device, as blkid and wipefs of util-linux know it: file systems, partition tables, volumes, swap."""

from __future__ import annotations

import errno
from typing import Final

from cowfs.errors import HomeError
from cowfs.ext4.tools import commands as tools

_NOTHING_FOUND: Final = 2
_SEVERAL_FOUND: Final = 8


def find(path: str) -> str:
    """What a device holds, in words; empty when it is nothing that is known.

    Raises:
        MissingRequirement: no blkid here.
        HomeError: the device cannot be read.
    """
    status, text = tools.run("blkid", ["-p", "-o", "export", path], "util-linux")
    if status == _SEVERAL_FOUND:
        return "several file systems or tables at once"
    if status == _NOTHING_FOUND:
        return ""
    if status != 0:
        raise HomeError(f"cannot look for what is on {path}: blkid says: {text.strip()}", errno=errno.EIO)
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if "TYPE" in found:
        label = f" labelled '{found['LABEL']}'" if found.get("LABEL") else ""
        kind = "file system" if found.get("USAGE", "filesystem") == "filesystem" else found["USAGE"]
        return f"a {kind} ({found['TYPE']}){label}"
    return f"a partition table ({found['PTTYPE']})" if "PTTYPE" in found else ""


def wipe(path: str) -> None:
    """Take off a device what `find` finds, so that nothing takes it for what it was."""
    status, text = tools.run("wipefs", ["--all", "--quiet", path], "util-linux")
    if status != 0:
        raise HomeError(f"cannot erase the signatures on {path}: wipefs says: {text.strip()}", errno=errno.EIO)
