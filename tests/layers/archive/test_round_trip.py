"""Layers of random trees: packed, unpacked, and equal; and what a layer changed, on top of what it was made from."""

from __future__ import annotations

import stat

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cowfs.layers import IdMaps, IdRange
from cowfs.layers.archive import archive_size
from cowfs.steps import finish
from tests.conftest import profile
from tests.layers.archive.conftest import LayerVolume
from tests.layers.archive.trees import (
    Node,
    Tree,
    apply,
    compare,
    device,
    directory,
    fifo,
    file,
    look,
    order,
    symlink,
    twin,
    write,
)

# A few names, so that trees meet; some that are hard to write; and whatever else a directory can hold.
RESERVED = [b".wh.a", b".wh.", b".wh..wh..opq", b".wh..wh.plnk", b".wh..opq", b".wh." + b"n" * 251]
NAMES = [
    *RESERVED,
    b".cowfs-name.wh.a",
    b"a",
    b"a-",
    b"ab",
    b"b",
    b"c" * 101,
    b"\xff\xfe",
    "ü".encode(),
    b"d%=\n",
    b"n" * 255,
]
TARGETS = [b"a", b"/a/b", b"x" * 150, b"\xff", b"..", b"../../../etc/hostname", b"/../x", b"a/", b"t" * 4095]
DEEP = [b"n" * 255] * 17  # longer than a path of the kernel

names = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
    st.binary(min_size=1, max_size=255).filter(lambda name: not set(b"/\0") & set(name) and name not in (b".", b"..")),
)
targets = st.one_of(
    st.sampled_from(TARGETS), st.binary(min_size=1, max_size=300).filter(lambda text: b"\0" not in text)
)
ids = st.one_of(st.sampled_from([0, 1, 1000, 2**21, 2**32 - 1]), st.integers(0, 2**32 - 1))
times = st.one_of(
    st.sampled_from([0, 1, -1, 10**9, -(10**9), 2**33 * 10**9 + 1]), st.integers(-(2**31) * 10**9, 2**33 * 10**9)
)
contents = st.one_of(
    st.binary(max_size=600),
    st.builds(
        lambda before, zeros, after: before + bytes(zeros) + after,
        st.binary(max_size=9),
        st.sampled_from([4095, 4096, 8192, 20000, 1 << 20]),
        st.binary(max_size=9),
    ),
)
xattrs = st.dictionaries(st.sampled_from([b"user.a", b"user.=%", b"trusted.t"]), st.binary(max_size=20), max_size=2)
permissions = st.integers(0, 0o7777)
common = {"uid": ids, "gid": ids, "mtime_ns": times}
leaves = st.one_of(
    st.builds(file, contents, permissions, xattrs=xattrs, **common),
    st.builds(symlink, targets, **common),
    st.builds(fifo, **common),
    st.builds(
        device,
        st.sampled_from([stat.S_IFCHR, stat.S_IFBLK]),
        st.integers(0, 2**12 - 1),
        st.integers(0, 2**20 - 1),
        **common,
    ),
)
directories = st.builds(directory, permissions, xattrs=xattrs, **common)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    tree: Tree = {b"": draw(directories)}
    if draw(st.integers(0, 9)) == 0:
        tree |= {b"/".join(DEEP[:length]): directory() for length in range(1, len(DEEP) + 1)}
    for _ in range(draw(st.integers(0, 12))):
        parent = draw(st.sampled_from([path for path, node in tree.items() if node.is_directory and not node.twin]))
        name = draw(names)
        path = parent + b"/" + name if parent else name
        if path not in tree:
            others = [other for other, node in tree.items() if not node.is_directory and not node.twin]
            others = [other for other in others if order(other) < order(path)]
            kinds = [leaves, directories, *([st.builds(twin, st.sampled_from(others))] if others else [])]
            tree[path] = draw(st.one_of(kinds))
    return tree


@st.composite
def changed(draw: st.DrawFn, old: Tree) -> Tree:
    """A tree that was made from another one: some of it removed, replaced, and added to."""
    tree = dict(old)
    for path in draw(st.lists(st.sampled_from(sorted(old)), max_size=4, unique=True)):
        if path and path in tree:
            for below in [other for other in tree if other == path or other.startswith(path + b"/")]:
                del tree[below]
            kind = draw(st.sampled_from(["gone", "file", "directory"]))
            if kind != "gone":
                tree[path] = draw(leaves if kind == "file" else directories)
    for path, node in draw(trees()).items():
        parent = path.rpartition(b"/")[0]
        if path and path not in tree and parent in tree and tree[parent].is_directory:
            tree[path] = draw(leaves) if node.twin else node
    for path, node in list(tree.items()):
        if node.twin and (tree.get(node.twin, directory()).is_directory or tree[node.twin].twin):
            del tree[path]
    return tree


def same_root(tree: Tree, root: Node) -> Tree:
    return {**tree, b"": root}


@settings(max_examples=max(60, profile().max_examples // 2), suppress_health_check=list(HealthCheck))
@given(tree=trees(), sparse=st.booleans())
def test_a_whole_layer(layers: LayerVolume, tree: Tree, sparse: bool) -> None:
    layers.clear()
    layer, copy = layers.new_layer(tree), layers.new_layer()
    archive = write(layer, sparse=sparse)
    applied = apply(copy, archive)
    expected = look(layer)
    assert look(copy) == expected
    assert applied.size_bytes == finish(archive_size(layer, None))
    assert applied.entries == len(expected)
    assert write(copy, sparse=False) == write(layer, sparse=False)


@settings(max_examples=max(80, profile().max_examples // 2), suppress_health_check=list(HealthCheck))
@given(data=st.data(), tree=trees())
def test_a_diff_on_top_of_the_parent(layers: LayerVolume, data: st.DataObject, tree: Tree) -> None:
    """The parent with the diff is the layer; but for the root's own attributes, which are in no change."""
    layers.clear()
    new = data.draw(changed(tree))
    parent, child, copy = layers.new_layer(tree), layers.new_layer(new), layers.new_layer(tree)
    changes = compare(look(parent), look(child))
    archive = write(child, changes)
    applied = apply(copy, archive)
    found, expected = look(copy), look(child)
    assert same_root(found, expected[b""]) == expected
    assert applied.size_bytes == finish(archive_size(child, changes))
    assert applied.entries == len(changes)
    assert compare(look(parent), found) == changes
    assert write(copy, changes) == archive
    assert apply(copy, archive) == applied  # again changes nothing
    assert same_root(look(copy), expected[b""]) == expected


@settings(max_examples=max(15, profile().max_examples // 2), suppress_health_check=list(HealthCheck))
@given(tree=trees())
def test_ids_come_back(layers: LayerVolume, tree: Tree) -> None:
    halves = [IdRange(0, 2**31, 2**31), IdRange(2**31, 0, 2**31)]
    maps = IdMaps(uids=halves, gids=halves)
    layers.clear()
    layer, copy = layers.new_layer(tree), layers.new_layer()
    apply(copy, write(layer), maps=maps)
    found = look(copy)
    for path, node in look(layer).items():
        assert (found[path].uid, found[path].gid) == (node.uid ^ 2**31, node.gid ^ 2**31)
    assert write(copy, maps=maps) == write(layer)
