"""Reading xfs in images by mkfs.xfs and xfs_db, for which no root is needed; the kernel's are in `test_kernel`."""

from __future__ import annotations

import errno
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowfs.blockdev import FileDevice
from cowfs.errors import FilesystemError
from cowfs.filetree import ROOT_INODE
from cowfs.xfs.format.superblock import checksum
from cowfs.xfs.volume import XfsVolume
from tests.xfs.images import FlippedDevice, look_at_all, make_image, shown_by, tool

FORMATS = {
    "version 5": (),
    "version 5, small blocks": ("-b", "size=1024", "-n", "size=4096", "-d", "agcount=3"),
    "version 4": ("-m", "crc=0,finobt=0", "-n", "ftype=0", "-i", "size=256"),
}
NAMES = 150
FLIPS = 12


def prototype(folder: Path, target: str) -> str:
    (folder / "content").write_bytes(b"content of a file\n" * 1000)
    content = folder / "content"
    lines = [
        f"file ---644 1 2 {content}",
        f"program -ug755 3 4 {content}",
        "link l--777 5 6 file",
        f"away l--777 0 0 {target}",
        "pipe p--640 0 0",
        "character c--600 0 0 1 3",
        "below d--750 7 8",
        f"again ---600 0 0 {content}",
        "$",
        "many d--755 0 0",
        *(f"{'n' * (number % 30)}-{number} l--777 0 0 target" for number in range(NAMES)),
        "$",
    ]
    return "".join(f"{line}\n" for line in lines)


@pytest.fixture(scope="module", params=FORMATS)
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, needs_mkfs_xfs: None) -> Path:
    folder = tmp_path_factory.mktemp("xfs")
    # mkfs.xfs writes targets that are not in the inode without the header of version 5.
    (folder / "target").write_text("t" * (600 if request.param == "version 4" else 150))
    prototype_text = prototype(folder, (folder / "target").read_text())
    made = make_image(folder / "image", *FORMATS[request.param], tree=prototype_text)
    inode = tool("xfs_db", "-r", "-c", "path /file", "-c", "print v3.inumber", made) if "5" in request.param else ""
    number = inode.partition("= ")[2].strip()
    if number:
        commands = [f"attr_set -v {length} large{length}" for length in (10, 3000, 40_000)]
        tool("xfs_db", "-x", *(word for one in (f"inode {number}", *commands) for word in ("-c", one)), made)
    return made


@pytest.fixture
def volume(image: Path) -> Iterator[XfsVolume]:
    device = FileDevice(image, read_only=True)
    yield XfsVolume.open(device)
    device.close()


def test_files_are_as_they_were_made(image: Path, volume: XfsVolume) -> None:
    shown = shown_by(volume)
    content = (image.parent / "content").read_bytes()
    names = [b"file", b"program", b"link", b"away", b"pipe", b"character", b"below", b"many"]
    assert set(shown) == {
        *(b".", *names, b"below/again"),
        *(b"many/" + b"n" * (number % 30) + b"-%d" % number for number in range(NAMES)),
    }
    kinds = {
        b"file": (stat.S_IFREG | 0o644, 1, 1, 2),
        b"program": (stat.S_IFREG | 0o6755, 1, 3, 4),
        b"link": (stat.S_IFLNK | 0o777, 1, 5, 6),
        b"pipe": (stat.S_IFIFO | 0o640, 1, 0, 0),
        b"character": (stat.S_IFCHR | 0o600, 1, 0, 0),
        b"below": (stat.S_IFDIR | 0o750, 2, 7, 8),
    }
    assert {name: tuple(shown[name][:4]) for name in kinds} == kinds
    assert shown[b"character"][5] == 0x103
    assert shown[b"away"][-1] == (image.parent / "target").read_bytes()
    for name in (b"file", b"below/again"):
        parent, _, last = name.rpartition(b"/")
        directory = volume.lookup(ROOT_INODE, parent).inode if parent else ROOT_INODE
        found = volume.lookup(directory, last)
        assert volume.read(found.inode, 0, 1 << 20) == content
        assert volume.read(found.inode, 17, 5) == content[17:22]
        assert volume.read(found.inode, len(content), 5) == b""
    for name, value in shown[b"file"][10]:
        assert name.startswith(b"user.large")
        assert len(value) == int(name.removeprefix(b"user.large"))


