"""Unpacking: what replaces what, whiteouts, parents, owners, times, attributes."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import random
import re
import stat
import tarfile
from collections.abc import Callable

import pytest

from cowfs.errors import ArchiveError, FilesystemError
from cowfs.ext4.files import acl
from cowfs.layers import IdMaps, IdRange, LayerRoot
from cowfs.layers.archive import apply_archive
from cowfs.steps import finish
from tests.ext4.conftest import MIB
from tests.layers.archive.conftest import LayerVolume
from tests.layers.archive.trees import (
    NO_ID,
    TIME_NS,
    Tree,
    acl_value,
    apply,
    archive_of,
    directory,
    entry,
    file,
    look,
    of_names,
    paths,
    symlink,
)

LINK, SYMLINK, DIRECTORY, FIFO = tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE


def raw_directory(name: bytes) -> bytes:
    return entry(name, DIRECTORY)


def test_every_kind(layer: LayerRoot) -> None:
    archive = archive_of(
        entry(b"dir/", DIRECTORY, mode=0o1777, uid=5, gid=6, mtime=1000),
        entry(b"dir/file", content=b"content" * 3000, mode=0o4751, uid=1000, gid=70000, mtime=1234567890),
        entry(b"dir/hard", LINK, target=b"dir/file"),
        entry(b"link", SYMLINK, target=b"dir/file", mode=0o777, uid=3),
        entry(b"fifo", FIFO, mode=0o600),
        entry(b"char", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        entry(b"block", tarfile.BLKTYPE, devmajor=259, devminor=70000, mode=0o660),
        entry(b"contiguous", tarfile.CONTTYPE, content=b"x"),
    )
    applied = apply(layer, archive)
    assert (applied.size_bytes, applied.entries, applied.skipped_devices) == (21001, 8, 0)
    found = look(layer)
    twin = file(b"content" * 3000, 0o4751, uid=1000, gid=70000, mtime_ns=1234567890 * 10**9)
    assert found.pop(b"").mode == stat.S_IFDIR | 0o755
    assert found.pop(b"dir/file") == twin
    assert found.pop(b"dir/hard").twin == b"dir/file"
    assert found.pop(b"dir") == directory(0o1777, uid=5, gid=6, mtime_ns=1000 * 10**9)
    assert found.pop(b"link") == symlink(b"dir/file", uid=3, mtime_ns=0)
    assert found.pop(b"fifo").mode == stat.S_IFIFO | 0o600
    assert (found[b"char"].mode, found[b"char"].rdev) == (stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert (found[b"block"].mode, found[b"block"].rdev) == (stat.S_IFBLK | 0o660, os.makedev(259, 70000))
    assert found[b"contiguous"].content == b"x"


def test_devices_are_passed_over_where_they_cannot_be_made(layers: LayerVolume) -> None:
    layer = layers.new_layer({b"": directory(), b"null": file(b"old")})
    archive = archive_of(
        entry(b"null", tarfile.CHRTYPE, devmajor=1, devminor=3),
        entry(b"disk", tarfile.BLKTYPE, devmajor=8, devminor=0),
        entry(b"fifo", FIFO),
        entry(b"other", LINK, target=b"null"),
        entry(b"file", content=b"x"),
    )
    assert apply(layer, archive, make_devices=False).skipped_devices == 4
    assert paths(layer) == {b"file"}
    back = archive_of(entry(b"null", content=b"now a file"), entry(b"other", LINK, target=b"null"))
    both = archive[:-1024] + back
    assert apply(layer, both, make_devices=False).skipped_devices == 4
    assert paths(layer) == {b"file", b"null", b"other"}


def test_parents_are_made(layer: LayerRoot) -> None:
    maps = IdMaps(uids=[IdRange(0, 100000, 10)], gids=[IdRange(0, 200000, 10)])
    apply(layer, archive_of(entry(b"a/b/c", content=b"x", uid=1, gid=2)), maps=maps)
    found = look(layer)
    for parent in (b"a", b"a/b"):
        assert (found[parent].mode, found[parent].uid, found[parent].gid) == (stat.S_IFDIR | 0o755, 100000, 200000)
    assert (found[b"a/b/c"].uid, found[b"a/b/c"].gid) == (100001, 200002)


def test_what_exists_is_replaced_but_directories_merge(layers: LayerVolume) -> None:
    layer = layers.new_layer(
        {
            b"": directory(),
            b"dir": directory(0o700),
            b"dir/kept": file(b"kept"),
            b"tree": directory(),
            b"tree/deep": directory(),
            b"tree/deep/file": file(b"gone"),
            b"file": file(b"gone"),
            b"link": symlink(b"dir"),
            b"to-file": symlink(b"file"),
        }
    )
    apply(
        layer,
        archive_of(
            entry(b"dir", DIRECTORY, mode=0o755),
            entry(b"tree", content=b"a file now"),
            entry(b"file", DIRECTORY),
            entry(b"file/new", content=b"new"),
            entry(b"link", DIRECTORY),
            entry(b"to-file", content=b"not through the link"),
        ),
    )
    found = look(layer)
    assert set(found) - {b""} == {b"dir", b"dir/kept", b"tree", b"file", b"file/new", b"link", b"to-file"}
    assert found[b"dir"].mode == stat.S_IFDIR | 0o755
    assert found[b"tree"].content == b"a file now"
    assert stat.S_ISDIR(found[b"link"].mode)
    assert found[b"to-file"].content == b"not through the link"


def test_a_replaced_file_keeps_its_other_names(layers: LayerVolume) -> None:
    """The archive brings a new inode, and does not write through the old one."""
    layer = layers.new_layer({b"": directory(), b"a": file(b"old")})
    layer.tree.link(layer.tree.lookup(layer.inode, b"a").inode, layer.inode, b"b")
    apply(layer, archive_of(entry(b"a", content=b"new")))
    assert {path: node.content for path, node in look(layer).items() if path} == {b"a": b"new", b"b": b"old"}


BASE = [".baz", "bar/", "bar/bax", "bar/bay/", "baz", "foo/", "foo/.abc", "foo/.bcd/", "foo/.bcd/a"]
BASE += ["foo/cde/", "foo/cde/def", "foo/cde/efg", "foo/fgh", "foobar"]


@pytest.mark.parametrize(
    ("change", "gone", "new"),
    [
        ([], [], []),
        ([".bay", ".wh.baz", ".wh.nothing"], ["baz"], [".bay"]),
        ([".wh.foo"], [name for name in BASE if name.startswith("foo/")], []),
        ([".wh.foo", "foo"], [name for name in BASE if name.startswith("foo/")], ["foo"]),
        (["foo/.wh.cde", "foo/.wh..bcd"], ["foo/cde/", "foo/cde/def", "foo/cde/efg", "foo/.bcd/", "foo/.bcd/a"], []),
        (
            ["foo/", "foo/.bce", "foo/.wh..wh..opq", "foo/cde/", "foo/cde/efg"],
            ["foo/.abc", "foo/.bcd/", "foo/.bcd/a", "foo/cde/def", "foo/fgh", "foo/cde/", "foo/cde/efg"],
            ["foo/.bce", "foo/cde/", "foo/cde/efg"],
        ),
        (
            ["foo/cde/new", "foo/.wh..wh..opq"],
            [name for name in BASE if name.startswith("foo/") and name != "foo/"],
            ["foo/cde/", "foo/cde/new"],
        ),
        ([".abc", ".wh..wh..opq", "foobar"], BASE, [".abc", "foobar"]),
        (
            ["foo/", "foo/new", ".wh.foo"],
            [name for name in BASE if name.startswith("foo/") and name != "foo/"],
            ["foo/new"],
        ),
        (["baz", ".wh.baz"], [], []),
        ([".wh..wh.orph/", ".wh..wh.orph/x", ".wh..wh.aufs"], [], []),
        (["nowhere/.wh.x", "nowhere/.wh..wh..opq"], [], []),
    ],
)
def test_whiteouts(layer: LayerRoot, change: list[str], gone: list[str], new: list[str]) -> None:
    """Those of moby's own tests, and that a whiteout never hides what its own archive brings, in whatever order."""
    apply(layer, of_names(*BASE))
    apply(layer, of_names(*change))
    expected = {name.rstrip("/").encode() for name in [*(set(BASE) - set(gone)), *new]}
    assert paths(layer) == expected


