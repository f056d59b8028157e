"""Images with xfs: made by mkfs.xfs alone, or with trees that the kernel makes; and what is in them, from both sides.

A tree is shown as a dictionary: path -> everything that is to be seen of the file.
"""

from __future__ import annotations

import hashlib
import os
import random
import socket
import stat
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

from cowfs.blockdev import BlockDevice
from cowfs.filetree import ROOT_INODE, FileTree
from cowfs.testing.judges import SYSTEM_PATH

Shown: TypeAlias = dict[bytes, list[Any]]

IMAGE_BYTES = 320 << 20
_READ_MAX_BYTES = 1 << 20


def tool(*words: object) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": SYSTEM_PATH, "LANG": "C.UTF-8"},
    )
    assert done.returncode == 0, done
    return done.stdout


def make_image(path: Path, *options: str, tree: str | None = None, size_bytes: int = IMAGE_BYTES) -> Path:
    """A sparse file with an xfs.

    Args:
        options: of mkfs.xfs.
        tree: of a prototype of mkfs.xfs, from the entries of the root on.
    """
    with path.open("xb") as file:
        file.truncate(size_bytes)
    words = ["mkfs.xfs", "-q", "-f", *options]
    if tree is not None:
        prototype = path.with_suffix(".proto")
        prototype.write_text(f"/\n0 0\nd--755 0 0\n{tree}$\n")
        words += ["-p", str(prototype)]
    tool(*words, path)
    return path


@contextmanager
def mounted(image: Path, point: Path, options: str = "loop") -> Iterator[Path]:
    """By the kernel, for root."""
    point.mkdir(exist_ok=True)
    tool("mount", "-t", "xfs", "-o", options, image, point)
    try:
        yield point
    finally:
        tool("umount", point)


def fill(root: Path, *, names: Sequence[int] = (0, 1, 10, 1000), extents: int = 200) -> None:
    """Entries of every kind, in every form that xfs has for them."""
    rng = random.Random(1)
    (root / "empty").touch()
    (root / "small").write_bytes(b"hello\n")
    (root / "large").write_bytes(rng.randbytes(1 << 20))
    with (root / "sparse").open("wb") as file:
        file.truncate(5 << 40)
        file.seek(1 << 20)
        file.write(b"x" * 5000)
        file.seek(4 << 40)
        file.write(b"end")
    block_bytes = os.statvfs(root).f_bsize
    fd = os.open(root / "reserved", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, 1 << 20)
    os.pwrite(fd, b"middle" * 3000, 300_000)
    os.close(fd)
    fd = os.open(root / "fragments", os.O_RDWR | os.O_CREAT)
    for number in range(extents):
        os.pwrite(fd, b"%d" % number, 2 * number * block_bytes)
    os.close(fd)
    _fill_kinds(root)
    for count in names:
        _fill_directory(root / f"names-{count}", count)
    for number in range(0, 1000, 2):
        for name in (root / "names-1000").glob(f"*-{number}"):
            name.unlink()
    (root / "/".join(f"deep{number}" for number in range(30))).mkdir(parents=True)
    (root / ("n" * 255)).mkdir()
    _fill_attributes(root, rng)
    os.chown(root / "large", 70_000, 80_000)
    os.chmod(root / "large", 0o6755)
    os.utime(root / "small", ns=(123_456_789_123_456_789, 987_654_321_000_000_001))
    os.utime(root / "empty", ns=(-5 * 10**9 - 7, -(10**9) * 100_000))


