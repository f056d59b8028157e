"""Volumes with everything in them, and damage to any field of them, for tests of what must go on working.

sample = SampleImage(path, ["-O", "^metadata_csum"])
sample.damaged(rng)            a copy with one to four fields changed, and what was changed
sample.with_inode(name, ...)   a copy with one field of one inode changed
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from cowfs.blockdev import FileDevice
from cowfs.ext4.tools import commands as tools
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE
from tests.ext4.conftest import MIB, make_file

BLOCK: Final = 1024
MANY: Final = 300
_UUID: Final = "c0ffee00-1234-4567-89ab-000000000001"  # names lie by their hashes: always in the same places

_VALUES: Final = [0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 16383]
_INODE_FIELDS: Final = [
    *((offset, 2) for offset in (0x00, 0x02, 0x18, 0x1A, 0x74, 0x76, 0x78, 0x7A, 0x80, 0x82)),
    *((offset, 4) for offset in (0x04, 0x08, 0x0C, 0x10, 0x14, 0x1C, 0x20, 0x24)),
    *((offset, 4) for offset in range(0x28, 0x74, 4)),
    *((offset, 4) for offset in range(0x84, 0xC8, 4)),
]
_SUPERBLOCK_FIELDS: Final = [
    *((offset, 4) for offset in range(0, 0x38, 4)),
    *((offset, 4) for offset in (0x4C, 0x54, 0x5C, 0x60, 0x64, 0xE0, 0xE8, 0xEC, 0x104, 0x150, 0x154, 0x158, 0x160)),
    *((offset, 2) for offset in (0x3A, 0x58, 0xCE, 0xFE, 0x15C, 0x15E)),
    *((offset, 1) for offset in (0xFC, 0x174, 0x175)),
]
_KINDS: Final = ["inode"] * 3 + ["directory"] * 2 + ["tree", "attributes", "descriptor", "superblock"]


class SampleImage:
    """A volume of 16 MiB in blocks of 1 KiB with files of all kinds; `good` holds its bytes."""

    def __init__(self, path: Path, options: Sequence[str]) -> None:
        with path.open("wb") as file:
            file.truncate(16 * MIB)
        extended = f"nodiscard,root_owner=0:0,hash_seed={_UUID}"
        arguments = ["-q", "-F", "-t", "ext4", "-U", _UUID, "-E", extended, "-b", str(BLOCK), "-N", "1024"]
        status, output = tools.run("mke2fs", [*arguments, *options, str(path)])
        assert status == 0, output
        with closing(FileDevice(path)) as device, closing(Volume.open(device)) as volume:
            self._fill(volume)
            volume.sync()
            self._note_places(volume)
        self.good = path.read_bytes()

    def _fill(self, volume: Volume) -> None:
        top = volume.make_directory(ROOT_INODE, b"top", 0o777, 0, 0).inode
        many = volume.make_directory(ROOT_INODE, b"many", 0o777, 0, 0).inode
        sub = volume.make_directory(top, b"sub", 0o777, 0, 0).inode
        self.inodes = {b"/": ROOT_INODE, b"top": top, b"many": many, b"sub": sub}
        for number in range(60):
            self.inodes[b"file-%d" % number] = make_file(volume, b"file-%d" % number, b"x" * (number * 50), top)
        for number in range(MANY):
            make_file(volume, b"name-%d-%s" % (number, b"l" * 40), parent=many)
        fragmented = self.inodes[b"fragmented"] = make_file(volume, b"fragmented")
        for number in range(400):
            volume.write(fragmented, number * 2 * BLOCK, b"y")
        self.inodes[b"big"] = make_file(volume, b"big", b"b" * MIB)
        self.inodes[b"deep"] = make_file(volume, b"deep", b"d", sub)
        self.inodes[b"fast"] = volume.make_symlink(ROOT_INODE, b"fast", b"target", 0, 0).inode
        self.inodes[b"slow"] = volume.make_symlink(ROOT_INODE, b"slow", b"z" * 200, 0, 0).inode
        device = volume.make_node(ROOT_INODE, b"device", stat.S_IFCHR | 0o600, 0, 0, os.makedev(1, 3))
        self.inodes[b"device"] = device.inode
        volume.set_xattr(top, b"user.large", b"x" * 500)
        volume.set_xattr(fragmented, b"user.small", b"x" * 20)

    def _note_places(self, volume: Volume) -> None:
        geometry = volume.inode_tables().geometry
        self._inode_bytes = geometry.inode_bytes
        self._groups = len(geometry.tables)
        self._descriptor_bytes = volume._fs.super.s_desc_size or 32
        self.offsets = {name: geometry.offset(number) for name, number in self.inodes.items()}
        inodes = {name: volume._inodes.get(number) for name, number in self.inodes.items()}
        maps = volume._maps
        self.blocks = {
            "directory": [
                run.physical + index
                for name in (b"/", b"top", b"many", b"sub")
                for run in maps.load(inodes[name]).runs
                for index in range(run.length)
            ],
            "tree": list(inodes[b"fragmented"].nodes if maps.load(inodes[b"fragmented"]) else ()),
            "attributes": [inodes[b"top"].xattr_block],
        }
        self.directory_blocks = {
            name: [
                block
                for run in maps.load(inodes[name]).runs
                for block in range(run.physical, run.physical + run.length)
            ]
            for name in (b"/", b"top", b"many", b"sub")
        }

    def with_inode(self, name: bytes, offset: int, width: int, value: int) -> bytes:
        return self.with_bytes(self.offsets[name] + offset, value.to_bytes(width, "little"))

    def with_bytes(self, offset: int, data: bytes) -> bytes:
        return self.good[:offset] + data + self.good[offset + len(data) :]

    def damaged(self, rng: random.Random) -> tuple[bytes, str]:
        """A damaged copy, and what was done to it. All fields are of one kind."""
        image, done = bytearray(self.good), []
        kind = rng.choice(_KINDS)
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            offset, width = self._field(kind, rng)
            value = rng.choice([*_VALUES, 1 << rng.randrange(8 * width), rng.getrandbits(32)]) & ((1 << 8 * width) - 1)
            image[offset : offset + width] = value.to_bytes(width, "little")
            done.append(f"{offset:#x}: {value:#x}")
        return bytes(image), f"{kind} {', '.join(done)}"

    def _field(self, kind: str, rng: random.Random) -> tuple[int, int]:
        """(offset in the image, bytes)."""
        if kind == "inode":
            offset, width = rng.choice(_INODE_FIELDS)
            return rng.choice(list(self.offsets.values())) + offset % self._inode_bytes, width
        if kind == "superblock":
            offset, width = rng.choice(_SUPERBLOCK_FIELDS)
            return BLOCK + offset, width
        if kind == "descriptor":
            offset = rng.randrange(self._groups) * self._descriptor_bytes
            return 2 * BLOCK + offset + rng.randrange(0, self._descriptor_bytes, 2), 2
        block = rng.choice(self.blocks[kind])
        width = rng.choice([1, 2, 4])
        within = rng.choice([rng.randrange(BLOCK - 4), rng.randrange(64), rng.randrange(16) * 4])
        return block * BLOCK + within, width