def test_opaque_spares_a_lower_files_new_name_only(layers: LayerVolume) -> None:
    layer = layers.new_layer({b"": directory(), b"d": directory(), b"d/x": file(b"low")})
    archive = archive_of(entry(b"y", LINK, target=b"d/x"), entry(b"d/.wh..wh..opq"))
    apply(layer, archive)
    assert paths(layer) == {b"d", b"y"}
    assert look(layer)[b"y"].content == b"low"


def test_hard_link_sources_of_aufs(layer: LayerRoot) -> None:
    archive = archive_of(
        entry(b".wh..wh.plnk/", DIRECTORY),
        entry(b".wh..wh.plnk/1.2", content=b"shared", mode=0o640),
        entry(b".wh..wh.plnk/3.4", SYMLINK, target=b"x"),
        entry(b".wh..wh..opq"),
        entry(b"a", LINK, target=b".wh..wh.plnk/1.2"),
        entry(b"dir/b", LINK, target=b"/.wh..wh.plnk/1.2"),
    )
    assert apply(layer, archive).size_bytes == 6
    found = look(layer)
    assert set(found) == {b"", b"a", b"dir", b"dir/b"}
    assert (found[b"a"].content, found[b"a"].mode) == (b"shared", stat.S_IFREG | 0o640)
    assert found[b"dir/b"].twin == b"a"


