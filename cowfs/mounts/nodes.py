"""Block devices as the kernel lists them in /sys, by number, and which of a home's it has mounted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

from cowfs.mounts.mountinfo import Mount, mounts

_GONE_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.01


def kernel_mounts(open_nodes: Mapping[str, Collection[int]]) -> list[tuple[str, Mount]]:
    """The devices that the kernel has mounted, by name, with the mounts.

    Args:
        open_nodes: by name, the numbers of nodes that are in use (`ActiveDevices.open_nodes`).
    """
    names = {number: name for name, numbers in open_nodes.items() for number in numbers}
    if not names:
        return []
    return [(names[number], mount) for mount in mounts() if (number := device_of(mount)) in names]


def device_of(mount: Mount) -> int:
    """The number of the block device that a mount is of; of something else for other mounts."""
    major, minor = map(int, mount.device.split(":"))
    if major == 0 and mount.source.startswith("/dev/"):  # btrfs has its own number
        try:
            return os.stat(mount.source).st_rdev
        except OSError:
            pass
    return os.makedev(major, minor)


def folder(number: int) -> str:
    return f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"


def target_name(number: int) -> str:
    """The name device mapper knows a device by; empty for a device that is not device mapper's."""
    return _read(f"{folder(number)}/dm/name")


def is_kept(number: int) -> bool:
    """Whether a device of ours stays without users: the others have no UUID."""
    return bool(_read(f"{folder(number)}/dm/uuid"))


def clears_itself(number: int) -> bool:
    return _read(f"{folder(number)}/loop/autoclear") == "1"


def below(number: int) -> list[int]:
    return _related(number, "slaves")


def targets_above(number: int) -> list[int]:
    """Devices of device mapper that use one; a device that is being removed loses its name before what it uses."""
    return [other for other in _related(number, "holders") if target_name(other)]


def wait_until(holds: Callable[[], bool]) -> bool:
    """Wait for what the kernel does a moment later; another process may prevent it, so not for ever.

    Returns:
        Whether it holds.
    """
    deadline = time.monotonic() + _GONE_SECONDS
    while not holds() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return holds()


def _related(number: int, relation: str) -> list[int]:
    directory = f"{folder(number)}/{relation}"
    try:
        texts = [_read(f"{directory}/{name}/dev") for name in os.listdir(directory)]
    except OSError:
        return []
    return [os.makedev(*map(int, text.split(":"))) for text in texts if text]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
