"""The mounts this process sees, from /proc/self/mountinfo, and the names cowfs gives to its own.

    36 35 0:53 / /mnt/a\\040b rw,nosuid shared:7 - fuse.cowfs cowfs:/home/u/H:base rw,user_id=1000
    id parent device root target options [tags] - type source super options

A cowfs mount has type `fuse.cowfs` and source `cowfs:HOME:NAME`; bytes that mount tables or mount options cannot
carry are written as `%XX`. Paths are str with surrogate escapes, as everywhere in os.
"""

from __future__ import annotations

import os
import re
from typing import Final, NamedTuple

from cowfs.errors import UsageError

SUBTYPE: Final = "cowfs"
FSTYPE: Final = f"fuse.{SUBTYPE}"

_MOUNTINFO: Final = "/proc/self/mountinfo"
_OCTAL = re.compile(rb"\\([0-7]{3})")
_PERCENT = re.compile(rb"%([0-9A-F]{2})")
_UNSAFE = re.compile(rb"[^!-~]|[%:,\\#]")


class Mount(NamedTuple):
    """One line of mountinfo. `device` is `major:minor`, the st_dev of everything below `target`."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    target: str
    options: frozenset[str]
    fstype: str
    source: str
    super_options: frozenset[str]

    @property
    def is_cowfs(self) -> bool:
        return self.fstype == FSTYPE

    @property
    def is_read_only(self) -> bool:
        return "ro" in self.options | self.super_options

    @property
    def owner_uid(self) -> int | None:
        """Who mounted it, where the file system says so (FUSE does)."""
        for option in self.super_options:
            if option.startswith("user_id="):
                return int(option.removeprefix("user_id="))
        return None


def mounts() -> list[Mount]:
    """All mounts, in the kernel's order: of two on one target the later one is on top."""
    with open(_MOUNTINFO, "rb") as file:
        return parse_mountinfo(file.read())


def mount_at(target: str | os.PathLike[str]) -> Mount | None:
    """The topmost mount whose mount point is exactly this path, or None."""
    return topmost_at(mount_point_at(target))


def mount_point_at(target: str | os.PathLike[str]) -> str:
    """A path without symbolic links. What is mounted there is not asked, since its server may hang."""
    path = os.fspath(target).rstrip("/") or "/"
    above, name = os.path.split(path)
    resolved = os.path.join(os.path.realpath(above), name)
    if name not in ("", ".", "..") and topmost_at(resolved) is not None:
        return resolved
    return os.path.realpath(path)


def topmost_at(path: str) -> Mount | None:
    """As `mount_at`, for a path without symbolic links, which is not touched: a server may ask for its own mount."""
    found = [mount for mount in mounts() if mount.target == path]
    return found[-1] if found else None


def parse_mountinfo(text: bytes) -> list[Mount]:
    return [_parse_line(line) for line in text.splitlines() if line]


def _parse_line(line: bytes) -> Mount:
    try:
        left, right = line.split(b" - ", 1)
        mount_id, parent_id, device, root, target, options = left.split(b" ")[:6]
        fstype, source, super_options = right.split(b" ", 2)
        return Mount(
            int(mount_id),
            int(parent_id),
            device.decode("ascii"),
            _unescape(root),
            _unescape(target),
            frozenset(_unescape(options).split(",")),
            _unescape(fstype),
            _unescape(source),
            frozenset(_unescape(super_options).split(",")),
        )
    except ValueError as error:
        raise ValueError(f"{_MOUNTINFO}: not a mount line: {line!r}") from error


def _unescape(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))


def encode_source(home: str | os.PathLike[str], name: str) -> str:
    """The mount source of a view of `name` in `home`: `cowfs:HOME:NAME`, in plain ASCII."""
    return f"cowfs:{_percent(os.path.realpath(home))}:{_percent(name)}"


def decode_source(source: str) -> tuple[str, str] | None:
    """(home, name) of a mount source made by `encode_source`; None for any other."""
    parts = source.split(":")
    if len(parts) != 3 or parts[0] != "cowfs":
        return None
    return _unpercent(parts[1]), _unpercent(parts[2])


def require_outside_mounts(path: str, home: str | os.PathLike[str]) -> None:
    """Raises UsageError for a path in a mount of a home, which its server cannot use."""
    try:
        number = os.stat(path).st_dev
    except OSError:
        return  # what is wrong with it is for its user to find
    device, real = f"{os.major(number)}:{os.minor(number)}", os.path.realpath(home)
    if any(mount.device == device and (decode_source(mount.source) or "")[:1] == (real,) for mount in mounts()):
        raise UsageError(f"{path} is in a mount of the home {home}; name a place outside")


def _percent(text: str) -> str:
    return _UNSAFE.sub(lambda match: b"%%%02X" % match[0][0], os.fsencode(text)).decode("ascii")


def _unpercent(text: str) -> str:
    return os.fsdecode(_PERCENT.sub(lambda match: bytes([int(match[1], 16)]), os.fsencode(text)))
