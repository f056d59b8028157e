"""What a mounted file tree must do: numbered cases, each given an empty directory in it.

Run them over any directory, for comparison also of another file system, with `python -m tests.kit.posix DIR [ID...]`;
as an ordinary user those that need root are left out.

Left out because FUSE through pyfuse3 has no request for it: fallocate, SEEK_HOLE, O_TMPFILE.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import random
import shutil
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from cowfs.testing.cases import Case, Cases
from cowfs.testing.running import run_cases


@dataclass(frozen=True, slots=True)
class PosixCase(Case[Path]):
    """One thing that a mounted file tree does in an empty directory of it."""

    needs_root: bool = False


CASES: Final[Cases[PosixCase]] = Cases()

_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
_RENAME_WHITEOUT: Final = 4
_OTHER_UID: Final = 65534
_libc = ctypes.CDLL(None, use_errno=True)


def _case(number: int, *, needs_root: bool = False) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def register(run: Callable[[Path], None]) -> Callable[[Path], None]:
        CASES.add(PosixCase(f"posix-{number}", run, needs_root=needs_root))
        return run

    return register


@contextlib.contextmanager
def _fails(*numbers: int) -> Iterator[None]:
    """The block fails with one of these errno."""
    wanted = " or ".join(errno.errorcode[number] for number in numbers)
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise AssertionError(f"failed with {error}, not with {wanted}") from error
    else:
        raise AssertionError(f"did not fail with {wanted}")


@contextlib.contextmanager
def _opened(path: Path, flags: int, mode: int = 0o644) -> Iterator[int]:
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def _renameat2(source: Path, target: Path, flags: int) -> None:
    at_fdcwd = -100
    if _libc.renameat2(at_fdcwd, os.fsencode(source), at_fdcwd, os.fsencode(target), flags) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


# Content.


@_case(1)
def write_and_read_back(root: Path) -> None:
    data = random.Random(1).randbytes(3_000_001)
    (root / "f").write_bytes(data)
    assert (root / "f").read_bytes() == data
    assert (root / "f").stat().st_size == len(data)


@_case(2)
def random_writes_match_a_model(root: Path) -> None:
    rng = random.Random(2)
    model = bytearray(1 << 20)
    with _opened(root / "f", os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, len(model))
        for _ in range(200):
            offset, length = rng.randrange(len(model)), rng.randrange(1, 40_000)
            data = rng.randbytes(min(length, len(model) - offset))
            model[offset : offset + len(data)] = data
            assert os.pwrite(fd, data, offset) == len(data)
            begin = rng.randrange(len(model))
            assert os.pread(fd, 5000, begin) == model[begin : begin + 5000]
        os.fsync(fd)
    assert (root / "f").read_bytes() == model


@_case(3)
def mixed_operations_match_a_model(root: Path) -> None:
    """Reads, writes, truncations and mapped accesses through several descriptors, all seeing the same bytes."""
    rng = random.Random(3)
    model = bytearray()
    path = root / "f"
    with contextlib.ExitStack() as stack:
        fds = [stack.enter_context(_opened(path, os.O_RDWR | os.O_CREAT)) for _ in range(3)]
        for step in range(400):
            fd, offset = rng.choice(fds), rng.randrange(300_000)
            action = rng.choice(["write", "write", "read", "truncate", "map", "stat"])
            if action == "write":
                data = rng.randbytes(rng.randrange(1, 70_000))
                model.extend(bytes(max(0, offset + len(data) - len(model))))
                model[offset : offset + len(data)] = data
                assert os.pwrite(fd, data, offset) == len(data)
            elif action == "read":
                length = rng.randrange(1, 140_000)
                assert os.pread(fd, length, offset) == model[offset : offset + length], f"read differs at step {step}"
            elif action == "truncate":
                del model[offset:]
                model.extend(bytes(offset - len(model)))
                os.ftruncate(fd, offset)
            elif action == "map" and model:
                with mmap.mmap(fd, len(model)) as mapped:
                    assert mapped[:] == model, f"mapping differs at step {step}"
                    begin = rng.randrange(len(model))
                    model[begin : begin + 5000] = mapped[begin : begin + 5000] = rng.randbytes(
                        len(model[begin : begin + 5000])
                    )
            else:
                assert os.fstat(fd).st_size == len(model)
    assert path.read_bytes() == model


@_case(4)
def append_goes_to_the_end(root: Path) -> None:
    with _opened(root / "f", os.O_WRONLY | os.O_CREAT | os.O_APPEND) as first:
        with _opened(root / "f", os.O_WRONLY | os.O_APPEND) as second:
            for number in range(50):
                os.write(first, b"a%03d" % number)
                os.write(second, b"b%03d" % number)
        os.ftruncate(first, 8)
        os.write(first, b"end")
    assert (root / "f").read_bytes() == b"a000b000end"


@_case(5)
def sparse_file_reads_zeros_and_takes_no_space(root: Path) -> None:
    with _opened(root / "f", os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"begin", 0)
        os.pwrite(fd, b"end", 100 << 20)
        assert os.pread(fd, 10, (50 << 20) - 5) == bytes(10)
        assert os.pread(fd, 100, (100 << 20) - 3) == b"\0\0\0end"
        os.fsync(fd)
        status = os.fstat(fd)
    assert status.st_size == (100 << 20) + 3
    assert status.st_blocks * 512 < 2 << 20


@_case(6)
def offsets_beyond_four_gib(root: Path) -> None:
    offsets = [(1 << 31) - 3, (1 << 32) - 3, (5 << 30) + 1]
    with _opened(root / "f", os.O_RDWR | os.O_CREAT) as fd:
        for number, offset in enumerate(offsets):
            os.pwrite(fd, b"mark%d" % number, offset)
        for number, offset in enumerate(offsets):
            assert os.pread(fd, 5, offset) == b"mark%d" % number
        assert os.fstat(fd).st_size == offsets[-1] + 5
        os.ftruncate(fd, 1 << 32)
        assert os.pread(fd, 10, (1 << 32) - 3) == b"mar"
    (root / "f").unlink()


@_case(7)
def truncate_cuts_and_extends_with_zeros(root: Path) -> None:
    path = root / "f"
    path.write_bytes(b"x" * 10_000)
    os.truncate(path, 5_000)
    assert path.read_bytes() == b"x" * 5_000
    os.truncate(path, 20_000)
    assert path.read_bytes() == b"x" * 5_000 + bytes(15_000)
    os.truncate(path, 0)
    assert path.read_bytes() == b""
    with _fails(errno.EINVAL):
        os.truncate(path, -1)
    with _fails(errno.EISDIR):
        os.truncate(root, 0)


@_case(8)
def open_truncates(root: Path) -> None:
    path = root / "f"
    path.write_bytes(b"old content")
    with _opened(path, os.O_WRONLY | os.O_TRUNC) as fd:
        assert os.fstat(fd).st_size == 0
        os.write(fd, b"new")
    assert path.read_bytes() == b"new"


@_case(9)
def shared_mmap_reaches_the_file(root: Path) -> None:
    path = root / "f"
    path.write_bytes(bytes(3 * mmap.PAGESIZE))
    with _opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 0) as mapped:
        mapped[mmap.PAGESIZE : mmap.PAGESIZE + 5] = b"hello"
        mapped.flush()
        assert os.pread(fd, 5, mmap.PAGESIZE) == b"hello"
        os.pwrite(fd, b"world", 2 * mmap.PAGESIZE)
        assert mapped[2 * mmap.PAGESIZE : 2 * mmap.PAGESIZE + 5] == b"world"
    assert path.read_bytes()[mmap.PAGESIZE : mmap.PAGESIZE + 5] == b"hello"


@_case(10)
def private_mmap_stays_private(root: Path) -> None:
    path = root / "f"
    path.write_bytes(b"original")
    with _opened(path, os.O_RDONLY) as fd, mmap.mmap(fd, 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[:4] = b"COPY"
    assert path.read_bytes() == b"original"


@_case(11)
def direct_reads_and_writes(root: Path) -> None:
    with _opened(root / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT) as fd, mmap.mmap(-1, 1 << 16) as buffer:
        buffer[:] = bytes(range(256)) * 256
        assert os.pwritev(fd, [buffer], 1 << 16) == len(buffer)
        buffer[:] = bytes(len(buffer))
        assert os.preadv(fd, [buffer], 1 << 16) == len(buffer)
        assert buffer[:] == bytes(range(256)) * 256
    assert (root / "f").read_bytes() == bytes(1 << 16) + bytes(range(256)) * 256


@_case(12)
def fsync_files_and_directories(root: Path) -> None:
    with _opened(root / "f", os.O_WRONLY | os.O_CREAT) as fd:
        os.write(fd, b"x")
        os.fsync(fd)
        os.fdatasync(fd)
    with _opened(root, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)
    with _opened(root / "f", os.O_RDONLY) as fd:
        os.fsync(fd)


@_case(13)
def vectors_and_copy_file_range(root: Path) -> None:
    with _opened(root / "a", os.O_RDWR | os.O_CREAT) as source, _opened(root / "b", os.O_RDWR | os.O_CREAT) as target:
        os.pwritev(source, [b"one", b"two" * 1000, b"three"], 7)
        assert os.pread(source, 10, 0) == bytes(7) + b"one"
        copied = 0
        while count := os.copy_file_range(source, target, 1 << 20, copied, copied):
            copied += count
    assert (root / "a").read_bytes() == (root / "b").read_bytes()


# Names.


@_case(14)
def exclusive_create(root: Path) -> None:
    with _opened(root / "f", os.O_WRONLY | os.O_CREAT | os.O_EXCL):
        pass
    with _fails(errno.EEXIST):
        os.open(root / "f", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.symlink("nowhere", root / "l")
    with _fails(errno.EEXIST):
        os.open(root / "l", os.O_WRONLY | os.O_CREAT | os.O_EXCL)


@_case(15)
def errors_of_names(root: Path) -> None:
    (root / "f").touch()
    (root / "d").mkdir()
    with _fails(errno.ENOENT):
        os.stat(root / "missing")
    with _fails(errno.ENOTDIR):
        os.stat(root / "f" / "x")
    with _fails(errno.EEXIST):
        os.mkdir(root / "f")
    with _fails(errno.EISDIR):
        os.open(root / "d", os.O_WRONLY)
    with _fails(errno.EISDIR, errno.EPERM):
        os.unlink(root / "d")
    with _fails(errno.ENOTDIR):
        os.rmdir(root / "f")
    with _fails(errno.ENAMETOOLONG):
        os.mkdir(root / ("n" * 256))
    (root / ("n" * 255)).touch()
    assert ("n" * 255) in os.listdir(root)


@_case(16)
def names_are_bytes(root: Path) -> None:
    names = [b"sp ace", b"new\nline", b"\xff\xfe", "gr\u00fc\u00df".encode(), b"back\\slash", b"-dash", b"..."]
    for name in names:
        os.close(os.open(os.fsencode(root) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    assert sorted(os.listdir(os.fsencode(root))) == sorted(names)


@_case(17)
def missing_names_appear(root: Path) -> None:
    for number in range(20):
        path = root / f"f{number}"
        assert not path.exists()
        path.write_text("now")
        assert path.exists()
        path.unlink()
        assert not path.exists()


@_case(18)
def hard_links_share_everything(root: Path) -> None:
    (root / "a").write_text("one")
    os.link(root / "a", root / "b")
    a, b = os.stat(root / "a"), os.stat(root / "b")
    assert (a.st_ino, a.st_nlink) == (b.st_ino, 2)
    (root / "b").write_text("two")
    assert (root / "a").read_text() == "two"
    (root / "a").unlink()
    assert os.stat(root / "b").st_nlink == 1
    (root / "d").mkdir()
    with _fails(errno.EPERM):
        os.link(root / "d", root / "e")
    with _fails(errno.EEXIST):
        os.link(root / "b", root / "d")


@_case(19)
def symbolic_links(root: Path) -> None:
    for length in (1, 59, 60, 61, 1000, 4095):
        path = root / f"l{length}"
        os.symlink("t" * length, path)
        assert os.readlink(path) == "t" * length
        assert os.lstat(path).st_size == length
        assert stat.S_ISLNK(os.lstat(path).st_mode)
    (root / "f").write_text("through")
    os.symlink("f", root / "good")
    assert (root / "good").read_text() == "through"
    os.symlink("loop", root / "loop")
    with _fails(errno.ELOOP):
        os.stat(root / "loop")
    with _fails(errno.EINVAL):
        os.readlink(root / "f")


@_case(20)
def directories_count_their_links(root: Path) -> None:
    (root / "d").mkdir()
    assert os.stat(root / "d").st_nlink == 2
    for number in range(5):
        (root / "d" / str(number)).mkdir()
    assert os.stat(root / "d").st_nlink == 7
    os.rmdir(root / "d" / "0")
    os.rename(root / "d" / "1", root / "moved")
    assert os.stat(root / "d").st_nlink == 5
    with _fails(errno.ENOTEMPTY):
        os.rmdir(root / "d")


# Rename.


@_case(21)
def rename_replaces_atomically(root: Path) -> None:
    (root / "a").write_text("a")
    (root / "b").write_text("b")
    with _opened(root / "b", os.O_RDONLY) as replaced:
        os.rename(root / "a", root / "b")
        assert (root / "b").read_text() == "a"
        assert not (root / "a").exists()
        assert os.pread(replaced, 10, 0) == b"b"
        assert os.fstat(replaced).st_nlink == 0


@_case(22)
def rename_of_the_same_file_does_nothing(root: Path) -> None:
    (root / "a").write_text("a")
    os.rename(root / "a", root / "a")
    os.link(root / "a", root / "b")
    os.rename(root / "a", root / "b")
    assert sorted(os.listdir(root)) == ["a", "b"]


@_case(23)
def rename_without_replacing(root: Path) -> None:
    (root / "a").write_text("a")
    (root / "b").write_text("b")
    with _fails(errno.EEXIST):
        _renameat2(root / "a", root / "b", _RENAME_NOREPLACE)
    _renameat2(root / "a", root / "c", _RENAME_NOREPLACE)
    assert sorted(os.listdir(root)) == ["b", "c"]


@_case(24)
def rename_exchanges(root: Path) -> None:
    (root / "d").mkdir()
    (root / "d" / "inside").write_text("inside")
    (root / "e").mkdir()
    (root / "e" / "f").write_text("file")
    _renameat2(root / "d", root / "e" / "f", _RENAME_EXCHANGE)
    assert (root / "d").read_text() == "file"
    assert (root / "e" / "f" / "inside").read_text() == "inside"
    assert os.stat(root / "e").st_nlink == 3
    assert os.stat(root / "e" / "f" / "..").st_ino == os.stat(root / "e").st_ino
    with _fails(errno.ENOENT):
        _renameat2(root / "d", root / "missing", _RENAME_EXCHANGE)
    with _fails(errno.EINVAL):
        _renameat2(root / "d", root / "e", _RENAME_EXCHANGE | _RENAME_NOREPLACE)


@_case(25)
def rename_leaves_a_whiteout(root: Path) -> None:
    for name in ("f", "full", "replaced"):
        (root / name).write_text(name)
    (root / "d" / "inside").mkdir(parents=True)
    _renameat2(root / "f", root / "d" / "moved", _RENAME_WHITEOUT)
    _renameat2(root / "full", root / "replaced", _RENAME_WHITEOUT)
    _renameat2(root / "d", root / "e", _RENAME_WHITEOUT | _RENAME_NOREPLACE)
    for name in ("f", "full", "d"):
        left = os.lstat(root / name)
        assert (stat.S_IFMT(left.st_mode), left.st_rdev, left.st_nlink) == (stat.S_IFCHR, 0, 1)
        assert (left.st_uid, left.st_gid) == (os.geteuid(), os.getegid())
    assert (root / "e" / "moved").read_text() == "f"
    assert (root / "replaced").read_text() == "full"
    with _fails(errno.EEXIST):
        _renameat2(root / "replaced", root / "e", _RENAME_WHITEOUT | _RENAME_NOREPLACE)
    with _fails(errno.EINVAL):
        _renameat2(root / "replaced", root / "e", _RENAME_WHITEOUT | _RENAME_EXCHANGE)
    assert sorted(os.listdir(root)) == ["d", "e", "f", "full", "replaced"]


@_case(26)
def rename_of_directories(root: Path) -> None:
    for name in ("a", "a/sub", "full", "full/x", "empty"):
        (root / name).mkdir()
    (root / "f").touch()
    with _fails(errno.ENOTEMPTY, errno.EEXIST):
        os.rename(root / "a", root / "full")
    with _fails(errno.ENOTDIR):
        os.rename(root / "a", root / "f")
    with _fails(errno.EISDIR):
        os.rename(root / "f", root / "a")
    with _fails(errno.EINVAL):
        os.rename(root / "a", root / "a" / "sub" / "x")
    os.rename(root / "a", root / "empty")
    assert (root / "empty" / "sub").is_dir()
    os.rename(root / "empty" / "sub", root / "full" / "sub")
    assert os.stat(root / "full" / "sub" / "..").st_ino == os.stat(root / "full").st_ino


# Life without a name.


@_case(27)
def unlinked_file_lives_until_closed(root: Path) -> None:
    path = root / "f"
    with _opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"before")
        path.unlink()
        assert os.listdir(root) == []
        assert os.fstat(fd).st_nlink == 0
        os.pwrite(fd, b"x" * 100_000, 6)
        os.ftruncate(fd, 50_000)
        os.fchmod(fd, 0o600)
        assert os.pread(fd, 100_000, 0) == b"before" + b"x" * 49_994
        path.write_text("another")
        assert os.fstat(fd).st_ino != os.stat(path).st_ino
        assert os.pread(fd, 6, 0) == b"before"
    assert path.read_text() == "another"


@_case(28)
def removed_directory_lives_while_open(root: Path) -> None:
    (root / "d").mkdir()
    with _opened(root / "d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.rmdir(root / "d")
        assert os.fstat(fd).st_nlink == 0
        assert os.listdir(fd) == []
        with _fails(errno.ENOENT):
            os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd)


@_case(29)
def inodes_are_used_again_without_confusion(root: Path) -> None:
    for number in range(100):
        path = root / "f"
        path.write_text(f"content {number}")
        os.symlink(str(number), root / "l")
        assert path.read_text() == f"content {number}"
        assert os.readlink(root / "l") == str(number)
        path.unlink()
        (root / "l").unlink()
        path.mkdir()
        path.rmdir()


# Directories.


@_case(30)
def listing_of_many_entries(root: Path) -> None:
    names = {f"entry-{number:04d}-{'x' * (number % 60)}" for number in range(1500)}
    for name in names:
        (root / name).touch()
    assert set(os.listdir(root)) == names
    with os.scandir(root) as entries:
        assert all(entry.is_file(follow_symlinks=False) for entry in entries)


@_case(31)
def listing_while_deleting(root: Path) -> None:
    names = [f"f{number:04d}" for number in range(600)]
    for name in names:
        (root / name).touch()
    seen = []
    with os.scandir(root) as entries:
        for entry in entries:
            seen.append(entry.name)
            os.unlink(entry.path)
    assert sorted(seen) == names
    assert os.listdir(root) == []


@_case(32)
def listing_while_creating(root: Path) -> None:
    """Entries that are there all the time are seen exactly once."""
    names = {f"old{number:04d}" for number in range(300)}
    for name in names:
        (root / name).touch()
    seen: list[str] = []
    with os.scandir(root) as entries:
        for entry in entries:
            seen.append(entry.name)
            if len(seen) <= 200:
                (root / f"new{len(seen):04d}").touch()
    assert sorted(name for name in seen if name in names) == sorted(names)
    assert len(seen) == len(set(seen))


@_case(33)
def deep_directories(root: Path) -> None:
    path = root
    for number in range(60):
        path = path / f"d{number}"
        path.mkdir()
    (path / "f").write_text("deep")
    assert (path / "f").read_text() == "deep"
    shutil.rmtree(root / "d0")


# Attributes.


@_case(34)
def times_in_nanoseconds(root: Path) -> None:
    path = root / "f"
    path.touch()
    for times in ((1, 999_999_999), (1_234_567_890_123_456_789, 1_600_000_000_000_000_001)):
        os.utime(path, ns=times)
        status = os.stat(path)
        assert (status.st_atime_ns, status.st_mtime_ns) == times
    os.symlink("f", root / "l")
    os.utime(root / "l", ns=(5, 6), follow_symlinks=False)
    assert os.lstat(root / "l").st_mtime_ns == 6
    assert os.stat(path).st_mtime_ns == 1_600_000_000_000_000_001


@_case(35)
def times_follow_changes(root: Path) -> None:
    path = root / "f"
    path.write_text("x")
    (root / "d").mkdir()

    def changed(what: Path, action: Callable[[], object]) -> set[str]:
        before = os.lstat(what)
        _tick()
        action()
        after = os.lstat(what)
        return {
            name for name in ("mtime", "ctime") if getattr(after, f"st_{name}_ns") > getattr(before, f"st_{name}_ns")
        }

    assert changed(path, lambda: path.write_text("y")) == {"mtime", "ctime"}
    assert changed(path, lambda: os.truncate(path, 0)) == {"mtime", "ctime"}
    assert changed(path, lambda: os.truncate(path, 100)) == {"mtime", "ctime"}
    assert changed(path, lambda: os.chmod(path, 0o600)) == {"ctime"}
    assert changed(path, lambda: os.link(path, root / "g")) == {"ctime"}
    assert changed(path, lambda: os.unlink(root / "g")) == {"ctime"}
    assert changed(path, lambda: os.setxattr(path, "user.x", b"1")) == {"ctime"}
    assert changed(path, path.read_bytes) == set()
    assert changed(root / "d", (root / "d" / "new").touch) == {"mtime", "ctime"}
    assert changed(root / "d", lambda: (root / "d" / "new").write_text("content")) == set()
    assert changed(root / "d", (root / "d" / "new").unlink) == {"mtime", "ctime"}
    before = os.stat(path).st_ctime_ns
    _tick()
    os.rename(path, root / "d" / "f")
    assert os.stat(root / "d" / "f").st_ctime_ns > before


def _tick() -> None:
    """Let the clock move on by more than the coarsest time stamp of a kernel."""
    time.sleep(0.02)


@_case(36)
def modes_change(root: Path) -> None:
    path = root / "f"
    path.touch()
    for mode in (0o000, 0o777, 0o4755, 0o1600, 0o644):
        os.chmod(path, mode)
        assert stat.S_IMODE(os.stat(path).st_mode) == mode
    (root / "d").mkdir(mode=0o700)
    os.chmod(root / "d", 0o1777)
    assert stat.S_IMODE(os.stat(root / "d").st_mode) == 0o1777


@_case(37)
def umask_applies(root: Path) -> None:
    old = os.umask(0o027)
    try:
        os.close(os.open(root / "f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(root / "d", 0o777)
        os.mkfifo(root / "p", 0o666)
    finally:
        os.umask(old)
    modes = [stat.S_IMODE(os.stat(root / name).st_mode) for name in "fdp"]
    assert modes == [0o640, 0o750, 0o640]


@_case(38)
def setgid_directories_hand_down_their_group(root: Path) -> None:
    (root / "d").mkdir()
    os.chmod(root / "d", 0o2775)
    (root / "d" / "sub").mkdir()
    (root / "d" / "f").touch()
    assert os.stat(root / "d" / "sub").st_mode & stat.S_ISGID
    assert not os.stat(root / "d" / "f").st_mode & stat.S_ISGID
    assert os.stat(root / "d" / "f").st_gid == os.stat(root / "d").st_gid


@_case(39)
def fifos_and_sockets(root: Path) -> None:
    os.mkfifo(root / "p")
    assert stat.S_ISFIFO(os.lstat(root / "p").st_mode)
    with _opened(root / "p", os.O_RDWR) as fd:
        os.write(fd, b"through")
        assert os.read(fd, 10) == b"through"
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(f"/proc/self/fd/{directory}/s")
        server.listen()
        client.connect(f"/proc/self/fd/{directory}/s")
    os.close(directory)
    assert stat.S_ISSOCK(os.lstat(root / "s").st_mode)


@_case(40)
def extended_attributes(root: Path) -> None:
    path = root / "f"
    path.touch()
    (root / "d").mkdir()
    for target in (path, root / "d"):
        assert os.listxattr(target) == []
        os.setxattr(target, "user.one", b"1")
        os.setxattr(target, "user.empty", b"")
        os.setxattr(target, "user.binary", bytes(range(256)))
        assert sorted(os.listxattr(target)) == ["user.binary", "user.empty", "user.one"]
        assert os.getxattr(target, "user.binary") == bytes(range(256))
        assert os.getxattr(target, "user.empty") == b""
        with _fails(errno.EEXIST):
            os.setxattr(target, "user.one", b"2", os.XATTR_CREATE)
        os.setxattr(target, "user.one", b"2" * 500, os.XATTR_REPLACE)
        assert os.getxattr(target, "user.one") == b"2" * 500
        os.removexattr(target, "user.one")
        with _fails(errno.ENODATA):
            os.getxattr(target, "user.one")
        with _fails(errno.ENODATA):
            os.setxattr(target, "user.one", b"", os.XATTR_REPLACE)
        with _fails(errno.ENODATA):
            os.removexattr(target, "user.one")


@_case(41)
def figures_of_the_file_system(root: Path) -> None:
    figures = os.statvfs(root)
    assert figures.f_namemax == 255
    assert 0 < figures.f_bavail <= figures.f_bfree <= figures.f_blocks
    assert 0 < figures.f_ffree < figures.f_files
    (root / "f").write_bytes(b"x" * (4 << 20))
    with _opened(root / "f", os.O_RDONLY) as fd:
        os.fsync(fd)
        assert os.fstatvfs(fd).f_blocks == figures.f_blocks
        assert os.fstat(fd).st_blocks * 512 >= 4 << 20


@_case(42)
def locks_between_processes(root: Path) -> None:
    with _opened(root / "f", os.O_RDWR | os.O_CREAT) as first, _opened(root / "f", os.O_RDWR) as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with _fails(errno.EWOULDBLOCK):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(first, fcntl.LOCK_UN)
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


@_case(43)
def write_clears_set_id_bits(root: Path) -> None:
    """For a writer without privileges; root (CAP_FSETID) keeps them, as on the kernel's own file systems."""
    path = root / "f"
    path.write_bytes(b"program")
    actions: list[Callable[[], object]] = [
        lambda: path.write_bytes(b"changed"),
        lambda: os.truncate(path, 3),
        lambda: _append(path, b"more"),
    ]
    for action in actions:
        os.chmod(path, 0o6755)
        action()
        mode = stat.S_IMODE(os.stat(path).st_mode)
        assert mode == 0o755 or os.geteuid() == 0, f"{mode:o} is left"


