"""Writing archives: what the standard library's tarfile, which has no part in PAX headers of ours, reads in them."""

from __future__ import annotations

import errno
import io
import itertools
import os
import random
import stat
import tarfile
from collections.abc import Callable

import pytest

from cowfs.errors import FilesystemError, UsageError
from cowfs.ext4.files import acl
from cowfs.layers import Change, ChangeKind, IdMaps, IdRange, LayerRoot
from cowfs.layers.archive import archive_size, write_archive
from cowfs.steps import finish
from tests.ext4.conftest import MIB
from tests.layers.archive.conftest import LayerVolume
from tests.layers.archive.trees import (
    NO_ID,
    TIME_NS,
    Tree,
    acl_value,
    apply,
    device,
    directory,
    fifo,
    file,
    look,
    members,
    symlink,
    twin,
    write,
)

ADD, MODIFY, DELETE = ChangeKind.ADD, ChangeKind.MODIFY, ChangeKind.DELETE
NAMED = acl_value((1, 6, NO_ID), (2, 7, 1000), (4, 4, NO_ID), (8, 1, 70000), (16, 6, NO_ID), (32, 4, NO_ID))


def written(steps: object) -> object:
    """What the generator of an archive returns."""
    while True:
        try:
            next(steps)  # type: ignore[call-overload]
        except StopIteration as end:
            return end.value


def test_every_kind(layers: LayerVolume) -> None:
    layer = layers.new_layer(
        {
            b"": directory(0o711, uid=3),
            b"d": directory(0o1777, uid=1, gid=2),
            b"d/file": file(b"content" * 1000, 0o4755, uid=1000, gid=100),
            b"d/link": symlink(b"../elsewhere"),
            b"d/twin": twin(b"d/file"),
            b"fifo": fifo(),
            b"char": device(stat.S_IFCHR, 1, 3),
            b"block": device(stat.S_IFBLK, 259, 70000),
            b"block2": twin(b"block"),
        }
    )
    found = members(write(layer))
    expected = [
        (".", tarfile.DIRTYPE, 0o711, 3, 0, 0, ""),
        ("block", tarfile.BLKTYPE, 0o660, 0, 0, 0, ""),
        ("block2", tarfile.LNKTYPE, 0o660, 0, 0, 0, "block"),
        ("char", tarfile.CHRTYPE, 0o660, 0, 0, 0, ""),
        ("d", tarfile.DIRTYPE, 0o1777, 1, 2, 0, ""),
        ("d/file", tarfile.REGTYPE, 0o4755, 1000, 100, 7000, ""),
        ("d/link", tarfile.SYMTYPE, 0o777, 0, 0, 0, "../elsewhere"),
        ("d/twin", tarfile.LNKTYPE, 0o4755, 1000, 100, 0, "d/file"),
        ("fifo", tarfile.FIFOTYPE, 0o600, 0, 0, 0, ""),
    ]
    assert [(i.name, i.type, i.mode, i.uid, i.gid, i.size, i.linkname) for i in found] == expected
    assert (found[1].devmajor, found[1].devminor, found[3].devmajor, found[3].devminor) == (259, 70000, 1, 3)
    for info in found:
        assert info.pax_headers["mtime"] == "1600000000.123456789"
        assert "hdrcharset" not in info.pax_headers


def test_the_same_tree_gives_the_same_bytes(layers: LayerVolume) -> None:
    tree: Tree = {b"": directory(), **{b"f%d" % number: file(b"%d" % number) for number in range(300)}}
    one, other = layers.new_layer(tree), layers.new_layer(dict(reversed(tree.items())))
    assert write(one) == write(other)


def test_changes(layers: LayerVolume) -> None:
    tree = {
        b"": directory(),
        b"a": directory(),
        b"a/new": file(b"new"),
        b"a-b": file(b"x"),
        b"untouched": file(b"untouched"),
        b"a/two": twin(b"a/new"),
    }
    changes = [
        Change(b"/a", MODIFY),
        Change(b"/a-b", ADD),
        Change(b"/a/gone", DELETE),
        Change(b"/a/new", ADD),
        Change(b"/a/two", ADD),
        Change(b"/top", DELETE),
    ]
    layer = layers.new_layer(tree)
    archive = write(layer, changes)
    found = [(info.name, info.type, info.size) for info in members(archive)]
    assert found == [
        ("a", tarfile.DIRTYPE, 0),
        ("a/.wh.gone", tarfile.REGTYPE, 0),
        ("a/new", tarfile.REGTYPE, 3),
        ("a/two", tarfile.LNKTYPE, 0),
        ("a-b", tarfile.REGTYPE, 1),
        (".wh.top", tarfile.REGTYPE, 0),
    ]
    assert write(layer, changes[::-1]) == archive
    assert finish(archive_size(layer, changes)) == 4
    # Another name of what is no part of the changes is written as a file.
    alone = members(write(layer, [Change(b"/a/two", ADD)]))
    assert [(info.name, info.type, info.size) for info in alone] == [("a/two", tarfile.REGTYPE, 3)]


