"""Making an ext4 on a device without root, and telling which file system a device holds.

mke2fs works on a sparse temporary file of the device's size, and what it wrote is copied into the device: a few
megabytes for any size, since nothing but zeros is in the inode tables and the journal.
"""

from __future__ import annotations

import errno
import uuid as uuid_module
from collections.abc import Sequence

from cowfs.blockdev import BlockDevice
from cowfs.errors import FilesystemError, UsageError
from cowfs.ext4.format import layout
from cowfs.ext4.tools import commands as tools

# The device reads as zeros where nothing is written, so neither mke2fs nor the kernel must zero inode tables and
# journal: the kernel would do so at the first mount, and provision all of it.
_PREZEROED = "assume_storage_prezeroed=1"
_LAZY = "lazy_itable_init=1,lazy_journal_init=1"

_PROBE_BYTES = 65608  # up to the end of btrfs's magic
_MAGICS = ((0x10040, b"_BHRfS_M", "btrfs"), (0x438, b"\x53\xef", "ext4"), (0, b"XFSB", "xfs"))


def make_filesystem(
    device: BlockDevice,
    *,
    uuid: str | uuid_module.UUID | None = None,
    label: str | None = None,
    root_owner: tuple[int, int] = (0, 0),
    extra_args: Sequence[str] = (),
) -> None:
    """Make an ext4 that fills a device; whatever was there reads as zeros first.

    Args:
        uuid: of the new volume; random when None.
        label: at most 16 bytes.
        root_owner: user and group of the root directory.
        extra_args: further arguments of mke2fs, before the device.

    Raises:
        FilesystemError: mke2fs refused; its words are in the message.
        MissingRequirement: no mke2fs.
    """
    owner = f"root_owner={root_owner[0]}:{root_owner[1]}"
    identity = ["-U", str(_parse_uuid(uuid))] if uuid is not None else []
    identity += ["-L", label] if label is not None else []
    with tools.temporary_image(device.size_bytes, holds_little=True) as image:
        for zeroing in (_PREZEROED, _LAZY):
            options = f"nodiscard,{zeroing},{owner}"
            arguments = ["-q", "-F", "-t", "ext4", "-E", options, *identity, *extra_args, image.path]
            status, output = tools.run("mke2fs", arguments)
            if status == 0 or "Bad option" not in output:
                break
        if status:
            raise FilesystemError(f"mke2fs failed with status {status}: {tools.one_line(output)}", errno=errno.EINVAL)
        for begin, end in list(tools.mapped_ranges(device)):
            device.zero(begin, end - begin)
        tools.copy_mapped(image, device)
    device.flush()


def read_uuid(device: BlockDevice) -> uuid_module.UUID:
    """The UUID of the ext2, ext3 or ext4 on a device. Raises FilesystemError (EINVAL) when there is none."""
    return uuid_module.UUID(bytes=layout.read_superblock(device).uuid)


def probe_filesystem(device: BlockDevice) -> str | None:
    """`ext4` (or 2 or 3), `xfs`, `btrfs`, or None, by the magic on the device."""
    head = device.pread(0, min(_PROBE_BYTES, device.size_bytes))
    for offset, magic, name in _MAGICS:
        if head[offset : offset + len(magic)] == magic:
            return name
    return None


def require_filesystem(device: BlockDevice, name: str) -> str:
    """The file system on the device `name`, as `probe_filesystem` calls it. Raises FilesystemError for none known."""
    if device.size_bytes < _PROBE_BYTES:
        raise FilesystemError(f"devmapper: unable to detect filesystem type of {name}, short read")
    found = probe_filesystem(device)
    if found is None:
        raise FilesystemError(f"devmapper: Unknown filesystem type on {name}")
    return found


def _parse_uuid(text: str | uuid_module.UUID) -> uuid_module.UUID:
    if isinstance(text, uuid_module.UUID):
        return text
    try:
        return uuid_module.UUID(text)
    except ValueError:
        raise UsageError(f"'{text}' is not a UUID") from None
