"""Another name for a device that is mounted alone, with its files or as a disk; as root and as an ordinary user."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.mounted_home import MountedHome

pytestmark = pytest.mark.fuse

# A program that has a directory as its working directory and a file in it open and mapped, and goes on with them when
# a line comes.
USER = """
import mmap, os, sys
os.chdir(sys.argv[1])
fd = os.open("file", os.O_RDWR)
mapped = mmap.mmap(fd, 8192)
mapped[4096:4101] = b"early"
print("ready", flush=True)
sys.stdin.readline()
mapped[:6] = b"mapped"
mapped.flush()
os.pwrite(fd, b"written", 8192)
os.fsync(fd)
open("new", "x").close()
print(mapped[4096:4101].decode(), os.getcwd(), *sorted(os.listdir(".")), flush=True)
sys.stdin.readline()
"""
NAMELESS = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.unlink(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
"""


@contextmanager
def running(home: MountedHome, code: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = home.account.start([sys.executable, "-c", code, path], **pipes)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def mounted_at(home: MountedHome) -> dict[str, list[str]]:
    return {row["name"]: row["mounted"] for row in home.json("list")}


def test_the_mount_goes_on_with_what_is_open_in_it(mounted: MountedHome) -> None:
    """The holder names the device anew, and other devices may have its former name, also in use."""
    home, target = mounted, mounted.target
    home.run("mount", "web", target)
    home.shell("cd 'mount point' && mkdir dir && head -c 8192 /dev/zero >dir/file && echo one >dir/other && ls -l dir")
    with running(home, USER, target / "dir") as user:
        assert user.stdin is not None
        assert user.stdout is not None
        home.run("rename", "web", "shop")
        user.stdin.write("go on\n")
        user.stdin.flush()
        assert user.stdout.readline() == f"early {target}/dir file new other\n"
        assert mounted_at(home) == {"base": [], "shop": [str(target)]}
        home.run("create", "web")
        home.run("snapshot", "shop", "monday")
        home.run("rename", "shop", "store")
        assert home.json("inspect", "monday")["parent"] == "store"
        (view,) = home.json("status")["views"]
        assert (view["device"], view["mount_point"]) == ("store", str(target))
        (use,) = home.json("inspect", "store")["uses"]
        assert (use["device"], use["kind"]) == ("store", "tree")
        assert "device 'store' is mounted at" in home.refused(5, "remove", "store")
        home.run("cp", "-r", "web:/lost+found", "store:/found")
        assert home.shell("cat 'mount point/dir/other'; ls 'mount point'") == "one\ndir\nfound\nlost+found\n"
    line = home.refused(5, "mount", "web", home.other_target)
    assert f"'store' of it mounted at {target}" in line
    assert "nor a device of the home that is mounted" in home.refused(6, "umount", "web")
    home.run("umount", "store")
    assert not home.is_mounted(target)
    home.run("mount", "--read-only", "monday", target)
    assert (
        home.shell("cd 'mount point/dir' && head -c 6 file && tail -c 7 file && ls")
        == "mappedwrittenfile\nnew\nother\n"
    )
    home.run("umount", "monday")
    home.judge()


def test_the_file_of_a_disk_has_the_new_name(mounted: MountedHome) -> None:
    home = mounted
    home.run("mount", "--raw", "web", home.target)
    assert home.shell("cd 'mount point' && ls && ! test -e shop") == "web\n"
    writer = "import os, sys; fd = os.open(sys.argv[1], os.O_RDWR); print('ready', flush=True); sys.stdin.readline(); "
    writer += "os.pwrite(fd, b'kept', 1 << 20); os.fsync(fd); print('done', flush=True); sys.stdin.readline()"
    with running(home, writer, home.target / "web") as user:
        assert user.stdin is not None
        assert user.stdout is not None
        home.run("rename", "web", "shop")
        user.stdin.write("go on\n")
        user.stdin.flush()
        assert user.stdout.readline() == "done\n"
        script = "cd 'mount point' && ls && ! test -e web && tail -c +1048577 shop | head -c 4"
        assert home.shell(script) == "shop\nkept"
    assert mounted_at(home)["shop"] == [str(home.target)]
    home.run("umount", "shop")


def test_a_renaming_that_would_lose_something_is_refused_and_the_mount_goes_on(mounted: MountedHome) -> None:
    home = mounted
    home.run("mount", "web", home.target)
    home.run("create", "data")
    home.shell("echo text >'mount point/file'; rm 'mount point/file'; echo other >'mount point/other'")
    assert "'data' exists already" in home.refused(5, "rename", "web", "data")
    with running(home, NAMELESS, home.target / "nameless"):
        line = home.refused(5, "rename", "web", "shop")
        assert "a file of device 'web' that has no name any more is open" in line
        assert home.shell("cat 'mount point/other'") == "other\n"
    home.run("remove", "--deferred", "web")
    assert "marked for deletion" in home.refused(5, "rename", "web", "shop")
    assert home.shell("cat 'mount point/other'") == "other\n"
    home.run("umount", home.target)
    assert set(mounted_at(home)) == {"base", "data"}