def test_an_empty_layer(layers: LayerVolume) -> None:
    nothing = LayerRoot(layers.image.volume, 0)
    assert write(nothing) == write(nothing, []) == write(layers.new_layer(), []) == bytes(1024)
    assert finish(archive_size(nothing, None)) == finish(archive_size(nothing, [])) == 0
    assert [info.name for info in members(write(layers.new_layer()))] == ["."]


@pytest.mark.parametrize(
    "name",
    [
        b"n" * 100,
        b"n" * 101,
        b"n" * 255,
        b"/".join([b"d" * 98, b"e" * 98, b"f" * 98]),
        "ünïcödé".encode(),
        b"bytes-\xff\xfe\x80",
        b"\xff" * 150,
        b"line\nbreak",
        b"quote'\"\\ \t",
        b"-dash",
        b"trailing ",
    ],
)
def test_names_of_any_bytes(layers: LayerVolume, name: bytes) -> None:
    parts = name.split(b"/")
    tree: Tree = {b"/".join(parts[:length]): directory() for length in range(len(parts))}
    tree |= {
        name: file(b"x"),
        name + b"2" if len(parts) > 1 else b"l": symlink(name),
        b"zz": directory(),
        b"d" * 150: directory(),
    }
    if len(name) < 255:
        tree[b"zz/" + parts[-1]] = directory()
    found = members(write(layers.new_layer(tree)))
    names = {info.name.encode("utf-8", "surrogateescape") for info in found}
    assert names == (set(tree) | {b"."}) - {b""}
    assert name in {info.linkname.encode("utf-8", "surrogateescape") for info in found}


def test_large_numbers(layers: LayerVolume) -> None:
    layer = layers.new_layer(
        {
            b"": directory(),
            b"id": file(uid=2**21 - 1, gid=2**21),
            b"id2": file(uid=2**32 - 2, gid=0),
            b"old": file(mtime_ns=-1_500_000_000),
            b"new": file(mtime_ns=2**33 * 10**9 + 1),
        }
    )
    large = layer.tree.restore(layer.inode, b"large", stat.S_IFREG, 0, 0, mtime_ns=10**9)
    layer.tree.set_attributes(large, size_bytes=9 << 30, mtime_ns=10**9)
    layer.tree.write(large, 5 << 30, b"middle")
    size = finish(archive_size(layer, None))
    assert size == 9 << 30
    header = b"".join(itertools.islice(write_archive(layer, None), 1))
    found: dict[str, tarfile.TarInfo] = {}
    position = 0
    with io.BytesIO(header) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        while len(found) < 6:
            info = tarfile.TarInfo.fromtarfile(archive)
            stream.seek(position := archive.offset)
            found[info.name] = info
            if info.name == "large":
                stream.seek(info.offset_data)
                break
    assert position
    assert (found["id"].uid, found["id"].gid) == (2**21 - 1, 2**21)
    assert found["id2"].uid == 2**32 - 2
    assert found["large"].size == 9 << 30
    rest = {info.name: info for info in members(write(layer, [Change(b"/old", ADD), Change(b"/new", ADD)]))}
    assert rest["old"].pax_headers["mtime"] == "-1.5"
    assert rest["new"].pax_headers["mtime"] == f"{2**33}.000000001"


