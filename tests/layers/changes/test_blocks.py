"""The way through the blocks that differ: where names are searched, what is not read, and what must not mislead it."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cowfs.ext4.files.tables import InodeRange
from cowfs.ext4.volume import Volume
from cowfs.layers.changes import block_changes
from cowfs.layers.changes import names as names_module
from cowfs.layers.roots import find_root
from cowfs.steps import finish
from tests.ext4.conftest import MIB
from tests.layers.changes.conftest import FEATURES, Kinds, Lab, Layer, kinds, make_pool

MakeBase = Callable[..., Layer]
FILES = 4
DIRECTORIES = 40


def populate(layer: Layer) -> None:
    for number in range(DIRECTORIES):
        layer.mkdir(b"/%d" % number)
        for index in range(FILES):
            layer.write(b"/%d/%d" % (number, index), b"content")


@pytest.fixture
def parent(make_base: MakeBase) -> Layer:
    """Forty directories, in several groups."""
    parent = make_base()
    populate(parent)
    return parent


@pytest.fixture(params=sorted(FEATURES))
def any_parent(request: pytest.FixtureRequest, make_base: MakeBase) -> Layer:
    """The same on each set of features."""
    parent = make_base(FEATURES[request.param])
    populate(parent)
    return parent


@pytest.fixture(params=[8, 256])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(names_module, "_CHUNK_INODES", request.param)
    return int(request.param)


@pytest.fixture
def looked_into(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The directories whose names were searched."""
    found: list[int] = []
    original = names_module.NameSearch._search_directory

    def search_directories(search: names_module.NameSearch, directory: int) -> None:
        found.append(directory)
        original(search, directory)

    monkeypatch.setattr(names_module.NameSearch, "_search_directory", search_directories)
    return found


def by_blocks(lab: Lab, layer: Layer, parent: Layer) -> Kinds:
    layer.volume.quiesce()
    parent.volume.quiesce()
    ranges = lab.ranges(layer.thin.thin_id, parent.thin.thin_id)
    return kinds(finish(block_changes(layer.layer_root, parent.layer_root, ranges, layer.thin.block_bytes)))


# --- names


def test_a_file_written_in_place_is_found_beside_its_directory(
    parent: Layer, chunk: int, lab: Lab, looked_into: list[int]
) -> None:
    layer = parent.branch()
    layer.write(b"/30/2", b"X")
    assert by_blocks(lab, layer, parent) == {b"/30": "C", b"/30/2": "C"}
    assert len(looked_into) <= 6


def test_ten_edits_look_into_few_directories(parent: Layer, lab: Lab, looked_into: list[int]) -> None:
    layer = parent.branch()
    for number in range(0, DIRECTORIES, 8):
        layer.write(b"/%d/0" % number, b"X")
        layer.write(b"/%d/new" % number)
    by_blocks(lab, layer, parent)
    assert len(looked_into) <= DIRECTORIES // 2


def test_all_names_of_a_file_are_found(any_parent: Layer, chunk: int, lab: Lab) -> None:
    any_parent.link(b"/3/1", b"/39/link")
    any_parent.link(b"/3/1", b"/20/link")
    any_parent.link(b"/3/1", b"/3/link")
    layer = any_parent.branch()
    layer.write(b"/20/link", b"X")
    expected = {b"/3": "C", b"/3/1": "C", b"/3/link": "C", b"/20": "C", b"/20/link": "C", b"/39": "C", b"/39/link": "C"}
    assert lab.compare(layer, any_parent) == expected


def test_a_name_is_found_where_the_file_was_moved_to(parent: Layer, chunk: int, lab: Lab) -> None:
    parent.rename(b"/0/0", b"/39/moved")
    parent.rename(b"/39/0", b"/0/moved")
    layer = parent.branch()
    layer.write(b"/39/moved", b"X")
    layer.write(b"/0/moved", b"X")
    assert lab.compare(layer, parent) == {b"/0": "C", b"/0/moved": "C", b"/39": "C", b"/39/moved": "C"}


def test_new_names_of_an_old_file(parent: Layer, chunk: int, lab: Lab) -> None:
    layer = parent.branch()
    layer.link(b"/5/0", b"/35/link")
    assert lab.compare(layer, parent) == {b"/35": "C", b"/35/link": "A"}
    layer.write(b"/5/0", b"X")
    assert lab.compare(layer, parent) == {b"/5": "C", b"/5/0": "C", b"/35": "C", b"/35/link": "A"}
    layer.unlink(b"/5/0")
    assert lab.compare(layer, parent) == {b"/5": "C", b"/5/0": "D", b"/35": "C", b"/35/link": "A"}


def test_a_file_replaced_under_its_old_inode_number_needs_no_search(
    parent: Layer, lab: Lab, looked_into: list[int]
) -> None:
    layer = parent.branch()
    before = layer.inode(b"/7/3")
    layer.unlink(b"/7/3")
    assert layer.write(b"/7/3", b"another") == before
    assert by_blocks(lab, layer, parent) == {b"/7": "C", b"/7/3": "C"}
    assert len(looked_into) <= 2


def test_a_file_moved_far_away_needs_no_search(parent: Layer, lab: Lab, looked_into: list[int]) -> None:
    layer = parent.branch()
    layer.rename(b"/0/0", b"/39/moved")
    layer.write(b"/39/moved", b"X")
    assert by_blocks(lab, layer, parent) == {b"/0": "C", b"/0/0": "D", b"/39": "C", b"/39/moved": "A"}
    assert len(looked_into) <= 3


def test_names_outside_of_the_root_end_the_search_too(parent: Layer, lab: Lab, looked_into: list[int]) -> None:
    layer = parent.branch()  # wrote the file `id`
    assert by_blocks(lab, layer, parent) == {}
    assert len(looked_into) == 1


