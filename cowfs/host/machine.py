"""What this machine can do, found by trying, and what to do about what it cannot."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from typing import Final

import msgspec

from cowfs.errors import CowfsError, MissingRequirement
from cowfs.fuse.mountpoint import missing_requirements
from cowfs.host.mounting import python_module
from cowfs.layers.options import Facts
from cowfs.pool import Backend, Capability, backend_names, load_backend

_CONTROL: Final = "/dev/mapper/control"
_DM_VERSION: Final = 0xC138FD00
_DM_LIST_VERSIONS: Final = 0xC138FD0D
_DM_HEADER: Final = struct.Struct("=10IQ128s129s7x")
_DM_BUFFER_BYTES: Final = 16 << 10
_DM_TARGET: Final = struct.Struct("=I3I")
_TOOL_DIRECTORIES: Final = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin"
_MOUNT_SECONDS: Final = 20.0

assert _DM_HEADER.size == 312


class Ability(msgspec.Struct, frozen=True):
    """One thing that was tried. `needed` for the main job: a home on the emulated backend, mounted."""

    name: str
    works: bool
    needed: bool
    detail: str
    remedy: str = ""


def examine() -> list[Ability]:
    """Try everything; nothing is left behind."""
    tries: list[tuple[str, bool, Callable[[], str]]] = [
        ("user", False, _user),
        ("fuse", True, _fuse),
        ("mount", True, _mount),
        ("libext2fs", True, _libext2fs),
        *((tool, True, _tool(tool, "e2fsprogs")) for tool in ("mke2fs", "e2fsck")),
        ("device mapper", False, _device_mapper),
        ("user-mode-linux", False, _user_mode_linux),
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
        path = shutil.which(name, path=_TOOL_DIRECTORIES)
        if path is None:
            raise MissingRequirement(f"{name} is not installed", remedy=f"apt-get install {package}")
        return path

    return find


def _device_mapper() -> str:
    """Ask the kernel for its device mapper targets, as the dmthin backend would."""
    try:
        fd = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        remedy = "modprobe dm-thin-pool" if error.errno == errno.ENOENT else "run it as root"
        raise MissingRequirement(f"{_CONTROL}: {error.strerror}", remedy=remedy) from None
    try:
        versions = _list_targets(fd)
    except OSError as error:
        raise MissingRequirement(f"{_CONTROL} does not answer: {error.strerror}", remedy="run it as root") from None
    finally:
        os.close(fd)
    if "thin-pool" not in versions:
        raise MissingRequirement("the kernel has no thin-pool target loaded", remedy="modprobe dm-thin-pool")
    return f"thin-pool {versions['thin-pool']}"


def driver_facts(backend: Backend, *, kernel_mounts: bool) -> Facts:
    """What the defaults of a layer driver's options depend on.

    Args:
        kernel_mounts: whether the driver lets the kernel mount layers, which takes a backend with nodes.
    """
    if Capability.KERNEL_NODES not in backend.capabilities:
        return Facts()
    try:
        with open("/proc/filesystems") as file:
            kernel_knows_xfs = "xfs" in file.read().split()
    except OSError:
        kernel_knows_xfs = False
    return Facts(
        kernel_mounts=kernel_mounts,
        has_mkfs_xfs=shutil.which("mkfs.xfs", path=_TOOL_DIRECTORIES) is not None,
        kernel_knows_xfs=kernel_knows_xfs,
        dm_version=_device_mapper_version(),
    )


def _device_mapper_version() -> tuple[int, int, int] | None:
    """The version of the kernel's device mapper; None where it does not tell."""
    header = bytearray(_DM_HEADER.pack(4, 0, 0, _DM_HEADER.size, _DM_HEADER.size, *[0] * 6, b"", b""))
    try:
        with open(_CONTROL, "rb+", buffering=0) as control:
            fcntl.ioctl(control, _DM_VERSION, header)
    except OSError:
        return None
    major, minor, patch = _DM_HEADER.unpack(header)[:3]
    return major, minor, patch


def _list_targets(fd: int) -> dict[str, str]:
    """Names and versions of the device mapper's targets. Raises OSError."""
    header = _DM_HEADER.pack(4, 0, 0, _DM_BUFFER_BYTES, _DM_HEADER.size, *[0] * 6, b"", b"")
    buffer = bytearray(header.ljust(_DM_BUFFER_BYTES, b"\0"))
    fcntl.ioctl(fd, _DM_LIST_VERSIONS, buffer)
    return parse_targets(bytes(buffer))


def parse_targets(answer: bytes) -> dict[str, str]:
    """What DM_LIST_VERSIONS answers: entries of (offset of the next, version, name)."""
    begin = _DM_HEADER.unpack_from(answer)[4]
    targets = {}
    while True:
        step, *version = _DM_TARGET.unpack_from(answer, begin)
        name_begin = begin + _DM_TARGET.size
        name = answer[name_begin : answer.index(b"\0", name_begin)].decode("ascii", "replace")
        if name:
            targets[name] = ".".join(map(str, version))
        if not step:
            return targets
        begin += step


def _user_mode_linux() -> str:
    path = shutil.which("linux.uml", path=_TOOL_DIRECTORIES)
    if path is None:
        raise MissingRequirement("linux.uml is not installed", remedy="apt-get install user-mode-linux")
    return path


def _backend(name: str) -> Callable[[], str]:
    def probe() -> str:
        result = load_backend(name).probe()
        if not result.usable:
            raise MissingRequirement(result.problem, remedy=result.remedy)
        return "works"

    return probe