def _append(path: Path, data: bytes) -> None:
    with _opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, data)


@_case(44)
def permissions_are_checked(root: Path) -> None:
    path = root / "f"
    path.write_text("secret")
    (root / "d").mkdir()
    (root / "d" / "x").touch()
    os.chmod(path, 0o000)
    os.chmod(root / "d", 0o500)
    try:
        if os.geteuid() == 0:
            assert path.read_text() == "secret"
        else:
            with _fails(errno.EACCES):
                path.read_text()
            with _fails(errno.EACCES):
                (root / "d" / "x").unlink()
            with _fails(errno.EPERM):
                os.chown(path, 0, 0)
            assert not os.access(path, os.R_OK)
    finally:
        os.chmod(root / "d", 0o700)


# With privileges.


@_case(45, needs_root=True)
def device_nodes(root: Path) -> None:
    for name, kind, number in (
        ("c", stat.S_IFCHR, os.makedev(1, 3)),
        ("b", stat.S_IFBLK, os.makedev(8, 300)),
        ("big", stat.S_IFCHR, os.makedev(4000, 70_000)),
    ):
        os.mknod(root / name, kind | 0o600, number)
        status = os.lstat(root / name)
        assert (stat.S_IFMT(status.st_mode), status.st_rdev) == (kind, number)


