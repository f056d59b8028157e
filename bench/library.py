"""Would libext2fs's own directories and extent trees do, instead of ours?

Both sides work on one kind of volume, through the same metadata cache and the same I/O channel, without a mount and
without a journal. docs/decisions/0002-own-directories-and-extents.md says what followed from it.

Expected: no. `ext2fs_link` uses an existing index, but `ext2fs_lookup` and `ext2fs_unlink` walk all blocks of a
directory, 600 of them at 100 000 names, and a directory that the library fills from the start gets no index.
`ext2fs_extent_set_bmap` reads, changes and writes one node for each block, where our map is in memory and stored once.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cffi

from bench.rig.harness import Bench, timed
from cowfs.blockdev import FileDevice
from cowfs.ext4.files.file_map import FileMaps
from cowfs.ext4.files.inline import InlineData
from cowfs.ext4.files.inodes import InodeTable
from cowfs.ext4.files.xattrs import ExtendedAttributes
from cowfs.ext4.library.filesystem import Filesystem
from cowfs.ext4.names.directory import Directories
from cowfs.ext4.space.allocator import Allocator
from cowfs.ext4.space.block_map import Segment
from cowfs.ext4.tools import mkfs
from cowfs.filetree import ROOT_INODE

VOLUME_BYTES = 1 << 30
DIRECTORY_MODE = 0o40755
FILE_MODE = 0o100644
SEED = 1

_DECLARATIONS = """
typedef long errcode_t;
errcode_t ext2fs_link(void *fs, uint32_t dir, const char *name, uint32_t ino, int flags);
errcode_t ext2fs_expand_dir(void *fs, uint32_t dir);
errcode_t ext2fs_lookup(void *fs, uint32_t dir, const char *name, int namelen, char *buf, uint32_t *inode);
errcode_t ext2fs_unlink(void *fs, uint32_t dir, const char *name, uint32_t ino, int flags);
errcode_t ext2fs_bmap2(void *fs, uint32_t ino, void *inode, char *block_buf, int flags, uint64_t block,
    int *ret_flags, uint64_t *phys);