def _fill_kinds(root: Path) -> None:
    os.mkfifo(root / "pipe", 0o640)
    os.mknod(root / "character", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(root / "block", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
    with socket.socket(socket.AF_UNIX) as server, suppress(OSError):  # a path may be too long for one
        server.bind(str(root / "socket"))
    (root / "link").symlink_to("small")
    (root / "link-away").symlink_to("t" * 250 + "/" + "t" * 250)
    (root / "link-longest").symlink_to("u/" * 511 + "x")
    os.link(root / "small", root / "hard")


def _fill_directory(directory: Path, count: int) -> None:
    directory.mkdir()
    for number in range(count):
        if number % 3:
            os.close(os.open(directory / f"{'y' * (number % 40)}-{number}", os.O_CREAT | os.O_WRONLY))
        else:
            (directory / f"link-{number}").symlink_to("a")


def _fill_attributes(root: Path, rng: random.Random) -> None:
    for name, values in {
        "attributes": {"user.a": b"1", "trusted.t": b"tt", "user.none": b""},
        "attributes-leaf": {f"user.leaf{number}": b"v" * (number * 7) for number in range(20)},
        "attributes-away": {"user.away": rng.randbytes(65536), "user.two": rng.randbytes(9000), "user.near": b"n"},
        "attributes-tree": {f"user.{'z' * (number % 50)}{number}": b"v" * (number % 200) for number in range(250)},
    }.items():
        (root / name).touch()
        for attribute, value in values.items():
            os.setxattr(root / name, attribute, value)
    no_id = 0xFFFFFFFF
    entries = [(1, 7, no_id), (2, 5, 1000), (4, 5, no_id), (8, 1, 50), (16, 5, no_id), (32, 0, no_id)]
    access_list = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    (root / "lists").mkdir()
    os.setxattr(root / "lists", "system.posix_acl_default", access_list)
    os.setxattr(root / "lists", "system.posix_acl_access", access_list)
    (root / "lists" / "inherits").touch()


def shown_by_kernel(root: Path) -> Shown:
    """Everything below a mount that was not read since; inode numbers of the root are left out."""
    top = os.fsencode(root)
    found: Shown = {}
    for path, directories, files in os.walk(top):
        for name in [b".", *directories, *files]:
            full = path if name == b"." else os.path.join(path, name)
            relative = os.path.relpath(full, top)
            if relative not in found:
                found[relative] = _entry_of_kernel(full, is_root=relative == b".")
    return found


def _entry_of_kernel(path: bytes, *, is_root: bool) -> list[Any]:
    found = os.lstat(path)
    names = [name for name in os.listxattr(path, follow_symlinks=False) if not name.startswith("trusted.SGI_ACL")]
    names = [name for name in names if name != "security.selinux"]
    entry: list[Any] = [
        *(found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_size, found.st_rdev, found.st_blocks),
        *(found.st_mtime_ns, found.st_ctime_ns, 0 if is_root else found.st_ino),
        sorted((os.fsencode(name), os.getxattr(path, name, follow_symlinks=False)) for name in names),
    ]
    if stat.S_ISLNK(found.st_mode):
        entry.append(os.readlink(path))
    elif stat.S_ISREG(found.st_mode):
        fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
        # What is in the page cache counts as data where blocks are reserved only.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        ranges, offset = [], 0
        with suppress(OSError):
            while True:
                begin = os.lseek(fd, offset, os.SEEK_DATA)
                offset = os.lseek(fd, begin, os.SEEK_HOLE)
                ranges.append((begin, offset))
        entry.append([(begin, end, _digest(os.pread(fd, end - begin, begin))) for begin, end in ranges])
        os.close(fd)
    return entry


def shown_by(tree: FileTree) -> Shown:
    """As `shown_by_kernel`."""
    found: Shown = {}
    pending = [(b".", ROOT_INODE)]
    while pending:
        path, inode = pending.pop()
        found[path] = _entry(tree, inode)
        if stat.S_ISDIR(found[path][0]):
            for entry in tree.list_directory(inode):
                if entry.name not in (b".", b".."):
                    assert tree.lookup(inode, entry.name).inode == entry.inode
                    pending.append((entry.name if path == b"." else path + b"/" + entry.name, entry.inode))
    return found


def _entry(tree: FileTree, inode: int) -> list[Any]:
    found = tree.attributes(inode)
    entry: list[Any] = [
        *(found.mode, found.nlink, found.uid, found.gid, found.size_bytes, found.rdev, found.blocks),
        *(found.mtime_ns, found.ctime_ns, 0 if inode == ROOT_INODE else found.inode),
        sorted((name, tree.get_xattr(inode, name)) for name in tree.list_xattrs(inode)),
    ]
    if stat.S_ISLNK(found.mode):
        entry.append(tree.read_symlink(inode))
    elif stat.S_ISREG(found.mode):
        ranges, offset = [], 0
        while (data := tree.find_data(inode, offset)) is not None:
            ranges.append((*data, _digest(tree.read(inode, data[0], data[1] - data[0]))))
            offset = data[1]
        entry.append(ranges)
    return entry


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def look_at_all(tree: FileTree) -> list[OSError]:
    """Ask for everything, as far as it can be read, without believing sizes; the errors that were raised."""
    errors: list[OSError] = []
    pending = [ROOT_INODE]
    while pending:
        inode = pending.pop()
        try:
            mode = tree.attributes(inode).mode
        except OSError as error:
            errors.append(error)
            continue
        try:
            for name in tree.list_xattrs(inode):
                tree.get_xattr(inode, name)
            if stat.S_ISLNK(mode):
                tree.read_symlink(inode)
            elif stat.S_ISREG(mode):
                offset, count = 0, 0
                while (data := tree.find_data(inode, offset)) is not None and count < 1000:
                    tree.read(inode, data[0], min(data[1] - data[0], _READ_MAX_BYTES))
                    offset, count = data[1], count + 1
            elif stat.S_ISDIR(mode):
                entries = tree.list_directory(inode)
                pending.extend(entry.inode for entry in entries if entry.name not in (b".", b".."))
        except OSError as error:
            errors.append(error)
    with suppress(OSError):
        tree.statistics()
    return errors


class FlippedDevice:
    """A device that reads with some bytes changed; checksums count as those of parts that a log replaced.

    `asked`: the ranges that were read, (offset, length). A reader that never ends is stopped.
    """

    def __init__(self, device: BlockDevice, flips: dict[int, int], *, hides_checksums: bool = False) -> None:
        self._device = device
        self._flips = flips
        self._hides_checksums = hides_checksums
        self.asked: list[tuple[int, int]] = []
        self.asked_max = 200_000

    @property
    def size_bytes(self) -> int:
        return self._device.size_bytes

    def pread(self, offset: int, length: int) -> bytes:
        self.asked.append((offset, length))
        assert len(self.asked) < self.asked_max, "the reader does not end"
        data = self._device.pread(offset, length)
        inside = [at for at in self._flips if offset <= at < offset + length]
        if not inside:
            return data
        changed = bytearray(data)
        for at in inside:
            changed[at - offset] ^= self._flips[at]
        return bytes(changed)

    def is_replayed(self, offset: int, length: int) -> bool:
        del offset, length
        return self._hides_checksums

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)
