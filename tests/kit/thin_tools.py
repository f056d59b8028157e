"""The two generations of thin-provisioning-tools, as outside judges of metadata.

0.9.0 (C++) is Debian 12's package and is looked for on the path. 1.1.0 (Rust) is Debian 13's; its programs run on
Debian 12 too, unpacked beside everything else:

    python -m tests.kit.thin_tools      fetches and unpacks it below the virtual environment, with apt, as any user
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from cowfs.debian_packages import unpack
from cowfs.errors import MissingRequirement
from cowfs.testing.judges import SYSTEM_PATH

UNPACKED: Final = Path(sys.prefix) / "share" / "cowfs" / "thin-tools"
PACKAGE: Final = "thin-provisioning-tools"
FETCH_COMMAND: Final = "python -m tests.kit.thin_tools"


def find_old(tool: str) -> str:
    """Path of a 0.9.0 tool.

    Raises:
        MissingRequirement: not installed, or of another version.
    """
    path = shutil.which(tool, path=SYSTEM_PATH)
    if path is None or not _version(path).startswith("0.9"):
        raise MissingRequirement(f"{tool} 0.9 is not installed", remedy=f"apt-get install {PACKAGE}, on Debian 12")
    return path


def find_new(tool: str) -> str:
    """Path of a 1.x tool: what was fetched, or what the system has.

    Raises:
        MissingRequirement: there is none.
    """
    for path in (str(UNPACKED / "usr" / "sbin" / tool), shutil.which(tool, path=SYSTEM_PATH)):
        if path and os.access(path, os.X_OK) and _version(path).startswith("1."):
            return path
    raise MissingRequirement(f"{tool} 1.x is not installed", remedy=FETCH_COMMAND)


def fetch() -> None:
    """Download Debian 13's package and unpack it below `UNPACKED`. Changes nothing of the system's own packages."""
    unpack([PACKAGE], UNPACKED, release="trixie")
    _version.cache_clear()


@functools.cache
def _version(path: str) -> str:
    result = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=60)
    words = (result.stdout or result.stderr).split()
    return words[-1] if words else ""


if __name__ == "__main__":
    try:
        find_new("thin_check")
    except MissingRequirement:
        fetch()
    print(f"{find_new('thin_check')} {_version(find_new('thin_check'))}")