def test_a_lower_file_with_the_name_of_those_sources_stays(layers: LayerVolume) -> None:
    layer = layers.new_layer({b"": directory(), b".wh..wh.plnk": directory(), b".wh..wh.plnk/f": file(b"f")})
    apply(layer, of_names("a"))
    assert paths(layer) == {b".wh..wh.plnk", b".wh..wh.plnk/f", b"a"}


LOWER: Tree = {
    b"": directory(),
    b"f": file(b"becomes a directory"),
    b"d": directory(),
    b"d/x": file(b"deleted"),
    b"d/kept": file(b"kept"),
    b"o": directory(),
    b"o/old": file(b"hidden"),
    b"l": symlink(b"d"),
    b"t": directory(),
    b"t/u": directory(),
    b"t/u/v": file(b"hidden"),
}


def lower_without(*gone: bytes) -> set[bytes]:
    return set(LOWER) - {b"", *gone}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (
            [raw_directory(b"f"), entry(b"f/.wh..wh..opq"), entry(b"f/new"), entry(b"f/.wh.gone")],
            lower_without() | {b"f/new"},
        ),
        (
            [raw_directory(b"o"), entry(b"o/.wh..wh..opq"), entry(b"o/new"), raw_directory(b"o/s")],
            lower_without(b"o/old") | {b"o/new", b"o/s"},
        ),
        ([entry(b"d/.wh.x"), entry(b"d/y"), raw_directory(b"d"), entry(b"d/.wh.z")], lower_without(b"d/x") | {b"d/y"}),
        ([raw_directory(b"l"), entry(b"l/.wh..wh..opq"), entry(b".wh.l")], lower_without()),
        ([entry(b".wh.t"), raw_directory(b"t"), entry(b"t/u"), entry(b"t/.wh..wh..opq")], lower_without(b"t/u/v")),
        ([entry(b".wh.f"), entry(b"o/.wh..wh..opq"), entry(b".wh.l")], lower_without(b"f", b"o/old", b"l")),
    ],
)
def test_the_order_of_markers_does_not_matter(layers: LayerVolume, entries: list[bytes], expected: set[bytes]) -> None:
    """Every order comes to what the usual one does, or to an error where a file stands in the way of a path."""
    usual: set[bytes] = set()
    for number, order in enumerate(itertools.permutations(entries)):
        layer = layers.new_layer(LOWER)
        with contextlib.ExitStack() as may_fail:
            if number:
                may_fail.enter_context(contextlib.suppress(ArchiveError))
            apply(layer, archive_of(*order))
            usual = usual or paths(layer)
            assert paths(layer) == usual
    assert usual == expected


