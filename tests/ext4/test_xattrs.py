"""Extended attributes and access control lists."""

from __future__ import annotations

import errno
import random
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from cowfs.ext4.files import acl
from cowfs.ext4.files.xattrs import XATTR_CREATE, XATTR_REPLACE
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE
from tests.ext4.conftest import FEATURE_SETS, MIB, Image, make_file


def fails(number: int, function: Callable[..., Any], *arguments: Any) -> None:
    with pytest.raises(OSError) as caught:
        function(*arguments)
    assert caught.value.errno == number, caught.value


def vfs_acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NONE = 0xFFFFFFFF
MINIMAL = vfs_acl((1, 7, NONE), (4, 5, NONE), (32, 0, NONE))
NAMED = vfs_acl((1, 6, NONE), (2, 7, 1000), (4, 4, NONE), (8, 1, 70000), (16, 6, NONE), (32, 4, NONE))


@pytest.mark.parametrize("features", ["default", "small-inodes", "no-checksums", "ea-inode", "1k-blocks"])
def test_attributes_of_all_sizes(make_image: Callable[..., Image], features: str) -> None:
    """In the inode, in a block, and with ea_inode in inodes of their own."""
    image = make_image(options=FEATURE_SETS[features])
    volume = image.volume
    inode = make_file(volume, b"f", b"content")
    largest = 60_000 if features == "ea-inode" else 700
    expected = {
        b"user.empty": b"",
        b"user.small": b"x",
        b"trusted.overlay.opaque": b"y",
        b"security.capability": bytes(range(20)),
        b"user.large": bytes(range(256)) * (largest // 256),
        b"user." + b"n" * 200: b"long name",
    }
    for name, value in expected.items():
        volume.set_xattr(inode, name, value)
    volume = image.reopen()
    assert {name: volume.get_xattr(inode, name) for name in volume.list_xattrs(inode)} == expected
    image.close()
    image.require_clean()
    assert "user.small" in image.debugfs("ea_list f")
    volume = image.open()
    volume.set_xattr(inode, b"user.small", b"z" * 100)
    volume.remove_xattr(inode, b"user.large")
    del expected[b"user.large"]
    expected[b"user.small"] = b"z" * 100
    assert {name: volume.get_xattr(inode, name) for name in volume.list_xattrs(inode)} == expected
    assert volume.read(inode, 0, 9) == b"content"
    free = volume.statistics()
    volume.unlink(ROOT_INODE, b"f")
    volume.sync()
    assert volume.statistics().inodes_free > free.inodes_free


def test_large_values_need_ea_inodes(make_image: Callable[..., Image]) -> None:
    volume = make_image(options=["-O", "ea_inode"]).volume
    inode = make_file(volume, b"f")
    before = volume.statistics()
    for number in range(5):
        volume.set_xattr(inode, b"user.%d" % number, bytes([number]) * 65536)
    assert volume.get_xattr(inode, b"user.3") == b"\3" * 65536
    fails(errno.E2BIG, volume.set_xattr, inode, b"user.x", bytes(65537))
    volume.set_xattr(inode, b"user.3", b"short")
    volume.unlink(ROOT_INODE, b"f")
    volume.sync()
    after = volume.statistics()
    assert after.inodes_free == before.inodes_free + 1
    assert after.blocks_free == before.blocks_free


def test_inodes_of_large_values_are_marked_as_used(make_image: Callable[..., Image]) -> None:
    """Also where nothing else changes the bitmap."""
    image = make_image(options=["-O", "ea_inode"])
    inode = make_file(image.volume, b"f")
    for value in (b"x" * 20_000, b"y" * 30_000, b"short"):
        image.reopen().set_xattr(inode, b"user.large", value)
        image.close()
        image.require_clean()


def test_no_room(volume_of_blocks: Image) -> None:
    volume = volume_of_blocks.volume
    inode = make_file(volume, b"f")
    volume.set_xattr(inode, b"user.a", b"a" * 2000)
    volume.set_xattr(inode, b"user.b", b"b" * 1500)
    fails(errno.ENOSPC, volume.set_xattr, inode, b"user.c", b"c" * 2000)
    assert set(volume.list_xattrs(inode)) == {b"user.a", b"user.b"}
    assert volume.get_xattr(inode, b"user.a") == b"a" * 2000


def test_attributes_of_other_name_spaces_are_kept_and_not_listed(make_image: Callable[..., Image]) -> None:
    """Those of fs-verity (11) and Lustre (5), and an unused index: the kernel lists only what it can get."""
    image = make_image(options=["-O", "^metadata_csum"])
    inode = make_file(image.volume, b"f", b"content")
    indexes = {b"verity-like": 11, b"lustre-like": 5, b"no-space": 0, b"hurd-like": 10}
    for name in indexes:
        image.volume.set_xattr(inode, b"user." + name, b"kept")
    image.close()
    raw = bytearray(image.path.read_bytes())
    offsets = {name: raw.index(name) - 15 for name in indexes}  # e_name_index, 16 bytes before the name but one
    for name, offset in offsets.items():
        assert raw[offset] == 1
        raw[offset] = indexes[name]
    image.path.write_bytes(raw)
    volume = image.open()
    assert volume.list_xattrs(inode) == [b"gnu.hurd-like"]
    for listed in volume.list_xattrs(inode):
        assert volume.get_xattr(inode, listed) == b"kept"
    fails(errno.EOPNOTSUPP, volume.get_xattr, inode, b"verity-like")
    volume.set_xattr(inode, b"user.own", b"x" * 20)
    image.close()
    raw = bytearray(image.path.read_bytes())
    assert {name: raw[raw.index(name) - 15] for name in indexes} == indexes
    raw[raw.index(b"no-space") - 15] = 1  # with the index 0 e2fsck would take it for damage
    image.path.write_bytes(raw)


def test_what_fits_can_be_replaced(make_image: Callable[..., Image], rng: random.Random) -> None:
    """A replacement finds room wherever the value would when the old one were removed before."""
    for options in (["-b", "1024"], ["-I", "128"], ["-b", "4096"]):
        image = make_image(options=options, size_bytes=16 * MIB)
        volume = image.volume
        for number in range(60):
            inode = make_file(volume, b"f%d" % number)
            for key in range(rng.randint(1, 6)):
                with suppress(OSError):
                    volume.set_xattr(inode, b"user.%d" % key, _value(rng, volume))
            name, value = rng.choice(volume.list_xattrs(inode) or [b"user.x"]), _value(rng, volume)
            try:
                volume.set_xattr(inode, name, value)
            except OSError:
                with suppress(OSError):
                    volume.remove_xattr(inode, name)
                fails(errno.ENOSPC, volume.set_xattr, inode, name, value)


def _value(rng: random.Random, volume: Volume) -> bytes:
    """Of a few bytes, of any size that a block can hold, or hardly less than a block."""
    capacity = volume.statistics().block_bytes - 32
    return bytes(rng.choice([rng.randint(0, 40), rng.randint(0, capacity), capacity - rng.randint(0, 60)]))


@pytest.fixture
def volume_of_blocks(make_image: Callable[..., Image]) -> Image:
    return make_image(size_bytes=32 * MIB)


def test_flags_and_errors(image: Image) -> None:
    volume = image.volume
    inode = make_file(volume, b"f")
    fails(errno.ENODATA, volume.get_xattr, inode, b"user.a")
    fails(errno.ENODATA, volume.remove_xattr, inode, b"user.a")
    fails(errno.ENODATA, volume.set_xattr, inode, b"user.a", b"", XATTR_REPLACE)
    volume.set_xattr(inode, b"user.a", b"1", XATTR_CREATE)
    fails(errno.EEXIST, volume.set_xattr, inode, b"user.a", b"2", XATTR_CREATE)
    volume.set_xattr(inode, b"user.a", b"3", XATTR_REPLACE)
    assert volume.get_xattr(inode, b"user.a") == b"3"
    fails(errno.EOPNOTSUPP, volume.get_xattr, inode, b"other.a")
    fails(errno.EOPNOTSUPP, volume.set_xattr, inode, b"system.data", b"x")
    fails(errno.EINVAL, volume.set_xattr, inode, b"user.", b"x")
    fails(errno.ERANGE, volume.set_xattr, inode, b"user." + b"n" * 251, b"x")
    before = volume.attributes(inode)
    volume.set_xattr(inode, b"user.b", b"x")
    after = volume.attributes(inode)
    assert after.ctime_ns > before.ctime_ns
    assert after.mtime_ns == before.mtime_ns


def test_on_directories_and_unsynced_changes(image: Image) -> None:
    """The library reads the inode table; what is only in memory yet must not get lost by that."""
    volume = image.volume
    top = volume.make_directory(ROOT_INODE, b"top", 0o755, 3, 4).inode
    for number in range(50):
        make_file(volume, b"f%d" % number, b"x" * 5000, top)
        volume.set_xattr(top, b"user.count", b"%d" % number)
    inode = make_file(volume, b"g", b"first ")
    volume.set_xattr(inode, b"user.a", b"b")
    volume.write(inode, 6, b"second")
    volume.set_xattr(inode, b"user.big", b"b" * 3000)
    volume.set_attributes(inode, mode=0o4755)
    volume = image.reopen()
    assert volume.get_xattr(top, b"user.count") == b"49"
    assert volume.attributes(top).uid == 3
    assert volume.read(inode, 0, 99) == b"first second"
    assert volume.attributes(inode).mode == stat.S_IFREG | 0o4755


class TestAcl:
    def test_round_trip(self, image: Image) -> None:
        volume = image.volume
        inode = make_file(volume, b"f")
        volume.set_xattr(inode, acl.ACCESS, NAMED)
        assert volume.get_xattr(inode, acl.ACCESS) == NAMED
        assert stat.S_IMODE(volume.attributes(inode).mode) == 0o664
        volume = image.reopen()
        assert volume.get_xattr(inode, acl.ACCESS) == NAMED
        image.close()
        shown = image.debugfs("ea_get -x f system.posix_acl_access")
        # debugfs converts to the VFS format by itself, with ids of 0 where none belongs.
        assert acl.pack(acl.parse(bytes.fromhex(shown.partition("=")[2].replace(" ", "")))) == NAMED

    def test_stored_in_the_compact_format(self) -> None:
        entries = acl.parse(NAMED)
        stored = acl.to_disk(entries)
        assert len(stored) == 4 + 4 * 4 + 2 * 8
        assert acl.pack(acl.from_disk(stored)) == NAMED

    def test_a_list_that_says_no_more_than_the_mode_becomes_the_mode(self, image: Image) -> None:
        volume = image.volume
        inode = make_file(volume, b"f")
        volume.set_xattr(inode, acl.ACCESS, NAMED)
        volume.set_xattr(inode, acl.ACCESS, MINIMAL)
        assert volume.list_xattrs(inode) == []
        assert stat.S_IMODE(volume.attributes(inode).mode) == 0o750

    def test_chmod_changes_the_mask(self, image: Image) -> None:
        volume = image.volume
        inode = make_file(volume, b"f")
        volume.set_xattr(inode, acl.ACCESS, NAMED)
        volume.set_attributes(inode, mode=0o710)
        entries = {(tag, id_): permissions for tag, permissions, id_ in acl.parse(volume.get_xattr(inode, acl.ACCESS))}
        assert entries == {(1, NONE): 7, (2, 1000): 7, (4, NONE): 4, (8, 70000): 1, (16, NONE): 1, (32, NONE): 0}

    def test_default_lists_are_inherited(self, image: Image) -> None:
        volume = image.volume
        top = volume.make_directory(ROOT_INODE, b"top", 0o755, 0, 0).inode
        assert not volume.has_default_acl(top)
        volume.set_xattr(top, acl.DEFAULT, NAMED)
        assert volume.has_default_acl(top)
        assert stat.S_IMODE(volume.attributes(top).mode) == 0o755
        file = volume.make_node(top, b"f", stat.S_IFREG | 0o640, 0, 0)
        assert stat.S_IMODE(file.mode) == 0o640
        inherited = acl.parse(volume.get_xattr(file.inode, acl.ACCESS))
        assert [(entry.tag, entry.permissions) for entry in inherited] == [
            (1, 6), (2, 7), (4, 4), (8, 1), (16, 4), (32, 0)
        ]  # fmt: skip
        inner = volume.make_directory(top, b"d", 0o777, 0, 0)
        assert volume.get_xattr(inner.inode, acl.DEFAULT) == NAMED
        assert stat.S_IMODE(inner.mode) == 0o664
        link = volume.make_symlink(top, b"l", b"f", 0, 0)
        assert volume.list_xattrs(link.inode) == []
        fails(errno.EACCES, volume.set_xattr, file.inode, acl.DEFAULT, NAMED)
        volume.remove_xattr(top, acl.DEFAULT)
        assert stat.S_IMODE(volume.make_node(top, b"g", stat.S_IFREG | 0o640, 0, 0).mode) == 0o640

    @pytest.mark.parametrize(
        ("value", "number"),
        [
            (b"", errno.EINVAL),
            (MINIMAL[:-1], errno.EINVAL),
            (struct.pack("<I", 3), errno.EOPNOTSUPP),
            (vfs_acl((1, 7, NONE), (4, 5, NONE)), errno.EINVAL),
            (vfs_acl((1, 7, NONE), (2, 7, 5), (4, 5, NONE), (32, 0, NONE)), errno.EINVAL),
            (vfs_acl((1, 7, NONE), (2, 7, 5), (2, 6, 5), (4, 5, NONE), (16, 7, NONE), (32, 0, NONE)), errno.EINVAL),
            (vfs_acl((4, 5, NONE), (1, 7, NONE), (32, 0, NONE)), errno.EINVAL),
            (vfs_acl((1, 8, NONE), (4, 5, NONE), (32, 0, NONE)), errno.EINVAL),
            (vfs_acl((1, 7, NONE), (4, 5, NONE), (32, 0, NONE), (64, 0, NONE)), errno.EINVAL),
        ],
    )
    def test_nonsense_is_refused(self, image: Image, value: bytes, number: int) -> None:
        inode = make_file(image.volume, b"f")
        fails(number, image.volume.set_xattr, inode, acl.ACCESS, value)
        assert image.volume.list_xattrs(inode) == []


def needed_bytes(name: bytes, value_bytes: int) -> int:
    """What an attribute of the name space `user` takes of a table: its entry and its value, each padded to four."""
    return (16 + len(name) - len(b"user.") + 3 & ~3) + (value_bytes + 3 & ~3)


def sizes_in(table: bytes) -> dict[bytes, int]:
    sizes, offset = {}, 0
    while table[offset : offset + 4].ljust(4, b"\0") != bytes(4):
        name_length, space, _offset, _inode, value_bytes, _hash = struct.unpack_from("<BBHIII", table, offset)
        assert space == 1
        sizes[b"user." + table[offset + 16 : offset + 16 + name_length]] = value_bytes
        offset += 16 + name_length + 3 & ~3
    return sizes


@pytest.mark.parametrize("block_bytes", [1024, 4096])
@pytest.mark.parametrize("inode_bytes", [256, 512])
def test_an_attribute_is_refused_only_where_the_kernel_refuses_it(
    make_image: Callable[..., Image], rng: random.Random, block_bytes: int, inode_bytes: int
) -> None:
    """It may replace another one as long as it fits into the inode or the block without that (fs/ext4/xattr.c)."""
    options = ["-b", str(block_bytes), "-I", str(inode_bytes)]
    volume = make_image(size_bytes=16 * MIB, options=options).volume
    refused = replaced = 0
    for number in range(20):
        file = make_file(volume, b"f%d" % number, b"")
        inode = volume._inodes.get(file)
        in_inode_bytes = inode_bytes - 128 - inode.raw.i_extra_isize - 8
        for _ in range(30):
            name = b"user." + rng.choice([b"a", b"b", b"cc", b"d" * 5, b"e" * 30])
            near_full = [block_bytes - rest for rest in (52, 56, 60, 100, block_bytes // 2)]
            value = rng.randbytes(rng.choice([0, 1, 4, 40, 80, 200, *near_full]))
            volume.sync()
            tables = list(volume._xattrs._entry_tables(inode))
            has_inner = len(tables) == 2 or (tables and not inode.raw.i_file_acl)
            inner = sizes_in(tables[0]) if has_inner else {}
            outer = sizes_in(tables[-1]) if inode.raw.i_file_acl else {}
            free = [
                room - sum(needed_bytes(other, size) for other, size in table.items() if other != name)
                for room, table in ((in_inode_bytes, inner), (block_bytes - 36, outer))
            ]
            replaced += name in inner or name in outer
            if needed_bytes(name, len(value)) <= max(free):
                volume.set_xattr(file, name, value)
                assert volume.get_xattr(file, name) == value
            else:
                fails(errno.ENOSPC, volume.set_xattr, file, name, value)
                refused += 1
    assert refused > 20
    assert replaced > 100
