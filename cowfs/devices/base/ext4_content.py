"""What is in an ext4 on a device, as far as a base device is recognised by it."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from cowfs.blockdev import BlockDevice
from cowfs.devices.on_disk.names import ID_FILE, MAX_NAME_BYTES
from cowfs.devices.on_disk.records import Identity
from cowfs.errors import FilesystemError
from cowfs.ext4.tools import commands as tools
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE


def look_into(device: BlockDevice, identity: Identity) -> Identity:
    """An identity with the name in the file system, and whether it is empty, where it can be read."""
    with suppress(FilesystemError, OSError), _readable(device) as volume:
        names = {entry.name for entry in volume.list_directory(ROOT_INODE)} - {b".", b"..", b"lost+found"}
        return identity._replace(name=_read_name(volume) if ID_FILE in names else None, is_empty=not names)
    return identity


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
