"""Modes, owners, times and the space a file takes."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

import pytest

from cowfs.ext4.format import layout
from cowfs.ext4.tools import commands as tools
from cowfs.filetree import ROOT_INODE
from tests.ext4.conftest import START_NS, Image, make_file

SECOND = 1_000_000_000


def test_mode_and_owner(image: Image) -> None:
    volume = image.volume
    inode = make_file(volume, b"f")
    changed = volume.set_attributes(inode, mode=0o6711, uid=0xFFFFFFFE, gid=70000)
    assert (changed.mode, changed.uid, changed.gid) == (stat.S_IFREG | 0o6711, 0xFFFFFFFE, 70000)
    assert volume.set_attributes(inode, mode=stat.S_IFDIR | 0o600).mode == stat.S_IFREG | 0o600
    volume = image.reopen()
    again = volume.attributes(inode)
    assert (again.uid, again.gid) == (0xFFFFFFFE, 70000)
    image.close()
    shown = image.stat("f")
    assert (shown["Mode"], shown["User"], shown["Group"]) == ("0600", "-2", "70000")


@pytest.mark.parametrize(
    "seconds",
    [-(2**31), -1, 0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**33, 2**34 - 2**31 - 1],
    ids=lambda seconds: f"{seconds}s",
)
def test_times_to_the_nanosecond_until_2446(image: Image, seconds: int) -> None:
    volume = image.volume
    inode = make_file(volume, b"f")
    time = seconds * SECOND + 123456789
    for field in ("atime_ns", "mtime_ns", "ctime_ns"):
        assert getattr(volume.set_attributes(inode, **{field: time}), field) == time
    volume.set_attributes(inode, atime_ns=time, mtime_ns=time, ctime_ns=time)
    volume = image.reopen()
    found = volume.attributes(inode)
    assert (found.atime_ns, found.mtime_ns, found.ctime_ns) == (time, time, time)
    image.close()
    low, extra = layout.encode_time(time, extended=True)
    assert image.stat("f")["mtime"] == f"0x{low:08x}:{extra:08x}"


def test_times_outside_are_clamped(make_image: Callable[..., Image]) -> None:
    volume = make_image().volume
    inode = make_file(volume, b"f")
    assert volume.set_attributes(inode, mtime_ns=2**66).mtime_ns == layout.MAX_TIME_SECONDS * SECOND
    assert volume.set_attributes(inode, mtime_ns=-(2**66)).mtime_ns == layout.MIN_TIME_SECONDS * SECOND
    small = make_image(options=["-I", "128"]).volume
    inode = make_file(small, b"f")
    assert small.set_attributes(inode, mtime_ns=2**33 * SECOND + 7).mtime_ns == (2**31 - 1) * SECOND
    assert small.set_attributes(inode, mtime_ns=1234 * SECOND + 7).mtime_ns == 1234 * SECOND
    assert small.attributes(inode).crtime_ns == 0


def test_changes_move_the_times(image: Image) -> None:
    volume = image.volume
    made = volume.make_node(ROOT_INODE, b"f", stat.S_IFREG | 0o644, 0, 0)
    assert made.crtime_ns == made.mtime_ns == made.ctime_ns >= START_NS
    parent = volume.attributes(ROOT_INODE)
    assert parent.mtime_ns > made.mtime_ns
    volume.write(made.inode, 0, b"x")
    written = volume.attributes(made.inode)
    assert written.mtime_ns == written.ctime_ns > made.mtime_ns
    changed = volume.set_attributes(made.inode, mode=0o600)
    assert changed.mtime_ns == written.mtime_ns
    assert changed.ctime_ns > written.ctime_ns
    volume.rename(ROOT_INODE, b"f", ROOT_INODE, b"g")
    assert volume.attributes(made.inode).ctime_ns > changed.ctime_ns
    cut = volume.set_attributes(made.inode, size_bytes=0)
    assert cut.mtime_ns > written.mtime_ns
    explicit = volume.set_attributes(made.inode, size_bytes=10, mtime_ns=5)
    assert (explicit.size_bytes, explicit.mtime_ns) == (10, 5)


def test_space_taken(image: Image) -> None:
    volume = image.volume
    inode = make_file(volume, b"f", b"x" * 10000)
    assert volume.attributes(inode).blocks == 3 * 8
    volume.set_attributes(inode, size_bytes=1 << 40)
    assert volume.attributes(inode).blocks == 3 * 8
    free = volume.statistics().blocks_free
    volume.set_attributes(inode, size_bytes=4097)
    assert volume.attributes(inode).blocks == 2 * 8
    assert volume.statistics().blocks_free == free + 1


def test_statistics(image: Image) -> None:
    volume = image.volume
    before = volume.statistics()
    assert (before.block_bytes, before.name_max) == (4096, 255)
    make_file(volume, b"f", b"x" * 40960)
    after = volume.statistics()
    assert (before.blocks_free - after.blocks_free, before.inodes_free - after.inodes_free) == (10, 1)
    image.close()
    header = image.debugfs("show_super_stats -h")
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in header.splitlines())}
    assert after.blocks == int(fields["Block count"]) - int(fields["Overhead clusters"])
    assert after.blocks_free == int(fields["Free blocks"])
    assert after.inodes == int(fields["Inode count"])
    assert after.inodes_free == int(fields["Free inodes"])
    assert after.blocks_available == after.blocks_free - int(fields["Reserved block count"])


def test_immutable_and_append_only(image: Image) -> None:
    make_file(image.volume, b"fixed", b"x")
    make_file(image.volume, b"log", b"x")
    image.close()
    for name, flags in (("fixed", 0x80010), ("log", 0x80020)):
        status, output = tools.run("debugfs", ["-w", "-R", f"set_inode_field {name} flags {flags}", str(image.path)])
        assert status == 0, output
    volume = image.open()
    fixed, log = (volume.lookup(ROOT_INODE, name).inode for name in (b"fixed", b"log"))
    for attempt in (
        lambda: volume.write(fixed, 0, b"y"),
        lambda: volume.write(log, 0, b"y"),
        lambda: volume.set_attributes(fixed, mode=0),
        lambda: volume.set_attributes(log, size_bytes=0),
        lambda: volume.unlink(ROOT_INODE, b"fixed"),
        lambda: volume.rename(ROOT_INODE, b"log", ROOT_INODE, b"other"),
        lambda: volume.link(fixed, ROOT_INODE, b"other"),
    ):
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == errno.EPERM
    volume.write(log, 1, b"y")
    assert volume.read(log, 0, 9) == b"xy"
