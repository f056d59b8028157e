"""What this machine can do, found by trying, and what to do about what it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from typing import Final

import msgspec

from cowfs.errors import CowfsError, MissingRequirement
from cowfs.fuse.mountpoint import missing_requirements
from cowfs.host.backend_facts import TOOL_DIRECTORIES
from cowfs.host.serving.mounting import python_module
from cowfs.pool import backend_names, load_backend

_MOUNT_SECONDS: Final = 20.0
_TOOL_SECONDS: Final = 20.0


class Ability(msgspec.Struct, frozen=True):
    """One thing that was tried. `needed` for the main job: a home on the emulated backend, mounted."""

    name: str
    works: bool
    needed: bool
    detail: str
    remedy: str = ""


def examine(boot_uml: Callable[[], str]) -> list[Ability]:
    """Try everything; nothing is left behind.

    Args:
        boot_uml: boots User-Mode Linux and says what came up. Raises CowfsError.
    """
    tries: list[tuple[str, bool, Callable[[], str]]] = [
        ("user", False, _user),
        ("fuse", True, _fuse),
        ("mount", True, _mount),
        ("libext2fs", True, _libext2fs),
        *((tool, True, _tool(tool, "e2fsprogs")) for tool in ("mke2fs", "e2fsck")),
        ("user-mode-linux", False, boot_uml),
        *((tool, False, _tool(tool, "thin-provisioning-tools")) for tool in ("thin_check", "thin_dump")),
        *((f"backend {name}", name == "emulated", _backend(name)) for name in backend_names()),
    ]
    return [_try(name, needed, attempt) for name, needed, attempt in tries]


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


def _fuse() -> str:
    missing = missing_requirements()
    if missing:
        texts = [error.message.removesuffix(f"; try: {error.remedy}") for error in missing]
        raise MissingRequirement("; ".join(texts), remedy="; ".join(error.remedy for error in missing))
    return "/dev/fuse opens, fusermount3 and pyfuse3 are there"


def _mount() -> str:
    """Mount an empty disk in a process of its own, which unmounts it as soon as it answers."""
    if missing_requirements():
        raise MissingRequirement("not tried: see fuse")
    with tempfile.TemporaryDirectory(prefix="cowfs-doctor-") as directory:
        argv = [*python_module("cowfs.host.trial_mount"), directory]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_MOUNT_SECONDS)
        except subprocess.TimeoutExpired:
            raise MissingRequirement(f"a trial mount did not answer within {_MOUNT_SECONDS:.0f} s") from None
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            hint = "in a container: docker run --device /dev/fuse --cap-add SYS_ADMIN"
            raise MissingRequirement(f"a trial mount failed: {said}", remedy=hint)
    return "a trial mount came and went"


def _libext2fs() -> str:
    from cowfs.ext4.libext2fs import load

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