@_case(46, needs_root=True)
def owners_change(root: Path) -> None:
    path = root / "f"
    path.touch()
    os.chmod(path, 0o6755)
    os.chown(path, 1234, 5678)
    status = os.stat(path)
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 5678, 0o755)
    os.chown(path, -1, 70_000)
    assert (os.stat(path).st_uid, os.stat(path).st_gid) == (1234, 70_000)
    os.symlink("f", root / "l")
    os.lchown(root / "l", 77, 78)
    assert (os.lstat(root / "l").st_uid, os.stat(path).st_uid) == (77, 1234)


@_case(47, needs_root=True)
def trusted_attributes_and_capabilities(root: Path) -> None:
    path = root / "f"
    path.write_text("x")
    os.setxattr(path, "trusted.overlay.opaque", b"y")
    assert os.listxattr(path) == ["trusted.overlay.opaque"]
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(path, "security.capability", capability)
    assert os.getxattr(path, "security.capability") == capability
    _append(path, b"y")
    with _fails(errno.ENODATA):
        os.getxattr(path, "security.capability")


def _acl(*entries: tuple[int, int, int]) -> bytes:
    """The attribute of an access control list of (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@_case(48, needs_root=True)
def access_control_lists(root: Path) -> None:
    """A user named in a list gets in; the mode follows the list, and the list the mode."""
    everyone, acl = 0xFFFFFFFF, _acl
    path = root / "f"
    path.write_text("secret")
    os.chmod(path, 0o600)
    os.chmod(root, 0o711)
    wanted = acl((1, 6, everyone), (2, 4, _OTHER_UID), (4, 0, everyone), (16, 4, everyone), (32, 0, everyone))
    os.setxattr(path, "system.posix_acl_access", wanted)
    assert os.getxattr(path, "system.posix_acl_access") == wanted
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640
    _as_other(root, lambda: Path("f").read_text() == "secret")
    os.chmod(path, 0o600)
    _as_other(root, lambda: not os.access("f", os.R_OK))
    os.removexattr(path, "system.posix_acl_access")
    assert os.listxattr(path) == []
    (root / "d").mkdir()
    default = acl((1, 7, everyone), (2, 7, _OTHER_UID), (4, 5, everyone), (16, 7, everyone), (32, 5, everyone))
    os.setxattr(root / "d", "system.posix_acl_default", default)
    (root / "d" / "sub").mkdir()
    (root / "d" / "f").touch()
    assert os.getxattr(root / "d" / "sub", "system.posix_acl_default") == default
    assert "system.posix_acl_access" in os.listxattr(root / "d" / "f")


@_case(49, needs_root=True)
def an_access_list_takes_setgid_away(root: Path) -> None:
    """Where its setter is outside the file's group and is not root."""
    everyone, foreign = 0xFFFFFFFF, 4711
    minimal = _acl((1, 7, everyone), (4, 5, everyone), (32, 5, everyone))
    named = _acl((1, 7, everyone), (2, 4, 1234), (4, 5, everyone), (16, 5, everyone), (32, 5, everyone))
    os.chmod(root, 0o755)

    def set_list(name: str, value: bytes) -> bool:
        os.setxattr(name, "system.posix_acl_access", value)
        return True

    for value in (minimal, named):
        for setter, gid, expected in (
            (os.getuid(), foreign, 0o2755),
            (_OTHER_UID, foreign, 0o755),
            (_OTHER_UID, _OTHER_UID, 0o2755),
        ):
            path = root / "f"
            path.touch()
            os.chown(path, _OTHER_UID, gid)
            os.chmod(path, 0o2755)
            if setter == _OTHER_UID:
                _as_other(root, lambda value=value: set_list("f", value))  # type: ignore[misc]
            else:
                set_list(os.fspath(path), value)
            assert stat.S_IMODE(os.stat(path).st_mode) == expected, (setter, gid)
            path.unlink()


