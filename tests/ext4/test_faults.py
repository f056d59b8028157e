"""A device that fails, and volumes that are damaged: errors, never crashes, and nothing lost that was synced."""

from __future__ import annotations

import contextlib
import errno
import random
import stat
from collections.abc import Callable

import pytest

from cowfs.blockdev import BlockDevice, FileDevice
from cowfs.errors import OutOfDataSpace
from cowfs.ext4.tools import fsck
from cowfs.ext4.volume import Volume
from cowfs.faults.disk import FaultyDevice
from cowfs.filetree import ROOT_INODE
from tests.ext4.conftest import MIB, Image, make_file, names


class Switch:
    """Wraps an image's device so that it can be made to fail."""

    device: FaultyDevice

    def __call__(self, device: BlockDevice) -> BlockDevice:
        self.device = FaultyDevice(device)
        return self.device


@pytest.fixture
def switch() -> Switch:
    return Switch()


def test_a_failed_write_of_data(image: Image, switch: Switch) -> None:
    volume = image.open(wrap=switch)
    inode = make_file(volume, b"f", b"old")
    volume.sync()
    before = volume.statistics().blocks_free
    switch.device.fail("write")
    with pytest.raises(OSError) as caught:
        volume.write(inode, 3, b"x" * MIB)
    assert caught.value.errno == errno.EIO
    switch.device.heal()
    assert volume.attributes(inode).size_bytes == 3
    assert volume.statistics().blocks_free == before
    assert volume.read(inode, 0, 10) == b"old"
    volume.write(inode, 3, b"new")


def test_a_file_that_could_not_be_restored(image: Image, switch: Switch) -> None:
    volume = image.open(wrap=switch)
    make_file(volume, b"there")
    volume.sync()
    before = volume.statistics()
    switch.device.fail("write")
    with pytest.raises(OSError) as caught:
        volume.restore(ROOT_INODE, b"new", stat.S_IFREG | 0o644, 0, 0, content=b"x" * 9000)
    assert caught.value.errno == errno.EIO
    switch.device.heal()
    assert names(volume) == {b"there"}
    assert volume.statistics() == before
    volume.restore(ROOT_INODE, b"new", stat.S_IFREG | 0o644, 0, 0, content=b"x" * 9000)


def test_errors_keep_their_kind(image: Image, switch: Switch) -> None:
    """What the device raised comes out as itself, also through the library's C frames."""
    volume = image.open(wrap=switch)
    for number in range(300):
        make_file(volume, b"f%d" % number)
    volume.sync()
    full = OutOfDataSpace("pool full", may_queue=True)

    def refuse(_offset: int, _data: object) -> None:
        raise full

    switch.device.pwrite = refuse  # type: ignore[method-assign, assignment]
    with pytest.raises(OutOfDataSpace) as caught:
        volume.write(volume.lookup(ROOT_INODE, b"f1").inode, 0, b"x")
    assert caught.value is full
    del switch.device.pwrite
    volume.write(volume.lookup(ROOT_INODE, b"f1").inode, 0, b"x")


def test_a_failed_sync_can_be_repeated(image: Image, switch: Switch) -> None:
    volume = image.open(wrap=switch)
    for number in range(100):
        make_file(volume, b"f%d" % number, b"x" * 5000)
    for operation in ("write", "flush"):
        switch.device.fail(operation, errno="ENOSPC")
        with pytest.raises(OSError) as caught:
            volume.sync()
        assert caught.value.errno == errno.ENOSPC
        switch.device.heal()
    volume.sync()
    assert len(names(image.reopen())) == 100


@pytest.mark.parametrize("nth", range(0, 40, 3))
def test_a_device_that_dies_while_syncing(make_image: Callable[..., Image], switch: Switch, nth: int) -> None:
    """Whatever write is the last: e2fsck brings back a volume with every synced file, perhaps in lost+found."""
    image = make_image(size_bytes=16 * MIB)
    volume = image.open(wrap=switch)
    old = [make_file(volume, b"old-%d" % number, b"%d" % number) for number in range(50)]
    volume.sync()
    volume.make_directory(ROOT_INODE, b"new", 0o755, 0, 0)
    for number in range(400):
        make_file(volume, b"new-%d" % number, b"x" * 3000)
    for number in range(0, 50, 2):
        volume.unlink(ROOT_INODE, b"old-%d" % number)
    switch.device.fail("write", after=nth)
    with contextlib.suppress(OSError):
        volume.sync()
    with contextlib.suppress(OSError):
        volume.close()
    image.volume_or_none = None
    assert image.device is not None
    device: FileDevice = image.device
    result = fsck.prepare_for_mount(device, repair=True)
    assert result is None or result.usable
    image.close()
    volume = image.open()
    for number in range(1, 50, 2):
        assert volume.read(old[number], 0, 99) == b"%d" % number


