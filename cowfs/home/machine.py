"""What this machine can do, found by trying, and what to do about what it cannot."""

from __future__ import annotations

import enum
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from cowfs.errors import CowfsError, MissingRequirement
from cowfs.home.opened.backend_facts import TOOL_DIRECTORIES
from cowfs.home.serving.mounting import python_module
from cowfs.mounts.mountpoint import missing_requirements
from cowfs.pool import backend_names, load_backend
from cowfs.version import DISTRIBUTION, VERSION

_MOUNT_SECONDS: Final = 20.0
_TOOL_SECONDS: Final = 20.0


class Ability(msgspec.Struct, frozen=True):
    """One thing that was tried. `needed` for what was asked about, else to make and mount a home without root."""

    name: str
    works: bool
    needed: bool
    detail: str
    remedy: str = ""


class Need(enum.Flag):
    """What a machine may be wanted for."""

    POOL = enum.auto()  # homes on the emulated backend
    FUSE = enum.auto()  # to mount their devices
    DM = enum.auto()  # homes on the kernel's device mapper


def examine(boot_uml: Callable[[], str], needs: Need | None = None) -> Iterator[Ability]:
    """Try one thing after the other; nothing is left behind.

    Args:
        boot_uml: boots User-Mode Linux and says what came up. Raises CowfsError.
        needs: try only what this takes; everything when None.
    """
    any_home = Need.POOL | Need.FUSE | Need.DM
    tries: list[tuple[str, Need, Callable[[], str]]] = [
        ("user", Need(0), _user),
        ("package", any_home, _package),
        ("fuse", Need.FUSE, _fuse),
        ("mount", Need.FUSE, _mount),
        ("libext2fs", Need.FUSE, _libext2fs),
        *((tool, any_home, _tool(tool, "e2fsprogs")) for tool in ("mke2fs", "e2fsck")),
        ("user-mode-linux", Need(0), boot_uml),
        *((tool, Need(0), _tool(tool, "thin-provisioning-tools")) for tool in ("thin_check", "thin_dump")),
        *((f"backend {name}", _NEED_OF_BACKEND.get(name, Need(0)), _backend(name)) for name in backend_names()),
    ]
    for name, needed_for, attempt in tries:
        if needs is None or needs & needed_for:
            yield _try(name, bool(needed_for & (needs or Need.POOL | Need.FUSE)), attempt)


_NEED_OF_BACKEND: Final = {"emulated": Need.POOL | Need.FUSE, "dmthin": Need.DM}


def _try(name: str, needed: bool, attempt: Callable[[], str]) -> Ability:
    try:
        return Ability(name, True, needed, attempt())
    except MissingRequirement as error:
        detail = error.message.removesuffix(f"; try: {error.remedy}")
        return Ability(name, False, needed, detail, error.remedy)
    except CowfsError as error:
        return Ability(name, False, needed, error.message)
    except Exception as error:  # whatever this machine answers, the others are tried too
        return Ability(name, False, needed, f"trying it failed: {error or type(error).__name__}")


def _user() -> str:
    uid = os.geteuid()
    return "root: other users can use the mounts" if uid == 0 else f"uid {uid}: mounts are this user's alone"


def _package() -> str:
    """Whose the package `cowfs` is in this environment: another project has a distribution with one, too."""
    from importlib.metadata import distributions

    file = PurePosixPath("cowfs/__init__.py")
    owners = {found.name for found in distributions() if file in (found.files or ())} - {DISTRIBUTION}
    if owners:
        others = ", ".join(sorted(owners))
        raise MissingRequirement(
            f"the distribution {others} has a package 'cowfs' in this environment, too, and one overwrites the other",
            remedy=f"pip uninstall {others} and install {DISTRIBUTION} again, or an environment for each",
        )
    return f"{DISTRIBUTION} {VERSION} at {Path(__file__).resolve().parents[1]}"


def _fuse() -> str:
    missing = missing_requirements()
    if missing:
        texts = [error.message.removesuffix(f"; try: {error.remedy}") for error in missing]
        raise MissingRequirement("; ".join(texts), remedy="; ".join(error.remedy for error in missing))
    return "/dev/fuse opens, fusermount3 and pyfuse3 are there"


def _mount() -> str:
    """Mount an empty disk in a separate process, which unmounts it as soon as it answers."""
    if missing_requirements():
        raise MissingRequirement("not tried: see fuse")
    with tempfile.TemporaryDirectory(prefix="cowfs-doctor-") as directory:
        argv = [*python_module("cowfs.home.trial_mount"), directory]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_MOUNT_SECONDS)
        except subprocess.TimeoutExpired:
            raise MissingRequirement(f"a trial mount did not answer within {_MOUNT_SECONDS:.0f} s") from None
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            hint = "in a container: docker run --device /dev/fuse --cap-add SYS_ADMIN"
            raise MissingRequirement(f"a trial mount failed: {said}", remedy=hint)
    return "a trial mount worked"


def _libext2fs() -> str:
    from cowfs.ext4.library.libext2fs import load

    return f"version {load().version}"


def _tool(name: str, package: str) -> Callable[[], str]:
    def find() -> str:
        remedy = f"apt-get install {package}"
        path = shutil.which(name, path=TOOL_DIRECTORIES)
        if path is None:
            raise MissingRequirement(f"{name} is not installed", remedy=remedy)
        try:
            done = subprocess.run([path, "-V"], capture_output=True, check=False, timeout=_TOOL_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MissingRequirement(f"{path} does not run: {error}", remedy=remedy) from error
        if done.returncode:
            raise MissingRequirement(f"{path} -V ends with status {done.returncode}", remedy=remedy)
        return path

    return find


def _backend(name: str) -> Callable[[], str]:
    def probe() -> str:
        result = load_backend(name).probe()
        if not result.usable:
            raise MissingRequirement(result.problem, remedy=result.remedy)
        return "works"

    return probe
