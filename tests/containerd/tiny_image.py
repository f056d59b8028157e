"""An image of three layers, with one of each kind of file, that containerd and Docker run."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import zstandard

from tests.kit.containerd_engine import BUSYBOX, write_image

IMAGE: Final = "docker.io/library/tiny:1"
# What a container changes: files made, changed and removed, an owner, and a directory.
CHANGE: Final = (
    "echo x > /new; echo y >> /etc/b; busybox rm /bin/ls; busybox chown 5:6 /etc; busybox mkdir /d; echo z > /d/f"
)
CHANGED: Final = {"bin", "bin/.wh.ls", "d", "d/f", "etc", "etc/b", "new"}
_KIND: Final = "application/vnd.oci.image.layer.v1.tar"
_TYPES: Final = {stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE, stat.S_IFCHR: tarfile.CHRTYPE}


def write_tiny_image(path: Path, *, command: Sequence[str] = ("sh",)) -> Path:
    """Each layer is compressed in another way."""
    busybox = BUSYBOX.read_bytes()
    links = [(_entry(f"bin/{name}", kind=stat.S_IFLNK, linkname="busybox"), b"") for name in ("sh", "ls", "id", "cat")]
    directories = [(_entry(name, kind=stat.S_IFDIR, mode=0o755), b"") for name in ("proc", "sys", "dev", "tmp", "run")]
    first = _layer(
        (_entry("./", kind=stat.S_IFDIR, mode=0o755), b""),
        (_entry("bin", kind=stat.S_IFDIR, mode=0o755), b""),
        (_entry("bin/busybox", busybox, mode=0o4755), busybox),
        *links,
        *directories,
        (_entry("etc", kind=stat.S_IFDIR, mode=0o755), b""),
        (_entry("etc/a", b"one\n", uid=7, gid=8), b"one\n"),
        (_entry("null", kind=stat.S_IFCHR, devmajor=1, devminor=3), b""),
    )
    second = _layer((_entry("etc/b", b"two\n"), b"two\n"), (_entry("etc/.wh.a"), b""))
    third = _layer((_entry("big", bytes(range(256)) * 4096), bytes(range(256)) * 4096))
    halves = gzip.compress(first[:5000], 1) + gzip.compress(first[5000:], 1)  # of two members
    layers = [
        (first, halves, f"{_KIND}+gzip"),
        (second, zstandard.compress(second), f"{_KIND}+zstd"),
        (third, third, _KIND),
    ]
    write_image(path, IMAGE, layers, command)
    return path


def _entry(name: str, content: bytes = b"", kind: int = 0o100000, mode: int = 0o644, **more: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = _TYPES.get(kind, tarfile.REGTYPE)
    info.mode, info.mtime, info.size = mode, 1_600_000_000, len(content)
    for field, value in more.items():
        setattr(info, field, value)
    info.pax_headers = {"SCHILY.xattr.user.x": "1"} if name == "etc/b" else {}
    return info


def _layer(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return archive.getvalue()
