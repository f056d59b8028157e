"""The home that Docker 20.10 left, described in tests/data/README.md: where it is, and what is in it."""

from __future__ import annotations

import subprocess
from pathlib import Path

ARCHIVE = Path(__file__).with_name("data") / "moby-home-20.10.tar.xz"
UNPACK = ("tar", "-S", "-xJf", str(ARCHIVE), "--no-same-owner")  # into the current directory
DIRECTORY = "devicemapper"  # there

LAYER_1 = "24c83653a1c70b91eb9dec6a7548ce22c3252fe1c2b36218b4c5b4f1047ecb08"  # holds a busybox
LAYER_2 = "024658c994ece2802602c35db717b3000e9cadcbd98b86c93e367996b4471ca0"  # adds a
LAYER_3 = "2075416a65d6de41d0b8ca356081c465747776be6c53a63d4137ffde98a019a8"  # adds b
DEVICE_IDS = {"base": 1, LAYER_1: 2, LAYER_2: 4, LAYER_3: 6}
BASE_UUID = "5064d607-c3f4-4272-a3ac-54226cce1172"
BUSYBOX_BYTES = 1_982_256


def unpack(directory: Path) -> Path:
    """The home, unpacked below a directory."""
    subprocess.run(UNPACK, cwd=directory, check=True)
    return directory / DIRECTORY
