"""Thin volumes of LVM, by its own commands, in a volume group on a loop device; LVM sees no other device meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from cowfs.benchmarks import accounting
from cowfs.benchmarks.engines.interface import WORKS, Contender, Engine, Offer, Setting
from cowfs.benchmarks.engines.nodes import NodeDevices
from cowfs.benchmarks.engines.tools import lacking, run_tool, version_of
from cowfs.errors import CowfsError
from cowfs.pool.interface import ProbeResult
from cowfs.pool.registry import load_backend
from cowfs.units import format_size

_POOL: Final = "pool"
_SIZE_BYTES: Final = 64 << 30  # sparse
_BLOCK_BYTES: Final = 64 << 10


class _Lvm(NodeDevices):
    """A device is a thin volume."""

    def __init__(self, setting: Setting, group: str, loop: str, block_bytes: int) -> None:
        super().__init__(setting)
        self._group = group
        self._loop = loop
        self._block_bytes = block_bytes

    def lvm(self, *words: str) -> None:
        _lvm(self._loop, *words)

    def _volume(self, name: str) -> str:
        """LVM keeps names such as `snapshot...` for itself."""
        return f"{self._group}/device_{name}"

    def create(self, name: str, size_bytes: int) -> None:
        size = -(-size_bytes >> 22) << 22  # whole extents of 4 MiB
        self.lvm("lvcreate", "-V", f"{size}b", "-T", f"{self._group}/{_POOL}", "-n", f"device_{name}", "-an")

    def take_snapshot(self, origin: str, name: str) -> None:
        self.lvm("lvcreate", "--type", "thin", "-n", f"device_{name}", self._volume(origin))

    def remove(self, name: str) -> None:
        super().remove(name)
        self.lvm("lvremove", "-f", self._volume(name))

    @contextmanager
    def disk(self, name: str) -> Iterator[Path]:
        self.lvm("lvchange", "-ay", "-K", self._volume(name))
        try:
            yield Path("/dev", self._volume(name))
        finally:
            self.lvm("lvchange", "-an", self._volume(name))

    def written_bytes(self) -> int | None:
        return accounting.device_written_bytes(self._loop)

    def details(self) -> dict[str, str]:
        size = format_size(self._block_bytes)
        return {"version": version_of("lvm"), "block size": size, "tree": "ext4 of the kernel"}


def _lvm(loop: str, *words: str) -> None:
    config = (
        f'devices {{ global_filter=["a|^{loop}$|","r|.*|"] obtain_device_list_from_udev=0 use_devicesfile=0 '
        'external_device_info_source="none" } activation { udev_sync=0 udev_rules=0 monitoring=0 }'
    )
    run_tool("lvm", words[0], "--config", config, "-q", "-q", *words[1:])


def _look() -> ProbeResult:
    try:
        found = load_backend("dmthin").probe()
    except CowfsError as error:
        found = ProbeResult(usable=False, problem=error.message)
    if not found.usable:
        return found
    tools = lacking("lvm2", "lvm") or lacking("thin-provisioning-tools", "thin_check")
    return tools or lacking("e2fsprogs", "mkfs.ext4") or lacking("mount", "losetup") or WORKS


@contextmanager
def _set_up(setting: Setting) -> Iterator[Contender]:
    block_bytes = setting.block_bytes or _BLOCK_BYTES
    image, group = setting.directory / "image", f"cowfs-bench-{os.getpid()}"
    with image.open("wb") as file:
        file.truncate(_SIZE_BYTES)
    with ExitStack() as stack:
        loop = run_tool("losetup", "--find", "--show", image).strip()
        stack.callback(run_tool, "losetup", "--detach", loop)
        _lvm(loop, "pvcreate", loop)
        _lvm(loop, "vgcreate", group, loop)
        stack.callback(_lvm, loop, "vgremove", "-f", group)
        words = ["-T", f"{group}/{_POOL}", "-l", "90%FREE", "--chunksize", f"{block_bytes}b", "--discards", "passdown"]
        _lvm(loop, "lvcreate", *words, "--poolmetadatasize", "64m")
        yield _Lvm(setting, group, loop, block_bytes)


LVM_THIN: Final = Engine(
    "lvm-thin",
    "thin volumes of LVM on a loop device, by its own commands",
    Offer.DISK | Offer.TREE | Offer.SNAPSHOTS | Offer.BLOCK_SIZE,
    _look,
    _set_up,
)
