"""A small home with its layer driver, and archives to apply."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cowfs.devices import opening
from cowfs.devices.deviceset import DeviceSet
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.layers.driver import LayerDriver
from cowfs.layers.options import Facts, parse_storage_options, resolve_options
from cowfs.pool import load_backend
from cowfs.steps import finish, pieces_of
from cowfs.volumes import Volumes

MIB = 1 << 20
SMALL = HomeOptions(
    data_size_bytes=256 * MIB, metadata_size_bytes=4 * MIB, base_size_bytes=32 * MIB, min_free_percent=0, durable=False
)


class Opened:
    """A home that is open, with its driver."""

    def __init__(self, devices: DeviceSet, *options: str) -> None:
        self.devices = devices
        self.volumes = Volumes(devices)
        settings = resolve_options(parse_storage_options(options), Facts())
        self.driver = LayerDriver(devices, self.volumes, settings=settings)

    def apply(self, layer_id: str, archive: bytes) -> int:
        return finish(self.driver.apply(layer_id, None, io.BytesIO(archive)))

    def changes(self, layer_id: str, parent: str | None = None) -> list[tuple[str, str]]:
        found = finish(self.driver.changes(layer_id, parent))
        return [(change.kind.letter, change.path.decode()) for change in found]

    def diff(self, layer_id: str, parent: str | None = None) -> bytes:
        return b"".join(pieces_of(self.driver.diff(layer_id, parent)))

    def size(self, layer_id: str, parent: str | None = None) -> int:
        return finish(self.driver.diff_size(layer_id, parent))


@contextmanager
def opened(home: Path, *options: str) -> Iterator[Opened]:
    """A home, made where there is none."""
    backend = load_backend("emulated")
    is_new = not home.exists()
    with (
        opening.make_home(home, backend, SMALL)
        if is_new
        else opening.open_home(home, backend, opening.OpenOptions(durable=False)) as devices
    ):
        made = Opened(devices, *options)
        yield made
        assert made.volumes.names() == []
        assert devices.active.thins() == {}


def archive(**files: bytes | None) -> bytes:
    """A tar archive; `dir__file=b"..."` is a file in a directory, None deletes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        directories: set[str] = set()
        for key, content in files.items():
            *parents, name = key.split("__")
            directory = "/".join(parents)
            if directory and directory not in directories:
                directories.add(directory)
                item = tarfile.TarInfo(directory)
                item.type, item.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(item)
            item = tarfile.TarInfo("/".join([*parents, name if content is not None else f".wh.{name}"]))
            item.size = len(content or b"")
            tar.addfile(item, io.BytesIO(content or b""))
    return out.getvalue()


def members(tar: bytes) -> list[tuple[object, ...]]:
    """Everything about every member but the root directory, whose times are in no diff."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened_tar:
        found: list[tuple[object, ...]] = []
        for item in opened_tar:
            file = opened_tar.extractfile(item) if item.isreg() else None
            fields = (item.name, item.type, item.mode, item.uid, item.gid, item.mtime, item.linkname, item.pax_headers)
            if item.name not in ("", "."):
                found.append((*fields, file.read() if file else b""))
        return found


def names(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened_tar:
        return opened_tar.getnames()
