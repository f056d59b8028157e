"""Archives that try to get out of the layer. Every test of this folder also checks that what is beside the layer's
root is as it was; see conftest."""

from __future__ import annotations

import errno
import tarfile

import pytest

from cowfs.errors import ArchiveError, BreakoutError, UsageError
from cowfs.layers import LayerRoot
from tests.layers.archive.conftest import LayerVolume
from tests.layers.archive.trees import apply, archive_of, directory, entry, file, look, paths, symlink

LINK, SYMLINK, DIRECTORY = tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE
CHARACTER, FIFO = tarfile.CHRTYPE, tarfile.FIFOTYPE


def raw(name: bytes, kind: bytes = tarfile.REGTYPE, target: bytes = b"", content: bytes = b"") -> bytes:
    return entry(name, kind, target=target, content=content)


REFUSED = {
    # Names.
    "file beside": [raw(b"../victim/hello", content=b"new")],
    "file beside, deep": [raw(b"a/b/../../../victim/new")],
    "absolute and up": [raw(b"/../victim/new")],
    "up and back": [raw(b"../rootfs-1/new")],
    "directory beside": [raw(b"../victim/", DIRECTORY)],
    "the root's parent": [raw(b"..", DIRECTORY)],
    "the root's parent, spelt out": [raw(b"a/../..", DIRECTORY)],
    "symlink beside": [raw(b"../victim/hello", SYMLINK, b"x")],
    "device beside": [raw(b"../null", CHARACTER)],
    "fifo beside": [raw(b"../fifo", FIFO)],
    "long name": [entry(b"x", records={b"path": b"../victim/new"})],
    "GNU long name": [raw(b"././@LongLink", b"L", content=b"../victim/new\0"), raw(b"x")],
    "name of a sparse file": [
        entry(
            b"x",
            records={b"GNU.sparse.name": b"../victim/new", b"GNU.sparse.size": b"0", b"GNU.sparse.map": b"0,0"},
        )
    ],
    # Whiteouts.
    "whiteout beside": [raw(b"../.wh.victim")],
    "whiteout beside, deep": [raw(b"a/../../victim/.wh.hello")],
    "whiteout of the directory itself": [raw(b"a/.wh.")],
    "whiteout of the root": [raw(b".wh.")],
    "whiteout of a dot": [raw(b"a/.wh..")],
    "whiteout of the parent": [raw(b".wh...")],
    "whiteout of the parent, deep": [raw(b"a/.wh...")],
    "opaque beside": [raw(b"../victim/.wh..wh..opq")],
    "opaque above": [raw(b"../.wh..wh..opq")],
    "hard link source beside": [raw(b".wh..wh.plnk/../../victim/hello", content=b"new")],
    # Hard links.
    "hard link to beside": [raw(b"x", LINK, b"../victim/hello")],
    "hard link to beside, absolute": [raw(b"x", LINK, b"/../victim/hello")],
    "hard link to beside, deep": [raw(b"a/x", LINK, b"a/../../victim/hello")],
    "hard link by a long target": [entry(b"x", LINK, records={b"linkpath": b"../victim/hello"})],
    "hard link by a GNU long target": [raw(b"././@LongLink", b"K", content=b"../victim/hello\0"), raw(b"x", LINK)],
}


@pytest.mark.parametrize("entries", REFUSED.values(), ids=REFUSED)
def test_refused(layers: LayerVolume, entries: list[bytes]) -> None:
    layer = layers.new_layer({b"": directory(), b"a": directory(), b"a/b": directory(), b"a/b/f": file(b"f")})
    before = paths(layer)
    with pytest.raises(BreakoutError, match="layer archive, entry '") as caught:
        apply(layer, archive_of(*entries, entry(b"after", content=b"not reached")))
    assert isinstance(caught.value, UsageError)
    assert caught.value.errno == errno.EPERM
    assert caught.value.entry
    assert paths(layer) == before


def test_a_ustar_prefix_is_part_of_the_name(layer: LayerRoot) -> None:
    block = bytearray(entry(b"hello"))
    block[345 : 345 + 9] = b"../victim"
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:512]) + 8 * 32)
    with pytest.raises(BreakoutError, match="victim/hello"):
        apply(layer, archive_of(bytes(block)))


FOLLOWED = {
    # (entries, what is in the layer afterwards): links lead on within the layer, wherever they point.
    "absolute link": (
        [raw(b"x", SYMLINK, b"/victim"), raw(b"victim/", DIRECTORY), raw(b"x/new")],
        {b"x", b"victim", b"victim/new"},
    ),
    "link that climbs over the root": (
        [raw(b"x", SYMLINK, b"../victim"), raw(b"victim/", DIRECTORY), raw(b"x/new")],
        {b"x", b"victim", b"victim/new"},
    ),
    "link up and back": (
        [raw(b"a/x", SYMLINK, b"../../rootfs-1/a"), raw(b"rootfs-1/a/", DIRECTORY), raw(b"a/x/new")],
        {b"a", b"a/x", b"rootfs-1", b"rootfs-1/a", b"rootfs-1/a/new"},
    ),
    "chain that climbs": (
        [
            raw(b"d/e/", DIRECTORY),
            raw(b"here", SYMLINK, b"."),
            raw(b"here/up", SYMLINK, b".."),
            raw(b"up/up/new"),
        ],
        {b"d", b"d/e", b"here", b"up", b"new"},
    ),
    "climbing from where a link leads": (
        [
            raw(b"d/", DIRECTORY),
            raw(b"a/b/c/", DIRECTORY),
            raw(b"a/b/c/back", SYMLINK, b"../../../d"),
            raw(b"s", SYMLINK, b"a/b/c/back"),
            raw(b"s/deep", SYMLINK, b"../d"),
            raw(b"s/deep/new"),
        ],
        {b"d", b"d/new", b"d/deep", b"a", b"a/b", b"a/b/c", b"a/b/c/back", b"s"},
    ),
}


