"""What `umount` takes: a mount point, the name of a device, or all of the home; and what a refused mount advises."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from cowfs.errors import command_line
from tests.cli.conftest import Run
from tests.cli.mounted_home import SMALL, MountedHome, kill_and_wait

if TYPE_CHECKING:
    from tests.conftest import Account

pytestmark = pytest.mark.fuse


def test_a_device_is_unmounted_by_its_name(mounted: MountedHome) -> None:
    mounted.run("mount", "web", mounted.target)
    assert mounted.json("umount", "web") == {"unmounted": [str(mounted.target)]}
    assert not mounted.is_mounted(mounted.target)
    assert mounted.json("status")["holder_pid"] is None


def test_all_of_a_home_is_unmounted(mounted: MountedHome) -> None:
    mounted.run("mount", mounted.target)
    assert mounted.json("umount", "--all") == {"unmounted": [str(mounted.target)]}
    assert not mounted.is_mounted(mounted.target)
    assert mounted.json("umount", "--all") == {"unmounted": []}


def test_another_home_keeps_its_mounts(mounted: MountedHome) -> None:
    other = mounted.account.directory / "a home too"
    mounted.account.run(["cp", "-r", mounted.home, other])
    mounted.run("mount", "web", mounted.target)
    mounted.account.run(["cowfs", "--home", other, "mount", "web", mounted.other_target])
    mounted.account.run(["cowfs", "--home", other, "umount", "--all"])
    assert mounted.is_mounted(mounted.target)
    assert not mounted.is_mounted(mounted.other_target)
    mounted.run("umount", "web")


def test_a_mount_that_is_busy_does_not_keep_the_error_back(mounted: MountedHome) -> None:
    mounted.run("mount", "web", mounted.target)
    script = "cd 'mount point' && echo inside && exec sleep 1000"
    user = mounted.account.start(["sh", "-c", script], stdout=subprocess.PIPE)
    try:
        assert user.stdout is not None
        assert user.stdout.readline() == "inside\n"
        assert "files in it are in use" in mounted.refused(6, "umount", "--all")
        assert mounted.is_mounted(mounted.target)
    finally:
        user.kill()
        user.communicate()
    mounted.run("umount", "--all")


def test_a_copy_of_a_mount_stays_until_it_is_unmounted(root_user: Account, needs_fuse: None) -> None:
    """Only root can make one."""
    home = MountedHome(root_user)
    home.run("init", *SMALL)
    home.run("create", "web")
    try:
        holder = home.json("mount", "web", home.target)["holder_pid"]
        subprocess.run(["mount", "--bind", home.target, home.other_target], check=True)
        home.shell("echo kept > other/file")
        done = home.run("umount", home.target)
        unmount = command_line("cowfs", "umount", str(home.other_target))
        assert done.stderr.endswith(f"so its server stays; next: {unmount}\n")
        assert not home.is_mounted(home.target)
        assert home.shell("cat other/file") == "kept\n"
        assert home.json("status")["holder_pid"] == holder
        home.run("umount", home.other_target)
        assert home.json("status")["holder_pid"] is None
    finally:
        home.clear()
    home.judge()


def test_a_mount_point_comes_before_a_device_of_the_same_name(mounted: MountedHome) -> None:
    """In a directory with a mount point `web`, on which another device is, `umount web` means the mount point."""
    mounted.run("create", "data")
    point = mounted.account.mkdir("web")
    mounted.run("mount", "data", point)
    assert mounted.json("umount", "web") == {"unmounted": str(point)}
    # Not a mount point any more, so that the name is the device's.
    mounted.run("mount", "web", mounted.target)
    assert "not mounted" in mounted.refused(6, "umount", "./web")
    mounted.run("umount", "web")
    assert not mounted.is_mounted(mounted.target)


def test_a_device_that_is_shown_with_all_others_names_their_mount(mounted: MountedHome) -> None:
    mounted.run("mount", mounted.target)
    unmount = command_line("cowfs", "umount", str(mounted.target))
    assert f"to unmount all: {unmount}" in mounted.refused(6, "umount", "web")
    assert mounted.is_mounted(mounted.target)
    mounted.run("umount", mounted.target)


def test_the_mount_of_a_killed_server_is_found_by_name(mounted: MountedHome) -> None:
    kill_and_wait(mounted.json("mount", "web", mounted.target)["holder_pid"])
    mounted.run("umount", "web")
    assert not mounted.is_mounted(mounted.target)


def test_a_second_mount_is_refused_and_learns_how_all_are_seen(mounted: MountedHome) -> None:
    mounted.run("create", "data")
    mounted.run("mount", "web", mounted.target)
    line = mounted.refused(5, "mount", "data", mounted.other_target)
    unmount, _, mount = line.partition("; to see all devices in one mount, then run: ")
    assert unmount.endswith(f"first run: {command_line('cowfs', 'umount', str(mounted.target))}")
    assert mount == command_line("cowfs", "mount", str(mounted.other_target))
    mounted.run("umount", mounted.target)
    mounted.run("mount", mounted.other_target)
    assert mounted.shell("ls other").split() == ["data", "web"]
    mounted.run("umount", "--all")


@pytest.mark.parametrize(
    ("words", "status", "error"),
    [
        (["umount"], 2, "umount takes either MNT or NAME, or --all"),
        (["umount", "web", "--all"], 2, "umount takes either MNT or NAME, or --all"),
        (["umount", "web"], 6, "umount web: neither a mount point nor a device of the home that is mounted"),
        (["umount", "nope"], 6, "umount nope: neither a mount point nor a device of the home that is mounted"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_unmounted(cowfs: Run, words: list[str], status: int, error: str) -> None:
    outcome = cowfs(*words)
    assert (outcome.status, outcome.error) == (status, error)


def test_what_could_not_be_written_is_an_error_of_umount(mounted: MountedHome) -> None:
    """Nothing else tells: the server ends with the mount, and what programs wrote was accepted before."""
    mounted.run("mount", "web", mounted.target)
    mounted.shell("echo kept > 'mount point/synced'; sync 'mount point/synced'; echo lost > 'mount point/file'")
    mounted.run("faults", "add", "*", "error", "write", "--on", "data")
    line = mounted.refused(6, "umount", mounted.target)
    assert f"{mounted.target}: it is unmounted, and what was not synced may be lost: write of " in line
    assert "failed on the data device of pool" in line
    assert not mounted.is_mounted(mounted.target)
    mounted.run("mount", "web", mounted.target)
    assert mounted.shell("cat 'mount point/synced'") == "kept\n"
    mounted.run("umount", "web")
    mounted.judge()


def test_a_server_that_is_killed_while_it_unmounts_is_an_error_of_umount(mounted: MountedHome) -> None:
    mounted.run("mount", "web", mounted.target)
    mounted.shell("echo text > 'mount point/file'")
    mounted.run("faults", "add", "*", "crash", "write", "--on", "data")
    line = mounted.refused(6, "umount", "web")
    assert "what was not synced may be lost: its server was killed meanwhile" in line
    mounted.judge()
