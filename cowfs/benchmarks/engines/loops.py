"""File systems of the kernel, each in one file behind a loop device: ext4, xfs with reflinks, btrfs with subvolumes.

A snapshot is durable when it is taken, and so is its removal, as those of cowfs are: the file system is synced.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cowfs.benchmarks import accounting
from cowfs.benchmarks.engines.interface import WORKS, Contender, Engine, Offer, Setting
from cowfs.benchmarks.engines.plain import DISK, TREE, DirectoryContender, synced
from cowfs.benchmarks.engines.tools import lacking, run_tool, version_of
from cowfs.mounts.mountinfo import mount_at
from cowfs.pool.interface import ProbeResult

_SIZE_BYTES: Final = 64 << 30  # sparse
_FICLONE: Final = 0x40049409  # linux/fs.h
_SNAP_CREATE, _SUBVOL_CREATE, _SNAP_DESTROY = 0x50009401, 0x5000940E, 0x5000940F  # linux/btrfs.h
_VOL_ARGS: Final = struct.Struct("=q4088s")


class LoopContender(DirectoryContender):
    """The devices are directories of the file system that is mounted at `mnt`."""

    def __init__(self, setting: Setting, maker: Sequence[str]) -> None:
        super().__init__(setting.name, setting.directory)
        self._maker = maker
        mount = mount_at(self.devices)
        assert mount is not None
        self._node = mount.source
        self._options = ",".join(sorted(mount.options | mount.super_options))

    @property
    def devices(self) -> Path:
        return self.directory / "mnt"

    def written_bytes(self) -> int | None:
        return accounting.device_written_bytes(self._node)

    def details(self) -> dict[str, str]:
        return {"version": version_of(self._maker[0]), "made by": " ".join(self._maker), "options": self._options}


class _Reflinks(LoopContender):
    """xfs: a snapshot of a disk shares its blocks (FICLONE), one of a tree is a copy whose files do."""

    def snapshot(self, origin: str, name: str) -> None:
        source, target = self.devices / origin, self.devices / name
        target.mkdir()
        with (source / DISK).open("rb") as old, (target / DISK).open("wb") as new:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        run_tool("cp", "-a", "--reflink=always", source / TREE, target / TREE)
        synced(self.devices)

    def remove(self, name: str) -> None:
        super().remove(name)
        synced(self.devices)


class _Subvolumes(LoopContender):
    """btrfs: a device is a subvolume, with a disk and a tree in it."""

    def create(self, name: str, size_bytes: int) -> None:
        self._call(_SUBVOL_CREATE, name)
        self.fill(name, size_bytes)

    def snapshot(self, origin: str, name: str) -> None:
        fd = os.open(self.devices / origin, os.O_RDONLY)
        try:
            self._call(_SNAP_CREATE, name, fd)
        finally:
            os.close(fd)
        synced(self.devices)

    def remove(self, name: str) -> None:
        self._call(_SNAP_DESTROY, name)
        synced(self.devices)

    def _call(self, request: int, name: str, fd: int = 0) -> None:
        top = os.open(self.devices, os.O_RDONLY)
        try:
            fcntl.ioctl(top, request, bytearray(_VOL_ARGS.pack(fd, name.encode())))
        finally:
            os.close(top)


@dataclass(frozen=True)
class _Loop:
    """Sets up a file system on a loop device."""

    filesystem: str
    package: str
    maker: tuple[str, ...]
    kind: type[LoopContender]

    def look(self) -> ProbeResult:
        if os.geteuid() != 0:
            return ProbeResult(usable=False, problem="only root mounts a loop device", remedy="sudo cowfs bench ...")
        with open("/proc/filesystems", encoding="ascii") as file:
            known = {line.split()[-1] for line in file}
        if self.filesystem not in known and not os.path.exists(f"/sys/module/{self.filesystem}"):
            problem = f"this kernel has no {self.filesystem}"
            return ProbeResult(usable=False, problem=problem, remedy=f"sudo modprobe {self.filesystem}")
        if not os.path.exists("/dev/loop-control"):
            return ProbeResult(usable=False, problem="there are no loop devices here", remedy="sudo modprobe loop")
        return lacking(self.package, self.maker[0], "mount") or WORKS

    @contextmanager
    def set_up(self, setting: Setting) -> Iterator[Contender]:
        image, target = setting.directory / "image", setting.directory / "mnt"
        target.mkdir()
        with image.open("wb") as file:
            file.truncate(_SIZE_BYTES)
        run_tool(*self.maker, image)
        run_tool("mount", "-t", self.filesystem, "-o", "loop", image, target)
        try:
            yield self.kind(setting, self.maker)
        finally:
            run_tool("umount", target)

    def engine(self, name: str, title: str, offers: Offer) -> Engine:
        return Engine(name, title, offers, self.look, self.set_up)


_BOTH: Final = Offer.DISK | Offer.TREE
EXT4: Final = _Loop("ext4", "e2fsprogs", ("mkfs.ext4", "-q"), LoopContender).engine(
    "ext4", "ext4 of the kernel on a loop device", _BOTH
)
XFS: Final = _Loop("xfs", "xfsprogs", ("mkfs.xfs", "-q", "-m", "reflink=1"), _Reflinks).engine(
    "xfs-reflink", "xfs of the kernel on a loop device: snapshots are reflinks", _BOTH | Offer.SNAPSHOTS | Offer.MANY
)
BTRFS: Final = _Loop("btrfs", "btrfs-progs", ("mkfs.btrfs", "-q"), _Subvolumes).engine(
    "btrfs", "btrfs of the kernel on a loop device: snapshots of subvolumes", _BOTH | Offer.SNAPSHOTS | Offer.MANY
)