@pytest.mark.parametrize("size_bytes", [0, 8192, 8200])
def test_a_file_that_could_not_be_cut_off_is_as_before(image: Image, switch: Switch, size_bytes: int) -> None:
    inode = make_file(image.volume, b"f")
    for number in range(50):
        image.volume.write(inode, number * 8192, b"y" * 100)  # a tree that must be read to be cut
    image.close()
    volume = image.open(wrap=switch)
    before = volume.attributes(inode)
    switch.device.fail("read")
    with pytest.raises(OSError):
        volume.set_attributes(inode, size_bytes=size_bytes)
    switch.device.heal()
    assert volume.attributes(inode) == before
    assert volume.read(inode, 8192, 100) == b"y" * 100


def test_unreadable_metadata(image: Image, switch: Switch) -> None:
    """A tree that cannot be read stops one request; after an error in mid-change nothing is written any more."""
    inode = make_file(image.volume, b"f", b"x" * 100)
    for number in range(1500):
        image.volume.write(inode, number * 8192, b"y")  # a tree that must be read to be freed
    image.close()
    volume = image.open(wrap=switch)
    volume.attributes(inode)
    switch.device.fail("read")
    with pytest.raises(OSError) as caught:
        volume.read(inode, 8192, 1)
    assert caught.value.errno == errno.EIO
    assert not volume.read_only
    with pytest.raises(OSError):
        volume.unlink(ROOT_INODE, b"f")
    assert not volume.read_only
    switch.device.heal()
    make_file(volume, b"g")
    volume.sync()
    volume.quiesce()
    with pytest.raises(ZeroDivisionError), volume._guard.committing():
        _ = 1 // 0
    assert volume.read_only
    for attempt in (lambda: make_file(volume, b"h"), lambda: volume.unlink(ROOT_INODE, b"f"), volume.sync):
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == errno.EROFS
    with pytest.raises(OSError):
        volume.close()
    image.volume_or_none = None
    image.close()
    assert image.open().read(inode, 8192, 1) == b"y"


def test_random_damage_never_crashes(make_image: Callable[..., Image], rng: random.Random) -> None:
    """Flipped bytes anywhere in the metadata: every operation answers, or raises OSError."""
    image = make_image(size_bytes=16 * MIB, options=["-O", "^metadata_csum", "-b", "1024"])
    volume = image.volume
    top = volume.make_directory(ROOT_INODE, b"top", 0o755, 0, 0).inode
    for number in range(300):
        make_file(volume, b"file-%d" % number, b"x" * (number * 20), top)
    fragmented = make_file(volume, b"fragmented", b"", top)
    for number in range(300):
        volume.write(fragmented, number * 2048, b"y")
    volume.set_xattr(top, b"user.a", b"x" * 500)
    volume.make_symlink(top, b"link", b"z" * 200, 0, 0)
    image.close()
    good = image.path.read_bytes()
    metadata = [offset for offset in range(0, len(good), 512) if good[offset : offset + 512].strip(b"\0xyz")]
    for _ in range(25):
        damaged = bytearray(good)
        for _ in range(30):
            damaged[rng.choice(metadata) + rng.randrange(512)] = rng.randrange(256)
        image.path.write_bytes(damaged)
        with contextlib.suppress(OSError):
            exercise(image.open(), rng)
        if image.volume_or_none is not None:
            with contextlib.suppress(OSError):
                image.volume_or_none.close()
            image.volume_or_none = None
        image.close()
    image.path.write_bytes(good)


def exercise(volume: Volume, rng: random.Random) -> None:
    """Look at everything and change a little, whatever comes."""
    todo, seen = [ROOT_INODE], set[int]()
    while todo:
        directory = todo.pop()
        seen.add(directory)
        with contextlib.suppress(OSError):
            for entry in volume.list_directory(directory):
                with contextlib.suppress(OSError):
                    volume.list_xattrs(entry.inode)
                with contextlib.suppress(OSError):
                    volume.read(entry.inode, 0, MIB)
                with contextlib.suppress(OSError):
                    volume.read_symlink(entry.inode)
                if entry.inode not in seen and len(seen) < 50:
                    todo.append(entry.inode)
        for number in range(5):
            with contextlib.suppress(OSError):
                make_file(volume, b"new-%d" % number, b"z" * 3000, directory)
            with contextlib.suppress(OSError):
                volume.unlink(directory, b"file-%d" % rng.randrange(300))
    volume.sync()