def test_directories_are_listed_from_any_place(volume: XfsVolume) -> None:
    directory = volume.lookup(ROOT_INODE, b"many").inode
    whole = list(volume.list_directory(directory))
    assert [entry.name for entry in whole[:2]] == [b".", b".."]
    assert [entry.inode for entry in whole[:2]] == [directory, ROOT_INODE]
    for at in (0, 1, 2, 100, len(whole) - 1):
        assert list(volume.list_directory(directory, whole[at].cookie)) == whole[at + 1 :]
    assert volume.lookup(directory, b"..").inode == ROOT_INODE
    assert volume.lookup(ROOT_INODE, b"..").inode == ROOT_INODE
    assert volume.find_name(ROOT_INODE, b"missing") is None


def test_nothing_can_be_changed(volume: XfsVolume) -> None:
    file = volume.lookup(ROOT_INODE, b"file").inode
    changes: list[Callable[[], object]] = [
        lambda: volume.write(file, 0, b"x"),
        lambda: volume.set_attributes(file, mode=0o600),
        lambda: volume.make_node(ROOT_INODE, b"new", 0o100644, 0, 0),
        lambda: volume.make_directory(ROOT_INODE, b"new", 0o755, 0, 0),
        lambda: volume.make_symlink(ROOT_INODE, b"new", b"x", 0, 0),
        lambda: volume.restore(ROOT_INODE, b"new", 0o100644, 0, 0),
        lambda: volume.link(file, ROOT_INODE, b"new"),
        lambda: volume.unlink(ROOT_INODE, b"file"),
        lambda: volume.remove_directory(ROOT_INODE, b"below"),
        lambda: volume.rename(ROOT_INODE, b"file", ROOT_INODE, b"new"),
        lambda: volume.set_xattr(file, b"user.x", b""),
        lambda: volume.remove_xattr(file, b"user.x"),
    ]
    assert volume.read_only
    for change in changes:
        with pytest.raises(OSError, match="Read-only") as caught:
            change()
        assert caught.value.errno == errno.EROFS


@pytest.mark.parametrize(
    ("ask", "number"),
    [
        (lambda volume, _: volume.lookup(ROOT_INODE, b"missing"), errno.ENOENT),
        (lambda volume, _: volume.lookup(ROOT_INODE, b"n" * 256), errno.ENAMETOOLONG),
        (lambda volume, file: volume.lookup(file, b"x"), errno.ENOTDIR),
        (lambda volume, file: list(volume.list_directory(file)), errno.ENOTDIR),
        (lambda volume, file: volume.read_symlink(file), errno.EINVAL),
        (lambda volume, _: volume.read(ROOT_INODE, 0, 1), errno.EISDIR),
        (lambda volume, file: volume.read(file, -1, 1), errno.EINVAL),
        (lambda volume, file: volume.get_xattr(file, b"user.missing"), errno.ENODATA),
        (lambda volume, _: volume.attributes(1 << 60), errno.ESTALE),
    ],
)
def test_what_cannot_be_answered(volume: XfsVolume, ask: Callable[[XfsVolume, int], object], number: int) -> None:
    file = volume.lookup(ROOT_INODE, b"file").inode
    with pytest.raises(OSError) as caught:
        ask(volume, file)
    assert caught.value.errno == number


# --- damage


def changed(image: Path, at: int, value: bytes) -> FlippedDevice:
    device = FileDevice(image, read_only=True)
    old = device.pread(at, len(value))
    return FlippedDevice(device, {at + index: old[index] ^ byte for index, byte in enumerate(value)})


