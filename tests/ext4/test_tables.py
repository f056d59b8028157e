"""Inode tables: where records are, what they say, and which are in use."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowfs.ext4.files.tables import Geometry, InodeRange, differ
from cowfs.filetree import ROOT_INODE
from tests.ext4.conftest import FEATURE_SETS, Image, make_file

BLOCK = 4096


def geometry(tables: list[int], inodes_per_group: int, inode_bytes: int = 256) -> Geometry:
    return Geometry(
        uuid=bytes(16),
        blocks=1 << 20,
        block_bytes=BLOCK,
        inode_bytes=inode_bytes,
        inodes_per_group=inodes_per_group,
        first_inode=11,
        tables=tuple(block * BLOCK for block in tables),
        checked_at=0,
    )


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    inode_bytes = draw(st.sampled_from([128, 256, 512]))
    per_block = BLOCK // inode_bytes
    inodes_per_group = draw(st.integers(1, 3 * per_block))
    table_blocks = -(-inodes_per_group // per_block)
    places = draw(st.lists(st.integers(0, 20), min_size=1, max_size=6, unique=True))
    return geometry([place * table_blocks for place in places], inodes_per_group, inode_bytes)


@given(geometries(), st.lists(st.tuples(st.integers(0, 70), st.integers(1, 30)), max_size=4))
def test_inodes_in_ranges(geometry: Geometry, blocks: list[tuple[int, int]]) -> None:
    ranges = [(begin * BLOCK, (begin + length) * BLOCK) for begin, length in blocks]
    for one in ranges:
        found = [number for first, length in geometry.inodes_in([one]) for number in range(first, first + length)]
        inodes = range(1, len(geometry.tables) * geometry.inodes_per_group + 1)
        assert sorted(found) == [number for number in inodes if one[0] <= geometry.offset(number) < one[1]]
    every = [list(geometry.inodes_in([one])) for one in ranges]
    assert list(geometry.inodes_in(ranges)) == [item for items in every for item in items]


@pytest.mark.parametrize("features", FEATURE_SETS)
def test_records_are_those_of_the_library(make_image: Callable[..., Image], features: str) -> None:
    image = make_image(options=[*FEATURE_SETS[features], "-N", "512"])
    volume = image.volume
    directories = [ROOT_INODE, volume.make_directory(ROOT_INODE, b"d", 0o755, 0, 0).inode]
    files = [make_file(volume, b"%d" % number, parent=directories[1]) for number in range(40)]
    gone = files.pop()
    volume.unlink(directories[1], b"39")
    volume.quiesce()
    tables = volume.inode_tables()
    for number in (*directories, *files):
        record = tables.record(number, tables.read(InodeRange(number, 1)))
        about = volume.attributes(number)
        assert record is not None
        assert (record.mode, record.links) == (about.mode, about.nlink)
        assert tables.is_used(number)
    assert not tables.is_used(gone)
    assert tables.record(gone, tables.read(InodeRange(files[0], 1))) is None
    per_group = tables.geometry.inodes_per_group
    groups = range(len(tables.geometry.tables))
    every = [number for group in groups for number in tables.directories(InodeRange(group * per_group + 1, per_group))]
    assert set(every) == {*directories, volume.lookup(ROOT_INODE, b"lost+found").inode}


def test_geometry_tells_volumes_apart(make_image: Callable[..., Image]) -> None:
    image = make_image()
    before = image.volume.inode_tables().geometry
    assert image.reopen().inode_tables().geometry == before
    assert before.has_nanoseconds
    assert make_image().volume.inode_tables().geometry != before
    assert not make_image(options=FEATURE_SETS["small-inodes"]).volume.inode_tables().geometry.has_nanoseconds


@pytest.mark.parametrize(
    ("offset", "counts"),
    [
        (0x08, False),
        (0x8C, False),
        (0x7C, False),
        (0x82, False),
        (0x07, True),
        (0x0C, True),
        (0x8B, True),
        (0x90, True),
        (0xFF, True),
    ],
)
def test_access_times_and_checksums_are_no_difference(offset: int, counts: bool) -> None:
    record = bytearray(range(256))
    struct.pack_into("<H", record, 0x80, 32)
    other = bytearray(record)
    other[offset] ^= 1
    assert differ(bytes(record), bytes(other)) is counts
    for one in (record, other):
        struct.pack_into("<H", one, 0x80, 0)  # attributes begin where the extra fields would be
    assert differ(bytes(record), bytes(other))
