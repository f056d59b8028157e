"""What a disk holds, by the magic numbers of its first 64 KiB: a device that was imported need not hold ext4."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cowfs.blockdev import BlockDevice

PROBED_BYTES: Final = 65536  # the least block size of a pool: all of them lie in the first block

_MAGIC: Final = (
    ("ext4", 1080, b"\x53\xef"),  # ext2 and ext3 too
    ("xfs", 0, b"XFSB"),
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("squashfs", 0, b"hsqs"),
    ("LVM", 512, b"LABELONE"),
    ("swap", 4086, b"SWAPSPACE2"),
    ("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    ("iso9660", 32769, b"CD001"),
    ("ntfs", 3, b"NTFS    "),
    ("fat", 54, b"FAT"),
    ("fat", 82, b"FAT32"),
    ("partitions", 512, b"EFI PART"),
    ("partitions", 510, b"\x55\xaa"),
)


def kind_of(first: bytes) -> str:
    """The name of what a disk holds; `data` for what has no known magic number, `empty` for zeros.

    Args:
        first: its first PROBED_BYTES, or all of them where it is smaller.
    """
    for kind, offset, magic in _MAGIC:
        if first.startswith(magic, offset):
            return kind
    return "data" if first.strip(b"\0") else "empty"


def without_files(disk: BlockDevice) -> str | None:
    """What to say of a disk without a file system that is known here; None where it has one, or cannot be read."""
    try:
        kind = kind_of(disk.pread(0, min(PROBED_BYTES, disk.size_bytes)))
    except OSError:
        return None
    if kind in ("ext4", "xfs"):
        return None
    held = {"empty": "is empty", "data": "holds something unknown"}.get(kind, f"holds {kind}")
    return f"no ext4 or xfs, its disk {held}; 'mount --raw' and 'export' are for any disk"
