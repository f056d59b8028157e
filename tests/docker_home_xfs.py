"""The home that Docker 20.10 left, with xfs in its devices, as of `dm.fs=xfs`, and the same files in that."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import IO

import cowfs
from cowfs.devices import opening
from cowfs.pool import load_backend
from tests.docker_home import BASE_UUID, LAYER_1, LAYER_2, LAYER_3
from tests.xfs.images import make_image, tool

FILES = {LAYER_1: ["busybox"], LAYER_2: ["busybox", "a"], LAYER_3: ["busybox", "a", "b"]}  # in `rootfs`
_PIECE_BYTES = 64 << 10


def put_xfs_into(home: Path, scratch: Path) -> None:
    """Change the devices of a home; xfsprogs must be there.

    Args:
        scratch: an empty directory.
    """
    (scratch / "id").write_text(LAYER_1)
    with cowfs.open_home(home) as opened:
        size_bytes = opened.inspect(LAYER_3).size_bytes
        for name in FILES[LAYER_3]:
            with (scratch / name).open("wb") as file:
                opened.read_file(LAYER_3, f"/{name}", file.write)
    with closing(opening.open_home(home, load_backend("emulated"))) as devices:
        for device in ("base", *FILES):
            image = scratch / f"image-{device}"
            options = ["-m", f"uuid={BASE_UUID},bigtime=0"]
            make_image(image, *options, tree=_tree(scratch, FILES.get(device, [])), size_bytes=size_bytes)
            _set_times(image, FILES.get(device, []))
            with devices.active.activated(device, "writer") as thin, image.open("rb") as file:
                thin.discard(0, size_bytes)
                for offset, data in _content(file):
                    thin.pwrite(offset, data)
            image.unlink()
    record = home / "metadata" / "deviceset-metadata"
    record.write_text(json.dumps({**json.loads(record.read_text()), "BaseDeviceFilesystem": "xfs"}))


def _tree(scratch: Path, names: list[str]) -> str | None:
    """A layer, as a prototype of mkfs.xfs; None for the base device, which is empty."""
    if not names:
        return None
    files = "".join(f"{name} ---755 0 0 {scratch}/{name}\n" for name in names)
    return f"rootfs d--755 0 0\n{files}$\nid ---600 0 0 {scratch}/id\n"


def _set_times(image: Path, names: list[str]) -> None:
    """Files that several devices have are of one time in all of them."""
    for path in ["/rootfs", *(f"/rootfs/{name}" for name in names)] if names else []:
        fields = [f"core.{kind}.{part}" for kind in ("mtime", "ctime") for part in ("sec", "nsec")]
        writes = [word for field in fields for word in ("-c", f"write {field} 0")]
        tool("xfs_db", "-x", "-c", f"path {path}", *writes, image)


def _content(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """What a file holds that is no zeros, in pieces, each with its offset."""
    end = 0
    with suppress(OSError):  # there is no more
        while True:
            begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            for offset in range(begin, end, _PIECE_BYTES):
                data = os.pread(file.fileno(), min(_PIECE_BYTES, end - offset), offset)
                if data.strip(b"\0"):
                    yield offset, data
