"""Where a daemon's directory is: the root (/var/lib/docker), or the devicemapper home below it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cowfs.errors import NotAHome

DRIVER: Final = "devicemapper"
_OTHER_DRIVERS: Final = ("overlay2", "overlay", "aufs", "btrfs", "zfs", "vfs", "fuse-overlayfs", "windowsfilter")
_BEFORE_CONTENT_ADDRESSES: Final = ("graph", f"repositories-{DRIVER}")


@dataclass(frozen=True, slots=True)
class DockerPlace:
    """A daemon's directory, such as /var/lib/docker."""

    root: Path

    @property
    def home(self) -> Path:
        return self.root / DRIVER

    @property
    def images(self) -> Path:
        return self.root / "image" / DRIVER

    @property
    def containers(self) -> Path:
        return self.root / "containers"


def require_place(path: Path) -> DockerPlace:
    """The daemon's directory that `path` is, or whose devicemapper home it is. Raises NotAHome: there is neither."""
    for root in (path, path.parent):
        place = DockerPlace(root)
        if path in (root, place.home) and place.images.is_dir() and place.home.is_dir():
            return place
    raise NotAHome(f"{path} holds no images and containers of a devicemapper daemon: {_what_is_there(path)}")


def _what_is_there(path: Path) -> str:
    if not path.is_dir():
        return "it is not a directory" if os.path.lexists(path) else "it does not exist"
    for root in (path, path.parent):
        if path.name != DRIVER and root != path:
            break
        others = [name for name in _OTHER_DRIVERS if (root / "image" / name).is_dir() or (root / name).is_dir()]
        if others:
            return f"{root} is of a daemon with the driver {others[0]}; its files are in {root / others[0]}"
        old = [name for name in _BEFORE_CONTENT_ADDRESSES if (root / name).exists()]
        if old:
            return (
                f"{root / old[0]} is of a daemon before Docker 1.10, whose images have other ids; start 1.10 on it once"
            )
        if (root / "image" / DRIVER).is_dir():
            return f"{root} has the daemon's images, and the directory '{DRIVER}' with their layers is missing"
        if any((root / DRIVER / name).is_dir() for name in ("metadata", DRIVER)):
            return f"{root} has the layers, and the directory 'image/{DRIVER}' with the images' names is missing"
    return f"name the daemon's directory, such as /var/lib/docker, which has the directories '{DRIVER}' and 'image'"
