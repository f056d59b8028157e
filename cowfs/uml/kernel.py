"""Finding the User-Mode Linux kernel and its modules, and unpacking the distribution's package without root."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cowfs.debian_packages import unpack
from cowfs.errors import MissingRequirement

PACKAGE: Final = "user-mode-linux"
# In the order in which they depend on each other.
MODULES: Final = (
    "drivers/md/dm-mod",
    "drivers/md/dm-bufio",
    "drivers/md/dm-bio-prison",
    "drivers/md/persistent-data/dm-persistent-data",
    "drivers/md/dm-thin-pool",
    "drivers/md/dm-delay",
    "drivers/md/dm-flakey",
    "drivers/block/loop",
    "fs/fuse/fuse",
)
_REMEDY: Final = f"sudo apt-get install {PACKAGE} (or, without root: cowfs uml install)"


@dataclass(frozen=True, slots=True)
class UmlKernel:
    """A kernel that runs as a process, and the folder of its modules (the one that holds `drivers` and `fs`)."""

    executable: Path
    modules: Path

    def module_paths(self) -> list[str]:
        """Paths of the modules that dm-thin, faults below it, loop devices and FUSE need.

        Raises:
            MissingRequirement: a module is not in the package.
        """
        paths = [self.modules / f"{name}.ko" for name in MODULES]
        for path in paths:
            if not path.is_file():
                raise MissingRequirement(f"{path} is missing from the {PACKAGE} package", remedy=_REMEDY)
        return [str(path) for path in paths]


def default_cache() -> Path:
    """Where packages are unpacked by default: the user's cache folder."""
    return Path("~/.cache").expanduser() / "cowfs"


def find_kernel(cache: Path | None = None) -> UmlKernel:
    """The kernel of the installed package, or the one that `install` unpacked into `cache`.

    Raises:
        MissingRequirement: neither exists; the remedy says how to get it.
    """
    for root in (Path("/"), _unpacked(cache)):
        kernel = kernel_below(root)
        if kernel is not None:
            return kernel
    raise MissingRequirement("User-Mode Linux is not installed", remedy=_REMEDY)


def install(cache: Path | None = None) -> UmlKernel:
    """`find_kernel`, after unpacking the distribution's package into `cache` when it is nowhere; needs no root.

    Raises:
        MissingRequirement: no apt-get or dpkg-deb here, or the package cannot be downloaded.
    """
    try:
        return find_kernel(cache)
    except MissingRequirement:
        pass
    unpack([PACKAGE], _unpacked(cache), is_whole=lambda folder: kernel_below(folder) is not None)
    return find_kernel(cache)


def _unpacked(cache: Path | None) -> Path:
    return (default_cache() if cache is None else cache) / "uml"


def kernel_below(root: Path) -> UmlKernel | None:
    """The kernel unpacked in a folder. Raises MissingRequirement when it exists and cannot be run."""
    executable = root / "usr/bin/linux.uml"
    if not os.access(executable, os.X_OK):
        return None
    try:
        result = subprocess.run([executable, "--version"], capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingRequirement(f"{executable} cannot be run: {error}", remedy=_REMEDY) from error
    modules = root / "usr/lib/uml/modules" / result.stdout.strip() / "kernel"
    return UmlKernel(executable, modules) if modules.is_dir() else None
