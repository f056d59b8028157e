"""`Home.mount`: a mount for a block of Python, which ends with the process that made it, and `Home` through it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Account

pytestmark = pytest.mark.fuse

MAKE = """
import os, sys
import cowfs
from cowfs import errors
options = cowfs.HomeOptions(data_size_bytes=256 << 20, metadata_size_bytes=4 << 20, base_size_bytes=16 << 20)
home = cowfs.open_home("home", create=True, options=options, durable=False)
home.create("web")

def refused(kind, act):
    try:
        act()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind}")

def enter(**options):
    with home.mount(**options):
        raise AssertionError("mounted")
"""

STORY = """
with home.mount() as tree:
    assert tree.parent.stat().st_mode & 0o777 == 0o700
    (tree / "web" / "file").write_text("one")
    home.snapshot("web", "monday")  # through the server
    (tree / "web" / "file").write_text("two")
    assert (tree / "monday" / "file").read_text() == "one"
    assert sorted(os.listdir(tree)) == ["monday", "web"]
    assert home.status().views[0].mount_point == str(tree)
    assert home.check().clean
    layers = home.layers
    assert [row.name for row in home.devices()] == ["base", "monday", "web"]
    assert "needs the home" in refused(errors.HomeBusy, lambda: home.device("web").__enter__())
    assert f"use {tree}/web" in refused(errors.HomeBusy, lambda: enter(name="web"))
    still_open = open(tree / "web" / "open", "w")
    still_open.write("written")
    still_open.flush()
assert not tree.parent.exists()
assert home.holder_pid is None and home.status().views == []
assert list(layers.list()) == []
with home.device("web") as disk:  # the home is in this process again
    assert disk.size_bytes == 16 << 20

# One device, its disk, a directory that is given.
os.mkdir("mnt")
with home.mount("web", target="mnt") as tree:
    assert str(tree) == os.path.realpath("mnt")
    assert (tree / "file").read_text() == "two"
    assert (tree / "open").read_text() == "written"
    assert refused(errors.HomeBusy, lambda: enter(name="nope")).endswith("devices in one mount, mount without a name")
assert os.listdir("mnt") == []
with home.mount("web", raw=True, read_only=True) as tree:
    assert (tree / "web").stat().st_size == 16 << 20
    assert refused(OSError, lambda: open(tree / "web", "r+b"))
with home.mount("base") as tree:  # for reading only
    assert "Read-only" in refused(OSError, lambda: (tree / "file").touch())

# What is refused leaves the home as it was.
assert "no device 'nope'" in refused(errors.UnknownDevice, lambda: enter(name="nope"))
assert "raw is about one device" in refused(errors.UsageError, lambda: enter(raw=True))
os.makedirs("full/file")
assert "is not empty" in refused(errors.MountError, lambda: enter(target="full"))
with home.device("web"):
    assert "in use as a disk" in refused(errors.DeviceBusy, lambda: enter(name="web"))
assert home.snapshot("web", "tuesday").parent == "web"
assert [name for name in os.listdir(".") if name.startswith("cowfs-")] == []

# An error in the block is the block's; closing there is for good.
class Mine(Exception):
    pass

def fail():
    with home.mount() as tree:
        raise Mine("of the block")

assert refused(Mine, fail) == "of the block"
with home.mount():
    home.close()
home = cowfs.open_home("home", durable=False)

# A forked process leaves the mount alone.
with home.mount() as tree:
    pid = os.fork()
    if pid == 0:
        try:
            assert refused(errors.ForkedError, home.status)
            status = 0
        except BaseException:
            status = 1
            raise
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert (tree / "web" / "file").read_text() == "two"
    home.status()

# A server that was killed.
import signal
def kill():
    with home.mount():
        os.kill(home.holder_pid, signal.SIGKILL)
        assert "ended before" in refused(errors.HolderEnded, home.status)

assert "was killed by signal 9" in refused(errors.MountError, kill)
assert home.status().holder_pid is None
assert [name for name in os.listdir(".") if name.startswith("cowfs-")] == []
print("done")
"""

STAY = """
with home.mount() as tree:
    file = open(tree / "web" / "file", "w")
    file.write("written")
    file.flush()
    if os.fork() == 0:  # a child that lives on does not keep the mount
        sys.stdin.readline()
        os._exit(0)
    print(home.holder_pid, tree, flush=True)
    sys.stdin.readline()
"""


def test_a_mount_for_a_block(account: Account, needs_fuse: None) -> None:
    assert account.run([sys.executable, "-W", "error", "-c", MAKE + STORY]).stdout == "done\n"


def wait_for_end(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], 60)[0]
    finally:
        os.close(handle)


def test_the_mount_ends_with_the_process_that_is_killed(account: Account, needs_fuse: None) -> None:
    process = account.start(
        [sys.executable, "-c", MAKE + STAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout is not None
        server, _, tree = process.stdout.readline().rstrip("\n").partition(" ")
        os.kill(process.pid, signal.SIGKILL)
        wait_for_end(int(server))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert not Path(tree).parent.exists()
    read = 'import cowfs\nwith cowfs.open_home("home").mount("web") as tree: print((tree / "file").read_text())'
    assert account.run([sys.executable, "-c", read]).stdout == "written\n"


def test_until_exit_of_a_process(account: Account, needs_fuse: None) -> None:
    account.run([sys.executable, "-c", MAKE])
    target = account.mkdir("mnt")
    cowfs_home = ["cowfs", "--home", "home"]
    script = f"{' '.join(cowfs_home)} --json mount --until-exit-of $$ web mnt && echo written > mnt/file && kill -9 $$"
    killed = account.run(["sh", "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    (pid,) = [int(line.split(":")[1]) for line in killed.stdout.splitlines() if "holder_pid" in line]
    wait_for_end(pid)
    assert os.listdir(target) == []
    assert account.run([*cowfs_home, "--json", "status"]).stdout.count('"holder_pid": null')

    ended = subprocess.Popen(["true"])
    ended.wait()
    refused = account.run([*cowfs_home, "mount", "--until-exit-of", ended.pid, "web", "mnt"], check=False)
    assert (refused.returncode, refused.stderr) == (
        2,
        f"cowfs: there is no process {ended.pid}, with which a mount could end\n",
    )
