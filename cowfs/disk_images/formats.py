"""Which format a file has that is brought in, by its first bytes."""

from __future__ import annotations

import os
from typing import Final, Literal, TypeAlias

from cowfs.errors import UsageError

Format: TypeAlias = Literal["raw", "qcow2", "vmdk", "vdi", "vhdx", "tar", "directory"]

FORMATS: Final[tuple[Format, ...]] = ("raw", "qcow2", "vmdk", "vdi", "vhdx", "tar", "directory")
_MAGIC: Final[tuple[tuple[int, bytes, Format], ...]] = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
    (257, b"ustar", "tar"),
)
_COMPRESSED: Final = {b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2"}


def format_of(path: str) -> Format:
    """Raises UsageError for a compressed file, and for one that is not what its name says; OSError."""
    if os.path.isdir(path):
        return "directory"
    with open(path, "rb") as file:
        head = file.read(1024)
    for magic, what in _COMPRESSED.items():
        if head.startswith(magic):
            raise UsageError(
                f"{path} is compressed ({what}); unpack it first, or say what its bytes are with --format raw"
            )
    for offset, magic, kind in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return kind
    ending = os.path.splitext(path)[1].removeprefix(".").lower()
    if ending in FORMATS and ending != "raw":
        raise UsageError(f"{path} does not begin as {ending} does; it may be damaged, or give its format with --format")
    return "raw"