def test_an_indexed_directory(any_parent: Layer, lab: Lab) -> None:
    for number in range(300):
        any_parent.write(b"/1/%d" % number + b"n" * 200)
    layer = any_parent.branch()
    layer.write(b"/1/7" + b"n" * 200, b"X")
    expected = {b"/1": "C", b"/1/7" + b"n" * 200: "C"}
    assert lab.compare(layer, any_parent) == expected
    layer.write(b"/1/new" + b"n" * 200)
    layer.unlink(b"/1/8" + b"n" * 200)
    expected |= {b"/1/new" + b"n" * 200: "A", b"/1/8" + b"n" * 200: "D"}
    assert lab.compare(layer, any_parent) == expected


def test_deep_trees(make_base: MakeBase, lab: Lab) -> None:
    parent = make_base(FEATURES["plain"])
    directory = parent.root
    for _ in range(1500):
        directory = parent.volume.make_directory(directory, b"d", 0o755, 0, 0).inode
    inode = parent.volume.make_node(directory, b"f", stat.S_IFREG | 0o644, 0, 0).inode
    layer = parent.branch()
    layer.volume.write(inode, 0, b"X")
    found = by_blocks(lab, layer, parent)
    assert len(found) == 1501
    assert set(found.values()) == {"C"}


# --- what is not read


def test_reading_alone_is_not_looked_at(parent: Layer, lab: Lab, looked_into: list[int]) -> None:
    """A kernel that keeps access times changes the inode of every file it reads."""
    layer = parent.branch()
    for number in range(DIRECTORIES):
        inode = layer.inode(b"/%d/0" % number)
        ctime = layer.volume.attributes(inode).ctime_ns
        layer.volume.set_attributes(inode, atime_ns=lab.clock(), ctime_ns=ctime)
    assert by_blocks(lab, layer, parent) == {}
    assert len(looked_into) == 1


def test_unchanged_data_is_not_read(parent: Layer, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    parent.write(b"/2/large", bytes(1 << 20))
    layer = parent.branch()
    layer.link(b"/2/large", b"/3/large")
    lengths: list[int] = []
    original = Volume.read

    def read(volume: Volume, inode: int, offset: int, length: int) -> bytes:
        lengths.append(length)
        return original(volume, inode, offset, length)

    monkeypatch.setattr(Volume, "read", read)
    assert by_blocks(lab, layer, parent) == {b"/3": "C", b"/3/large": "A"}
    assert sum(lengths) <= 2 * 2 * layer.thin.block_bytes  # of both files, where their first and last blocks are shared


def test_data_written_in_place_is_seen_whatever_the_times_say(parent: Layer, lab: Lab) -> None:
    inode = parent.write(b"/2/large", bytes(1 << 20))
    layer = parent.branch()
    before = layer.volume.attributes(inode)
    layer.volume.write(inode, 700_000, b"X")
    layer.volume.set_attributes(inode, mtime_ns=before.mtime_ns)
    assert lab.compare(layer, parent) == {b"/2": "C", b"/2/large": "C"}


def test_nothing_is_written(tmp_path: Path) -> None:
    with closing(make_pool(tmp_path, 64 * MIB)) as pool:
        lab = Lab(pool)
        parent = lab.base()
        populate(parent)
        layer = parent.branch()
        layer.write(b"/3/3", b"X")
        layer.unlink(b"/4/3")
        thin_ids = layer.thin.thin_id, parent.thin.thin_id
        layer.close()
        parent.close()
        pool.commit()  # the journals' space, which each volume discarded last
        before = digests(tmp_path)
        volumes = [Volume.open(lab.activate(thin_id, read_only=True), read_only=True) for thin_id in thin_ids]
        ranges = lab.ranges(*thin_ids)
        found = finish(block_changes(find_root(volumes[0]), find_root(volumes[1]), ranges, pool.block_bytes))
        assert kinds(found) == {b"/3": "C", b"/3/3": "C", b"/4": "C", b"/4/3": "D"}
        for volume in volumes:
            volume.close()
        assert digests(tmp_path) == before


def digests(directory: Path) -> list[str]:
    """Of the pool's two files, which are mostly holes."""
    found = []
    for name in ("metadata", "data"):
        with (directory / name).open("rb") as file:
            found.append(hashlib.file_digest(file, "blake2b").hexdigest())
    return found


# --- what must not mislead


def test_what_inodes_not_in_use_hold_does_not_matter(any_parent: Layer, lab: Lab) -> None:
    """Where the pool does not zero its blocks, anything may be there: here, directories and files of another time."""
    layer = any_parent.branch()
    layer.write(b"/3/3", b"X")
    layer.volume.quiesce()
    tables = layer.volume.inode_tables()
    geometry = tables.geometry
    records = [tables.read(InodeRange(layer.inode(path), 1)) for path in (b"/3", b"/3/3", b"/4/0")]
    groups = len(geometry.tables)
    unused = [n for n in range(11, geometry.inodes_per_group * groups) if not tables.is_used(n)][:300]
    for index, number in enumerate(unused):
        layer.thin.pwrite(geometry.offset(number), records[index % 3])
    assert by_blocks(lab, layer, any_parent) == {b"/3": "C", b"/3/3": "C"}
    for number in unused:
        layer.thin.pwrite(geometry.offset(number), bytes(geometry.inode_bytes))


def test_a_removed_file_that_is_open_is_deleted(parent: Layer, lab: Lab) -> None:
    layer = parent.branch()
    inode = layer.inode(b"/3/3")
    layer.volume.open_inode(inode)
    layer.unlink(b"/3/3")
    assert lab.compare(layer, parent) == {b"/3": "C", b"/3/3": "D"}
    layer.volume.release_inode(inode)
