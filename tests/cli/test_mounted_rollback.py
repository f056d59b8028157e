"""Rollback of devices that are mounted: with their home, alone, as a disk; as root and as an ordinary user."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.mounted_home import SMALL, MountedHome

if TYPE_CHECKING:
    from tests.conftest import Account

pytestmark = pytest.mark.fuse

# A program that has a directory as its working directory, files in it open and one mapped, and says what it still can
# do when a line comes.
USER = """
import errno, mmap, os, sys
os.chdir(sys.argv[1])
fd, nameless = os.open("file", os.O_RDWR), os.open("nameless", os.O_RDWR | os.O_CREAT)
os.unlink("nameless")
mapped = mmap.mmap(fd, 8192)
mapped[4096:4100] = b"late"
print("ready", flush=True)
sys.stdin.readline()

def outcome(act):
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

print(*map(outcome, [
    lambda: os.pread(fd, 4, 0),
    lambda: os.pwrite(fd, b"lost", 0),
    lambda: os.ftruncate(fd, 1),
    lambda: os.fsync(fd),
    lambda: os.fstat(fd),
    lambda: os.fchmod(fd, 0o600),
    lambda: os.getxattr(fd, "user.name"),
    lambda: os.pread(nameless, 1, 0),
    lambda: os.listdir("."),
    lambda: os.stat("file"),
    lambda: os.mkdir("new"),
    lambda: os.open("file", os.O_RDONLY),
    lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDONLY),
]), flush=True)
sys.stdin.readline()
"""
ACTS = 13
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


class Mount:
    """A mount that shows the device web below `root`."""

    def __init__(self, home: MountedHome, root: Path) -> None:
        self.home = home
        self.root = root

    def sh(self, script: str) -> str:
        return self.home.account.run(["sh", "-ec", f'cd "$0" && {script}', self.root]).stdout

    def fill(self) -> None:
        """What the snapshot monday holds, then what web holds."""
        self.sh("echo one >file; mkdir dir dir/deep; head -c 8192 /dev/zero >dir/file; echo x >dir/deep/x")
        self.sh("ln -s file link")
        self.home.run("snapshot", "web", "monday")
        self.sh("echo other >file; rm -r dir/deep link; mkdir link; echo new >new; ! test -e dir/deep; ls -l dir link")

    def is_monday(self) -> bool:
        return self.sh(
            "cat file link dir/deep/x; ! test -e new; ls; ls dir; test -h link; stat -c %s file; echo >>file"
        ) == ("one\none\nx\ndir\nfile\nlink\nlost+found\ndeep\nfile\n4\n")

    def is_as_before(self) -> bool:
        return self.sh("cat file new; ls; test -d link; ! test -e dir/deep") == (
            "other\nnew\ndir\nfile\nlink\nlost+found\nnew\n"
        )

    @contextmanager
    def used(self, directory: str = "dir") -> Iterator[subprocess.Popen[str]]:
        process = self.home.account.start([sys.executable, "-c", USER, self.root / directory], **PIPES)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(params=["home", "alone"])
def mount(mounted: MountedHome, request: pytest.FixtureRequest) -> Iterator[Mount]:
    """The device web, mounted with its home or alone."""
    if request.param == "home":
        mounted.run("mount", mounted.target)
        yield Mount(mounted, mounted.target / "web")
    else:
        mounted.run("mount", "web", mounted.target)
        yield Mount(mounted, mounted.target)
    if mounted.is_mounted(mounted.target):
        mounted.run("umount", mounted.target)
    mounted.judge()


def test_a_mount_shows_the_contents_at_once(mount: Mount) -> None:
    """Also those that the kernel had cached, names that were missing included; and again, and of another size."""
    home = mount.home
    mount.fill()
    assert mount.is_as_before()
    assert home.run("rollback", "web", "monday", "--keep", "tuesday").stdout == (
        "rolled web back to monday; what it held is in tuesday\n"
    )
    assert mount.is_monday()
    assert home.json("rollback", "web", "tuesday")["is_related"]
    assert mount.is_as_before()
    home.run("create", "big", "--size", "128M")
    before = os.statvfs(mount.root).f_blocks if os.geteuid() == home.account.uid else 0
    home.run("rollback", "web", "big")
    assert mount.sh("ls; ! test -e file; echo big >file; cat file") == "lost+found\nbig\n"
    if before:
        assert os.statvfs(mount.root).f_blocks > 1.5 * before
    home.run("rollback", "web", "monday")
    assert mount.is_monday()
    rows = {row["name"]: row["parent"] for row in home.json("list")}
    assert rows == {"base": None, "big": "base", "monday": "web", "tuesday": "web", "web": "base"}
    home.run("umount", home.target)
    home.run("mount", "web", home.target)
    assert home.shell("cat 'mount point/file'") == "one\n\n"


def test_a_device_without_a_file_system_can_be_rolled_back_again(mount: Mount) -> None:
    home = mount.home
    mount.fill()
    home.run("create", "zeros", "--size", "65M")
    home.run("umount", home.target)
    home.run("mount", "--raw", "zeros", home.target)
    home.shell("dd if=/dev/zero of='mount point/zeros' bs=64k count=1 conv=notrunc 2>/dev/null")
    home.run("umount", home.target)
    is_alone = mount.root == home.target
    home.run("mount", *(["web"] if is_alone else []), home.target)
    if is_alone:
        line = home.refused(7, "rollback", "web", "zeros", "--keep", "tuesday")
        assert f"'web' is rolled back, and its mount at {home.target} can show nothing: device 'web': no ext4" in line
        assert "roll it back to another device, or unmount it" in line
    else:
        home.run("rollback", "web", "zeros", "--keep", "tuesday")
    mount.home.account.run(["ls", mount.root], check=False)
    assert {row["name"]: row["size_bytes"] for row in home.json("list")}["web"] == 65 << 20
    home.run("rollback", "web", "tuesday")
    assert mount.is_as_before()
    home.run("remove", "zeros")


def test_what_is_in_use_is_named_and_left_alone(mount: Mount) -> None:
    mount.fill()
    with mount.used() as process:
        words = ("rollback", "web", "monday", "--keep", "tuesday")
        refused = mount.home.run(*words, cwd=mount.root / "dir", check=False)  # the command itself is not named
        assert refused.returncode == 5
        by_whom = rf"device 'web' is in use at {mount.root} by python\S* \({process.pid}\); end that, or detach"
        assert re.search(by_whom, refused.stderr)
        assert mount.is_as_before()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        outcomes = process.stdout.readline().split()
        assert outcomes.count("ESTALE") == 0
        assert outcomes.count("done") == ACTS - 1  # there is no such attribute
    assert "tuesday" not in [row["name"] for row in mount.home.json("list")]
    mount.home.run("rollback", "web", "monday", cwd=mount.root / "dir")
    assert mount.is_monday()


def test_what_is_open_is_detached_by_force(mount: Mount) -> None:
    """Nothing of it reaches the new contents; what was written before is in the device that is kept."""
    home = mount.home
    mount.fill()
    with mount.used() as process:
        assert home.refused(2, "rollback", "web", "web", "--force")
        assert home.refused(5, "rollback", "web", "nope", "--force")
        assert mount.is_as_before()
        home.run("rollback", "web", "monday", "--keep", "tuesday", "--force")
        assert mount.is_monday()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline().split() == ["ESTALE"] * ACTS
        assert mount.sh("od -An -c -N4 dir/file; stat -c %s dir/file; ls -A dir") == (
            "  \\0  \\0  \\0  \\0\n8192\ndeep\nfile\n"
        )
        home.run("rollback", "web", "tuesday")  # what is detached is no user any more
        assert mount.sh("cat file; dd if=dir/file bs=4 skip=1024 count=1 2>/dev/null") == "other\nlate"
    home.run("umount", home.target)


# In a separate mount namespace, which no other one is a copy of.
BIND = 'mount --bind "$0" "$1"; echo ready; read -r _; touch "$1/file"; umount "$1"; echo gone; read -r _'


def test_what_is_mounted_in_a_device_keeps_it(root_user: Account, needs_fuse: None) -> None:
    home = MountedHome(root_user)
    home.run("init", *SMALL)
    home.run("create", "web")
    for names, root in (([], home.target / "web"), (["web"], home.target)):
        home.run("mount", *names, home.target)
        try:
            home.account.run(["mkdir", "-p", root / "dir"])
            command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", BIND, root / "dir"]
            with home.account.start([*command, home.other_target], **PIPES) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                line = home.refused(5, "rollback", "web", "base")
                assert f"device 'web' is in use at {root} by something mounted or attached there" in line
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline() == "gone\n"
                assert os.listdir(root / "dir") == ["file"]
                home.run("rollback", "web", "base")
                process.kill()
            assert os.listdir(root) == ["lost+found"]
        finally:
            home.clear()
    home.judge()


def test_a_disk_that_is_mounted(mounted: MountedHome) -> None:
    home, disk = mounted, mounted.target / "web"
    write = "printf %s >disk; dd if=disk of='mount point/web' bs=4k seek=100 conv=notrunc 2>/dev/null"
    read = "dd if='mount point/web' bs=4k skip=100 count=1 2>/dev/null | tr -d '\\0'"
    home.run("mount", "--raw", "web", home.target)
    home.shell(write % "one")
    home.run("snapshot", "web", "monday")
    home.shell(write % "two")
    home.run("create", "big", "--size", "128M")
    with home.account.start([sys.executable, "-c", USER_OF_DISK, disk], **PIPES) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert f"({process.pid})" in home.refused(5, "rollback", "web", "monday")
        assert home.shell(read) == "two"
        home.run("rollback", "web", "monday", "--force")
        assert home.shell(read) == "one"
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline().split() == ["ESTALE"] * 4
        assert home.shell(read) == "one"
        home.run("rollback", "web", "big")
        assert home.shell("stat -c %s 'mount point/web'") == f"{128 << 20}\n"
        home.run("rollback", "web", "monday")
        assert home.shell("stat -c %s 'mount point/web'; " + read) == f"{64 << 20}\none"
        process.kill()
    home.run("umount", home.target)


USER_OF_DISK = """
import errno, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
print("ready", flush=True)
sys.stdin.readline()

def outcome(act):
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

print(*map(outcome, [
    lambda: os.pread(fd, 4, 409600),
    lambda: os.pwrite(fd, b"lost", 409600),
    lambda: os.fsync(fd),
    lambda: os.fstat(fd),
]), flush=True)
sys.stdin.readline()
"""
