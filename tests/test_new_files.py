"""Files that a user has named: whole or not there, with the mode and in the place that a shell would give them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowfs.errors import UsageError
from cowfs.new_files import new_directory, new_file, open_growing, require_free

Writing = Callable[..., None]


@pytest.fixture(params=[0o022, 0o027, 0o002], ids=["022", "027", "002"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def write(path: Path | str, data: bytes = b"new", *, force: bool = True) -> None:
    with new_file(os.fspath(path), force=force) as file:
        file.write(data)


def write_growing(path: Path | str, data: bytes = b"new", *, force: bool = True) -> None:
    fd = open_growing(os.fspath(path), force=force)
    os.write(fd, data)
    os.close(fd)


WAYS = pytest.mark.parametrize("write", [write, write_growing], ids=["whole", "growing"])


@WAYS
def test_a_new_file_has_the_mode_of_the_umask(tmp_path: Path, umask: int, write: Writing) -> None:
    write(tmp_path / "new", force=False)
    assert mode(tmp_path / "new") == 0o666 & ~umask
    with new_directory(os.fspath(tmp_path / "directory")):
        pass
    assert mode(tmp_path / "directory") == 0o777 & ~umask


def test_what_is_private_has_not(tmp_path: Path, umask: int) -> None:
    (tmp_path / "old").touch(0o644)
    for name in ("new", "old"):
        with new_file(os.fspath(tmp_path / name), force=True, is_private=True):
            pass
        assert mode(tmp_path / name) == 0o600
    with new_directory(os.fspath(tmp_path / "directory"), is_private=True):
        pass
    assert mode(tmp_path / "directory") == 0o700


@WAYS
def test_a_file_that_is_replaced_keeps_its_mode_and_owner(tmp_path: Path, write: Writing) -> None:
    path = tmp_path / "old"
    path.write_bytes(b"a longer text")
    path.chmod(0o640)
    owner = (4711, 4712) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(path, *owner)
    write(path)
    assert (path.read_bytes(), mode(path)) == (b"new", 0o640)
    assert (path.stat().st_uid, path.stat().st_gid) == owner


@WAYS
def test_a_symbolic_link_stays(tmp_path: Path, write: Writing) -> None:
    (tmp_path / "directory").mkdir()
    link = tmp_path / "link"
    link.symlink_to("directory/target")
    for data in (b"made", b"replaced"):
        write(link, data)
        assert link.is_symlink()
        assert (tmp_path / "directory" / "target").read_bytes() == data
    assert os.listdir(tmp_path / "directory") == ["target"]
    with pytest.raises(UsageError, match="link exists; name another file"):
        write(link, force=False)


@WAYS
@pytest.mark.parametrize("force", [True, False])
def test_a_device_stays_one(tmp_path: Path, write: Writing, force: bool) -> None:
    before = os.stat(os.devnull)
    write(os.devnull, force=force)
    (tmp_path / "link").symlink_to(os.devnull)
    write(tmp_path / "link", force=force)
    assert os.stat(os.devnull).st_rdev == before.st_rdev
    assert os.stat(os.devnull).st_ino == before.st_ino


@WAYS
def test_a_pipe_is_written_to(tmp_path: Path, write: Writing) -> None:
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write(tmp_path / "pipe", force=False)
    reader.join()
    assert found == [b"new"]
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
@pytest.mark.parametrize("way", ["new_file", "open_growing"])
@pytest.mark.parametrize("to", ["a pipe", "a file"])
def test_standard_output_is_written_to(tmp_path: Path, path: str, way: str, to: str) -> None:
    """In the place of the output where the program is, and what the program prints is kept."""
    (tmp_path / "link").symlink_to("/dev/stdout")
    program = (
        "import os, sys\nfrom cowfs.new_files import new_file, open_growing\nprint('before')\n"
        "if sys.argv[2] == 'new_file':\n    with new_file(sys.argv[1]) as file: file.write(b'the file\\n')\n"
        "else:\n    fd = open_growing(sys.argv[1]); os.write(fd, b'the file\\n'); os.close(fd)\n"
        "print('after')"
    )
    command = [sys.executable, "-c", program, path, way]
    expected = b"before\nthe file\nafter\n"
    if to == "a pipe":
        assert subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, check=True).stdout == expected
        return
    with (tmp_path / "out").open("wb") as out:
        subprocess.run(command, cwd=tmp_path, stdout=out, check=True)
    assert (tmp_path / "out").read_bytes() == expected
    assert sorted(os.listdir(tmp_path)) == ["link", "out"]


@pytest.mark.parametrize("force", [True, False])
def test_what_fails_leaves_the_name_as_it_was(tmp_path: Path, force: bool) -> None:
    path = tmp_path / "file"
    if force:
        path.write_bytes(b"old")

    def fail() -> None:
        with new_file(os.fspath(path), force=force) as file:
            file.write(b"half")
            file.flush()
            assert not force or path.read_bytes() == b"old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    left = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    assert left == ({"file": b"old"} if force else {})


def test_a_name_that_is_taken_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with (
        pytest.raises(UsageError, match="file exists; name another file, or ask"),
        new_file(os.fspath(path), hint=", or ask"),
    ):
        path.write_bytes(b"of another")
    assert path.read_bytes() == b"of another"
    assert os.listdir(tmp_path) == ["file"]


@WAYS
def test_what_cannot_be_a_file_is_refused(tmp_path: Path, write: Writing) -> None:
    with pytest.raises(UsageError, match="is a directory; name a file"):
        write(tmp_path)
    with pytest.raises(UsageError, match="is a directory; name a file"):
        require_free(os.fspath(tmp_path), force=True)
    if os.geteuid() == 0:
        os.mknod(tmp_path / "disk", 0o60600, os.makedev(7, 250))
        with pytest.raises(UsageError, match="disk is a block device; name a file"):
            write(tmp_path / "disk")
    with (
        pytest.raises(UsageError, match="/dev/null exists and is not a regular file"),
        new_file(os.devnull, only_regular=True),
    ):
        pass


def test_what_is_taken_is_known_before(tmp_path: Path) -> None:
    path = os.fspath(tmp_path / "file")
    require_free(path)
    require_free(os.devnull)
    Path(path).touch()
    require_free(path, force=True)
    with pytest.raises(UsageError, match="exists; name another file, or ask"):
        require_free(path, hint=", or ask")