def test_holes_are_zeros_and_cost_no_memory(layers: LayerVolume) -> None:
    layer = layers.new_layer()
    inode = layer.tree.restore(layer.inode, b"f", stat.S_IFREG | 0o644, 0, 0)
    layer.tree.write(inode, 40 * MIB + 5, b"data")
    layer.tree.set_attributes(inode, size_bytes=100 * MIB + 1)
    pieces = write_archive(layer, None)
    zeros = set()
    length = 0
    for piece in pieces:
        assert len(piece) <= MIB
        length += len(piece)
        if len(piece) == MIB and not any(piece[:: MIB // 16]):
            zeros.add(id(piece))
    assert length > 100 * MIB
    assert len(zeros) <= 3  # the same piece again and again
    content = write(layer)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        reader = archive.extractfile("f")
        assert reader is not None
        data = reader.read()
    assert len(data) == 100 * MIB + 1
    assert data.find(b"data") == 40 * MIB + 5
    assert data.count(0) == len(data) - 4


def test_extended_attributes(layers: LayerVolume) -> None:
    xattrs = {
        b"user.binary": b"\x00=\n\xff",
        b"user.empty": b"",
        b"user.a=b%c": b"escaped",
        b"trusted.t": b"t",
        b"security.capability": bytes(range(20)),
        acl.ACCESS: NAMED,
    }
    tree: Tree = {
        b"": directory(),
        b"f": file(b"x", 0o664, xattrs=xattrs),
        b"g": twin(b"f"),
        b"l": symlink(b"f", xattrs={b"trusted.l": b"l"}),
        b"d": directory(xattrs={acl.DEFAULT: NAMED}),
    }
    layer = layers.new_layer(tree)
    found = {info.name: info.pax_headers for info in members(write(layer))}
    for name in "f", "g":  # a link's too: with Docker, its change of owner takes a file's capabilities away
        values = {
            key.removeprefix("SCHILY.xattr."): value.encode("utf-8", "surrogateescape")
            for key, value in found[name].items()
            if key.startswith("SCHILY.xattr.")
        }
        assert values == {
            "user.binary": b"\x00=\n\xff",
            "user.empty": b"",
            "user.a%3Db%25c": b"escaped",
            "trusted.t": b"t",
            "security.capability": bytes(range(20)),
            "system.posix_acl_access": NAMED,
        }
        assert found[name]["SCHILY.acl.access"] == (
            "user::rw-,user:1000:rwx,group::r--,group:70000:--x,mask::rw-,other::r--"
        )
    assert found["l"]["SCHILY.xattr.trusted.l"] == "l"
    assert found["d"]["SCHILY.acl.default"].startswith("user::rw-,user:1000:rwx,")


def test_sockets_are_passed_over_and_counted(layers: LayerVolume) -> None:
    layer = layers.new_layer({b"": directory(), b"f": file()})
    layer.tree.make_node(layer.inode, b"socket", stat.S_IFSOCK | 0o755, 0, 0)
    assert [info.name for info in members(write(layer))] == [".", "f"]
    assert written(write_archive(layer, None)) == written(write_archive(layer, None, sparse=True))
    result = written(write_archive(layer, [Change(b"/socket", ADD)]))
    assert (result.entries, result.skipped_sockets) == (0, 1)  # type: ignore[attr-defined]


def test_ids_are_mapped_back_with_and_without_changes(layers: LayerVolume) -> None:
    maps = IdMaps(uids=[IdRange(0, 100000, 1001)], gids=[IdRange(0, 200000, 1000), IdRange(70000, 70000, 1)])
    outside = acl_value((1, 6, NO_ID), (2, 7, 101000), (4, 4, NO_ID), (8, 1, 70000), (16, 6, NO_ID), (32, 4, NO_ID))
    tree: Tree = {
        b"": directory(uid=100000, gid=200000),
        b"f": file(b"x", 0o664, uid=101000, gid=200999, xattrs={acl.ACCESS: outside}),
        b"stray": file(uid=0, gid=200000),
    }
    stray = layers.new_layer(tree)
    for changes in (None, [Change(b"/f", ADD), Change(b"/stray", ADD)]):
        with pytest.raises(UsageError, match="'stray': user id 0 of the host"):
            write(stray, changes, maps=maps)
    del tree[b"stray"]
    layer = layers.new_layer(tree)
    for changes in (None, [Change(b"/f", ADD)]):
        info = members(write(layer, changes, maps=maps))[-1]
        assert (info.name, info.uid, info.gid) == ("f", 1000, 999)
        assert info.pax_headers["SCHILY.xattr.system.posix_acl_access"].encode("utf-8", "surrogateescape") == NAMED
        assert "user:1000:rwx" in info.pax_headers["SCHILY.acl.access"]
    assert members(write(layer, None, maps=maps))[0].uid == 0


RESERVED_NAMES = [b".wh.x", b".wh.", b".wh..wh..opq", b".wh..wh.plnk", b".wh..opq", b".wh." + b"n" * 251]


@pytest.mark.parametrize("name", RESERVED_NAMES)
@pytest.mark.parametrize("above", [b"", b"d/"])
def test_a_name_that_marks_a_deletion_has_a_substitute(layers: LayerVolume, above: bytes, name: bytes) -> None:
    """Every reader takes it for the file that it is, under a name that a directory can hold; here it has its own."""
    path = above + name
    tree = {b"": directory(), b"d": directory(), path: file(b"true"), b"x": file(b"spared"), b"d/x": file(b"spared")}
    tree |= {b"y": twin(path)}
    layer, copy, dockers = layers.new_layer(tree), layers.new_layer(tree), layers.new_layer(tree)
    archive = write(layer, [Change(b"/" + path, ADD), Change(b"/y", ADD)])
    shown, link = (item.name for item in members(archive))
    assert shown.startswith(above.decode() + ".cowfs-name.")
    assert len(shown.rpartition("/")[2]) <= 255
    assert (link, members(archive)[1].linkname) == ("y", shown)
    assert apply(copy, archive).size_bytes == 4
    assert {name: node.content for name, node in look(copy).items()} == {
        name: node.content for name, node in look(layer).items()
    }
    apply(dockers, archive, true_names=False)
    found = look(dockers)
    assert found[shown.encode()].content == b"true"
    assert {b"x", b"d/x", path} < set(found)

    deletion = write(layer, [Change(b"/" + path, DELETE)])
    assert [item.name for item in members(deletion)] == [f"{above.decode()}.wh.{shown.removeprefix(above.decode())}"]
    apply(copy, deletion)
    assert set(look(copy)) == set(look(layer)) - {path}
    apply(dockers, deletion, true_names=False)
    assert set(look(dockers)) == set(found) - {shown.encode()}


def test_a_directory_that_is_named_as_a_deletion_is(layers: LayerVolume) -> None:
    """What is in it is below its substitute; and a sparse file has both names too."""
    hole = file(b"a" + bytes(1 << 20) + b"b")
    tree = {b"": directory(), b".wh.d": directory(), b".wh.d/.wh.e": directory(), b".wh.d/.wh.e/f": hole}
    layer = layers.new_layer(tree)
    for sparse in (False, True):
        archive = write(layer, sparse=sparse)
        assert members(archive)[-1].name == ".cowfs-name.wh.d/.cowfs-name.wh.e/f"
        copy = layers.new_layer()
        apply(copy, archive)
        assert look(copy) == look(layer)
        assert write(copy) == write(layer)
    assert finish(archive_size(layer, None)) == len(hole.content)


def test_a_path_that_no_header_can_hold(layers: LayerVolume) -> None:
    """It is never written where it could not be read; what is a little shorter is."""
    layer = layers.new_layer()
    inode = layer.inode
    path = b""
    for _ in range((1 << 20) // 256 + 1):
        inode = layer.tree.restore(inode, b"n" * 255, stat.S_IFDIR | 0o755, 0, 0, mtime_ns=0)
        path += b"/" + b"n" * 255
    fits = path[: ((1 << 20) // 256 - 1) * 256]
    assert members(write(layer, [Change(fits, ADD)]))[0].name == fits[1:].decode()
    with pytest.raises(UsageError, match=r"'nnn.*its path and attributes take 1048\d+ bytes, and the header of a file"):
        write(layer, [Change(path, ADD)])


@pytest.mark.parametrize("path", [b"/missing", b"/missing/deep", b"/f/deep", b"/"])
def test_what_is_not_there_is_an_error_that_names_it(layers: LayerVolume, path: bytes) -> None:
    layer = layers.new_layer({b"": directory(), b"f": file()})
    with pytest.raises(FilesystemError, match=f"cannot read '{path[1:].decode()}' of the layer"):
        write(layer, [Change(path, MODIFY)])


def test_what_cannot_be_read_is_an_error_that_names_it(layers: LayerVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layers.new_layer({b"": directory(), b"good": file(b"x"), b"worse": file(b"x" * 3 * MIB)})
    volume = layers.image.volume
    read = volume.read
    bad = volume.lookup(layer.inode, b"worse").inode

    def failing(inode: int, offset: int, length: int) -> bytes:
        if inode == bad and offset >= MIB:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(inode, offset, length)

    monkeypatch.setattr(volume, "read", failing)
    with pytest.raises(FilesystemError, match=r"'worse'.*Input/output") as caught:
        write(layer)
    assert caught.value.errno == errno.EIO
    monkeypatch.undo()
    pieces = write_archive(layer, None)
    next(pieces)
    volume.set_attributes(bad, size_bytes=MIB)
    with pytest.raises(FilesystemError, match="'worse' of the layer was cut off"):
        list(pieces)


def test_pieces_are_neither_many_nor_large(layers: LayerVolume, rng: random.Random) -> None:
    tree: Tree = {b"": directory()}
    tree |= {b"f%d" % number: file(rng.randbytes(100)) for number in range(1000)}
    tree[b"g"] = file(rng.randbytes(3 * MIB + 5))
    sizes = [len(piece) for piece in write_archive(layers.new_layer(tree), None)]
    assert max(sizes) <= MIB
    assert len(sizes) < 25


def test_deep_trees(make_volume: Callable[[int], LayerVolume]) -> None:
    """Nothing here recurses."""
    layer = make_volume(64 * MIB).new_layer()
    inode = layer.inode
    for _ in range(1500):
        inode = layer.tree.restore(inode, b"d", stat.S_IFDIR | 0o755, 0, 0, mtime_ns=TIME_NS)
    names = [info.name for info in members(write(layer))]
    assert names[-1] == "/".join(["d"] * 1500)