@_case(50, needs_root=True)
def others_are_kept_out(root: Path) -> None:
    os.chmod(root, 0o755)
    (root / "secret").write_text("s")
    os.chmod(root / "secret", 0o600)
    (root / "public").write_text("p")

    def try_all() -> bool:
        for action in (Path("secret").read_text, Path("new").touch, Path("public").unlink):
            with _fails(errno.EACCES):
                action()
        with _fails(errno.EPERM):
            os.chmod("public", 0o777)
        return Path("public").read_text() == "p"

    _as_other(root, try_all)


@_case(51, needs_root=True)
def set_id_bits_go_with_who_writes(root: Path) -> None:
    """A process without CAP_FSETID takes them away; the set-group-id bit too, unless it means something else."""
    os.chmod(root, 0o755)

    def opened(flags: int, action: Callable[[int], object] = lambda fd: None) -> None:
        with _opened(Path("f"), os.O_WRONLY | flags) as fd:
            action(fd)

    actions: list[Callable[[], object]] = [
        lambda: opened(0, lambda fd: os.write(fd, b"x")),
        lambda: opened(os.O_APPEND, lambda fd: os.write(fd, b"x")),
        lambda: opened(0, lambda fd: os.pwrite(fd, b"x", 1 << 20)),
        lambda: opened(0, lambda fd: os.ftruncate(fd, 5)),
        lambda: opened(os.O_TRUNC),
        lambda: os.truncate("f", 7),
    ]

    def done(action: Callable[[], object]) -> bool:
        action()
        return True

    for number, action in enumerate(actions):
        for mode, others in ((0o6777, 0o777), (0o4767, 0o767), (0o2777, 0o777), (0o2767, 0o767), (0o767, 0o767)):
            path = root / "f"
            path.write_bytes(b"program")
            for run, left in ((_in_child, mode), (_as_other, others)):
                os.chmod(path, mode)
                for _ in range(2):
                    run(root, partial(done, action))
                    assert stat.S_IMODE(os.stat(path).st_mode) == left, (number, f"{mode:o}", run)
            path.unlink()


def _as_other(directory: Path, check: Callable[[], bool]) -> None:
    """Run a check in a child without privileges, in a directory whose parents it may not pass."""

    def without_privileges() -> bool:
        os.setgroups([])
        os.setgid(_OTHER_UID)
        os.setuid(_OTHER_UID)
        return check()

    _in_child(directory, without_privileges)


def _in_child(directory: Path, check: Callable[[], bool]) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.chdir(directory)
            assert check()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0, "refused to a user who may, or the reverse"


def applicable(*, is_root: bool) -> list[PosixCase]:
    return [case for case in CASES if is_root or not case.needs_root]


def main(words: Sequence[str]) -> int:
    if not words:
        sys.exit("usage: python -m tests.kit.posix DIR [ID...]")
    directory, *ids = words
    chosen = [case for case in applicable(is_root=os.geteuid() == 0) if not ids or case.id in ids]

    def on_path(case: PosixCase, path: str) -> None:
        case.run(Path(path))

    return run_cases({case.id: partial(on_path, case) for case in chosen}, directory, as_json=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