def test_a_link_that_an_archive_only_passes_through_can_be_hidden(layers: LayerVolume) -> None:
    layer = layers.new_layer(LOWER)
    apply(layer, of_names("l/new", ".wh.l"))
    assert {b"d/new", b"d/kept"} <= paths(layer)
    assert b"l" not in paths(layer)


def test_opaque_says_nothing_of_what_a_link_leads_to(layers: LayerVolume) -> None:
    layer = layers.new_layer(LOWER)
    apply(layer, of_names("l/.wh..wh..opq"))
    assert paths(layer) == set(LOWER) - {b""}


def test_a_path_may_be_longer_than_those_of_the_kernel(layer: LayerRoot) -> None:
    """Each of its parts in the layer takes a step at most."""
    name = b"/".join([b"n" * 100] * 300)
    apply(layer, archive_of(entry(b"x", content=b"x", records={b"path": name})))
    link = entry(b"y", LINK, records={b"linkpath": name})
    apply(layer, archive_of(link, entry(b"x", records={b"path": name[:-100] + b".wh." + name[-100:]})))
    found = look(layer)
    assert found[b"y"].content == b"x"
    assert len(found) == 301


def test_very_long_paths_take_turns(layer: LayerRoot) -> None:
    names = (b"/".join([b"d", *[b"%d" % number] * 600]) for number in range(2))
    archive = archive_of(*(entry(b"x", records={b"path": name}) for name in names))
    steps = sum(1 for _ in apply_archive(layer, io.BytesIO(archive)))
    assert steps >= 2 * (600 // 256)


def test_links_in_the_middle_of_a_path_are_followed_within_the_layer(layers: LayerVolume) -> None:
    """As in a chroot: `lib` may be a link to `usr/lib`, relative or absolute."""
    layer = layers.new_layer(
        {
            b"": directory(),
            b"usr": directory(),
            b"usr/lib": directory(),
            b"usr/lib/old": file(),
            b"lib": symlink(b"usr/lib"),
            b"lib64": symlink(b"/usr/../usr/lib"),
            b"usr/up": symlink(b"../../../usr/lib"),
        }
    )
    names = ["lib/a", "lib64/sub/b", "usr/up/c", "lib/.wh.old", "lib64/../top"]
    apply(layer, of_names(*names))
    assert paths(layer) >= {b"usr/lib/a", b"usr/lib/sub/b", b"usr/lib/c", b"top"}
    assert b"usr/lib/old" not in paths(layer)
    assert stat.S_ISLNK(look(layer)[b"lib"].mode)
    apply(layer, archive_of(entry(b"lib/d", LINK, target=b"lib64/a")))
    assert look(layer)[b"usr/lib/d"].twin == b"usr/lib/a"


@pytest.mark.parametrize(
    ("tree", "name"),
    [
        ({b"a": symlink(b"b"), b"b": symlink(b"a")}, b"a/x"),
        ({b"a": symlink(b"missing")}, b"a/x"),
        ({b"a": symlink(b"missing/deep")}, b"a/b/x"),
        ({b"a": file(b"in the way")}, b"a/x"),
    ],
)
def test_what_cannot_be_a_parent(layers: LayerVolume, tree: dict[bytes, object], name: bytes) -> None:
    layer = layers.new_layer({b"": directory(), **tree})  # type: ignore[dict-item]
    with pytest.raises(ArchiveError, match=name.decode()):
        apply(layer, archive_of(entry(name)))
    assert paths(layer) == set(tree)


def test_a_resolved_directory_that_was_removed_is_resolved_again(layer: LayerRoot) -> None:
    archive = archive_of(
        entry(b"one/", DIRECTORY),
        entry(b"two/", DIRECTORY),
        entry(b"way", SYMLINK, target=b"one"),
        entry(b"way/1"),
        entry(b"way", SYMLINK, target=b"two"),
        entry(b"way/2"),
        entry(b"one", content=b"file"),
        entry(b"way/3"),
        entry(b"one", DIRECTORY),
        entry(b"one/4"),
    )
    apply(layer, archive)
    assert paths(layer) == {b"one", b"two", b"way", b"one/4", b"two/2", b"two/3"}


def test_times_of_directories_come_last(layer: LayerRoot) -> None:
    records = {b"mtime": b"1234567890.000000001"}
    archive = archive_of(
        entry(b"./", DIRECTORY, records={b"mtime": b"-1.5"}, mode=0o711, uid=7),
        entry(b"a/", DIRECTORY, records=records),
        entry(b"a/b/", DIRECTORY, records={b"mtime": b"5.25"}),
        entry(b"a/b/c", records={b"mtime": b"1.1234567894"}),
        entry(b"a/gone/", DIRECTORY, records=records),
        entry(b"a/gone", content=b"a file instead", records={b"mtime": b"7"}),
        entry(b"late"),
    )
    apply(layer, archive)
    found = look(layer)
    assert (found[b""].mode, found[b""].uid, found[b""].mtime_ns) == (stat.S_IFDIR | 0o711, 7, -1_500_000_000)
    assert found[b"a"].mtime_ns == 1_234_567_890_000_000_001
    assert found[b"a/b"].mtime_ns == 5_250_000_000
    assert found[b"a/b/c"].mtime_ns == 1_123_456_789
    assert found[b"a/gone"].mtime_ns == 7_000_000_000


NAMED = acl_value((1, 6, NO_ID), (2, 7, 1000), (4, 4, NO_ID), (8, 1, 70000), (16, 6, NO_ID), (32, 4, NO_ID))


def test_extended_attributes(layer: LayerRoot) -> None:
    records = {
        b"SCHILY.xattr.user.binary": b"\x00=\n\xff" * 5,
        b"SCHILY.xattr.user.empty": b"",
        b"SCHILY.xattr.user.a%3Db%25c": b"escaped",
        b"SCHILY.xattr.trusted.overlay.opaque": b"y",
        b"SCHILY.xattr.security.capability": bytes(range(20)),
        b"SCHILY.xattr.com.apple.quarantine": b"foreign",
        b"SCHILY.xattr.system.posix_acl_access": NAMED,
        b"SCHILY.acl.access": b"user::rwx,group::---,other::---",
        b"LIBARCHIVE.xattr.user.binary": b"ignored",
    }
    applied = apply(layer, archive_of(entry(b"f", content=b"x", mode=0o664, records=records)))
    assert applied.skipped_xattrs == 1
    found = look(layer)[b"f"]
    assert found.mode == stat.S_IFREG | 0o664
    assert found.xattrs == {
        b"user.binary": b"\x00=\n\xff" * 5,
        b"user.empty": b"",
        b"user.a=b%c": b"escaped",
        b"trusted.overlay.opaque": b"y",
        b"security.capability": bytes(range(20)),
        acl.ACCESS: NAMED,
    }


def test_the_mode_of_the_header_has_the_last_word(layer: LayerRoot) -> None:
    """As with chmod: it is put into the list, which moby sets before."""
    apply(layer, archive_of(entry(b"f", mode=0o2640, records={b"SCHILY.xattr.system.posix_acl_access": NAMED})))
    found = look(layer)[b"f"]
    assert found.mode == stat.S_IFREG | 0o2640
    assert found.xattrs[acl.ACCESS] == acl_value(
        (1, 6, NO_ID), (2, 7, 1000), (4, 4, NO_ID), (8, 1, 70000), (16, 4, NO_ID), (32, 0, NO_ID)
    )


@pytest.mark.parametrize(
    ("text", "skipped"),
    [
        (b"user::rw-,user:1000:rwx,group::r--,group:70000:--x,mask::rw-,other::r--", 0),
        (b"u::rw-\nu:1000:rwx\t#effective:rw-\ng::r--\ng:70000:x\nm::rw\no::r\n", 0),
        (b"user::rw-,user:daemon:rwx:1000,group::r--,group:staff:--x:70000,mask::rw-,other::r--", 0),
        (b"user::rw-,user:daemon:rwx,group::r--,mask::rw-,other::r--", 1),
        (b"user::rw-,user:1000:rwx,group::r--,other::r--", 1),
        (b"user:4294967295:rwx", 1),
        (b"user::rw-:1:2:3", 1),
        (b"what::rw-", 1),
        (b"user::rq-", 1),
        (b"\xff", 1),
    ],
)
def test_access_lists_as_text(layer: LayerRoot, text: bytes, skipped: int) -> None:
    applied = apply(layer, archive_of(entry(b"f", mode=0o664, records={b"SCHILY.acl.access": text})))
    assert applied.skipped_xattrs == skipped
    assert look(layer)[b"f"].xattrs == ({} if skipped else {acl.ACCESS: NAMED})
    assert look(layer)[b"f"].mode == stat.S_IFREG | 0o664


def test_nothing_is_inherited_and_a_merged_directory_is_as_the_entry_says(layers: LayerVolume) -> None:
    tree = {
        b"": directory(),
        b"d": directory(0o2755, gid=9, xattrs={acl.DEFAULT: NAMED, b"user.old": b"1", b"user.both": b"1"}),
    }
    layer = layers.new_layer(tree)
    apply(layer, archive_of(entry(b"d/new"), entry(b"d/sub", DIRECTORY), entry(b"d/a/b")))
    for path in (b"d/new", b"d/sub", b"d/a"):
        found = look(layer)[path]
        assert (found.gid, found.xattrs, found.mode & 0o7000) == (0, {}, 0)
    apply(layer, archive_of(entry(b"d", DIRECTORY, gid=3, mode=0o750, records={b"SCHILY.xattr.user.both": b"2"})))
    found = look(layer)[b"d"]
    assert (found.gid, found.mode, found.xattrs) == (3, stat.S_IFDIR | 0o750, {b"user.both": b"2"})


def test_a_bad_attribute_is_an_error(layer: LayerRoot) -> None:
    for records in (
        {b"SCHILY.xattr.system.posix_acl_access": b"nonsense"},
        {b"SCHILY.xattr.system.posix_acl_default": NAMED},
        {b"SCHILY.xattr.user.large": b"x" * 60_000},
        {b"SCHILY.xattr.user.": b"x"},
    ):
        with pytest.raises(
            FilesystemError, match=r"'bad' of the layer archive: attribute '(user|system)\..*' of \d+ b"
        ):
            apply(layer, archive_of(entry(b"bad", records=records)))


def test_ids_are_mapped_and_unmapped_ones_refused(layer: LayerRoot) -> None:
    maps = IdMaps(
        uids=[IdRange(0, 100000, 1000), IdRange(5000, 7, 1)],
        gids=[IdRange(0, 200000, 1000), IdRange(70000, 90000, 1)],
    )
    records = {b"SCHILY.xattr.system.posix_acl_access": NAMED.replace(b"\xe8\x03\x00\x00", b"\xe7\x03\x00\x00")}
    apply(layer, archive_of(entry(b"a", uid=5000, gid=999, mode=0o664, records=records)), maps=maps)
    found = look(layer)[b"a"]
    assert (found.uid, found.gid) == (7, 200999)
    assert found.xattrs[acl.ACCESS] == acl_value(
        (1, 6, NO_ID), (2, 7, 100999), (4, 4, NO_ID), (8, 1, 90000), (16, 6, NO_ID), (32, 4, NO_ID)
    )
    for fields in ({"uid": 1000}, {"gid": 1000}, {"records": {b"SCHILY.xattr.system.posix_acl_access": NAMED}}):
        with pytest.raises(ArchiveError, match=r"entry 'b'.*id (1000|70000)"):
            apply(layer, archive_of(entry(b"b", **fields)), maps=maps)


def test_large_files_and_zeros(layers: LayerVolume, rng: random.Random) -> None:
    """Whole blocks of zeros become holes; nothing else about the content changes."""
    layer = layers.new_layer()
    content = bytearray(rng.randbytes(5 * MIB + 77))
    content[MIB - 4096 : MIB + 9000] = bytes(4096 + 9000)
    content[3 * MIB + 100 : 4 * MIB] = bytes(MIB - 100)
    files = {
        b"mixed": bytes(content),
        b"zeros": bytes(3 * MIB),
        b"small-zeros": bytes(9000),
        b"short": bytes(100),
        b"ends": b"x" + bytes(MIB - 1),
        b"begins": bytes(MIB) + b"x",
    }
    archive = archive_of(*(entry(name, content=data, mtime=9) for name, data in files.items()))
    assert apply(layer, archive).size_bytes == sum(map(len, files.values()))
    found = look(layer)
    for name, data in files.items():
        assert found[name].content == data
        assert found[name].mtime_ns == 9 * 10**9
    sectors = {name: layer.tree.lookup(layer.inode, name).blocks for name in files}
    assert sectors[b"zeros"] == 0
    assert sectors[b"ends"] == sectors[b"begins"] == 8
    assert sectors[b"small-zeros"] == 8  # its last bytes are no whole block
    assert sectors[b"mixed"] * 512 <= len(content) - MIB + 4096


def test_a_full_layer_is_the_file_systems_error(make_volume: Callable[[int], LayerVolume], rng: random.Random) -> None:
    layer = make_volume(16 * MIB).new_layer()
    for archive in (
        archive_of(entry(b"large", content=rng.randbytes(17 * MIB))),
        archive_of(*(entry(b"f%d" % number, content=rng.randbytes(MIB // 2)) for number in range(40))),
    ):
        with pytest.raises(FilesystemError, match=r"cannot unpack '(large|f\d+)' of the layer archive: No space") as e:
            apply(layer, archive)
        assert e.value.errno == errno.ENOSPC
        assert re.search(
            r"left on device: [\d.]+ .*B of the layer's 1[0-9.]+ MiB are left; make it larger", str(e.value)
        )
    count = layer.tree.statistics().inodes
    with pytest.raises(FilesystemError, match=f"no inode left of its {count}; make it larger") as e:
        apply(make_volume(16 * MIB).new_layer(), archive_of(*(entry(b"f%d" % number) for number in range(count))))
    assert e.value.errno == errno.ENOSPC


class Trickle(io.BytesIO):
    """A stream that gives less than it is asked for, and counts how much it gave."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size or 0, 777) if size != -1 else 777)


def test_short_reads_and_short_steps(layer: LayerRoot, rng: random.Random) -> None:
    content = rng.randbytes(3 * MIB + 5)
    archive = Trickle(archive_of(entry(b"a", content=content), entry(b"b", content=b"b")) + bytes(9216))
    steps = apply_archive(layer, archive)
    assert sum(1 for _ in steps) >= 5
    assert look(layer)[b"a"].content == content
    assert archive.read() == b""  # the padding too, so that a pipe's writer comes to its end


def test_an_endless_trailer_is_not_read(layer: LayerRoot) -> None:
    class Zeros(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            self.given += size
            return bytes(size)

    zeros = Zeros()
    assert finish(apply_archive(layer, zeros)).entries == 0  # type: ignore[arg-type]
    assert zeros.given <= 4 * MIB


def test_removing_a_large_tree_takes_turns(layer: LayerRoot) -> None:
    apply(layer, of_names(*(f"d/{number % 7}/{number}" for number in range(700))))
    steps = apply_archive(layer, io.BytesIO(of_names(".wh.d")))
    assert sum(1 for _ in steps) > 8
    assert paths(layer) == set()


def test_the_time_of_a_file_is_not_that_of_its_last_write(layer: LayerRoot, rng: random.Random) -> None:
    records = {b"mtime": b"%d.%09d" % divmod(TIME_NS, 10**9)}
    apply(layer, archive_of(entry(b"a", content=rng.randbytes(2 * MIB), records=records)))
    attributes = layer.tree.lookup(layer.inode, b"a")
    assert attributes.mtime_ns == attributes.atime_ns == TIME_NS
