"""What the options change in the base device's file system; xfs as far as no kernel is needed."""

from __future__ import annotations

import os
import struct
import uuid
from pathlib import Path

import pytest

from cowfs.blockdev import MemoryDevice
from cowfs.devices import opening
from cowfs.devices.base.base_device import filesystem_named
from cowfs.devices.base.base_xfs import Xfs, limit_nospace_retries
from cowfs.devices.injected import Injected
from cowfs.errors import FilesystemError, MissingRequirement
from cowfs.ext4.format import layout
from cowfs.ext4.tools.mkfs import require_filesystem
from cowfs.pool import load_backend
from tests.layers.options.test_homes import MIB, SMALL

BACKEND = load_backend("emulated")


def test_arguments_of_mkfs_reach_it(tmp_path: Path) -> None:
    filesystem = filesystem_named("ext4", ["-b", "1024"])
    with opening.make_home(tmp_path / "home", BACKEND, SMALL, injected=Injected(filesystem=filesystem)) as devices:
        superblock = layout.read_superblock(devices.active.activate("base", read_only=True))
        assert superblock.block_bytes == 1024


def test_arguments_that_mkfs_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(FilesystemError, match=r"mke2fs failed with status 1: .*invalid block size"):
        opening.make_home(
            tmp_path / "home", BACKEND, SMALL, injected=Injected(filesystem=filesystem_named("ext4", ["-b", "777"]))
        )


def test_xfs_needs_a_node_of_the_kernel(tmp_path: Path) -> None:
    with pytest.raises(MissingRequirement) as caught:
        opening.make_home(tmp_path / "home", BACKEND, SMALL, injected=Injected(filesystem=filesystem_named("xfs")))
    assert str(caught.value) == (
        "xfs needs a block device node, and the device's backend runs in this process, not in the kernel; "
        "try: cowfs --backend dmthin ..."
    )


def test_the_uuid_of_an_xfs() -> None:
    device = MemoryDevice(MIB)
    with pytest.raises(FilesystemError, match="no xfs"):
        Xfs().read_uuid(device)
    wanted = uuid.UUID("00112233-4455-4677-8899-aabbccddeeff")
    # magic, block size, three counts of blocks, UUID
    device.pwrite(0, struct.pack(">4sIQQQ16s", b"XFSB", 4096, 1, 2, 3, wanted.bytes))
    assert Xfs().read_uuid(device) == str(wanted)


@pytest.mark.parametrize(
    ("offset", "magic", "name"),
    [(0x10040, b"_BHRfS_M", "btrfs"), (0x438, b"\x53\xef", "ext4"), (0, b"XFSB", "xfs")],
)
def test_what_is_on_a_device(offset: int, magic: bytes, name: str) -> None:
    device = MemoryDevice(MIB)
    device.pwrite(offset, magic)
    assert require_filesystem(device, "web") == name


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (65607, "devmapper: unable to detect filesystem type of web, short read"),
        (65608, "devmapper: Unknown filesystem type on web"),
    ],
)
def test_nothing_known_on_a_device(size_bytes: int, text: str) -> None:
    with pytest.raises(FilesystemError) as caught:
        require_filesystem(MemoryDevice(size_bytes), "web")
    assert str(caught.value) == text


def test_retries_of_an_xfs_without_space(tmp_path: Path) -> None:
    number = os.stat("/dev/null").st_rdev
    block = tmp_path / "dev" / "block"
    block.mkdir(parents=True)
    (block / f"{os.major(number)}:{os.minor(number)}").symlink_to("../../devices/virtual/block/dm-7")
    setting = tmp_path / "fs" / "xfs" / "dm-7" / "error" / "metadata" / "ENOSPC"
    setting.mkdir(parents=True)
    limit_nospace_retries("/dev/null", 0, str(tmp_path))
    assert (setting / "max_retries").read_text() == "0"
    for node, sys in (("/dev/zero", tmp_path), ("/dev/null", tmp_path / "fs"), ("/nowhere", tmp_path)):
        with pytest.raises(FilesystemError) as caught:
            limit_nospace_retries(node, 0, str(sys))
        assert str(caught.value) == (
            "devmapper: user specified daemon option dm.xfs_nospace_max_retries but it does not seem to be supported "
            "on this system :No such file or directory"
        )
