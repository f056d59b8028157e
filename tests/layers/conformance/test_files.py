"""The three ways of reaching files do the same."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowfs.blockdev import FileDevice
from cowfs.ext4.tools.mkfs import make_filesystem
from cowfs.ext4.volume import Volume
from cowfs.filetree import ROOT_INODE
from cowfs.layers import LayerRoot
from cowfs.testing.layers import DirectoryFiles, FileProcess, Files, TreeFiles
from cowfs.testing.layers.rules import fill_richly


@pytest.fixture(params=["directory", "process", "tree"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Files]:
    root = tmp_path / "root"
    root.mkdir()
    if request.param == "directory":
        yield DirectoryFiles(str(root))
    elif request.param == "process":
        process = FileProcess()
        yield process.files(str(root))
        process.close()
        process.close()
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(32 << 20)
        device = FileDevice(image)
        make_filesystem(device)
        volume = Volume.open(device)
        yield TreeFiles(LayerRoot(volume, ROOT_INODE))
        volume.close()
        device.close()


def test_all_of_it(files: Files, tmp_path: Path) -> None:
    try:
        fill_richly(files)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip("the file system of the temporary directory has no user attributes")
    files.rename("sparse", "dir/sparse")
    found = files.tree()
    assert len(found) == 26
    assert found["dir/plain"].mtime_ns == 1_234_567_890_123_456_789
    assert found["dir/plain"].xattrs == {"user.key": b"\x00value\xff"}
    assert [found[path].link for path in ("dir/harder", "dir/plain", "hard")] == ["dir/harder"] * 3
    assert found["link"].content == "dir/../dir/plain"
    assert found["dir/sparse"].size_bytes == 3_000_003
    assert stat.S_ISFIFO(found["fifo"].mode)
    assert stat.S_IMODE(found["dir/setuid"].mode) == 0o4711
    assert (found["empty"].uid, found["empty"].gid) == (os.geteuid(), os.getegid())
    assert files.read("dir/sparse")[-4:] == b"\x00end"
    assert files.entry("dir/harder").content == found["dir/plain"].content
    files.remove("dir")
    files.remove("dangling")
    assert files.list() == sorted(set(files.list()) - {"dir", "dangling"})
    assert not [path for path in files.tree() if path.startswith("dir")]


def test_errors(files: Files) -> None:
    with pytest.raises(FileNotFoundError):
        files.read("nothing")
    files.make_directory("dir")
    with pytest.raises(FileExistsError):
        files.make_directory("dir")
    assert files.list() == ["dir"]


def test_a_process_that_has_ended(tmp_path: Path) -> None:
    process = FileProcess()
    files = process.files(str(tmp_path))
    assert files.list() == []
    process._process.kill()
    process._process.wait()
    with pytest.raises((AssertionError, BrokenPipeError)):
        files.list()
    with pytest.raises(BrokenPipeError):
        files.list()