@pytest.mark.parametrize(("entries", "expected"), FOLLOWED.values(), ids=FOLLOWED)
def test_followed_within_the_layer(layer: LayerRoot, entries: list[bytes], expected: set[bytes]) -> None:
    apply(layer, archive_of(*entries))
    assert paths(layer) == expected


@pytest.mark.parametrize(
    "entries",
    [
        [raw(b"x", SYMLINK, b"/victim/hello"), raw(b"x", content=b"new")],
        [raw(b"x", SYMLINK, b"/victim"), raw(b"x/", DIRECTORY), raw(b"x/hello", content=b"new")],
        [raw(b"x", SYMLINK, b"/id"), raw(b"y", LINK, b"x"), raw(b"y", content=b"new")],
    ],
)
def test_a_link_at_the_end_is_replaced(layer: LayerRoot, entries: list[bytes]) -> None:
    apply(layer, archive_of(*entries))
    assert any(node.content == b"new" for node in look(layer).values())


def test_links_of_the_layer_below_are_no_way_out(layers: LayerVolume) -> None:
    """A container may have made any link; they end at the root."""
    tree = {b"": directory(), b"d": directory(), b"d/out": symlink(b"../../../../victim"), b"dots": symlink(b"../..")}
    layer = layers.new_layer({**tree, b"victim": directory()})
    apply(
        layer,
        archive_of(
            raw(b"d/out/new"),
            raw(b"dots/top"),
            raw(b"dots/.wh.nothing"),
            raw(b"copy", LINK, b"d/out/new"),
        ),
    )
    assert paths(layer) == {b"d", b"d/out", b"dots", b"victim", b"victim/new", b"top", b"copy"}


@pytest.mark.parametrize(
    "target", [b"../victim/hello", b"/../victim/hello", b"../../../etc/hostname", b"a/../../..", b".."]
)
def test_a_link_is_kept_whatever_it_points_at(layer: LayerRoot, target: bytes) -> None:
    apply(layer, archive_of(raw(b"d/x", SYMLINK, target), raw(b"x", SYMLINK, target)))
    assert {path: node.content for path, node in look(layer).items() if node.content} == {b"d/x": target, b"x": target}


def test_names_are_cleaned(layer: LayerRoot) -> None:
    apply(layer, archive_of(raw(b"/etc/passwd"), raw(b"./a//b/./c"), raw(b"a/../d"), raw(b"///"[:1], DIRECTORY)))
    assert paths(layer) == {b"etc", b"etc/passwd", b"a", b"a/b", b"a/b/c", b"d"}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([raw(b"x", LINK, b"missing")], "is not there"),
        ([raw(b"x", LINK, b"missing/deep")], "is not there"),
        ([raw(b"d/", DIRECTORY), raw(b"x", LINK, b"d")], "is a directory"),
        ([raw(b"x", LINK, b".")], "is a directory"),
        ([raw(b"f"), raw(b"x", LINK, b"f/deep")], "is not there"),
        ([raw(b"x", SYMLINK, b"../victim"), raw(b"x/new")], "leads nowhere"),
        ([raw(b"x", SYMLINK, b"../victim"), raw(b"y", LINK, b"x/hello")], "is not there"),
        ([raw(b".", content=b"a file")], "can only be a directory"),
        ([raw(b".", LINK, b"x")], "can only be a directory"),
        ([raw(b".wh.dir/file")], "mark deletions"),
        ([raw(b"a/.wh.dir/.wh.x")], None),
        ([raw(b"a/.wh.dir/b/x")], "mark deletions"),
        ([entry(b"x", records={b"path": b"a\0b"})], "zero byte"),
    ],
)
def test_other_impossible_entries(layer: LayerRoot, entries: list[bytes], message: str | None) -> None:
    if message is None:
        apply(layer, archive_of(*entries))
        assert paths(layer) == set()
        return
    with pytest.raises(ArchiveError, match=message) as caught:
        apply(layer, archive_of(*entries))
    assert not isinstance(caught.value, BreakoutError)


def test_a_hard_link_to_itself_changes_nothing(layer: LayerRoot) -> None:
    apply(
        layer, archive_of(raw(b"a", content=b"a"), raw(b"a", LINK, b"a"), raw(b"b", LINK, b"a"), raw(b"a", LINK, b"b"))
    )
    assert look(layer)[b"b"].twin == b"a"
    assert look(layer)[b"a"].content == b"a"


def test_a_hard_link_into_what_it_replaces(layer: LayerRoot) -> None:
    with pytest.raises(OSError, match="cannot unpack 'd'"):
        apply(layer, archive_of(raw(b"d/f", content=b"a"), raw(b"d", LINK, b"d/f")))