def with_superblock(image: Path, at: int, value: bytes) -> FlippedDevice:
    """A changed superblock with its checksum."""
    device = FileDevice(image, read_only=True)
    raw = bytearray(device.pread(0, 512))
    raw[at : at + len(value)] = value
    if raw[101] & 0xF == 5:
        raw[224:228] = checksum(bytes(raw), 224).to_bytes(4, "little")
    return changed(image, 0, bytes(raw))


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (0, b"none", "there is no xfs"),
        (4, (3000).to_bytes(4, "big"), "sizes that do not go together"),
        (8, (1 << 40).to_bytes(8, "big"), "sizes that do not go together"),
        (84, bytes(4), "sizes that do not go together"),
        (100, b"\x00\x03", "version 3 is not supported"),
        (126, b"\x01", "mkfs.xfs was interrupted"),
        (56, (1 << 62).to_bytes(8, "big"), "sizes that do not go together"),
    ],
)
def test_a_superblock_that_cannot_be(image: Path, at: int, value: bytes, reason: str) -> None:
    with pytest.raises(FilesystemError, match=reason):
        XfsVolume.open(with_superblock(image, at, value))


def test_a_wrong_checksum_names_structure_and_place(image: Path, volume: XfsVolume) -> None:
    names = FlippedDevice(FileDevice(image, read_only=True), {})
    directory = volume.lookup(ROOT_INODE, b"many").inode
    reader = XfsVolume.open(names)
    reader.attributes(directory)
    names.asked.clear()
    list(reader.list_directory(directory))
    at = names.asked[0][0]
    with pytest.raises(FilesystemError) as caught:
        list(XfsVolume.open(changed(image, at + 200, b"\xff\x00\xff")).list_directory(directory))
    assert caught.value.errno == errno.EUCLEAN
    if volume._sb.has_checksums:
        assert "of allocation group" in caught.value.message
        assert f"a block of names of inode {directory}: wrong checksum" in caught.value.message


def test_a_directory_in_itself_is_not_followed(image: Path, volume: XfsVolume) -> None:
    """The name `below` leads to the root: a walk would never end."""
    below = volume.lookup(ROOT_INODE, b"below").inode
    device = FileDevice(image, read_only=True)
    reader = FlippedDevice(device, {})
    list(XfsVolume.open(reader).list_directory(ROOT_INODE))
    # The number stands before the name in a block, and behind it, and perhaps behind a type, in an inode.
    wrong = below ^ int.from_bytes(device.pread(56, 8), "big")
    flips: dict[int, int] = {}
    for offset, length in reader.asked:
        data = device.pread(offset, length)
        name = data.find(b"below")
        for end in (name - 1, name + 9, name + 10):
            if name > 0 and data[end - 4 : end] == below.to_bytes(4, "big"):
                flips |= {offset + end - 1 - byte: wrong >> 8 * byte & 0xFF for byte in range(4)}
    errors = look_at_all(XfsVolume.open(FlippedDevice(device, flips, hides_checksums=True)))
    assert any("has a name in itself" in str(error) for error in errors), errors


def test_flipped_bytes_raise_errors_and_nothing_else(image: Path, request: pytest.FixtureRequest) -> None:
    """Of metadata that a look at everything reads. Also with checksums that seem right."""
    device = FileDevice(image, read_only=True)
    sound = FlippedDevice(device, {})
    assert look_at_all(XfsVolume.open(sound)) == []
    places = sorted({(offset, length) for offset, length in sound.asked if length <= 4096})
    rng = random.Random(request.node.name)
    damaged = 0
    for _ in range(FLIPS):
        flips = {}
        for _ in range(rng.choice((1, 1, 4))):
            offset, length = rng.choice(places)
            flips[offset + rng.randrange(min(length, rng.choice((64, length))))] = rng.choice(
                (1, 0x80, 0xFF, rng.randrange(1, 256))
            )
        try:
            errors = look_at_all(XfsVolume.open(FlippedDevice(device, flips, hides_checksums=True), rescue=True))
        except FilesystemError:
            damaged += 1
        else:
            damaged += bool(errors)
    assert damaged
    device.close()