errcode_t ext2fs_extent_open2(void *fs, uint32_t ino, void *inode, void **handle);
errcode_t ext2fs_extent_set_bmap(void *handle, uint64_t logical, uint64_t physical, int flags);
void ext2fs_extent_free(void *handle);
"""
_DIR_NO_SPACE = 2133571328 + 38  # EXT2_ET_DIR_NO_SPACE, as ext2_err.h numbers it


class _Volume:
    """A new ext4 with an empty file, and a directory with names of it."""

    def __init__(self, path: Path, names: list[bytes]) -> None:
        path.write_bytes(b"")
        os.truncate(path, VOLUME_BYTES)
        device = FileDevice(path)
        mkfs.make_filesystem(device)
        self.fs = Filesystem(device, read_only=False, now_ns=time.time_ns)
        self.allocator = Allocator(self.fs)
        self.maps = FileMaps(self.fs, self.allocator)
        self.inodes = InodeTable(self.fs, self.allocator, self.maps.store)
        inline = InlineData(self.fs, self.allocator, self.maps, ExtendedAttributes(self.fs, self.inodes))
        self.directories = Directories(self.fs, self.allocator, self.maps, inline)
        root = self.inodes.get(ROOT_INODE)
        self.directory = self.inodes.create(root, DIRECTORY_MODE, 0, 0)
        self.directories.initialise(self.directory, ROOT_INODE)
        self.file = self.inodes.create(root, FILE_MODE, 0, 0)
        for name in names:
            self.directories.add(self.directory, name, self.file.number, FILE_MODE)


@dataclass
class Side:
    """One volume, and the same operations on it by one of the two ways.

    Args:
        add, find, remove: one name of the directory.
        map_blocks: single blocks of a file, each into a hole.
        find_block: where a logical block of the file lies.
        volume: kept, since the library calls back into its allocator.
    """

    add: Callable[[bytes], object]
    find: Callable[[bytes], object]
    remove: Callable[[bytes], object]
    map_blocks: Callable[[list[Segment]], object]
    find_block: Callable[[int], object]
    volume: _Volume


def ours(path: Path, names: list[bytes]) -> Side:
    volume = _Volume(path, names)
    number = volume.file.number

    def map_blocks(segments: list[Segment]) -> None:
        for segment in segments:
            volume.maps.add(volume.file, [segment])
        volume.maps.store(volume.file)

    return Side(
        add=lambda name: volume.directories.add(volume.directory, name, number, FILE_MODE),
        find=partial(volume.directories.find, volume.directory),
        remove=partial(volume.directories.remove, volume.directory),
        map_blocks=map_blocks,
        find_block=lambda block: volume.maps.load(volume.file).block(block),
        volume=volume,
    )


def libraries(path: Path, names: list[bytes]) -> Side:
    volume = _Volume(path, names)
    volume.inodes.flush_all()
    fs, ffi = volume.fs, cffi.FFI()
    ffi.cdef(_DECLARATIONS)
    c: Any = ffi.dlopen("libext2fs.so.2")
    handle = ffi.cast("void *", int(fs.ffi.cast("uintptr_t", fs.fs)))
    found, physical, extents = ffi.new("uint32_t *"), ffi.new("uint64_t *"), ffi.new("void **")
    directory, file = volume.directory.number, volume.file.number

    def add(name: bytes) -> None:
        while (code := c.ext2fs_link(handle, directory, name, file, 1)) == _DIR_NO_SPACE:
            call(c.ext2fs_expand_dir, directory)
        check(code)

    def call(function: Callable[..., int], *arguments: Any) -> None:
        check(function(handle, *arguments))

    def check(code: int) -> None:
        if code:
            raise fs.library.error(code, "libext2fs")

    def map_blocks(segments: list[Segment]) -> None:
        call(c.ext2fs_extent_open2, file, ffi.NULL, extents)
        for segment in segments:
            check(c.ext2fs_extent_set_bmap(extents[0], segment.logical, segment.physical, 0))
        c.ext2fs_extent_free(extents[0])

    return Side(
        add=add,
        find=lambda name: call(c.ext2fs_lookup, directory, name, len(name), ffi.NULL, found),
        remove=lambda name: call(c.ext2fs_unlink, directory, name, 0, 0),
        map_blocks=map_blocks,
        find_block=lambda block: call(c.ext2fs_bmap2, file, ffi.NULL, ffi.NULL, 0, block, ffi.NULL, physical),
        volume=volume,
    )


ROUNDS = 3
WAYS: dict[str, Callable[[Path, list[bytes]], Side]] = {"ours": ours, "libext2fs": libraries}


def run(bench: Bench) -> None:
    total, sample = bench.size(100_000, 2_000), bench.size(200, 50)
    mapped = bench.size(20_000, 500)
    names = [b"%08d-name" % number for number in range(total)]
    chosen = random.Random(SEED).sample(names, (ROUNDS + 1) * sample)
    sides = {way: make(bench.directory / way, names) for way, make in WAYS.items()}
    to_add = {way: _parts([b"%08d-more" % number for number in range(ROUNDS * sample)], sample) for way in WAYS}
    to_remove = {way: _parts(chosen[sample:], sample) for way in WAYS}
    to_map = {way: _scattered(mapped) for way in WAYS}

    def mapping(way: str) -> float:
        return mapped / timed(partial(sides[way].map_blocks, next(to_map[way])))

    lines: dict[str, Callable[[str], float]] = {
        "names added to one directory": lambda way: _rate(sides[way].add, next(to_add[way])),
        "names found in it": lambda way: _rate(sides[way].find, chosen[:sample]),
        "names removed from it": lambda way: _rate(sides[way].remove, next(to_remove[way])),
        "scattered blocks mapped into a file": mapping,
        "blocks of it found": lambda way: _rate(sides[way].find_block, range(0, 2 * mapped, 2)),
    }
    for question, ask in lines.items():
        contenders = {way: partial(ask, way) for way in WAYS}
        bench.compare(question, contenders, unit="1/s", rounds=ROUNDS, warm_up=False)


def _rate(operation: Callable[[Any], object], items: Sequence[Any]) -> float:
    """Items a second."""

    def run_all() -> None:
        for item in items:
            operation(item)

    return len(items) / timed(run_all)


def _parts(items: Sequence[bytes], length: int) -> Iterator[Sequence[bytes]]:
    for begin in range(0, len(items), length):
        yield items[begin : begin + length]


def _scattered(count: int) -> Iterator[list[Segment]]:
    """For each round, `count` blocks that neither follow one another in the file nor on the volume."""
    for begin in itertools.count(0, count):
        yield [Segment(2 * number, 1, 60_000 + 3 * number, True) for number in range(begin, begin + count)]
