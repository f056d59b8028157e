"""The base device's file system: ext4, made, read and grown by `cowfs.ext4` and the commands of e2fsprogs."""

from __future__ import annotations

import os
import stat
import uuid as uuid_module
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress

from cowfs.blockdev import BlockDevice
from cowfs.devices.on_disk.names import ID_FILE, MAX_NAME_BYTES
from cowfs.devices.on_disk.records import Identity
from cowfs.errors import FilesystemError
from cowfs.ext4.format import layout
from cowfs.ext4.tools import commands as tools
from cowfs.ext4.tools import growth, mkfs
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE


class Ext4:
    """Args: mkfs_args: further arguments of mke2fs."""

    name = "ext4"

    def __init__(self, mkfs_args: Sequence[str] = ()) -> None:
        self._mkfs_args = tuple(mkfs_args)

    def make(self, device: BlockDevice, uuid: str) -> None:
        # Whoever makes the home can write to the root of what it holds.
        owner = (os.geteuid(), os.getegid())
        mkfs.make_filesystem(device, uuid=uuid, root_owner=owner, extra_args=self._mkfs_args)

    def empty_bytes(self, size_bytes: int, block_bytes: int) -> int:
        with tools.temporary_image(size_bytes, holds_little=True) as image:
            mkfs.make_filesystem(image, extra_args=self._mkfs_args)
            return tools.touched_bytes(image, block_bytes)

    def read_uuid(self, device: BlockDevice) -> str:
        return str(mkfs.read_uuid(device))

    def identify(self, device: BlockDevice) -> Identity:
        superblock = layout.read_superblock(device)
        identity = Identity(str(uuid_module.UUID(bytes=superblock.uuid)), superblock.size_bytes)
        if identity.size_bytes > device.size_bytes:
            return identity
        with suppress(FilesystemError, OSError), _readable(device) as volume:
            names = {entry.name for entry in volume.list_directory(ROOT_INODE)} - {b".", b"..", b"lost+found"}
            return identity._replace(name=_read_name(volume) if ID_FILE in names else None, is_empty=not names)
        return identity

    def grow(self, device: BlockDevice) -> None:
        growth.grow_filesystem(device)


@contextmanager
def _readable(device: BlockDevice) -> Iterator[Volume]:
    """A volume to look into; one that was not unmounted is put right in a copy."""
    try:
        volume = Volume.open(device, read_only=True)
    except FilesystemError:
        with tools.temporary_image(device.size_bytes) as image:
            tools.copy_mapped(device, image)
            tools.run("e2fsck", ["-fp", image.path])
            with closing(Volume.open(image, read_only=True)) as volume:
                yield volume
        return
    with closing(volume):
        yield volume


def _read_name(volume: Volume) -> str | None:
    """What the file `id` holds, where that is a name."""
    attributes = volume.lookup(ROOT_INODE, ID_FILE)
    if not stat.S_ISREG(attributes.mode):
        return None
    return volume.read(attributes.inode, 0, MAX_NAME_BYTES + 1).decode(errors="replace").strip()
