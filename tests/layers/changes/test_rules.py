"""The rule: what counts as a change, and of which kind. Both ways to compare are asked, and an oracle."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator

import pytest

from cowfs.ext4.volume import Volume
from cowfs.filetree import RENAME_EXCHANGE, ROOT_INODE, DirectoryEntry
from cowfs.layers.changes import walk_changes
from cowfs.layers.interface import Change, ChangeKind, LayerRoot
from cowfs.steps import finish
from tests.layers.changes.conftest import Kinds, Lab, Layer

Compare = Callable[[], Kinds]
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, who)
    for tag, permissions, who in (
        (1, 6, 2**32 - 1),
        (2, 4, 7),
        (4, 4, 2**32 - 1),
        (16, 4, 2**32 - 1),
        (32, 4, 2**32 - 1),
    )
)


@pytest.fixture
def parent(make_base: Callable[..., Layer]) -> Layer:
    parent = make_base()
    for path in (b"/d", b"/d/e", b"/empty"):
        parent.mkdir(path)
    for path in (b"/f", b"/d/f", b"/d/g", b"/d/e/f"):
        parent.write(path, b"content of " + path)
    volume, root = parent.volume, parent.root
    volume.make_symlink(root, b"link", b"target", 0, 0)
    volume.make_node(root, b"device", stat.S_IFBLK | 0o600, 0, 0, os.makedev(7, 1))
    volume.make_node(root, b"socket", stat.S_IFSOCK | 0o600, 0, 0)
    volume.set_xattr(parent.inode(b"/f"), b"user.old", b"old")
    return parent


@pytest.fixture
def layer(parent: Layer) -> Layer:
    return parent.branch()


@pytest.fixture
def compare(lab: Lab, layer: Layer, parent: Layer) -> Compare:
    return lambda: lab.compare(layer, parent)


def test_nothing(compare: Compare) -> None:
    assert compare() == {}


# --- kinds


def test_every_third_is_modified_added_deleted(make_base: Callable[..., Layer], lab: Lab) -> None:
    parent = make_base()
    parent.mkdir(b"/dir")
    for number in range(20):
        parent.write(b"/dir/file-%d" % number, b"%d" % number * 100)
    layer = parent.branch()
    expected: Kinds = {b"/dir": "C"}
    for number in range(0, 20, 3):
        layer.write(b"/dir/file-%d" % number, b"more")
        layer.write(b"/dir/new-%d" % number, b"new")
        expected[b"/dir/file-%d" % number] = "C"
        expected[b"/dir/new-%d" % number] = "A"
    for number in range(2, 20, 3):
        layer.unlink(b"/dir/file-%d" % number)
        expected[b"/dir/file-%d" % number] = "D"
    assert lab.compare(layer, parent) == expected


def test_an_added_tree_is_added_with_everything_in_it(layer: Layer, compare: Compare) -> None:
    layer.mkdir(b"/d/new")
    layer.mkdir(b"/d/new/er")
    layer.write(b"/d/new/er/f")
    assert compare() == {b"/d": "C", b"/d/new": "A", b"/d/new/er": "A", b"/d/new/er/f": "A"}


def test_a_deleted_tree_is_one_change(layer: Layer, compare: Compare) -> None:
    layer.remove(b"/d")
    assert compare() == {b"/d": "D"}


def test_directories_above_a_change_are_modified(layer: Layer, compare: Compare) -> None:
    layer.write(b"/d/e/f", b"X")
    assert compare() == {b"/d": "C", b"/d/e": "C", b"/d/e/f": "C"}


def test_a_directory_replaced_by_a_file_is_one_change(layer: Layer, compare: Compare) -> None:
    layer.remove(b"/d")
    layer.write(b"/d")
    assert compare() == {b"/d": "C"}


def test_a_file_replaced_by_a_directory(layer: Layer, compare: Compare) -> None:
    layer.unlink(b"/f")
    layer.mkdir(b"/f")
    layer.write(b"/f/new")
    assert compare() == {b"/f": "C", b"/f/new": "A"}


def test_a_directory_made_anew_is_compared_with_the_old_one(layer: Layer, compare: Compare) -> None:
    before = layer.volume.attributes(layer.inode(b"/d/f"))
    layer.remove(b"/d")
    layer.mkdir(b"/d")
    inode = layer.write(b"/d/f", b"content of /d/f")
    layer.volume.set_attributes(inode, mtime_ns=before.mtime_ns)
    assert compare() == {b"/d": "C", b"/d/e": "D", b"/d/g": "D"}


def test_a_moved_directory(layer: Layer, compare: Compare) -> None:
    layer.rename(b"/d/e", b"/empty/e")
    assert compare() == {b"/d": "C", b"/d/e": "D", b"/empty": "C", b"/empty/e": "A", b"/empty/e/f": "A"}


def test_a_directory_moved_away_and_back(layer: Layer, compare: Compare) -> None:
    layer.rename(b"/d/e", b"/empty/e")
    layer.rename(b"/empty/e", b"/d/e")
    assert compare() == {}


def test_two_directories_exchanged(layer: Layer, compare: Compare) -> None:
    layer.rename(b"/d/e", b"/empty", RENAME_EXCHANGE)
    assert compare() == {b"/d": "C", b"/d/e": "C", b"/d/e/f": "D", b"/empty": "C", b"/empty/f": "A"}


def test_what_changes_in_the_parent_counts_the_other_way_round(parent: Layer, layer: Layer, compare: Compare) -> None:
    parent.write(b"/d/new")
    parent.unlink(b"/d/e/f")
    parent.write(b"/f", b"X")
    layer.write(b"/d/newer")
    assert compare() == {b"/d": "C", b"/d/e": "C", b"/d/e/f": "A", b"/d/new": "D", b"/d/newer": "A", b"/f": "C"}


def test_paths_are_sorted_as_bytes(layer: Layer, parent: Layer, compare: Compare) -> None:
    for name in (b"/d/e/x", b"/d.e", b"/d-", b"/d\xff", b"/\x01"):
        layer.write(name)
    compare()
    paths = [change.path for change in finish(walk_changes(layer.layer_root, parent.layer_root))]
    assert paths == [b"/\x01", b"/d", b"/d-", b"/d.e", b"/d/e", b"/d/e/x", b"/d\xff"]


# --- what counts


def set_attributes(path: bytes, **values: int) -> Callable[[Layer], None]:
    def apply(layer: Layer) -> None:
        layer.volume.set_attributes(layer.inode(path), **values)

    return apply


def set_xattr(path: bytes, name: bytes, value: bytes) -> Callable[[Layer], None]:
    return lambda layer: layer.volume.set_xattr(layer.inode(path), name, value)


def remove_xattr(layer: Layer) -> None:
    layer.volume.remove_xattr(layer.inode(b"/f"), b"user.old")


def mtime_of(layer: Layer, path: bytes) -> int:
    return layer.volume.attributes(layer.inode(path)).mtime_ns


def write_and_set_time_back(layer: Layer) -> None:
    before = mtime_of(layer, b"/f")
    layer.volume.set_attributes(layer.write(b"/f", b"C"), mtime_ns=before)


def replace_and_set_time_back(layer: Layer) -> None:
    before = mtime_of(layer, b"/f")
    layer.unlink(b"/f")
    inode = layer.write(b"/f", b"CONTENT OF /F")
    layer.volume.set_xattr(inode, b"user.old", b"old")
    layer.volume.set_attributes(inode, mtime_ns=before)


def rename_over(layer: Layer) -> None:
    layer.write(b"/d/new", b"another")
    layer.rename(b"/d/new", b"/d/f")


def swap_equal_files(layer: Layer) -> None:
    layer.volume.set_attributes(layer.inode(b"/d/g"), mtime_ns=mtime_of(layer, b"/d/f"))
    layer.rename(b"/d/f", b"/d/g", RENAME_EXCHANGE)


def redirect_link(layer: Layer) -> None:
    before = mtime_of(layer, b"/link")
    layer.unlink(b"/link")
    inode = layer.volume.make_symlink(layer.root, b"link", b"TARGET", 0, 0).inode
    layer.volume.set_attributes(inode, mtime_ns=before)


def change_device_number(layer: Layer) -> None:
    before = mtime_of(layer, b"/device")
    layer.unlink(b"/device")
    inode = layer.volume.make_node(layer.root, b"device", stat.S_IFBLK | 0o600, 0, 0, os.makedev(7, 2)).inode
    layer.volume.set_attributes(inode, mtime_ns=before)


CHANGES: dict[str, tuple[Callable[[Layer], None], Kinds]] = {
    "mode": (set_attributes(b"/f", mode=0o600), {b"/f": "C"}),
    "setuid": (set_attributes(b"/f", mode=0o4644), {b"/f": "C"}),
    "owner": (set_attributes(b"/f", uid=1), {b"/f": "C"}),
    "group": (set_attributes(b"/f", gid=70_000), {b"/f": "C"}),
    "mode of a directory": (set_attributes(b"/d/e", mode=0o700), {b"/d": "C", b"/d/e": "C"}),
    "owner of a link": (set_attributes(b"/link", uid=1), {b"/link": "C"}),
    "size": (set_attributes(b"/f", size_bytes=1), {b"/f": "C"}),
    "a nanosecond": (lambda layer: set_attributes(b"/f", mtime_ns=mtime_of(layer, b"/f") + 1)(layer), {b"/f": "C"}),
    "time of a socket": (set_attributes(b"/socket", mtime_ns=1), {b"/socket": "C"}),
    "time of a device": (set_attributes(b"/device", mtime_ns=1), {b"/device": "C"}),
    "capability": (set_xattr(b"/f", b"security.capability", b"x" * 20), {b"/f": "C"}),
    "attribute": (set_xattr(b"/f", b"user.new", b""), {b"/f": "C"}),
    "attribute's value": (set_xattr(b"/f", b"user.old", b"new"), {b"/f": "C"}),
    "large attribute": (set_xattr(b"/f", b"user.new", b"x" * 3000), {b"/f": "C"}),
    "removed attribute": (remove_xattr, {b"/f": "C"}),
    "attribute of a directory": (set_xattr(b"/empty", b"user.new", b"x"), {b"/empty": "C"}),
    "access list": (set_xattr(b"/d/f", b"system.posix_acl_access", ACL), {b"/d": "C", b"/d/f": "C"}),
    "default list": (set_xattr(b"/d", b"system.posix_acl_default", ACL), {b"/d": "C"}),
    "content alone": (write_and_set_time_back, {b"/f": "C"}),
    "content of another inode": (replace_and_set_time_back, {b"/f": "C"}),
    "another file renamed over it": (rename_over, {b"/d": "C", b"/d/f": "C"}),
    "equal files swapped": (swap_equal_files, {b"/d": "C", b"/d/f": "C", b"/d/g": "C"}),
    "target of a link": (redirect_link, {b"/link": "C"}),
    "number of a device": (change_device_number, {b"/device": "C"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change(name: str, layer: Layer, compare: Compare) -> None:
    change, expected = CHANGES[name]
    change(layer)
    assert compare() == expected


def make_anew_with_the_same_content(layer: Layer) -> None:
    before = mtime_of(layer, b"/d/f")
    layer.unlink(b"/d/f")
    layer.volume.set_attributes(layer.write(b"/d/f", b"content of /d/f"), mtime_ns=before)


def link_and_unlink(layer: Layer) -> None:
    layer.link(b"/f", b"/empty/f")
    layer.unlink(b"/empty/f")


def chmod_there_and_back(layer: Layer) -> None:
    for mode in (0o600, 0o644):
        layer.volume.set_attributes(layer.inode(b"/f"), mode=mode)


def write_outside(layer: Layer) -> None:
    layer.volume.make_node(ROOT_INODE, b"elsewhere", stat.S_IFREG | 0o600, 0, 0)
    layer.volume.make_directory(layer.volume.lookup(ROOT_INODE, b"lost+found").inode, b"#123", 0o700, 0, 0)


NO_CHANGES: dict[str, Callable[[Layer], None]] = {
    "access time": set_attributes(b"/f", atime_ns=1),
    "time of change": set_attributes(b"/f", ctime_ns=1),
    "time of a directory": set_attributes(b"/d", mtime_ns=1),
    "the root itself": set_attributes(b"", mode=0o700, mtime_ns=1),
    "another inode with the same content": make_anew_with_the_same_content,
    "link count": link_and_unlink,
    "mode there and back": chmod_there_and_back,
    "outside of the root": write_outside,
}


@pytest.mark.parametrize("name", NO_CHANGES)
def test_no_change(name: str, layer: Layer, compare: Compare) -> None:
    NO_CHANGES[name](layer)
    assert compare() == {}


def test_a_new_name_for_a_file_is_an_addition(layer: Layer, compare: Compare) -> None:
    layer.link(b"/f", b"/empty/f")
    assert compare() == {b"/empty": "C", b"/empty/f": "A"}


def test_a_huge_sparse_file_is_compared_where_it_has_data(make_base: Callable[..., Layer], lab: Lab) -> None:
    parent = make_base()
    inode = parent.write(b"/huge", b"begin")
    parent.volume.write(inode, 1 << 40, b"end")
    layer = parent.branch()
    layer.link(b"/huge", b"/also")
    same = finish(walk_changes(layer.layer_root, parent.layer_root))
    assert same == [Change(b"/also", ChangeKind.ADD)]
    before = mtime_of(layer, b"/huge")
    layer.volume.write(inode, 1 << 40, b"END")
    layer.volume.set_attributes(inode, mtime_ns=before)
    different = finish(walk_changes(layer.layer_root, parent.layer_root))
    assert different == [Change(b"/also", ChangeKind.ADD), Change(b"/huge", ChangeKind.MODIFY)]


# --- roots that are not there


def test_against_nothing_everything_is_added(layer: Layer) -> None:
    added = finish(walk_changes(layer.layer_root, None))
    assert {change.kind for change in added} == {ChangeKind.ADD}
    assert [change.path for change in added] == [
        b"/d",
        b"/d/e",
        b"/d/e/f",
        b"/d/f",
        b"/d/g",
        b"/device",
        b"/empty",
        b"/f",
        b"/link",
        b"/socket",
    ]
    assert added == finish(walk_changes(layer.layer_root, LayerRoot(layer.volume, 0)))


def test_a_layer_without_a_root_has_lost_everything(layer: Layer, parent: Layer) -> None:
    lost = finish(walk_changes(LayerRoot(layer.volume, 0), parent.layer_root))
    assert [change.path for change in lost] == [b"/d", b"/device", b"/empty", b"/f", b"/link", b"/socket"]
    assert {change.kind for change in lost} == {ChangeKind.DELETE}
    assert finish(walk_changes(LayerRoot(layer.volume, 0), None)) == []


# --- in steps


def test_a_large_directory_takes_several_steps(layer: Layer) -> None:
    for number in range(1000):
        layer.write(b"/empty/%d" % number)
    assert sum(1 for _ in walk_changes(layer.layer_root, None)) > 4


def test_what_vanishes_between_steps_is_not_there(layer: Layer, parent: Layer) -> None:
    steps = walk_changes(layer.layer_root, parent.layer_root)
    next(steps)
    layer.remove(b"/d")
    assert finish(steps) == []  # not yet seen as deleted: it was there when its directory was looked at


class _Vanishing:
    """A tree that has lost what its root names."""

    read_only = True

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

    def list_directory(self, inode: int) -> Iterator[DirectoryEntry]:
        if inode != 3:
            raise OSError(errno.ESTALE, "gone")
        return iter([DirectoryEntry(b"gone", 4, stat.S_IFDIR, 1)])


def test_what_vanishes_from_a_tree_that_holds_still_is_damage(layer: Layer) -> None:
    tree = _Vanishing(layer.volume)
    steps = walk_changes(LayerRoot(tree, 3), None)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="gone"):
        finish(steps)
