"""What pip needs to compile pyfuse3, which comes as source: looked for before pip fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Mapping
from typing import Final

from cowfs.version import DISTRIBUTION

_SECONDS: Final = 20.0


def how_to_install() -> str:
    """The commands that bring pyfuse3: apt-get for what the compiler lacks here, then pip."""
    packages = [package for package, is_there in _NEEDS.items() if not is_there()]
    first = f"apt-get install {' '.join(packages)}, then " if packages else ""
    return f"{first}pip install '{DISTRIBUTION}[fuse]'"


def _has_compiler() -> bool:
    return any(map(shutil.which, ("cc", "gcc", "clang")))


def _has_libfuse() -> bool:
    if not shutil.which("pkg-config"):
        return os.path.exists("/usr/include/fuse3/fuse_lowlevel.h")
    try:
        done = subprocess.run(["pkg-config", "--exists", "fuse3"], capture_output=True, check=False, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _has_headers_of_python() -> bool:
    return os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))


# Debian's packages.
_NEEDS: Final[Mapping[str, Callable[[], bool]]] = {
    "gcc": _has_compiler,
    "libc6-dev": lambda: os.path.exists("/usr/include/stdlib.h"),
    "pkg-config": lambda: shutil.which("pkg-config") is not None,
    "libfuse3-dev": _has_libfuse,
    "python3-dev": _has_headers_of_python,
}
